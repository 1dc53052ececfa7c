"""Token sequences to quantise by: those that training would learn from, padded to batches, scored by the logits."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from edge_export.documents import read_records, samples_of
from edge_export.torch_model import HybridLM
from edge_sdk.errors import ConfigError, explain
from edge_sdk.text import TextCodec


@dataclass(frozen=True)
class Sequences:
    """Padded token ids (batch, length); of row r the ``lengths[r]`` first are there, scored from ``first[r]`` on."""

    ids: Tensor
    lengths: Tensor
    first: Tensor

    def present(self) -> Tensor:
        """Where tokens are, (batch, length) of bool."""
        return torch.arange(self.ids.shape[1]) < self.lengths[:, None]

    def scored(self) -> Tensor:
        """Positions (batch, length - 1) of bool whose next token counts."""
        places = torch.arange(self.ids.shape[1] - 1)
        return (places >= self.first[:, None] - 1) & (places < self.lengths[:, None] - 1)


def read_sequences(
    path: Path, codec: TextCodec, end: int, *, samples: int, max_length: int
) -> list[tuple[list[int], int]]:
    """The first ``samples`` sequences of a file or folder, each with the position that scoring begins at.

    They are what training learns from (:mod:`edge_export.documents`), of at most ``max_length`` tokens. Raises
    ConfigError for what cannot be read, and where there is none.
    """
    every = (sample for record in read_records(path) for sample in samples_of(record, codec, end, max_length - 1))
    found = [(list(sample.ids), sample.prompt_length) for sample in islice(every, samples)]
    if not found:
        raise ConfigError(explain(str(path), expected="sequences of tokens", found="none", todo="Give other data."))
    return found


def batched(sequences: Sequence[tuple[list[int], int]], tokens: int = 4096) -> list[Sequences]:
    """Batches of similar lengths, of about ``tokens`` each."""
    batches, order = [], sorted(sequences, key=lambda item: len(item[0]))
    while order:
        rows = max(1, tokens // len(order[-1][0]))
        group, order = order[-rows:], order[:-rows]
        ids = torch.zeros(len(group), max(len(row) for row, _ in group), dtype=torch.int64)
        for at, (row, _) in enumerate(group):
            ids[at, : len(row)] = torch.tensor(row)
        lengths, first = torch.tensor([len(row) for row, _ in group]), torch.tensor([at for _, at in group])
        batches.append(Sequences(ids, lengths, first))
    return batches


@dataclass(frozen=True)
class Quality:
    """How a model does on sequences, and how close to the float one it stays.

    ``kl``: KL divergence of its next-token distributions from the float model's, in nats per token.
    """

    perplexity: float
    top1_agreement: float
    kl: float


def _in_steps(model: HybridLM, ids: Tensor, step: int) -> Tensor:
    """Logits (batch, length, vocab) of token ids (batch, length), from state to state."""
    batch, length = ids.shape
    logits, states = [], model.empty_states(batch, length)
    for start in range(0, length, step):
        part = ids[:, start : start + step]
        found, states = model.step(part, torch.full((batch,), start), torch.arange(part.shape[1]), states)
        logits.append(found)
    return torch.cat(logits, dim=1)


@torch.no_grad()
def compare(changed: HybridLM, model: HybridLM, batches: Sequence[Sequences], step: int | None = None) -> Quality:
    """Scores ``changed`` on the positions that count, next to ``model``.

    With ``step`` it is fed so many tokens at once, and stores its states between them as its config says.
    """
    run = changed if step is None else partial(_in_steps, changed, step=step)
    loss = kl = agreeing = count = 0.0
    for batch in batches:
        at = batch.scored()
        expected, found = (F.log_softmax(each(batch.ids)[:, :-1][at].float(), -1) for each in (model, run))
        loss += float(F.nll_loss(found, batch.ids[:, 1:][at], reduction="sum"))
        kl += float(F.kl_div(found, expected, reduction="sum", log_target=True))
        agreeing += float((found.argmax(-1) == expected.argmax(-1)).sum())
        count += float(at.sum())
    return Quality(perplexity=math.exp(loss / count), top1_agreement=agreeing / count, kl=kl / count)
