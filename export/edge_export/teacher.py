"""What a teacher says about the next tokens: computed as it is asked for, or once and kept on disk."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import msgspec
import numpy as np
import torch
from rich.progress import track
from torch import Tensor

from edge_export.checkpoint import load_model, read_config
from edge_export.data import Batch, Sample, StepBatch, collate, lengths
from edge_export.distributed import first_before_others, is_first
from edge_export.terminal import console
from edge_export.torch_model import HybridBody, HybridLM
from edge_sdk.files import resumable_directory, sha256

BATCH_TOKENS = 16_384
"""Positions, padding included, that go through the teacher at once when its answers are stored."""

SYNC_BATCHES = 16
"""So many batches are written before they are made sure of and noted as done."""


@dataclass(frozen=True)
class Targets:
    """The teacher's distribution, softened by the temperature, at a batch's positions with a target (tokens)."""

    log_probs: Tensor
    """(tokens, vocab), or (tokens, top_k + 1) where ``ids`` is given: then the last one is that of all other tokens."""
    ids: Tensor | None = None
    """(tokens, top_k): the most probable tokens, fewer than all."""
    residuals: tuple[Tensor, ...] = ()
    """(tokens, hidden) of the teacher at each :func:`watched` point."""


class Teacher(Protocol):
    """Answers for a batch."""

    def of(self, batch: Any) -> Any:
        """What it says where the batch has something to be learnt, in its order; and residual streams."""
        ...


class LiveTeacher:
    """The teacher's model, asked anew in every step; with its residual stream at ``points`` of its depth."""

    def __init__(self, model: HybridLM, temperature: float, points: int = 0) -> None:
        self.model, self._temperature, self._points = model.eval().requires_grad_(False), temperature, points

    @torch.no_grad()
    def of(self, batch: Batch) -> Targets:
        """The whole distributions."""
        counted = batch.targets >= 0
        with watched(self.model, self._points) as residuals:
            logits = self.model(batch.input_ids, batch.documents)[counted].float()
        softened = (logits / self._temperature).log_softmax(-1)
        return Targets(softened, residuals=tuple(residual[counted] for residual in residuals))


@dataclass(frozen=True)
class Answers:
    """What a teacher predicts, and its residual streams as in :class:`Targets`."""

    output: Tensor
    residuals: tuple[Tensor, ...]


class LivePolicyTeacher:
    """A policy that is asked anew in every step, since every step's noise is another."""

    def __init__(self, model: HybridBody, points: int = 0) -> None:
        self.model, self._points = model.eval().requires_grad_(False), points

    @torch.no_grad()
    def of(self, batch: StepBatch) -> Answers:
        """Actions or velocities (targets, action_dim)."""
        with watched(self.model, self._points) as residuals:
            output = self.model.predict(batch)
        return Answers(output, tuple(residual[batch.counted] for residual in residuals))


