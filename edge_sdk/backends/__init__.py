"""Engines that run a bundle's graph; each is one module, imported only when it is chosen."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from edge_sdk.bundle import Bundle
from edge_sdk.errors import BackendError, PromptError, explain
from edge_sdk.model import ModelConfig
from edge_sdk.pace import StepTimes
from edge_sdk.speculation import check, verifiable
from edge_sdk.tensor_spec import TensorSpec

FIRST_CAPACITY = 256
"""Positions that attention caches have room for at first."""

Wanted = Literal["last", "all", "none"]
"""Which of a block's positions the logits are wanted of; what is not wanted is not computed."""


log = logging.getLogger("edge_sdk")


@dataclass(frozen=True)
class Snapshot:
    """The states of one row at one moment, on the host; caches hold no more than their used positions."""

    length: int
    """Positions."""
    arrays: tuple[np.ndarray, ...]
    """In the order of ``ModelConfig.past_specs``, with batch 1 and capacity ``length``."""

    @property
    def nbytes(self) -> int:
        """Memory that it takes."""
        return sum(array.nbytes for array in self.arrays)


def used(specs: Sequence[TensorSpec], arrays: Sequence[np.ndarray], length: int) -> list[np.ndarray]:
    """Views of the states (batch, ...) without the caches' positions beyond ``length``."""
    return [array[:, :, :length] if "capacity" in spec.shape else array for spec, array in zip(specs, arrays)]


def max_positions(model: ModelConfig) -> int | None:
    """Positions that a row's states can hold; None for a policy without attention, whose states never fill."""
    ends = model.policy is None or any("capacity" in spec.shape for spec in model.past_specs())
    return model.max_length if ends else None


class States:
    """What a model remembers of its rows: made by an engine, which owns the memory and advances it in place."""

    def __init__(self, batch: int, capacity: int) -> None:
        self.past_length = np.zeros(batch, dtype=np.int64)
        """Positions that each row (batch) holds."""
        self.capacity = capacity
        """Positions that the caches have room for."""

    def copy(self) -> States:
        """Another memory with the same content, to go on from here twice."""
        raise NotImplementedError

    def snapshot(self) -> Snapshot:
        """The content, of states that have a single row, which :meth:`Engine.load_states` makes into states again."""
        raise NotImplementedError

    def view(self) -> Snapshot:
        """As :meth:`snapshot`, in the states' own memory where that can be read: valid until they are fed more."""
        return self.snapshot()


class RowStates(States):
    """States whose rows can be used apart, where they lie; see :attr:`Engine.has_rows`."""

    def rows(self, start: int, stop: int) -> RowStates:
        """The rows from ``start`` to ``stop``, in the same memory; valid until there is more room."""
        raise NotImplementedError

    def take(self, source: RowStates) -> None:
        """Copies a single row's states, for which these, of a single row too, have room or make it."""
        raise NotImplementedError

    def reserve(self, positions: int) -> None:
        """Makes room in the caches, or changes nothing.

        Raises PromptError beyond the context's size and MemoryLimitError beyond the memory's.
        """
        raise NotImplementedError


class Engine:
    """Runs the graph. States stay where the engine keeps them; only tokens go in and logits come out."""

    name: str
    prefill_block: int
    """Tokens to feed at once."""
    max_length: int
    """Positions that a row's states can hold."""
    has_rows = False
    """Whether the states of :meth:`empty_rows` are RowStates."""
    times: StepTimes | None = None
    """What steps took, of an engine that can feed tokens on trial; None of another."""
    has_head = False
    """Whether it can draft."""

    def limit_states(self, max_bytes: int) -> None:
        """Lets all states together take so many bytes and no more. Raises BackendError where they are not counted."""
        raise BackendError(
            explain("A limit of the states' memory", expected="states on the host", found=self.name, todo="Set none.")
        )

    def empty_states(self, batch: int) -> States:
        """The states before the first token."""
        raise NotImplementedError

    def check_room(self, positions: int) -> None:
        """Raises MemoryLimitError where a row's states of so many positions do not fit into the memory that is free.

        An engine that cannot tell lets it pass.
        """

    def release(self, states: States) -> None:
        """Nobody uses these states any more: others may be made of their memory. Any thread may say so."""

    def empty_rows(self, batch: int) -> States:
        """As :meth:`empty_states`, for steps of several rows only; RowStates if it has rows."""
        return self.empty_states(batch)

    def load_states(self, snapshot: Snapshot) -> States:
        """States of one row with a snapshot's content, also one that another engine took of the same model."""
        raise NotImplementedError

    def step(self, input_ids: np.ndarray, states: States, logits: Wanted = "last") -> np.ndarray:
        """Feeds tokens (batch, length) int64 and advances the states, which must be this engine's own.

        A model that sees takes embeddings (batch, length, hidden) float32 as well, of tokens and of images' parts.

        Returns logits (batch, kept, vocab) float32, with kept = 1, length or 0 as wanted. The next step may
        overwrite them. Raises PromptError when the context has no room for the tokens and MemoryLimitError when the
        memory has none; neither changes the states.
        """
        raise NotImplementedError

    def embed(self, input_ids: np.ndarray) -> np.ndarray:
        """Of a model that sees: tokens (batch, length) int64 -> embeddings (batch, length, hidden) float32."""
        raise NotImplementedError

    def image_features(self, pixel_values: np.ndarray) -> np.ndarray:
        """Of a model that sees: prepared images (images, 3, height, width) float32 -> (images, tokens, hidden).

        Raises MemoryLimitError where the memory has no room for them.
        """
        raise NotImplementedError

    def verify(self, input_ids: np.ndarray, states: States) -> np.ndarray:
        """Feeds tokens (batch, length) int64 on trial and returns the logits (batch, length, vocab) of all of them.

        The states advance when :meth:`accept` is told how many to keep; otherwise it is as if none had been fed.
        """
        raise NotImplementedError

    def accept(self, states: States, counts: np.ndarray) -> None:
        """Advances each row over the first ``counts`` (batch) of the tokens that were verified, at least one each."""
        raise NotImplementedError

    def draft(self, token: int, states: States, count: int) -> list[int]:
        """Up to ``count`` tokens that the model's head expects after one that the states are to be fed next."""
        raise NotImplementedError

    def end_profile(self) -> None:
        """Completes the trace that was asked for when the engine was chosen."""
        raise NotImplementedError

    def next_tokens(self, input_ids: np.ndarray, states: States) -> np.ndarray:
        """Feeds tokens as :meth:`step` does and returns the likeliest next one of each row, (batch) int64."""
        tokens: np.ndarray = self.step(input_ids, states)[:, -1].argmax(-1)
        return tokens


