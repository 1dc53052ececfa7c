"""InvertedDoublePendulum-v5: a cart keeps two poles upright; the expert is a linear-quadratic regulator."""

from __future__ import annotations

from functools import lru_cache, partial
from typing import Any

import gymnasium
import mujoco
import numpy as np
from numpy.typing import NDArray

from edge_sdk.control.gym_robot import Episode as Outcome
from tasks import Element, Env, Task

STEP = 1e-5
"""Of the numerical derivatives, in the state's units."""
STATE_COST = np.diag([1.0, 10.0, 10.0, 0.1, 0.1, 0.1])
"""Of position (m), both angles (rad) and their speeds."""
ACTION_COST = np.diag([1.0])


def expert(env: Env) -> NDArray[np.float64]:
    """-K x about the upright rest; x is qpos and qvel, (6,)."""
    simulation: Any = env.unwrapped
    state = np.concatenate([simulation.data.qpos, simulation.data.qvel])
    action: NDArray[np.float64] = np.clip(-gain(simulation.model, simulation.frame_skip) @ state, -1.0, 1.0)
    return action


@lru_cache(1)
def gain(model: mujoco.MjModel, frame_skip: int) -> NDArray[np.float64]:
    """(1, 6): the feedback that is optimal for the pendulum linearised about its upright rest.

    Iterates the discrete Riccati equation (Anderson and Moore, Optimal Control, 1990, section 2.4).
    """
    a, b = linearize(model, frame_skip)
    cost = STATE_COST
    while True:
        feedback = np.linalg.solve(ACTION_COST + b.T @ cost @ b, b.T @ cost @ a)
        following = STATE_COST + a.T @ cost @ (a - b @ feedback)
        if np.allclose(following, cost, rtol=1e-10):
            return feedback
        cost = following


def linearize(model: mujoco.MjModel, frame_skip: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """A (6, 6) and B (6, 1) of one step of the environment, by central differences through the simulator."""
    data = mujoco.MjData(model)

    def step(state: NDArray[np.float64], action: float) -> NDArray[np.float64]:
        mujoco.mj_resetData(model, data)
        data.qpos[:], data.qvel[:], data.ctrl[:] = state[:3], state[3:], action
        mujoco.mj_step(model, data, nstep=frame_skip)
        return np.concatenate([data.qpos, data.qvel])

    rest = np.zeros(6)
    shifts = STEP * np.eye(6)
    a = np.stack([step(shift, 0.0) - step(-shift, 0.0) for shift in shifts], axis=1) / (2 * STEP)
    b = (step(rest, STEP) - step(rest, -STEP))[:, None] / (2 * STEP)
    return a, b


def succeeded(env: Env, outcome: Outcome) -> bool:
    """Whether it stood to the end."""
    return not outcome.terminated


def task(*, hidden: bool) -> Task:
    """The task; what tells velocities is the observation's last four numbers."""
    sine_and_cosine = (Element("1"),) * 4
    speeds = (Element("m/s", True), Element("rad/s", True), Element("rad/s", True), Element("N", True))
    return Task(
        name="pendulum-hidden" if hidden else "pendulum",
        make=partial(gymnasium.make, "InvertedDoublePendulum-v5"),
        elements=(Element("m"), *sine_and_cosine, *speeds),
        joints=("slider",),
        action_unit="500 N",
        rate_hz=20.0,
        expert=expert,
        noise=0.1,
        steps=100,
        succeeded=succeeded,
        chunk_length=1,  # what disturbances ask for later is not known yet
        hidden=hidden,
    )