@contextmanager
def watched(model: HybridBody, points: int) -> Iterator[list[Tensor]]:
    """A list to which a forward pass adds the residual stream (batch, length, hidden) at evenly spaced layers.

    The last point is the last layer's output.
    """
    residuals: list[Tensor] = []
    layers = [model.layers[len(model.layers) * point // points - 1] for point in range(1, points + 1)]
    hooks = [
        layer.register_forward_hook(lambda module, inputs, output: residuals.append(output[0])) for layer in layers
    ]
    try:
        yield residuals
    finally:
        for hook in hooks:
            hook.remove()


class CachedTeacher:
    """The teacher's most probable tokens at every target of a data set, read from files as they are asked for.

    Per target the files hold top_k logits (float16, relative to the largest), the tokens' ids, and the log of the sum
    of all others' exponentials (float32), all at one temperature: 4 * top_k + 4 bytes for vocabularies up to 65,536.
    """

    def __init__(self, folder: Path, samples: Sequence[Sample], top_k: int, vocab_size: int) -> None:
        self._starts, self._whole = _starts(samples), top_k == vocab_size
        self._values, self._ids, self._tail = _open(folder, int(self._starts[-1]), top_k, vocab_size, "r")

    def of(self, batch: Batch) -> Targets:
        """The top_k most probable tokens and the rest's share; rows of the batch in their order."""
        rows = np.concatenate([np.arange(self._starts[index], self._starts[index + 1]) for index in batch.indices])
        values = torch.from_numpy(self._values[rows].astype(np.float32))
        ids = torch.from_numpy(self._ids[rows].astype(np.int64))
        device = batch.targets.device
        if self._whole:
            return Targets(torch.empty_like(values).scatter(1, ids, values).log_softmax(-1).to(device))
        tail = torch.from_numpy(self._tail[rows])
        return Targets(torch.cat([values, tail[:, None]], 1).log_softmax(-1).to(device), ids.to(device))


class CacheKey(msgspec.Struct, frozen=True, kw_only=True):
    """What stored answers depend on."""

    teacher: str
    """sha256 of the teacher's files."""
    samples: str
    """sha256 of the data set's tokens."""
    top_k: int
    temperature: float


def stored_teacher(
    teacher: Path, samples: Sequence[Sample], folder: Path, *, top_k: int, temperature: float, device: torch.device
) -> CachedTeacher:
    """A checkpoint's answers from ``folder``, where they are stored first unless they are there.

    Storing goes on where it was interrupted. Answers of another teacher, to other data, at another temperature or top_k
    are replaced. Of several processes the first one stores them all, the others need no teacher.
    """
    vocab_size = read_config(teacher).vocab_size
    top_k = min(top_k, vocab_size)
    with first_before_others():
        if is_first():
            digests = {"teacher": _digest_of_checkpoint(teacher), "samples": _digest_of_samples(samples)}
            key = CacheKey(**digests, top_k=top_k, temperature=temperature)
            note, encoded = folder / "key.json", msgspec.json.encode(key)
            if not (note.exists() and note.read_bytes() == encoded):
                with resumable_directory(folder, encoded.decode()) as partial:
                    _store(load_model(teacher).to(device), samples, partial, key)
                    (partial / note.name).write_bytes(encoded)
    return CachedTeacher(folder, samples, top_k, vocab_size)


@torch.no_grad()
def _store(model: HybridLM, samples: Sequence[Sample], folder: Path, key: CacheKey) -> None:
    model.eval()
    starts, progress = _starts(samples), folder / "done"
    values, ids, tail = _open(folder, int(starts[-1]), key.top_k, model.config.vocab_size, "r+")
    batches = similar_lengths(samples)
    done = int(progress.read_text()) if progress.exists() else 0
    for index in track(range(done, len(batches)), "teacher logits", console=console, transient=True):
        batch = collate(samples, batches[index]).to(model.device)
        counted = batch.targets >= 0
        top, rest, chosen = _top(model(batch.input_ids)[counted].float() / key.temperature, key.top_k)
        rows = np.concatenate([np.arange(starts[sample], starts[sample + 1]) for sample in batch.indices])
        values[rows], tail[rows], ids[rows] = top.cpu().numpy(), rest.cpu().numpy(), chosen.cpu().numpy()
        if (index + 1) % SYNC_BATCHES == 0:
            for array in (values, ids, tail):
                array.flush()
            progress.write_text(str(index + 1))
    for array in (values, ids, tail):
        array.flush()
    progress.unlink(missing_ok=True)


def _top(logits: Tensor, top_k: int) -> tuple[Tensor, Tensor, Tensor]:
    """Of logits (tokens, vocab): the largest (tokens, top_k), the rest's log-sum-exp (tokens), and whose they are."""
    top, chosen = logits.topk(top_k, dim=-1)
    rest = logits.scatter(-1, chosen, float("-inf")).logsumexp(-1)
    return top - top[:, :1], rest - top[:, 0], chosen


def _starts(samples: Sequence[Sample]) -> np.ndarray:
    """Where each sample's targets begin among all (samples + 1)."""
    counts = [len(sample.ids) - sample.prompt_length for sample in samples]
    return np.concatenate([[0], np.cumsum(counts, dtype=np.int64)])


def _open(folder: Path, rows: int, top_k: int, vocab_size: int, mode: str) -> tuple[np.memmap, np.memmap, np.memmap]:
    """The files of logits, ids and tails; made, in the mode "r+", where they are missing."""
    id_type = np.uint16 if vocab_size <= 1 << 16 else np.uint32
    arrays = []
    for name, dtype, shape in (
        ("values.f16", np.float16, (rows, top_k)),
        ("ids", id_type, (rows, top_k)),
        ("tail.f32", np.float32, (rows,)),
    ):
        path = folder / name
        arrays.append(np.memmap(path, dtype, "r" if mode == "r" else "r+" if path.exists() else "w+", shape=shape))
    values, ids, tail = arrays
    return values, ids, tail


def similar_lengths(samples: Sequence[Sample]) -> list[list[int]]:
    """All samples, the short ones first, in batches of at most BATCH_TOKENS positions or of one sample."""
    batches: list[list[int]] = []
    counts = lengths(samples)
    for index in np.argsort(counts, kind="stable").tolist():
        if not batches or (len(batches[-1]) + 1) * counts[index] > BATCH_TOKENS:
            batches.append([])
        batches[-1].append(index)
    return batches


def _digest_of_checkpoint(folder: Path) -> str:
    digest = hashlib.sha256()
    for path in sorted([folder / "config.json", *folder.glob("*.safetensors")]):
        digest.update(f"{path.name} {sha256(path)}".encode())
    return digest.hexdigest()


def _digest_of_samples(samples: Sequence[Sample]) -> str:
    """sha256 of the tokens and the prompts' lengths."""
    digest = hashlib.sha256()
    for sample in samples:
        digest.update(np.array((sample.prompt_length, *sample.ids), dtype=np.int64).tobytes())
    return digest.hexdigest()
