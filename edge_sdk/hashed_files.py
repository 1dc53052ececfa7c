"""Digests of files that were not written since they were hashed: a start need not read all weights again."""

from __future__ import annotations

import logging
import time
from pathlib import Path

import msgspec

from edge_sdk.files import new_file, sha256

SETTLED_NS = 2_000_000_000
"""A file that was changed later than so long before it was hashed is not noted: file systems' clocks have steps, and it
may be changed again within one of them."""

log = logging.getLogger("edge_sdk")


class _Stamp(msgspec.Struct, frozen=True):
    """What changes where a file is written or replaced."""

    bytes: int
    inode: int
    modified_ns: int
    changed_ns: int
    """Unlike the time before, nobody but the kernel sets it."""

    @classmethod
    def of(cls, path: Path) -> _Stamp:
        found = path.stat()
        return cls(found.st_size, found.st_ino, found.st_mtime_ns, found.st_ctime_ns)


class _Entry(msgspec.Struct, frozen=True):
    stamp: _Stamp
    sha256: str


class HashedFiles:
    """What a note says of some files, and what is found out about others."""

    def __init__(self, note: Path) -> None:
        """``note``: a file that :meth:`save` wrote; one that is missing or damaged knows nothing."""
        self._note = note
        self._new = False
        try:
            self._entries = msgspec.json.decode(note.read_bytes(), type=dict[str, _Entry])
        except (OSError, msgspec.DecodeError):
            self._entries = {}

    def sha256(self, name: str, path: Path) -> str:
        """The hex digest of the file that the note calls ``name``, which is read unless it is as it was then."""
        stamp, now_ns = _Stamp.of(path), time.time_ns()
        entry = self._entries.get(name)
        if entry is not None and entry.stamp == stamp:
            return entry.sha256
        digest = sha256(path)
        if stamp.changed_ns < now_ns - SETTLED_NS:
            self._entries[name], self._new = _Entry(stamp, digest), True
        return digest

    def save(self) -> None:
        """Writes the note, if there is something new; where nothing may be written, files are hashed each time."""
        if not self._new:
            return
        try:
            self._note.parent.mkdir(exist_ok=True)
            with new_file(self._note) as path:
                path.write_bytes(msgspec.json.encode(self._entries))
        except OSError as error:
            log.info("the files are hashed at each start, for %s cannot be written: %s", self._note, error)
