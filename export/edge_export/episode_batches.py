"""Episodes as batches for a recurrent policy: rows of observations, and some of their chunks of actions to learn."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import msgspec
import numpy as np
import torch
from torch import Tensor

from edge_export.data import Order
from edge_export.episodes import Episode, EpisodeSource
from edge_export.policy_decoder import Chunks
from edge_sdk.control.normalization import require
from edge_sdk.instruction import InstructionCodec
from edge_sdk.policy_spec import NO_TOKEN, PolicySpec

INSTRUCTIONS = 4096
"""Whose tokens are kept in memory: data sets repeat a few."""


class EpisodeSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a policy learns of an episode in a step."""

    window: int | None = None
    """Observations of a row, one after another from a random one on; the state is empty before. None: all of them."""
    chunks: int = 8
    """Observations of a row, drawn at random, whose chunks of actions are learnt."""
    committed: float = 0.5
    """Of a chunk, up to this share are given as committed: how many is drawn evenly, none included."""

    def __post_init__(self) -> None:
        require(self.window is None or self.window > 0, "episodes.window", "a positive number or null", self.window)
        require(self.chunks > 0, "episodes.chunks", "a positive number", self.chunks)
        require(0 <= self.committed <= 1, "episodes.committed", "0 to 1", self.committed)


@dataclass(frozen=True)
class EpisodeBatch:
    """Rows of episodes, padded on the right; a row begins with its instruction's tokens where there is one."""

    observations: tuple[Tensor, ...]
    """(rows, length, *shape) each, in the schema's order and in physical units."""
    input_ids: Tensor | None
    """(rows, length), NO_TOKEN where an observation stands."""
    counted: Tensor
    """(rows, length), whether a position is an observation."""
    positions: Tensor
    """(rows, kept): those whose chunks are learnt."""
    chunks: Chunks
    """(rows, kept, chunk, ...)"""
    indices: tuple[int, ...]
    tokens: int
    """Actions to be learnt in the step, by all processes together."""

    def to(self, device: torch.device) -> EpisodeBatch:
        """The same on another device."""
        return replace(
            self,
            observations=tuple(values.to(device) for values in self.observations),
            input_ids=None if self.input_ids is None else self.input_ids.to(device),
            counted=self.counted.to(device),
            positions=self.positions.to(device),
            chunks=self.chunks.to(device),
        )

    def rows(self, chosen: slice) -> EpisodeBatch:
        """Some of the rows; ``tokens`` stays that of all."""
        return replace(
            self,
            observations=tuple(values[chosen] for values in self.observations),
            input_ids=None if self.input_ids is None else self.input_ids[chosen],
            counted=self.counted[chosen],
            positions=self.positions[chosen],
            chunks=self.chunks.rows(chosen),
            indices=self.indices[chosen],
        )


