"""Memory of states on the host: caches of a whole context's size, of which only what was written takes memory.

An anonymous mapping that the kernel need not answer for (mmap(2), MAP_NORESERVE) takes addresses and no memory; a page
of it exists once it is written. So a cache has its last size from the beginning and is never moved or copied
(docs/decisions/0008-long-caches.md). Since nothing is refused that way until the kernel kills somebody, memory is
looked for before a block of positions is written.
"""

from __future__ import annotations

import logging
import math
import mmap
import sys
from collections.abc import Sequence

import numpy as np

from edge_sdk.backends import FIRST_CAPACITY, used
from edge_sdk.errors import MemoryLimitError, explain
from edge_sdk.machine import read_available_memory
from edge_sdk.model import TensorSpec

CACHE_LINE = 64
"""Bytes."""

BLOCK = 4096
"""Positions that memory is looked for at once."""

KEPT_FREE_BYTES = 64 << 20
"""What is left to everybody else."""

WORTH_A_LOOK_BYTES = 1 << 20
"""States smaller than that are made without looking for memory, which takes longer than making them."""

MAP_NORESERVE = getattr(mmap, "MAP_NORESERVE", 0x4000 if sys.platform == "linux" else 0)  # Python has it since 3.13

log = logging.getLogger("edge_sdk")


def zeros(specs: Sequence[TensorSpec], **sizes: int) -> list[np.ndarray]:
    """Zeros of these specs and sizes, each beginning at a cache line, in one piece of memory.

    One piece is large enough for numpy to ask for huge pages. It is touched here: a page that is first touched costs
    microseconds, and thousands of them would make the first step late. Raises MemoryLimitError.
    """
    starts = _starts(specs, sizes)
    if starts[-1] >= WORTH_A_LOOK_BYTES:
        check_memory(starts[-1])
    try:
        memory = np.empty(starts[-1] + CACHE_LINE, dtype=np.uint8)
    except MemoryError as error:
        raise _too_little(starts[-1], error) from None
    memory.fill(0)
    return _divided(memory[-memory.ctypes.data % CACHE_LINE :], specs, starts, sizes)


def mapped_zeros(specs: Sequence[TensorSpec], **sizes: int) -> list[np.ndarray]:
    """Caches of zeros as :func:`zeros` makes them, but only the first positions are touched; others take no memory yet.

    Raises MemoryLimitError where addresses are refused.
    """
    starts = _starts(specs, sizes)
    try:
        memory = np.frombuffer(_mapping(starts[-1]), dtype=np.uint8)
    except OSError as error:
        raise _too_little(starts[-1], error) from None
    arrays = _divided(memory, specs, starts, sizes)
    for cache in used(specs, arrays, FIRST_CAPACITY):
        cache[...] = 0
    return arrays


def can_map(size: int) -> bool:
    """Whether so many bytes of addresses are to be had; a limit of this process or of the system may forbid it."""
    try:
        _mapping(size).close()
    except OSError as error:
        log.warning("caches grow by copying, for their whole size cannot be mapped: %s", error)
        return False
    return True


def _mapping(size: int) -> mmap.mmap:
    return mmap.mmap(-1, max(size, 1), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | MAP_NORESERVE)


def _starts(specs: Sequence[TensorSpec], sizes: dict[str, int]) -> list[int]:
    """Where each array begins, in bytes, and behind them where the last one ends."""
    starts = [0]
    for spec in specs:
        starts.append(starts[-1] + -(-_bytes_of(spec, sizes) // CACHE_LINE) * CACHE_LINE)
    return starts


def _bytes_of(spec: TensorSpec, sizes: dict[str, int]) -> int:
    return math.prod(spec.sized(**sizes)) * np.dtype(spec.dtype).itemsize


def _divided(
    memory: np.ndarray, specs: Sequence[TensorSpec], starts: Sequence[int], sizes: dict[str, int]
) -> list[np.ndarray]:
    return [
        memory[start : start + _bytes_of(spec, sizes)].view(spec.dtype).reshape(spec.sized(**sizes))
        for spec, start in zip(specs, starts)
    ]


class Backing:
    """How many positions of each row's mapped caches memory was found for."""

    def __init__(self, specs: Sequence[TensorSpec], capacity: int, positions: np.ndarray) -> None:
        """``positions`` (batch) int64 is advanced in place, so that it may be a part of another one's."""
        self.specs, self.capacity, self.positions = specs, capacity, positions
        self._bytes = sum(_bytes_of(spec, {"batch": 1, "capacity": 1}) for spec in specs if "capacity" in spec.shape)
        """Of one position of one row."""

    def rows(self, start: int, stop: int) -> Backing:
        """Of the rows from ``start`` to ``stop``."""
        return Backing(self.specs, self.capacity, self.positions[start:stop])

    def extend(self, positions: np.ndarray) -> None:
        """Looks for memory for so many positions of each row (batch). Raises MemoryLimitError, and changes nothing."""
        if (positions <= self.positions).all():
            return
        blocks = np.minimum(-(-positions // BLOCK) * BLOCK, self.capacity)
        wanted = np.maximum(blocks, self.positions)
        check_memory(int((wanted - self.positions).sum()) * self._bytes)
        self.positions[:] = wanted


def check_memory(size: int) -> None:
    """Raises MemoryLimitError where a machine has not so many bytes to give."""
    available = read_available_memory()
    if available is not None and size + KEPT_FREE_BYTES > available:
        raise _too_little(size, f"{available / 2**20:,.0f} MiB")


def _too_little(size: int, found: object) -> MemoryLimitError:
    return MemoryLimitError(
        explain(
            "The context",
            expected=f"{(size + KEPT_FREE_BYTES) / 2**20:,.0f} MiB of memory to be free",
            found=found,
            todo="Close other sessions, ask for a smaller max_context, or export with --cache-dtype int8.",
        )
    )
