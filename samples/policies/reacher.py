"""Reacher-v5: a planar arm of two links reaches a point; the expert knows its kinematics."""

from __future__ import annotations

from functools import partial
from typing import Any

import gymnasium
import numpy as np
from numpy.typing import NDArray

from edge_sdk.control.gym_robot import Episode as Outcome
from tasks import Element, Env, Task

UPPER_M, LOWER_M = 0.1, 0.11
"""Lengths of the links."""
STIFFNESS, DAMPING = 0.4, 0.08
"""Of the expert, per rad and per rad/s, in parts of the largest torque."""
CLOSE_M = 0.02

ELEMENTS = (
    *(Element("1"),) * 4,
    *(Element("m"),) * 2,
    *(Element("rad/s", True),) * 2,
    *(Element("m"),) * 2,
)
JOINTS = ("joint0", "joint1")
TORQUE = "200 N m"


def expert(env: Env) -> NDArray[np.float64]:
    """A spring and a damper towards the angles at which the fingertip is at the target."""
    data = simulation(env).data
    error = joint_angles(data.qpos[2:4]) - data.qpos[:2]
    error[0] = (error[0] + np.pi) % (2 * np.pi) - np.pi
    action: NDArray[np.float64] = np.clip(STIFFNESS * error - DAMPING * data.qvel[:2], -1.0, 1.0)
    return action


def joint_angles(target: NDArray[np.float64]) -> NDArray[np.float64]:
    """(2,) rad for a fingertip at (2,) m, or as near to it as the arm can.

    Of the two solutions the one that turns the shoulder less from straight ahead, where episodes begin.
    """
    x, y = target
    reach = np.clip(np.hypot(x, y), LOWER_M - UPPER_M, UPPER_M + LOWER_M)
    cosine = (reach**2 - UPPER_M**2 - LOWER_M**2) / (2 * UPPER_M * LOWER_M)
    direction = np.arctan2(y, x)
    elbow = np.sign(direction or 1.0) * np.arccos(np.clip(cosine, -1.0, 1.0))
    shoulder = direction - np.arctan2(LOWER_M * np.sin(elbow), UPPER_M + LOWER_M * np.cos(elbow))
    return np.array([shoulder, elbow])


def simulation(env: Env) -> Any:
    """gymnasium's environment inside all wrappers."""
    return env.unwrapped


def distance_m(env: Env) -> float:
    """From the fingertip to the target."""
    arm = simulation(env)
    return float(np.linalg.norm((arm.get_body_com("fingertip") - arm.get_body_com("target"))[:2]))


def succeeded(env: Env, outcome: Outcome) -> bool:
    """Whether the fingertip ended close to the target."""
    return distance_m(env) < CLOSE_M


def task(*, hidden: bool) -> Task:
    """The task."""
    return Task(
        name="reacher-hidden" if hidden else "reacher",
        make=partial(gymnasium.make, "Reacher-v5"),
        elements=ELEMENTS,
        joints=JOINTS,
        action_unit=TORQUE,
        rate_hz=50.0,
        expert=expert,
        noise=0.1,
        steps=50,
        succeeded=succeeded,
        budget_ms=10.0,
        hidden=hidden,
    )
