"""Where a TensorRT engine's states lie in device memory, and in which calls a step is made. Touches no GPU."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from edge_sdk.backends import Wanted
from edge_sdk.engine_files import DECODE, PREFILL, Limits
from edge_sdk.model import ModelConfig
from edge_sdk.tensor_spec import DTYPE_BYTES, TensorSpec

ALIGNMENT = 256
"""Bytes: what TensorRT wants of an address."""


@dataclass(frozen=True)
class Layout:
    """States of ``batch`` rows, caches of ``capacity`` positions, one after the other in one piece of memory."""

    specs: Sequence[TensorSpec]
    batch: int
    capacity: int

    def size(self, spec: TensorSpec) -> int:
        """Bytes of a state."""
        return DTYPE_BYTES[spec.dtype] * math.prod(spec.sized(batch=self.batch, capacity=self.capacity))

    def offsets(self) -> list[int]:
        """Where each state begins, and last how many bytes they take together."""
        ends = [0]
        for spec in self.specs:
            ends.append(ends[-1] + -(-self.size(spec) // ALIGNMENT) * ALIGNMENT)
        return ends

    def arrays(self, memory: np.ndarray) -> list[np.ndarray]:
        """The states as views of a host's copy of the memory, (bytes) uint8."""
        shapes = [spec.sized(batch=self.batch, capacity=self.capacity) for spec in self.specs]
        return [
            memory[start : start + self.size(spec)].view(spec.dtype).reshape(shape)
            for spec, start, shape in zip(self.specs, self.offsets(), shapes)
        ]


@dataclass(frozen=True)
class Copy:
    """``rows`` pieces of ``width`` bytes, ``*_pitch`` bytes from the beginning of one to that of the next."""

    source: int
    target: int
    rows: int
    width: int
    source_pitch: int
    target_pitch: int


def growth(old: Layout, new: Layout, used: int) -> list[Copy]:
    """What has to be copied from one layout into a roomier one whose caches hold ``used`` positions."""
    copies = []
    for spec, source, target in zip(old.specs, old.offsets(), new.offsets()):
        if "capacity" in spec.shape:  # (batch, kv_heads, capacity, head_dim) or, of scales, without head_dim
            rows = old.batch * math.prod(dim for dim in spec.shape[1:2] if isinstance(dim, int))
            position = old.size(spec) // rows // old.capacity
            copies.append(Copy(source, target, rows, used * position, old.capacity * position, new.capacity * position))
        else:
            size = old.size(spec)
            copies.append(Copy(source, target, 1, size, size, size))
    return copies


def state_addresses(model: ModelConfig, layout: Layout, base: int) -> dict[str, int]:
    """Address of every past and present state: one address for both, so that a step overwrites what it read."""
    addresses = {}
    for past, present, offset in zip(model.past_specs(), model.present_specs(), layout.offsets()):
        addresses[past.name] = addresses[present.name] = base + offset
    return addresses


@dataclass(frozen=True)
class Call:
    """One run of an engine: the tokens from ``start`` to ``end`` of a step."""

    start: int
    end: int
    kept: int
    """Last positions of them whose logits are computed; at least 1 where a single token is fed."""

    @property
    def profile(self) -> int:
        """The optimisation profile for it."""
        return DECODE if self.end - self.start == 1 else PREFILL


def calls(length: int, wanted: Wanted, limits: Limits) -> list[Call]:
    """The runs that a step over ``length`` tokens takes: blocks that the engine has room for."""
    block = min(limits.prefill, limits.kept) if wanted == "all" else limits.prefill
    edges = [*range(0, length, block), length]
    made = []
    for start, end in itertools.pairwise(edges):
        kept = {"all": end - start, "last": int(end == length), "none": 0}[wanted]
        made.append(Call(start, end, max(kept, int(end - start == 1))))
    return made
