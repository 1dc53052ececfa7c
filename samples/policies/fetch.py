"""FetchReach-v4 of gymnasium-robotics: the gripper of a Fetch arm reaches a point; the expert goes straight there."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
from numpy.typing import NDArray

from edge_sdk.control.gym_robot import Episode as Outcome
from tasks import Element, Env, Task

GAIN_PER_M = 20.0
"""An action of 1 asks for 0.05 m in a step."""
CLOSE_M = 0.05
"""As in the environment's own is_success."""


def expert(env: Env) -> NDArray[np.float64]:
    """In proportion to what is left of the way; the fingers stay."""
    gripper, goal = _gripper_and_goal(env)
    return np.append(np.clip(GAIN_PER_M * (goal - gripper), -1.0, 1.0), 0.0)


def _gripper_and_goal(env: Env) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    arm: Any = env.unwrapped
    return arm._get_obs()["achieved_goal"], arm.goal


def succeeded(env: Env, outcome: Outcome) -> bool:
    """Whether the gripper ended close to the goal."""
    gripper, goal = _gripper_and_goal(env)
    return bool(np.linalg.norm(goal - gripper) < CLOSE_M)


def make(**settings: Any) -> Env:
    """Observations are the robot's ten numbers and the goal's three; where the gripper is, is among the former."""
    import gymnasium_robotics

    gymnasium.register_envs(gymnasium_robotics)
    env = gymnasium.make("FetchReach-v4", **settings)
    return gymnasium.wrappers.FlattenObservation(
        gymnasium.wrappers.FilterObservation(env, ["desired_goal", "observation"])
    )


def task(*, hidden: bool) -> Task:
    """The task."""
    fingers, speeds = (Element("m"),) * 2, (Element("m/s", True),) * 5
    return Task(
        name="fetch-hidden" if hidden else "fetch",
        make=make,
        # FlattenObservation has the entries in the order of their names
        elements=(*(Element("m"),) * 3, *(Element("m"),) * 3, *fingers, *speeds),
        joints=("x", "y", "z", "fingers"),
        action_unit="0.05 m",
        rate_hz=25.0,
        expert=expert,
        noise=0.2,
        steps=50,
        succeeded=succeeded,
        chunk_length=1,  # what disturbances ask for later is not known yet
        hidden=hidden,
    )
