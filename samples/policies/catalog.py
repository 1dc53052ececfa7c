"""All tasks by name, and the policies that are no bundle: the expert, and one that knows nothing."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

import fetch
import pendulum
import reacher
import two_targets
from edge_sdk.control.policy import Policy, PolicyConfig
from edge_sdk.control.robot import FloatArray
from tasks import Env, Task, instruction_of

TASKS: Mapping[str, Task] = {
    task.name: task
    for module in (pendulum, reacher, fetch, two_targets)
    for task in (module.task(hidden=False), module.task(hidden=True))
}
EXPERT, RANDOM = "expert", "random"


class ExpertPolicy:
    """A task's expert as a policy, one action at a time; it sees the environment itself, hidden velocities included."""

    def __init__(self, task: Task, env: Env) -> None:
        self.config: PolicyConfig = task.config()
        self._task, self._env = task, env

    def reset(self) -> None:
        """It remembers nothing."""

    def infer(self, observation: Mapping[str, np.ndarray], committed: FloatArray | None) -> FloatArray:
        """(1, action_dim)"""
        return self._task.expert(self._env)[None].astype(np.float32)

    def snapshot(self) -> None:
        """It remembers nothing."""

    def restore(self, snapshot: Any) -> None:
        """It remembers nothing."""


class RandomPolicy(ExpertPolicy):
    """Actions out of the blue: what a task is worth without any skill."""

    def __init__(self, task: Task, env: Env) -> None:
        super().__init__(task, env)
        self._random = np.random.default_rng(0)

    def infer(self, observation: Mapping[str, np.ndarray], committed: FloatArray | None) -> FloatArray:
        """(1, action_dim)"""
        return self._random.uniform(-1, 1, (1, self.config.action_dim)).astype(np.float32)


def load(name: str, task: Task, env: Env) -> Policy:
    """``expert``, ``random`` or the policy of a bundle."""
    if name in (EXPERT, RANDOM):
        return {EXPERT: ExpertPolicy, RANDOM: RandomPolicy}[name](task, env)
    from edge_sdk.control.model_policy import load_policy

    return load_policy(Path(name))


def tell(policy: Policy, env: Env) -> None:
    """Tells a policy that reads instructions what the environment's episode asks for."""
    if instruction := instruction_of(env):
        instructed: Any = policy
        if hasattr(instructed, "instruct"):
            instructed.instruct(instruction)
