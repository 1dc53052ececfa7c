"""Remembers the states after beginnings of prompts, so that a system prompt or a manual is read once.

A recurrent state cannot be cut back to a shorter prefix, so snapshots are taken where a later prompt is likely to go
another way: every so many tokens, and where a prompt was seen to leave an earlier one (as Marconi does, Pan et al.
2024, arXiv 2411.19379, section 4.1). The least recently used ones make room.
"""

from __future__ import annotations

import hashlib
import logging
import re
import threading
from collections import OrderedDict, deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from edge_sdk.backends import Snapshot
from edge_sdk.errors import StateError
from edge_sdk.files import remove_abandoned

PROMPTS, PROMPTS_TOKENS = 32, 1 << 22
"""Earlier prompts that a new one is compared with: at most so many, of so many tokens together."""

PARTS = 8
"""Regular snapshots of one prompt at most: with the attention's caches they grow with the position."""

WRITES = 4
"""Snapshots that may wait for the disk, each in memory until then; one more is not written."""

NAME = re.compile(r"([0-9a-f]{32})-(\d+)\.state")
"""Of a snapshot's file: the hash of its tokens, and how many they are."""

log = logging.getLogger("edge_sdk")

Write = Callable[[Path, Sequence[int], Snapshot], None]
Read = Callable[[Path], tuple[Sequence[int], Snapshot]]


@dataclass
class _Entry:
    length: int
    snapshot: Snapshot | None
    """None where it lies on the disk only."""


@dataclass(frozen=True)
class DiskStore:
    """A folder for snapshots, how to write one and how to read it; ``read`` raises StateError for a useless one."""

    folder: Path
    max_bytes: int
    write: Write
    read: Read


