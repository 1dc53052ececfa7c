"""What every task has: an environment, what a policy sees and does in it, an expert, and when an episode succeeded."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import gymnasium
import numpy as np
from numpy.typing import NDArray

from edge_sdk.control.gym_robot import Episode as Outcome
from edge_sdk.control.policy import ActionDim, ActionSpec, ObservationSpec, PolicyConfig

Env = gymnasium.Env[Any, Any]
Expert = Callable[[Env], NDArray[np.float64]]
"""The action (action_dim,) for the state that an environment is in; it may look at what a policy does not see."""

STATE = "state"


@dataclass(frozen=True)
class Element:
    """One number of an observation."""

    unit: str
    is_velocity: bool = False
    """Whether it is hidden where velocities are: a speed, or what tells one."""


@dataclass(frozen=True)
class Task:
    """One task, with or without velocities."""

    name: str
    make: Callable[..., Env]
    """``make(**settings)`` of gymnasium; its observations are a Box."""
    elements: tuple[Element, ...]
    """Of that Box."""
    joints: tuple[str, ...]
    action_unit: str
    rate_hz: float
    expert: Expert
    noise: float
    """Standard deviation of what is added to the expert's actions while episodes are collected, in their unit."""
    steps: int
    """Of an episode that is collected, at most."""
    succeeded: Callable[[Env, Outcome], bool]
    chunk_length: int = 8
    budget_ms: float = 20.0
    hidden: bool = False
    """Whether the policy sees no velocities."""

    def env(self, **settings: Any) -> Env:
        """The environment, whose observations are what a policy sees."""
        env = self.make(**settings)
        return Selected(env, self.seen()) if self.hidden else env

    def seen(self) -> tuple[int, ...]:
        """Which elements of the observation a policy sees."""
        return tuple(index for index, element in enumerate(self.elements) if not (self.hidden and element.is_velocity))

    def config(self) -> PolicyConfig:
        """The schema; its statistics come with the data."""
        units = tuple(self.elements[index].unit for index in self.seen())
        dims = (ActionDim(name=joint, unit=self.action_unit, lower=-1.0, upper=1.0) for joint in self.joints)
        return PolicyConfig(
            observations=(ObservationSpec(name=STATE, shape=(len(units),), units=units),),
            action=ActionSpec(dims=tuple(dims), rate_hz=self.rate_hz),
            chunk_length=self.chunk_length,
            budget_ms=self.budget_ms,
        )


class Selected(gymnasium.ObservationWrapper[Any, Any, Any]):
    """Some elements of an environment's observation."""

    def __init__(self, env: Env, indices: Sequence[int]) -> None:
        super().__init__(env)
        assert isinstance(env.observation_space, gymnasium.spaces.Box)
        self._indices = list(indices)
        space = env.observation_space
        self.observation_space = gymnasium.spaces.Box(
            space.low[self._indices], space.high[self._indices], dtype=np.float64
        )

    def observation(self, observation: Any) -> Any:
        """Those elements."""
        return observation[self._indices]


def instruction_of(env: Env) -> str:
    """What the episode asks for in words; nothing in most tasks."""
    return str(env.get_wrapper_attr("instruction")) if env.has_wrapper_attr("instruction") else ""
