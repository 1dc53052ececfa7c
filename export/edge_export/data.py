"""Samples as token batches, in an order that a seed and a step number fix."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol, TypeVar

import numpy as np
import torch
from torch import Tensor

AnyBatch = TypeVar("AnyBatch", bound="StepBatch")


class StepBatch(Protocol):
    """What is learnt in a step, whatever it is made of."""

    @property
    def indices(self) -> tuple[int, ...]:
        """Which samples its rows are."""
        ...

    @property
    def tokens(self) -> int:
        """Targets to be learnt in the step, by all processes together: what a loss is the mean over."""
        ...

    @property
    def counted(self) -> Tensor:
        """Positions (rows, length) of the model's layers that something depends on."""
        ...

    def to(self: AnyBatch, device: torch.device) -> AnyBatch:
        """The same on another device."""
        ...

    def rows(self: AnyBatch, chosen: slice) -> AnyBatch:
        """Some of its rows; ``tokens`` stays that of all."""
        ...


class BatchSource(Protocol):
    """Endless batches."""

    lengths: np.ndarray
    """Of each sample (samples)."""

    def at(self, step: int) -> StepBatch:
        """The batch of a step, counted from 0."""
        ...

    def of(self, indices: Sequence[int]) -> StepBatch:
        """A batch of these samples."""
        ...


@dataclass(frozen=True)
class Sample:
    """Tokens of which those behind the prompt are learnt: prompt, completion and end, or a piece of a text."""

    ids: tuple[int, ...]
    prompt_length: int


@dataclass(frozen=True)
class Batch:
    """Input ids (batch, length) and the targets (batch, length), -100 where nothing is to be learnt."""

    input_ids: Tensor
    targets: Tensor
    indices: tuple[int, ...]
    tokens: int
    """Targets to be learnt in the step, by all processes together: what a loss is the mean over."""

    def to(self, device: torch.device) -> Batch:
        """The same on another device."""
        return replace(self, input_ids=self.input_ids.to(device), targets=self.targets.to(device))

    @property
    def counted(self) -> Tensor:
        """Positions with a target (batch, length)."""
        return self.targets != IGNORED

    def rows(self, chosen: slice) -> Batch:
        """Some of the rows, as far as their targets reach; ``tokens`` stays that of all."""
        targets = self.targets[chosen]
        learnt = (targets != IGNORED).any(0).nonzero()
        length = int(learnt.max()) + 1 if len(learnt) else 1
        return Batch(self.input_ids[chosen, :length], targets[:, :length], self.indices[chosen], self.tokens)


IGNORED = -100


def collate(samples: Sequence[Sample], indices: Sequence[int]) -> Batch:
    """The samples at ``indices``, padded on the right; targets are the next tokens of the completions."""
    chosen = [samples[index] for index in indices]
    length = max(len(sample.ids) for sample in chosen) - 1
    input_ids = torch.zeros(len(chosen), length, dtype=torch.int64)
    targets = torch.full((len(chosen), length), IGNORED)
    for row, sample in enumerate(chosen):
        ids, first = torch.tensor(sample.ids), sample.prompt_length - 1
        input_ids[row, : len(ids) - 1] = ids[:-1]
        targets[row, first : len(ids) - 1] = ids[first + 1 :]
    return Batch(input_ids, targets, tuple(indices), int((targets != IGNORED).sum()))


class StoredSamples(Sequence[Sample]):
    """Samples in files: read as they are asked for, so that memory holds 12 bytes for each."""

    def __init__(self, folder: Path) -> None:
        facts = json.loads((folder / "samples.json").read_text())
        self._starts = np.fromfile(folder / "starts.i64", np.int64)
        self._prompts = np.fromfile(folder / "prompts.i32", np.int32)
        self._tokens = np.memmap(folder / "tokens", np.dtype(facts["type"]), "r")

    @property
    def lengths(self) -> np.ndarray:
        """Tokens of each sample (samples)."""
        return np.diff(self._starts)

    def __len__(self) -> int:
        return len(self._prompts)

    def __getitem__(self, index: int) -> Sample:  # type: ignore[override]  # there are no slices
        if not -len(self) <= index < len(self):
            raise IndexError(index)
        index %= len(self)
        ids = self._tokens[self._starts[index] : self._starts[index + 1]]
        return Sample(tuple(ids.tolist()), int(self._prompts[index]))


def lengths(samples: Sequence[Sample]) -> np.ndarray:
    """Tokens of each sample (samples)."""
    if isinstance(samples, StoredSamples):
        return samples.lengths
    return np.array([len(sample.ids) for sample in samples], dtype=np.int64)


class Order:
    """Endless lists of samples of similar lengths; which ones come at a step follows from the seed alone."""

    def __init__(self, lengths: np.ndarray, batch_size: int, seed: int) -> None:
        self._lengths, self._batch_size, self._seed = lengths, min(batch_size, len(lengths)), seed
        self.per_epoch = len(lengths) // self._batch_size
        self._epoch, self._order = -1, np.empty(0, dtype=np.int64)

    def at(self, step: int) -> list[int]:
        """The samples of a step, counted from 0."""
        epoch, index = divmod(step, self.per_epoch)
        if epoch != self._epoch:
            self._epoch, self._order = epoch, self._shuffle(epoch)
        return [int(sample) for sample in self._order[index]]

    def _shuffle(self, epoch: int) -> np.ndarray:
        """Sample numbers (batches, batch size): sorted by length with ties and batches at random."""
        rng = np.random.default_rng((self._seed, epoch))
        order = rng.permutation(len(self._lengths))
        order = order[np.argsort(self._lengths[order], kind="stable")]
        offset = rng.integers(len(order) - self.per_epoch * self._batch_size + 1)
        batches = order[offset : offset + self.per_epoch * self._batch_size].reshape(self.per_epoch, -1)
        return np.asarray(rng.permutation(batches))


class Batches:
    """Endless batches of tokens, in an :class:`Order`."""

    def __init__(self, samples: Sequence[Sample], batch_size: int, seed: int) -> None:
        self.samples, self.lengths = samples, lengths(samples)
        self._order = Order(self.lengths, batch_size, seed)
        self.per_epoch = self._order.per_epoch

    def at(self, step: int) -> Batch:
        """The batch of a step, counted from 0."""
        return self.of(self._order.at(step))

    def of(self, indices: Sequence[int]) -> Batch:
        """A batch of these samples."""
        return collate(self.samples, indices)
