"""The memory that states may take: what does not fit is refused before the kernel would end the process."""

from __future__ import annotations

import ctypes
import itertools
import mmap
import sys
import threading
import weakref
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from edge_sdk.errors import MemoryLimitError, explain
from edge_sdk.machine import read_available_memory

LOOK_FROM_BYTES = 1 << 20
"""Less than this is handed out without a look at what the machine has left."""

KEPT_FREE_BYTES = 64 << 20
"""Left to everything else on the machine."""

SPARE_BYTES = 128 << 20
"""What was given back and is kept at most for the next session of the same size."""

HUGE_PAGE = 2 << 20
"""Bytes, on x86-64, and on Arm where pages are of 4 KiB."""

MAP_NORESERVE = getattr(mmap, "MAP_NORESERVE", 0x4000 if sys.platform == "linux" else 0)  # Python has it since 3.13


@dataclass(eq=False)
class Piece:
    """A piece of memory that was handed out."""

    memory: np.ndarray
    """(size) uint8."""
    counted_bytes: int
    """What of it counts as in use: all, or of a mapping what was charged for."""
    positions: np.ndarray
    """How much of each row (rows) int64 of a mapping was charged for, as who charges counts it; else (0)."""


class MemoryBudget:
    """Hands out the memory of states and counts what of it is in use.

    Linux promises more memory than there is and ends a process that then uses it, so that a failed allocation alone
    would come too late: before about each MiB this looks at what is left. Some of what is given back is kept, for to
    touch new pages takes longer than to fill old ones.
    """

    def __init__(self, root: Path = Path("/")) -> None:
        """``root``: where ``/proc`` and ``/sys`` are."""
        self.limit_bytes: int | None = None
        """Of all states together; None is as much as the machine has."""
        self._root = root
        self._numbers = itertools.count()
        self._given: dict[int, Piece] = {}
        """What is in use, by number."""
        self._spare: dict[int, Piece] = {}
        """What was given back, by number, the oldest first."""
        self._unseen_bytes = 0
        """What was asked for since the last look at the machine."""
        self._lock = threading.Lock()

    @property
    def used_bytes(self) -> int:
        """What was handed out and is still in use."""
        return sum(piece.counted_bytes for piece in list(self._given.values()))

    def take(self, size: int) -> np.ndarray:
        """So many bytes (size) uint8, with anything in them. Raises MemoryLimitError."""
        with self._lock:
            piece = self._spare_like(size, 0, size)
            if piece is None:
                self._make_room(size)
                try:
                    memory = np.empty(size, dtype=np.uint8)
                except MemoryError:  # the process has a limit of its own (ulimit -v)
                    raise _refusal(size, "less than that") from None
                piece = Piece(memory, size, np.zeros(0, dtype=np.int64))
            return self._lend(piece)

    def map(self, size: int, rows: int, wanted_bytes: int) -> tuple[np.ndarray, Piece]:
        """Addresses (size) uint8, whose pages take memory once they are written, and what counts how many that are.

        Before any is written it must be charged for, but for what the piece says to be charged for already: of those
        that were given back it is the one that has nearest to ``wanted_bytes``. Raises MemoryLimitError.
        """
        with self._lock:
            piece = self._spare_like(size, rows, wanted_bytes)
            if piece is None:
                try:
                    memory = np.frombuffer(reserve_addresses(size), dtype=np.uint8)
                except OSError as error:
                    raise _refusal(size, str(error)) from None
                piece = Piece(memory, 0, np.zeros(rows, dtype=np.int64))
            return self._lend(piece), piece

    def charge(self, piece: Piece, size: int) -> None:
        """Counts so many bytes more of a mapping. Raises MemoryLimitError, and changes nothing."""
        with self._lock:
            self._make_room(size)
            piece.counted_bytes += size

    def _spare_like(self, size: int, rows: int, wanted_bytes: int) -> Piece | None:
        """Of what was given back the piece of this size that fits best, if the limit allows for one."""
        left = None if self.limit_bytes is None else self.limit_bytes - self.used_bytes
        fitting = {
            number: piece
            for number, piece in self._spare.copy().items()
            if (piece.memory.nbytes, len(piece.positions)) == (size, rows)
            and (left is None or piece.counted_bytes <= left)
        }
        if not fitting:
            return None
        return self._spare.pop(min(fitting, key=lambda number: abs(fitting[number].counted_bytes - wanted_bytes)), None)

    def _lend(self, piece: Piece) -> np.ndarray:
        lent = np.frombuffer(piece.memory.data, dtype=np.uint8)  # whose views refer to it and not to the memory behind
        number = next(self._numbers)
        self._given[number] = piece
        weakref.finalize(lent, self._give_back, number).atexit = False
        return lent

    def _give_back(self, number: int) -> None:
        """Called where the last view of it goes, in any thread and at any time: it must not wait for the lock."""
        piece = self._given.pop(number)
        if piece.counted_bytes > SPARE_BYTES:
            return
        self._spare[number] = piece
        kept = self._spare.copy()
        total = sum(spare.counted_bytes for spare in kept.values())
        for key, spare in kept.items():
            if total <= SPARE_BYTES:
                return
            total -= spare.counted_bytes
            self._spare.pop(key, None)

    def _make_room(self, size: int) -> None:
        """As check, but lets go of what is kept before it refuses."""
        try:
            self.check(size)
        except MemoryLimitError:
            self._spare.clear()
            self.check(size)

    def check(self, size: int) -> None:
        """Raises MemoryLimitError where so many bytes more do not fit."""
        if self.limit_bytes is not None and self.used_bytes + size > self.limit_bytes:
            raise _refusal(size, f"{self.used_bytes:,} of {self.limit_bytes:,} bytes in use")
        self._unseen_bytes += size
        if self._unseen_bytes < LOOK_FROM_BYTES:
            return
        left = read_available_memory(self._root)
        if left is not None and size > left - KEPT_FREE_BYTES:
            raise _refusal(size, f"{left:,} bytes left, {KEPT_FREE_BYTES:,} of which stay free")
        self._unseen_bytes = 0


def reserve_addresses(size: int) -> mmap.mmap:
    """A private anonymous mapping that the kernel need not answer for (mmap(2), MAP_NORESERVE). Raises OSError."""
    return mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | MAP_NORESERVE)


def ask_for_huge_pages(memory: np.ndarray) -> None:
    """For the whole huge pages within an array without gaps, where the system gives them (madvise(2)); else nothing."""
    start = -(-memory.ctypes.data // HUGE_PAGE) * HUGE_PAGE
    end = (memory.ctypes.data + memory.nbytes) // HUGE_PAGE * HUGE_PAGE
    if end > start and sys.platform == "linux":
        ctypes.CDLL(None).madvise(ctypes.c_void_p(start), ctypes.c_size_t(end - start), mmap.MADV_HUGEPAGE)


def _refusal(size: int, found: str) -> MemoryLimitError:
    return MemoryLimitError(
        explain(
            "Memory for a session's states",
            expected=f"{size:,} bytes",
            found=found,
            todo="Close a session, open it with a smaller max_context, or export with --cache-dtype int8.",
        )
    )
