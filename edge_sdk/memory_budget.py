"""The memory that states may take: what does not fit is refused before the kernel would end the process."""

from __future__ import annotations

import itertools
import threading
import weakref
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

import numpy as np

from edge_sdk.errors import MemoryLimitError, explain

LOOK_FROM_BYTES = 1 << 20
"""Less than this is handed out without a look at what the machine has left."""

KEPT_FREE_BYTES = 64 << 20
"""Left to everything else on the machine."""


SPARE_BYTES = 128 << 20
"""What was given back and is kept at most for the next session of the same size."""


class MemoryBudget:
    """Hands out the memory of states and counts what of it is in use.

    Linux promises more memory than there is and ends a process that then uses it, so that a failed allocation alone
    would come too late: before each large one this looks at what is left. Some of what is given back is kept, for to
    touch new pages takes longer than to fill old ones.
    """

    def __init__(self, root: Path = Path("/")) -> None:
        """``root``: where ``/proc`` and ``/sys`` are."""
        self.limit_bytes: int | None = None
        """Of all states together; None is as much as the machine has."""
        self._root = root
        self._given: weakref.WeakValueDictionary[int, np.ndarray] = weakref.WeakValueDictionary()
        self._numbers = itertools.count()
        self._spare: dict[int, np.ndarray] = {}
        """Memory that was given back, by its address in Python, the oldest first."""
        self._lock = threading.Lock()

    @property
    def used_bytes(self) -> int:
        """What was handed out and is still in use."""
        return sum(memory.nbytes for memory in list(self._given.values()))

    def take(self, size: int) -> np.ndarray:
        """So many bytes (size) uint8, with anything in them. Raises MemoryLimitError."""
        with self._lock:
            memory = self._take_spare(size)
            if memory is None:
                self._spare.clear()
                self.check(size)
                try:
                    memory = np.empty(size, dtype=np.uint8)
                except MemoryError:  # the process has a limit of its own (ulimit -v)
                    raise _refusal(size, "less than that") from None
            lent = np.frombuffer(memory.data, dtype=np.uint8)  # whose views refer to it and not to the memory behind
            self._given[next(self._numbers)] = lent
            weakref.finalize(lent, self._give_back, memory).atexit = False
        return lent

    def _take_spare(self, size: int) -> np.ndarray | None:
        """Of what was given back one of this size, if the limit allows it."""
        fits = self.limit_bytes is None or self.used_bytes + size <= self.limit_bytes
        for key, memory in self._spare.copy().items():
            if memory.nbytes == size and fits:
                return self._spare.pop(key, None)
        return None

    def _give_back(self, memory: np.ndarray) -> None:
        """Called where the last view of it goes, in any thread and at any time: it must not wait for the lock."""
        self._spare[id(memory)] = memory
        kept = self._spare.copy()
        total = sum(spare.nbytes for spare in kept.values())
        for key, spare in kept.items():
            if total <= SPARE_BYTES:
                return
            total -= spare.nbytes
            self._spare.pop(key, None)

    def check(self, size: int) -> None:
        """Raises MemoryLimitError where so many bytes more do not fit."""
        if self.limit_bytes is not None and self.used_bytes + size > self.limit_bytes:
            raise _refusal(size, f"{self.used_bytes:,} of {self.limit_bytes:,} bytes in use")
        if size < LOOK_FROM_BYTES:
            return
        left = free_bytes(self._root)
        if left is not None and size > left - KEPT_FREE_BYTES:
            raise _refusal(size, f"{left:,} bytes left, {KEPT_FREE_BYTES:,} of which stay free")


def _refusal(size: int, found: str) -> MemoryLimitError:
    return MemoryLimitError(
        explain(
            "Memory for a session's states",
            expected=f"{size:,} bytes",
            found=found,
            todo="Close a session, or open it with a smaller max_context.",
        )
    )


def free_bytes(root: Path = Path("/")) -> int | None:
    """What this process may still take before the kernel ends it; None where the kernel does not say.

    The least of what the machine has (MemAvailable) and what its control group and those around it have (cgroup v2:
    what the kernel can take back from its caches counts as free).
    """
    return min(_free_amounts(root), default=None)


def _free_amounts(root: Path) -> Iterator[int]:
    for line in _lines(root / "proc/meminfo"):
        if line.startswith("MemAvailable:"):
            yield int(line.split()[1]) * 1024
    own = next((line[3:] for line in _lines(root / "proc/self/cgroup") if line.startswith("0::")), "/")
    for group in (PurePosixPath(own), *PurePosixPath(own).parents):
        folder = root / "sys/fs/cgroup" / group.relative_to("/")
        limit, used = ("".join(_lines(folder / name)) for name in ("memory.max", "memory.current"))
        if limit.isdigit() and used.isdigit():
            caches = dict(line.split() for line in _lines(folder / "memory.stat"))
            yield int(limit) - int(used) + int(caches.get("inactive_file", 0))


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text().splitlines()
    except OSError:
        return []
