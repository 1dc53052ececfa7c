"""Prompt and completion pairs as token batches, in an order that a seed and a step number fix."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np
import torch
from torch import Tensor

from edge_sdk.errors import ConfigError, explain
from edge_sdk.text import TextCodec


class Pair(msgspec.Struct, frozen=True):
    """A line of a JSONL data set."""

    prompt: str
    completion: str


@dataclass(frozen=True)
class Sample:
    """A tokenised pair; ``ids`` holds the prompt, the completion and the end token."""

    ids: tuple[int, ...]
    prompt_length: int


@dataclass(frozen=True)
class Batch:
    """Input ids (batch, length) and the targets (batch, length), -100 where nothing is to be learnt."""

    input_ids: Tensor
    targets: Tensor
    indices: tuple[int, ...]


IGNORED = -100


def read_pairs(path: Path) -> list[Pair]:
    """All pairs of a JSONL file. Raises ConfigError naming the line that is none."""
    pairs = []
    for number, line in enumerate(path.read_bytes().splitlines(), start=1):
        try:
            pairs.append(msgspec.json.decode(line, type=Pair))
        except msgspec.DecodeError as error:
            raise ConfigError(
                explain(
                    f"{path}, line {number}",
                    expected='{"prompt": ..., "completion": ...}',
                    found=error,
                    todo="Correct the line.",
                )
            ) from None
    return pairs


def tokenize(pairs: Sequence[Pair], codec: TextCodec, end: int) -> list[Sample]:
    """Each pair as prompt (through the chat template), completion and the end token."""
    samples = []
    for pair in pairs:
        prompt = codec.encode_prompt(pair.prompt)
        samples.append(Sample((*prompt, *codec.encode(pair.completion), end), len(prompt)))
    return samples


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
    return Batch(input_ids, targets, tuple(indices))


class Batches:
    """Endless batches of similar lengths; which one comes at a step follows from the seed alone."""

    def __init__(self, samples: Sequence[Sample], batch_size: int, seed: int) -> None:
        self.samples, self._batch_size, self._seed = samples, min(batch_size, len(samples)), seed
        self.per_epoch = len(samples) // self._batch_size
        self._epoch, self._order = -1, np.empty(0, dtype=np.int64)

    def at(self, step: int) -> Batch:
        """The batch of a step, counted from 0."""
        epoch, index = divmod(step, self.per_epoch)
        if epoch != self._epoch:
            self._epoch, self._order = epoch, self._shuffle(epoch)
        return collate(self.samples, self._order[index].tolist())

    def _shuffle(self, epoch: int) -> np.ndarray:
        """Sample numbers (batches, batch size): sorted by length with ties and batches at random."""
        rng = np.random.default_rng((self._seed, epoch))
        order = rng.permutation(len(self.samples))
        lengths = np.array([len(self.samples[index].ids) for index in order])
        order = order[np.argsort(lengths, kind="stable")]
        offset = rng.integers(len(self.samples) - self.per_epoch * self._batch_size + 1)
        batches = order[offset : offset + self.per_epoch * self._batch_size].reshape(self.per_epoch, -1)
        return np.asarray(rng.permutation(batches))
