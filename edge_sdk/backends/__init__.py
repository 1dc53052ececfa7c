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
from edge_sdk.model import TensorSpec

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


class RowStates(States):
    """States whose rows can be used apart, where they lie; see :attr:`Engine.has_rows`."""

    def rows(self, start: int, stop: int) -> RowStates:
        """The rows from ``start`` to ``stop``, in the same memory; valid until there is more room."""
        raise NotImplementedError

    def take(self, source: RowStates) -> None:
        """Copies a single row's states, for which these, of a single row too, have room or make it."""
        raise NotImplementedError

    def reserve(self, positions: int) -> None:
        """Makes room in the caches. Raises PromptError beyond the context's size."""
        raise NotImplementedError


class Engine:
    """Runs the graph. States stay where the engine keeps them; only tokens go in and logits come out."""

    name: str
    prefill_block: int
    """Tokens to feed at once."""
    max_length: int
    """Positions that a row's states can hold."""
    has_rows = False
    """Whether its states are RowStates."""

    def empty_states(self, batch: int) -> States:
        """The states before the first token."""
        raise NotImplementedError

    def check_room(self, positions: int) -> None:
        """Raises MemoryLimitError where a row's states of so many positions do not fit into the memory that is free.

        An engine that cannot tell lets it pass.
        """

    def load_states(self, snapshot: Snapshot) -> States:
        """States of one row with a snapshot's content, also one that another engine took of the same model."""
        raise NotImplementedError

    def step(self, input_ids: np.ndarray, states: States, logits: Wanted = "last") -> np.ndarray:
        """Feeds tokens (batch, length) int64 and advances the states, which must be this engine's own.

        Returns logits (batch, kept, vocab) float32, with kept = 1, length or 0 as wanted. The next step may
        overwrite them. Raises PromptError when the context has no room for the tokens.
        """
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
    bundle: Bundle, *, device: str = "auto", threads: int | None = None, profile: Path | None = None
) -> Engine:
    """The engine for a device.

    ``cpu`` and ``cuda`` are ONNX Runtime's; ``tensorrt`` is the engine that `edge-export engine` built for this GPU or,
    where the bundle has none at all, ONNX Runtime's TensorRT. ``auto`` is the first of TensorRT's engine, CUDA and CPU
    that this machine has; what it passes over it logs. ``profile`` is how the name of ONNX Runtime's trace begins.
    Raises BackendError when there is none.
    """
    if device not in DEVICES:
        raise BackendError(explain("device", expected=" or ".join(DEVICES), found=device, todo="Choose one of these."))
    kinds = engine_kinds(bundle, device)
    for kind in kinds[:-1]:
        try:
            return _make(kind, bundle, threads, profile)
        except BackendError as error:
            log.warning("%s is passed over: %s", kind, error)
    return _make(kinds[-1], bundle, threads, profile)


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


def _make(kind: str, bundle: Bundle, threads: int | None, profile: Path | None) -> Engine:
    if kind == "tensorrt":
        from edge_sdk.backends.trt import TrtEngine

        if profile is not None:
            todo = "Choose another device, or profile with trtexec."
            raise BackendError(explain("A profile", expected="ONNX Runtime", found="TensorRT's engine", todo=todo))
        return TrtEngine(bundle)
    from edge_sdk.backends.ort import OrtEngine

    return OrtEngine(bundle, threads=threads, device=kind.removeprefix("ort-"), profile=profile)