def capacity_for(positions: int, current: int, limit: int) -> int:
    """A cache's capacity (positions) that holds ``positions``: the current one doubled as often as that takes.

    Raises PromptError when more than ``limit``, the context's size, would be needed.
    """
    if positions > limit:
        raise PromptError(
            explain("The context", expected=f"at most {limit} tokens", found=positions, todo="Open a new session.")
        )
    while current < positions:
        current *= 2
    return min(current, limit)


DEVICES = ("auto", "cpu", "cuda", "tensorrt")
"""What may be asked for."""


def choose_engine(
    bundle: Bundle,
    *,
    device: str = "auto",
    threads: int | None = None,
    profile: Path | None = None,
    speculation: str = "off",
) -> Engine:
    """The engine for a device.

    ``cpu`` and ``cuda`` are ONNX Runtime's; ``tensorrt`` is the engine that `edge-export engine` built for this GPU or,
    where the bundle has none at all, ONNX Runtime's TensorRT. ``auto`` is the first of TensorRT's engine, CUDA and CPU
    that this machine has; what it passes over it logs. ``profile`` is how the name of ONNX Runtime's trace begins.
    ``speculation``: what is to draft tokens; ``auto`` is nothing where the bundle or the device cannot verify them. A
    trace is one of plain steps.
    Raises BackendError when there is no engine, and ConfigError when it cannot speculate as asked for.
    """
    if device not in DEVICES:
        raise BackendError(explain("device", expected=" or ".join(DEVICES), found=device, todo="Choose one of these."))
    kinds = engine_kinds(bundle, device)
    check(bundle.manifest.model, speculation, kinds[0])
    for kind in kinds[:-1]:
        try:
            return _make(kind, bundle, threads, profile, speculation)
        except BackendError as error:
            log.warning("%s is passed over: %s", kind, error)
    return _make(kinds[-1], bundle, threads, profile, speculation)


def engine_kinds(bundle: Bundle, device: str) -> list[str]:
    """What to try for a device, best first: ``tensorrt`` engines, ``ort-`` and one of ONNX Runtime's providers."""
    from edge_sdk.backends.ort_device import available_providers
    from edge_sdk.engine_files import read_records
    from edge_sdk.machine import read_gpus

    if device in ("cpu", "cuda"):
        return [f"ort-{device}"]
    if device == "tensorrt":
        in_its_place = not read_records(bundle) and "TensorrtExecutionProvider" in available_providers()
        return ["ort-tensorrt" if in_its_place else "tensorrt"]
    if not read_gpus()[0]:
        return ["ort-cpu"]
    wanted = {
        "tensorrt": bool(read_records(bundle)),
        "ort-cuda": "CUDAExecutionProvider" in available_providers(),
        "ort-cpu": True,
    }
    return [kind for kind, possible in wanted.items() if possible]


def _make(kind: str, bundle: Bundle, threads: int | None, profile: Path | None, speculation: str) -> Engine:
    if kind == "tensorrt":
        from edge_sdk.backends.trt import TrtEngine

        if profile is not None:
            todo = "Choose another device, or profile with trtexec."
            raise BackendError(explain("A profile", expected="ONNX Runtime", found="TensorRT's engine", todo=todo))
        return TrtEngine(bundle)
    if kind == "ort-cpu" and speculation != "off" and profile is None and verifiable(bundle.manifest.model):
        from edge_sdk.backends.ort_speculation import SpeculativeEngine

        head = speculation in ("auto", "head")
        return SpeculativeEngine(bundle, threads=threads, head=head, follows=head)
    from edge_sdk.backends.ort import OrtEngine

    return OrtEngine(bundle, threads=threads, device=kind.removeprefix("ort-"), profile=profile)