class EpisodeBatches:
    """Endless batches of episodes of similar lengths; everything that is drawn follows from the seed and the step."""

    def __init__(
        self,
        source: EpisodeSource,
        spec: PolicySpec,
        settings: EpisodeSettings,
        batch_size: int,
        seed: int,
        codec: InstructionCodec | None = None,
    ) -> None:
        self._source, self._spec, self._settings, self._seed, self._codec = source, spec, settings, seed, codec
        self._tokens = lru_cache(INSTRUCTIONS)(self._tokenize)
        self.lengths = source.lengths
        self._order = Order(self.lengths, batch_size, seed)
        self._scaling = spec.schema.action.normalization.scaling()

    def at(self, step: int) -> EpisodeBatch:
        """The batch of a step, counted from 0."""
        return self._make(self._order.at(step), np.random.default_rng((self._seed, step)))

    def of(self, indices: Sequence[int]) -> EpisodeBatch:
        """A batch of these episodes; what is drawn depends on them."""
        return self._make(indices, np.random.default_rng((self._seed, *indices)))

    def _make(self, indices: Sequence[int], rng: np.random.Generator) -> EpisodeBatch:
        rows = [self._row(self._source[index], rng) for index in indices]
        length = max(len(row.ids) + len(row.steps) for row in rows)
        observations = tuple(
            _padded([(len(row.ids), row.episode.observations[item.name][row.steps]) for row in rows], length)
            for item in self._spec.schema.observations
        )
        counted = _padded([(len(row.ids), np.ones(len(row.steps), np.bool_)) for row in rows], length)
        input_ids = None
        if self._codec is not None:
            input_ids = _padded([(0, row.ids) for row in rows], length)
            input_ids[counted] = NO_TOKEN
        chunks = self._chunks(rows, rng)
        positions = np.stack([len(row.ids) + row.kept for row in rows])
        learnt = int(chunks.learnt.sum())
        return EpisodeBatch(
            observations, input_ids, counted, torch.from_numpy(positions), chunks, tuple(indices), learnt
        )

    def _row(self, episode: Episode, rng: np.random.Generator) -> _Row:
        episode.check(self._spec.schema)
        phase = int(rng.integers(min(self._spec.stride, len(episode))))
        steps = np.arange(phase, len(episode), self._spec.stride)
        window = self._settings.window
        if window is not None and window < len(steps):
            first = int(rng.integers(len(steps) - window + 1))
            steps = steps[first : first + window]
        kept = rng.choice(len(steps), self._settings.chunks, replace=len(steps) < self._settings.chunks)
        return _Row(episode, steps, np.sort(kept), self._tokens(episode.instruction))

    def _tokenize(self, instruction: str) -> np.ndarray:
        ids = [] if self._codec is None else self._codec.encode(instruction)
        return np.array(ids, dtype=np.int64)

    def _chunks(self, rows: Sequence[_Row], rng: np.random.Generator) -> Chunks:
        """The chunks of all rows, and what is drawn for them: committed lengths, noise and times.

        Times are near the noise more often than not: pi0's distribution (arXiv 2410.24164, appendix B).
        """
        chunk, size = self._spec.schema.chunk_length, self._spec.schema.action_dim
        shape = (len(rows), self._settings.chunks)
        actions, inside = np.zeros((*shape, chunk, size), np.float32), np.zeros((*shape, chunk, 1), np.bool_)
        for index, row in enumerate(rows):
            normalized = self._scaling.normalize(row.episode.actions)
            for place, step in enumerate(row.steps[row.kept]):
                there = normalized[step : step + chunk]
                actions[index, place], inside[index, place, : len(there)] = there[-1], True  # behind the end it is held
                actions[index, place, : len(there)] = there
        longest = int(self._settings.committed * chunk)
        committed = rng.integers(longest + 1, size=(*shape, 1, 1))
        committed = np.minimum(committed, inside.sum(2, keepdims=True) - 1)  # something is left to be learnt
        known = np.arange(chunk)[:, None] < committed
        noise = rng.standard_normal(actions.shape, dtype=np.float32)
        time = (0.999 * (1 - rng.beta(1.5, 1.0, (*shape, 1, 1)))).astype(np.float32)
        return Chunks(*(torch.from_numpy(part) for part in (actions, known, inside & ~known, noise, time)))


@dataclass(frozen=True)
class _Row:
    episode: Episode
    steps: np.ndarray
    """Those of its observations that are fed."""
    kept: np.ndarray
    """Which of ``steps`` have their chunks learnt."""
    ids: np.ndarray
    """Its instruction's tokens."""


def _padded(parts: Sequence[tuple[int, np.ndarray]], length: int) -> Tensor:
    """(rows, length, ...) of zeros, with each part from its place on."""
    _, first = parts[0]
    whole = np.zeros((len(parts), length, *first.shape[1:]), first.dtype)
    for row, (start, values) in zip(whole, parts):
        row[start : start + len(values)] = values
    return torch.from_numpy(whole)
