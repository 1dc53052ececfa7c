"""Any gymnasium environment with continuous actions as a robot; gymnasium is imported by whoever makes one."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np

from edge_sdk.control.policy import ActionDim, ActionSpec, ObservationSpec, PolicyConfig
from edge_sdk.control.robot import TIME_KEY, FloatArray
from edge_sdk.errors import ConfigError, explain

if TYPE_CHECKING:
    import gymnasium


class Episode(msgspec.Struct, frozen=True, kw_only=True):
    """One episode of an environment, from reset to reset."""

    steps: int
    total_reward: float
    terminated: bool
    """By the environment's own end; else it was truncated, or cut off by a stop."""


class GymRobot:
    """Steps an environment once for every action, at whatever rate these come; between them the world stands still.

    A dict of observations is handed over by its names, any other under the schema's only name; numbers become float32
    in the schema's shape, images stay uint8. When an episode ends, :attr:`over` is true and further actions are
    ignored until :meth:`reset`. :meth:`stop` cuts the episode off, and the next observation or action begins a new one.

    Args:
        env: With a Box of actions; is reset here, and not closed.
        config: The policy's schema.
        seed: Of the first reset; later ones continue the environment's random numbers.
        now_ns: The clock that observations are stamped with: ``clock.now_ns`` of the loop's, where that is simulated.

    Raises ConfigError where the schema does not fit the environment.
    """

    def __init__(
        self,
        env: gymnasium.Env[Any, Any],
        config: PolicyConfig,
        *,
        seed: int | None = None,
        now_ns: Callable[[], int] = time.monotonic_ns,
    ) -> None:
        from gymnasium.spaces import Box

        space = env.action_space
        if not isinstance(space, Box) or int(np.prod(space.shape)) != config.action_dim:
            todo = "Take another environment, or another schema."
            expected = f"a Box of {config.action_dim} numbers"
            raise ConfigError(explain("The environment's actions", expected=expected, found=space, todo=todo))
        self._env, self._config, self._now_ns, self._space = env, config, now_ns, space
        self._lock = threading.Lock()
        self._stopped = threading.Event()
        self._episodes: list[Episode] = []
        self._observation: dict[str, np.ndarray] = {}
        self._steps, self._reward, self.over = 0, 0.0, False
        self._reset(seed)
        config.check_observation(self._observation)

    @property
    def episodes(self) -> tuple[Episode, ...]:
        """Those that have ended, and had at least one step."""
        return tuple(self._episodes)

    def observe(self) -> dict[str, np.ndarray]:
        """What the last step or reset returned, and when."""
        with self._lock:
            self._begin_anew()
            return self._observation

    def act(self, action: FloatArray) -> None:
        """One step of the environment, unless its episode is over."""
        with self._lock:
            self._begin_anew()
            if self.over:
                return
            shaped = np.asarray(action, dtype=self._space.dtype).reshape(self._space.shape)
            observation, reward, terminated, truncated, _ = self._env.step(shaped)
            self._steps += 1
            self._reward += float(reward)
            self._see(observation)
            if terminated or truncated:
                self._finish(terminated=bool(terminated))

    def stop(self) -> None:
        """Cuts the episode off. Does not wait for a step that is going on."""
        self._stopped.set()

    def reset(self, seed: int | None = None) -> None:
        """Begins an episode."""
        with self._lock:
            self._stopped.clear()
            self._finish(terminated=False)
            self._reset(seed)

    def _begin_anew(self) -> None:
        if self._stopped.is_set():
            self._stopped.clear()
            self._finish(terminated=False)
            self._reset(None)

    def _finish(self, *, terminated: bool) -> None:
        self.over = True
        if self._steps:
            self._episodes.append(Episode(steps=self._steps, total_reward=self._reward, terminated=terminated))
        self._steps, self._reward = 0, 0.0

    def _reset(self, seed: int | None) -> None:
        observation, _ = self._env.reset(seed=seed)
        self._see(observation)
        self.over = False

    def _see(self, observation: Any) -> None:
        specs = self._config.observations
        parts = observation if isinstance(observation, Mapping) else {specs[0].name: observation}
        seen = {spec.name: _as_spec(parts[spec.name], spec) for spec in specs if spec.name in parts}
        self._observation = seen | {TIME_KEY: np.asarray(self._now_ns(), dtype=np.int64)}


def _as_spec(value: Any, spec: ObservationSpec) -> np.ndarray:
    """A copy, as the schema has it; a shape that does not fit stays, and is refused by who checks it."""
    array = np.array(value, dtype=None if spec.kind == "image" else np.float32)
    return array.reshape(spec.shape) if array.size == np.prod(spec.shape) and spec.kind == "vector" else array


def gym_config(
    env: gymnasium.Env[Any, Any], *, rate_hz: float, chunk_length: int, budget_ms: float, unit: str = "1"
) -> PolicyConfig:
    """The schema that an environment's spaces tell of; names and units of its numbers are not among it.

    Raises ConfigError for spaces other than a Box of actions, and a Box or a dict of Boxes of observations.
    """
    from gymnasium.spaces import Box, Dict

    spaces = env.observation_space.spaces if isinstance(env.observation_space, Dict) else None
    parts = {"observation": env.observation_space} if spaces is None else spaces
    todo = "Write the schema by hand, and wrap the environment."
    for name, space in {**parts, "action": env.action_space}.items():
        if not isinstance(space, Box):
            raise ConfigError(explain(f"The space {name!r}", expected="a Box", found=space, todo=todo))
    bounds = zip(env.action_space.low.ravel().tolist(), env.action_space.high.ravel().tolist())  # type: ignore[attr-defined]
    dims = tuple(
        ActionDim(
            name=f"action_{index}",
            unit=unit,
            lower=low if np.isfinite(low) else None,
            upper=high if np.isfinite(high) else None,
            rest=min(max(0.0, low), high),
        )
        for index, (low, high) in enumerate(bounds)
    )
    return PolicyConfig(
        observations=tuple(_spec_of(name, space) for name, space in parts.items()),
        action=ActionSpec(dims=dims, rate_hz=rate_hz),
        chunk_length=chunk_length,
        budget_ms=budget_ms,
    )


def _spec_of(name: str, space: Any) -> ObservationSpec:
    if space.dtype == np.uint8 and len(space.shape) == 3:
        return ObservationSpec(name=name, shape=tuple(space.shape), kind="image")
    return ObservationSpec(name=name, shape=(int(np.prod(space.shape)),))
