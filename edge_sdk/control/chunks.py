"""Which action is due in which tick, where chunks of actions arrive late and overlap."""

from __future__ import annotations

import math
import threading
from collections import deque
from collections.abc import Callable
from typing import Literal, NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray

from edge_sdk.control.robot import FloatArray
from edge_sdk.errors import ConfigError, explain

Mode = Literal["switch", "ensemble", "soft_mask", "committed"]


class Blending(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How a new chunk takes over from the one being executed.

    ``switch``: at once. ``ensemble``: each action is the mean of all chunks that have one for its tick, weighted with
    exp(-m i), i = 0 for the oldest (ACT, Zhao et al. 2023, arXiv 2304.13705, algorithm 2). ``soft_mask``: the weights
    of real-time chunking (Black et al. 2025, arXiv 2506.07339, equation 5) go over from the old chunk to the new one;
    the paper has them guide the denoising of a flow policy, here they weigh the actions of a policy that cannot be
    guided. ``committed``: the policy is given the actions that will have been executed by the time its chunk is ready,
    and makes its chunk continue them; then as ``switch``.
    """

    mode: Mode = "switch"
    ensemble_m: float = 0.01
    """ACT's m; 0 is the plain mean, more gives more weight to older chunks, less than 0 to newer ones."""

    def __post_init__(self) -> None:
        if not math.isfinite(self.ensemble_m):
            found = self.ensemble_m
            raise ConfigError(explain("ensemble_m", expected="a finite number", found=found, todo="Correct it."))


class Planned(NamedTuple):
    """The action of one tick."""

    action: FloatArray
    """(action_dim,)"""
    observation_ns: int
    """When the newest observation that it comes from was taken."""
    inference: int
    """The number of the inference that saw it."""


class Chunk(NamedTuple):
    """What one inference made."""

    first_tick: int
    actions: FloatArray
    """(chunk_length, action_dim)"""
    observation_ns: int
    inference: int

    @property
    def end_tick(self) -> int:
        """The first tick that it has no action for."""
        return self.first_tick + len(self.actions)

    def covers(self, tick: int) -> bool:
        """Whether it has an action for a tick."""
        return self.first_tick <= tick < self.end_tick


def soft_mask(frozen: int, overlap: int) -> NDArray[np.float64]:
    """The old chunk's weights over the ticks that both chunks cover: (overlap,), equation 5 of arXiv 2506.07339.

    1 for the first ``frozen`` actions (the paper's d), which are executed before the new chunk is ready; then falling
    with c * (e^c - 1) / (e - 1), where c falls linearly, to 0 after the old chunk's end (the paper's H - s).
    """
    index = np.arange(overlap)
    c = (overlap - index) / (overlap - min(frozen, overlap) + 1)
    return np.where(index < frozen, 1.0, c * np.expm1(c) / (math.e - 1))


class ChunkQueue:
    """The actions to come, by absolute tick; written by the inference thread and read by the actuation thread."""

    def __init__(self, blending: Blending) -> None:
        self._blending = blending
        self._chunks: deque[Chunk] = deque()
        """Oldest first; one, unless they are ensembled."""
        self._from_tick = 0
        self.end_tick = 0
        """The first tick from which on nothing was planned."""
        self._lock = threading.Lock()
        make: dict[Mode, Callable[[Chunk, int], None]] = {"ensemble": self._append, "soft_mask": self._mask}
        self._take = make.get(blending.mode, self._replace)

    def add(self, chunk: Chunk, *, next_tick: int) -> None:
        """A new chunk, at a time when ``next_tick`` is the first one to come; actions for earlier ones are dropped."""
        with self._lock:
            if chunk.first_tick >= self._from_tick:
                self._take(chunk, next_tick)
                self.end_tick = chunk.end_tick

    def at(self, tick: int) -> Planned | None:
        """The action of a tick, which must not decrease from call to call; None where no chunk has one."""
        with self._lock:
            while self._chunks and self._chunks[0].end_tick <= tick:
                self._chunks.popleft()
            found = [chunk for chunk in self._chunks if chunk.covers(tick)]
            if not found:
                return None
            newest = found[-1]
            if len(found) == 1:
                return Planned(newest.actions[tick - newest.first_tick], newest.observation_ns, newest.inference)
            weights = np.exp(-self._blending.ensemble_m * np.arange(len(found)))
            actions = np.stack([chunk.actions[tick - chunk.first_tick] for chunk in found])
            mean = (weights / weights.sum()) @ actions
            return Planned(mean.astype(np.float32), newest.observation_ns, newest.inference)

    def committed(self, first_tick: int, ticks: int) -> FloatArray | None:
        """The planned actions (n, action_dim) of so many ticks, n fewer where the plan ends; None where it has none."""
        with self._lock:
            plan = self._chunks[-1] if self._chunks else None
        if plan is None or not plan.covers(first_tick):
            return None
        offset = first_tick - plan.first_tick
        return np.array(plan.actions[offset : offset + ticks])

    def clear(self, *, from_tick: int) -> None:
        """Forgets all actions, also those of chunks still to come that were begun for an earlier tick."""
        with self._lock:
            self._chunks.clear()
            self._from_tick, self.end_tick = from_tick, 0

    def _replace(self, chunk: Chunk, next_tick: int) -> None:
        del next_tick
        self._chunks.clear()
        self._chunks.append(chunk)

    def _append(self, chunk: Chunk, next_tick: int) -> None:
        del next_tick
        self._chunks.append(chunk)

    def _mask(self, chunk: Chunk, next_tick: int) -> None:
        old = self._chunks[-1] if self._chunks else None
        if old is not None and old.covers(chunk.first_tick):
            shared = old.actions[chunk.first_tick - old.first_tick :][: len(chunk.actions)]
            weights = soft_mask(max(0, next_tick - chunk.first_tick), len(shared))[:, None]
            actions = chunk.actions.copy()
            actions[: len(shared)] = weights * shared + (1 - weights) * actions[: len(shared)]
            chunk = chunk._replace(actions=actions)
        self._replace(chunk, next_tick)
