"""The arrays of states on the host, in memory of a budget: at once, or of a whole context's size and paid as written.

A mapping takes addresses and no memory; a page of it exists once it is written. So a cache has its last size from the
beginning and is never moved or copied (docs/decisions/0008-long-caches.md). Since nothing is refused that way until
the kernel kills somebody, each block of positions is charged to the budget before it is written.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence

import numpy as np

from edge_sdk.backends import FIRST_CAPACITY, used
from edge_sdk.memory_budget import HUGE_PAGE, MemoryBudget, Piece, ask_for_huge_pages, reserve_addresses
from edge_sdk.tensor_spec import TensorSpec

CACHE_LINE = 64
"""Bytes."""

BLOCK = FIRST_CAPACITY
"""Positions of a mapped cache that are charged for at once."""

log = logging.getLogger("edge_sdk")


def buffers(specs: Sequence[TensorSpec], budget: MemoryBudget, **sizes: int) -> list[np.ndarray]:
    """Memory of these specs and sizes, each beginning at a cache line, in one piece, with anything in it.

    One piece is large enough for numpy to ask for huge pages. Raises MemoryLimitError.
    """
    starts = _starts(specs, sizes)
    memory = budget.take(starts[-1] + CACHE_LINE)
    return _divided(memory[-memory.ctypes.data % CACHE_LINE :], specs, starts, sizes)


def zeros(specs: Sequence[TensorSpec], budget: MemoryBudget, **sizes: int) -> list[np.ndarray]:
    """As :func:`buffers`, zeros: to touch a page for the first time costs microseconds, which no step should pay."""
    made = buffers(specs, budget, **sizes)
    for array in made:
        array.fill(0)
    return made


class Backing:
    """How many positions of each row's mapped caches were charged for."""

    def __init__(
        self, specs: Sequence[TensorSpec], capacity: int, budget: MemoryBudget, piece: Piece, positions: np.ndarray
    ) -> None:
        """``positions`` (batch) int64: the piece's or a part of them, advanced in place."""
        self.specs, self.capacity, self.positions = specs, capacity, positions
        self._budget, self._piece = budget, piece
        self._bytes = _position_bytes(specs)

    def rows(self, start: int, stop: int) -> Backing:
        """Of the rows from ``start`` to ``stop``."""
        return Backing(self.specs, self.capacity, self._budget, self._piece, self.positions[start:stop])

    def extend(self, positions: np.ndarray) -> None:
        """Charges for so many positions of each row (batch). Raises MemoryLimitError, and changes nothing."""
        if (positions <= self.positions).all():
            return
        blocks = np.minimum(-(-positions // BLOCK) * BLOCK, self.capacity)
        wanted = np.maximum(blocks, self.positions)
        self._budget.charge(self._piece, int((wanted - self.positions).sum()) * self._bytes)
        self.positions[:] = wanted


def mapped(
    specs: Sequence[TensorSpec], budget: MemoryBudget, capacity: int, positions: np.ndarray
) -> tuple[list[np.ndarray], Backing]:
    """Caches of this capacity with anything in them, charged for so many positions of each row (batch), or a block.

    The first block is touched here, for what :func:`zeros` says. Raises MemoryLimitError.
    """
    sizes = {"batch": len(positions), "capacity": capacity}
    starts = _starts(specs, sizes)
    first = np.minimum(np.maximum(positions, BLOCK), capacity)
    memory, piece = budget.map(max(starts[-1], 1), len(positions), int(first.sum()) * _position_bytes(specs))
    arrays, is_new = _divided(memory, specs, starts, sizes), piece.counted_bytes == 0
    backing = Backing(specs, capacity, budget, piece, piece.positions)
    backing.extend(first)
    if is_new:
        for cache in used(specs, arrays, BLOCK):
            cache[...] = 0
    return arrays, backing


def fill(
    specs: Sequence[TensorSpec], arrays: Sequence[np.ndarray], content: Sequence[np.ndarray], length: int, behind: bool
) -> None:
    """Writes states (batch, ...), zeros if they are empty, whose caches have ``length`` positions.

    ``behind``: whether to write zeros behind these, which a function body multiplies by 0 and a kernel does not read.
    """
    for index, (spec, array) in enumerate(zip(specs, arrays)):
        if "capacity" not in spec.shape:
            array[...] = content[index] if content else 0
            continue
        if content:
            write_cache(array[:, :, :length], content[index])
        if behind:
            array[:, :, length if content else 0 :] = 0


def write_cache(cache: np.ndarray, content: np.ndarray) -> None:
    """Writes positions (batch, heads, length, ...) of caches that may not have been touched yet.

    Where they fill huge pages these are asked for, so that the kernel is entered once for 2 MiB and not for 4 KiB.
    """
    if math.prod(cache.shape[2:]) * cache.itemsize >= 2 * HUGE_PAGE:
        for batch, head in np.ndindex(cache.shape[:2]):
            ask_for_huge_pages(cache[batch, head])
    cache[...] = content


def can_map(size: int) -> bool:
    """Whether so many bytes of addresses are to be had; a limit of this process or of the system may forbid it."""
    try:
        reserve_addresses(max(size, 1)).close()  # a model without states needs none
    except OSError as error:
        log.warning("caches grow by copying, for their whole size cannot be mapped: %s", error)
        return False
    return True


def _starts(specs: Sequence[TensorSpec], sizes: dict[str, int]) -> list[int]:
    """Where each array begins, in bytes, and behind them where the last one ends."""
    starts = [0]
    for spec in specs:
        starts.append(starts[-1] + -(-_bytes_of(spec, sizes) // CACHE_LINE) * CACHE_LINE)
    return starts


def _bytes_of(spec: TensorSpec, sizes: dict[str, int]) -> int:
    return math.prod(spec.sized(**sizes)) * np.dtype(spec.dtype).itemsize


def _position_bytes(caches: Sequence[TensorSpec]) -> int:
    """Of one position of one row."""
    return sum(_bytes_of(spec, {"batch": 1, "capacity": 1}) for spec in caches)


def _divided(
    memory: np.ndarray, specs: Sequence[TensorSpec], starts: Sequence[int], sizes: dict[str, int]
) -> list[np.ndarray]:
    return [
        memory[start : start + _bytes_of(spec, sizes)].view(spec.dtype).reshape(spec.sized(**sizes))
        for spec, start in zip(specs, starts)
    ]
