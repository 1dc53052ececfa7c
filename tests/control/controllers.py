"""Small real policies: linear feedback that plans with a linear model."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_sdk.control.clock import Clock
from edge_sdk.control.policy import ActionDim, ActionSpec, ObservationSpec, PolicyConfig

Matrix = NDArray[np.float64]


def linearised(env: Any) -> tuple[Matrix, Matrix]:
    """A and B of x' = A x + B u around the upright pole, by differences of a MuJoCo environment's own step."""
    inner, h = env.unwrapped, 1e-4
    env.reset(seed=0)

    def step(x: Matrix, u: Matrix) -> Matrix:
        inner.set_state(x[: inner.model.nq], x[inner.model.nq :])
        inner.do_simulation(u, inner.frame_skip)
        return np.concatenate([inner.data.qpos, inner.data.qvel])

    size, inputs = inner.model.nq + inner.model.nv, inner.model.nu
    x, u = np.zeros(size), np.zeros(inputs)
    columns = [(step(x + h * e, u) - step(x - h * e, u)) / (2 * h) for e in np.eye(size)]
    effects = [(step(x, u + h * e) - step(x, u - h * e)) / (2 * h) for e in np.eye(inputs)]
    return np.stack(columns, axis=1), np.stack(effects, axis=1)


def lqr_gain(a: Matrix, b: Matrix, q: Matrix, r: Matrix) -> Matrix:
    """K of u = -K x: the discrete Riccati equation, iterated until it stands."""
    p = q
    for _ in range(10_000):
        k = np.linalg.solve(r + b.T @ p @ b, b.T @ p @ a)
        new = q + a.T @ p @ (a - b @ k)
        if np.abs(new - p).max() <= 1e-12 * np.abs(p).max():
            break
        p = new
    return k


class LinearPolicy:
    """u = -K x for the observed state, and for those that the model says will follow: a chunk."""

    def __init__(self, config: PolicyConfig, a: Matrix, b: Matrix, gain: Matrix) -> None:
        self.config, self._a, self._b, self._gain = config, a, b, gain
        self.committed: list[Any] = []

    def reset(self) -> None:
        pass

    def infer(self, observation: Mapping[str, np.ndarray], committed: Any) -> Any:
        self.committed.append(committed)
        x = observation[self.config.observations[0].name].astype(np.float64)
        actions = []
        for index in range(self.config.chunk_length):
            known = committed is not None and index < len(committed)
            actions.append(committed[index].astype(np.float64) if known else -self._gain @ x)
            x = self._a @ x + self._b @ actions[-1]
        return np.array(actions, dtype=np.float32)

    def snapshot(self) -> None:
        return None

    def restore(self, snapshot: None) -> None:
        pass


def config_of(
    *,
    rate_hz: float = 100.0,
    chunk_length: int = 10,
    budget_ms: float = 50.0,
    dims: tuple[ActionDim, ...] = (ActionDim(name="u", unit="N"),),
) -> PolicyConfig:
    return PolicyConfig(
        observations=(ObservationSpec(name="state", shape=(1,)),),
        action=ActionSpec(dims=dims, rate_hz=rate_hz),
        chunk_length=chunk_length,
        budget_ms=budget_ms,
    )


class Integrator:
    """The robot of the loop's tests: a carriage that is where its last action put it, and remembers everything."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self.acts: list[tuple[int, float]] = []
        self.stops: list[int] = []
        self.at_act: Callable[[int], None] = lambda index: None
        self.at_observe: Callable[[], None] = lambda: None

    def observe(self) -> dict[str, np.ndarray]:
        self.at_observe()
        return {"state": np.array([self.acts[-1][1] if self.acts else 0.0], dtype=np.float32)}

    def act(self, action: Any) -> None:
        self.acts.append((self._clock.now_ns(), float(action[0])))
        self.at_act(len(self.acts) - 1)

    def stop(self) -> None:
        self.stops.append(self._clock.now_ns())


class Ramp:
    """A policy that counts: action k of inference n is n + k / 1000; it may take time, or fail."""

    def __init__(self, config: PolicyConfig, before: Callable[[int], None] = lambda index: None) -> None:
        self.config, self._before = config, before
        self.inferences, self.resets = -1, 0  # the first one is the loop's warm-up
        self.committed: list[Any] = []

    def reset(self) -> None:
        self.resets += 1

    def infer(self, observation: Mapping[str, np.ndarray], committed: Any) -> Any:
        index, self.inferences = self.inferences, self.inferences + 1
        self.committed.append(committed)
        self._before(index)
        return index + np.arange(self.config.chunk_length, dtype=np.float32)[:, None] / 1000

    def snapshot(self) -> int:
        return self.inferences

    def restore(self, snapshot: int) -> None:
        self.inferences = snapshot