class PrefixCache:
    """Snapshots by the tokens that led to them. Safe to use from several threads."""

    def __init__(self, max_bytes: int, interval: int = 2048, least: int = 64, disk: DiskStore | None = None) -> None:
        """``max_bytes``: of the snapshots in memory.

        ``interval``: tokens from one snapshot of a long prompt to the next; ``least``: tokens that a snapshot must save
        over the one before it.
        """
        self.max_bytes, self.interval, self.least, self._disk = max_bytes, interval, least, disk
        self._entries: OrderedDict[bytes, _Entry] = OrderedDict()
        """Least recently used first."""
        self._prompts: deque[np.ndarray] = deque(maxlen=PROMPTS)
        self._lock = threading.Lock()
        self._writer = ThreadPoolExecutor(1, "prefix-cache") if disk else None
        self._waiting = threading.BoundedSemaphore(WRITES)
        if disk:
            remove_abandoned(disk.folder)
        for path in sorted(disk.folder.glob("*.state")) if disk else []:
            if named := NAME.fullmatch(path.name):
                self._entries[bytes.fromhex(named[1])] = _Entry(int(named[2]), None)

    @property
    def nbytes(self) -> int:
        """Memory that the snapshots take."""
        return sum(entry.snapshot.nbytes for entry in self._entries.values() if entry.snapshot)

    def __len__(self) -> int:
        return len(self._entries)

    def longest(self, token_ids: Sequence[int]) -> Snapshot | None:
        """The snapshot after the longest known beginning that leaves at least one of the tokens to be read."""
        with self._lock:
            lengths = {entry.length for entry in self._entries.values() if entry.length < len(token_ids)}
            for _, key in reversed(_keys(token_ids, lengths)):
                if key in self._entries and (found := self._fetch(key)) is not None:
                    self._entries.move_to_end(key)
                    return found
        return None

    def plan(self, token_ids: Sequence[int], start: int) -> list[int]:
        """Positions after ``start`` at which reading this prompt should pause for :meth:`add`."""
        ids = np.asarray(token_ids, dtype=np.int32)
        with self._lock:
            shared = max((_common(ids, prompt) for prompt in self._prompts), default=0)
            self._prompts.append(ids)
            while len(self._prompts) > 1 and sum(map(len, self._prompts)) > PROMPTS_TOKENS:
                self._prompts.popleft()
        step = max(self.interval, len(ids) // PARTS)
        regular = range(step, len(ids), step)
        branch = min(shared, len(ids) - 1)  # a repeated prompt must have a token left to read
        wanted = sorted({*regular, branch})
        chosen: list[int] = []
        for position in wanted:
            if position - max(start, *chosen[-1:], 0) >= self.least:
                chosen.append(position)
        return chosen

    def add(self, token_ids: Sequence[int], snapshot: Snapshot) -> None:
        """Keeps the states after these tokens; drops others where there is no room."""
        if snapshot.nbytes > self.max_bytes:
            return
        ((length, key),) = _keys(token_ids, {len(token_ids)})
        with self._lock:
            self._entries[key] = _Entry(length, snapshot)
            self._entries.move_to_end(key)
            self._make_room()
        if self._disk and self._writer and self._waiting.acquire(blocking=False):
            self._writer.submit(self._write, self._disk, key, list(token_ids), snapshot)

    def close(self) -> None:
        """Waits until everything is on the disk."""
        if self._writer:
            self._writer.shutdown()

    def _make_room(self) -> None:
        total = self.nbytes
        for key, entry in list(self._entries.items()):
            if total <= self.max_bytes:
                return
            if entry.snapshot is None:
                continue
            total -= entry.snapshot.nbytes
            entry.snapshot = None
            if self._disk is None or not self._path(self._disk, key, entry.length).exists():
                del self._entries[key]

    def _fetch(self, key: bytes) -> Snapshot | None:
        """An entry's snapshot, from the disk if need be; an unreadable one is forgotten."""
        entry = self._entries[key]
        if entry.snapshot is None and self._disk:
            path = self._path(self._disk, key, entry.length)
            try:
                token_ids, entry.snapshot = self._disk.read(path)
                if _keys(token_ids, {len(token_ids)}) != [(entry.length, key)]:
                    raise StateError(f"{path} holds other tokens than its name says")
            except StateError as error:
                log.warning("a snapshot is dropped: %s", error)
                path.unlink(missing_ok=True)
                del self._entries[key]
                return None
            self._entries.move_to_end(key)
            self._make_room()
        return entry.snapshot

    def _write(self, disk: DiskStore, key: bytes, token_ids: list[int], snapshot: Snapshot) -> None:
        path = self._path(disk, key, len(token_ids))
        try:
            if not path.exists():
                disk.folder.mkdir(parents=True, exist_ok=True)
                disk.write(path, token_ids, snapshot)
                _keep_newest(disk)
        except OSError as error:
            log.warning("a snapshot was not written to %s: %s", path, error)
        finally:
            self._waiting.release()

    @staticmethod
    def _path(disk: DiskStore, key: bytes, length: int) -> Path:
        return disk.folder / f"{key.hex()}-{length}.state"


def _keys(token_ids: Sequence[int], lengths: set[int]) -> list[tuple[int, bytes]]:
    """Of each length, ascending, the hash of so many first tokens."""
    ids, digest, done, keys = np.asarray(token_ids, dtype=np.int32), hashlib.sha256(), 0, []
    for length in sorted(lengths):
        digest.update(ids[done:length].tobytes())
        done = length
        keys.append((length, digest.digest()[:16]))
    return keys


def _common(first: np.ndarray, second: np.ndarray) -> int:
    """How many tokens two prompts share from their beginning."""
    length = min(len(first), len(second))
    different = np.flatnonzero(first[:length] != second[:length])
    return int(different[0]) if len(different) else length


def _keep_newest(disk: DiskStore) -> None:
    """Deletes the oldest snapshots of a folder that holds too many bytes."""
    total = 0
    for path in sorted(disk.folder.glob("*.state"), key=lambda path: path.stat().st_mtime, reverse=True):
        total += path.stat().st_size
        if total > disk.max_bytes:
            path.unlink()
