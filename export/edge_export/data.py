"""Samples as token batches, in an order that a seed and a step number fix."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple, Protocol, TypeVar

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from edge_export.packed_rows import PADDING, first_fit

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
    """Of the samples, row by row and from left to right."""
    tokens: int
    """Targets to be learnt in the step, by all processes together: what a loss is the mean over."""
    documents: Tensor | None = None
    """Of packed rows (:mod:`edge_export.packed_rows`), which of ``indices`` stands at a position (batch, length)."""

    def to(self, device: torch.device) -> Batch:
        """The same on another device."""
        documents = None if self.documents is None else self.documents.to(device)
        return replace(self, input_ids=self.input_ids.to(device), targets=self.targets.to(device), documents=documents)

    @property
    def counted(self) -> Tensor:
        """Positions with a target (batch, length)."""
        return self.targets != IGNORED

    def rows(self, chosen: slice) -> Batch:
        """Some of the rows, as far as their targets reach; ``tokens`` stays that of all.

        Of packed rows some of the samples, packed anew.
        """
        if self.documents is not None:
            kept = [self.documents == document for document in range(len(self.indices))[chosen]]
            parts = [Part(self.input_ids[place], self.targets[place]) for place in kept]
            return replace(pack(parts, self.indices[chosen], self.input_ids.shape[1]), tokens=self.tokens)
        targets = self.targets[chosen]
        learnt = (targets != IGNORED).any(0).nonzero()
        length = int(learnt.max()) + 1 if len(learnt) else 1
        return Batch(self.input_ids[chosen, :length], targets[:, :length], self.indices[chosen], self.tokens)


IGNORED = -100


class Part(NamedTuple):
    """A sample's share of a batch."""

    input_ids: Tensor
    """(length)"""
    targets: Tensor
    """(length), -100 where nothing is to be learnt."""


def part_of(sample: Sample) -> Part:
    """Its tokens but the last, and the next tokens of the completion."""
    ids = torch.tensor(sample.ids)
    targets = ids[1:].clone()
    targets[: sample.prompt_length - 1] = IGNORED
    return Part(ids[:-1], targets)


def collate(samples: Sequence[Sample], indices: Sequence[int]) -> Batch:
    """The samples at ``indices``, each in a row of its own, padded on the right."""
    parts = [part_of(samples[index]) for index in indices]
    input_ids = pad_sequence([part.input_ids for part in parts], batch_first=True)
    targets = pad_sequence([part.targets for part in parts], batch_first=True, padding_value=IGNORED)
    return Batch(input_ids, targets, tuple(indices), int((targets != IGNORED).sum()))


def pack(parts: Sequence[Part], indices: Sequence[int], longest: int) -> Batch:
    """The samples at ``indices``, whose parts are given, side by side in rows of up to ``longest`` positions."""
    lengths = torch.tensor([len(part.input_ids) for part in parts])
    order: list[int] = []
    input_ids, targets, documents = [], [], []
    for row in first_fit(lengths.tolist(), longest):
        input_ids.append(torch.cat([parts[item].input_ids for item in row]))
        targets.append(torch.cat([parts[item].targets for item in row]))
        documents.append(torch.arange(len(order), len(order) + len(row)).repeat_interleave(lengths[row]))
        order += row
    padded = [
        pad_sequence(rows, batch_first=True, padding_value=padding)
        for rows, padding in ((input_ids, 0), (targets, IGNORED), (documents, PADDING))
    ]
    tokens = int((padded[1] != IGNORED).sum())
    return Batch(padded[0], padded[1], tuple(indices[item] for item in order), tokens, padded[2])


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
    """Endless batches of tokens: samples of similar lengths, or packed ones, which are drawn from all lengths."""

    def __init__(self, samples: Sequence[Sample], batch_size: int, seed: int, *, packing: bool = False) -> None:
        self.samples, self.lengths, self._packing = samples, lengths(samples), packing
        self._order = Order(np.zeros_like(self.lengths) if packing else self.lengths, batch_size, seed)
        self.per_epoch = self._order.per_epoch

    def at(self, step: int) -> Batch:
        """The batch of a step, counted from 0."""
        indices = self._order.at(step)
        if not self._packing:
            return self.of(indices)
        longest = int(self.lengths[indices].max()) - 1  # longer rows would save little, and attention is quadratic
        return pack([part_of(self.samples[index]) for index in indices], indices, longest)

    def of(self, indices: Sequence[int]) -> Batch:
        """A batch of these samples, each in a row of its own."""
        return collate(self.samples, indices)
