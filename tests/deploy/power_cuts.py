"""What a disk may hold after a power cut, from a record of what was created, renamed, removed and fsynced.

POSIX promises of a file what it held when it was last fsynced, and of a directory the names that it had then. What was
not fsynced may be there or not. From a recorded run :meth:`Recorder.images` makes the disks that a cut after each event
could leave: with nothing but what was promised; with all names, as journals keep them, but files that were not fsynced
empty, full of zeros or as they were; and with a chance choice of each.

The recorder listens to Python's audit events, which cannot be switched off again: use it in a process of its own.
"""

from __future__ import annotations

import os
import random
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

CHANCES = 3
"""Chance choices after each event."""


@dataclass
class Inode:
    """A file or a directory; what is promised of it, and what is not."""

    directory: bool
    names: dict[str, Inode] = field(default_factory=dict)
    promised_names: dict[str, Inode] = field(default_factory=dict)
    promised: bytes | None = None
    """Content at the last fsync."""
    dirty: bool = True


class Recorder:
    """Follows what this process does below a folder, from the time that it is made."""

    def __init__(self, root: Path) -> None:
        self.root, self.events, self._listening = Path(os.path.realpath(root)), list[tuple[Any, ...]](), True
        self._fsync = os.fsync
        os.fsync = self._note_fsync
        sys.addaudithook(self._note)

    def stop(self) -> None:
        """Nothing is recorded any more."""
        self._listening, os.fsync = False, self._fsync

    def _inside(self, path: Any) -> tuple[str, ...] | None:
        """The parts of a path below the root."""
        if not isinstance(path, (str, bytes, os.PathLike)):
            return None
        absolute = os.path.abspath(os.fsdecode(path))
        if absolute != str(self.root) and not absolute.startswith(f"{self.root}/"):
            return None
        return Path(absolute).relative_to(self.root).parts

    def _note(self, event: str, arguments: tuple[Any, ...]) -> None:
        if not self._listening:
            return
        if event == "open":
            path, _, flags = arguments
            parts = self._inside(path)
            if parts is not None and flags & (os.O_CREAT | os.O_WRONLY | os.O_RDWR):
                self.events.append(("open", parts, bool(flags & os.O_CREAT)))
        elif event in ("os.rename", "os.link", "os.remove", "os.mkdir", "os.rmdir"):
            paths = [self._path(*pair) for pair in _paths(event, arguments)]
            parts_of = [self._inside(path) for path in paths]
            if all(parts is not None for parts in parts_of):
                self.events.append((event, *parts_of))

    @staticmethod
    def _path(path: Any, folder: int) -> Any:
        """A path, also where it is relative to an open directory."""
        return path if folder == -1 else os.path.join(os.readlink(f"/proc/self/fd/{folder}"), os.fsdecode(path))

    def _note_fsync(self, descriptor: int) -> None:
        self._fsync(descriptor)
        parts = self._inside(os.readlink(f"/proc/self/fd/{descriptor}"))
        if parts is not None:
            path = self.root.joinpath(*parts)
            self.events.append(("fsync", parts, path.read_bytes() if path.is_file() else None))

    def images(self, first: Inode, seed: int) -> Iterator[tuple[int, str, dict[str, bytes]]]:
        """After each event: its number, the kind of loss, and the files that the disk holds."""
        root, chance = first, random.Random(seed)
        for number, event in enumerate(self.events):
            _apply(root, event)
            yield number, "only what was promised", dict(_files(root, True, lambda inode: inode.promised or b""))
            yield number, "names, empty", dict(_files(root, False, lambda inode: _old(inode, b"")))
            yield number, "names, zeros", dict(_files(root, False, lambda inode: _old(inode, bytes(4096))))
            for _ in range(CHANCES):
                yield number, "chance", dict(_files(root, None, lambda inode: _chance(chance, inode), chance))


def promised(folder: Path) -> Inode:
    """A directory all of which was fsynced."""
    inode = Inode(directory=folder.is_dir(), dirty=False)
    if not inode.directory:
        inode.promised = folder.read_bytes()
        return inode
    inode.names = {path.name: promised(path) for path in folder.iterdir()}
    inode.promised_names = dict(inode.names)
    return inode


def write_image(files: dict[str, bytes], folder: Path) -> None:
    """Makes a disk; a name that ends in a slash is a directory."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for name, content in files.items():
        if name.endswith("/"):
            (folder / name).mkdir(parents=True, exist_ok=True)
        else:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(content)


def _paths(event: str, arguments: tuple[Any, ...]) -> list[tuple[Any, int]]:
    if event in ("os.rename", "os.link"):
        source, target, source_folder, target_folder = arguments
        return [(source, source_folder), (target, target_folder)]
    return [(arguments[0], arguments[-1])]


def _find(root: Inode, parts: tuple[str, ...]) -> Inode:
    for part in parts:
        root = root.names[part]
    return root


def _apply(root: Inode, event: tuple[Any, ...]) -> None:
    """What an event does. Events come before their effects: one that failed names what is not there."""
    kind, parts, *more = event
    if kind == "fsync":
        inode = _find(root, parts)
        inode.promised, inode.dirty, inode.promised_names = more[0], False, dict(inode.names)
        return
    folder, name = _find(root, parts[:-1]), parts[-1]
    if kind == "open":
        if name not in folder.names and more[0]:
            folder.names[name] = Inode(directory=False)
        if name in folder.names:
            folder.names[name].dirty = True
    elif kind == "os.mkdir":
        folder.names.setdefault(name, Inode(directory=True))
    elif kind in ("os.remove", "os.rmdir"):
        folder.names.pop(name, None)
    elif name in folder.names:
        target = more[0]
        _find(root, target[:-1]).names[target[-1]] = folder.names[name]
        if kind == "os.rename":
            del folder.names[name]


def _old(inode: Inode, lost: bytes) -> bytes:
    if not inode.dirty:
        return inode.promised or b""
    return lost


def _chance(chance: random.Random, inode: Inode) -> bytes:
    return _old(inode, chance.choice([b"", bytes(100), inode.promised or b"", b"{"]))


def _files(
    inode: Inode, keep: bool | None, content: Any, chance: random.Random | None = None, prefix: str = ""
) -> Iterator[tuple[str, bytes]]:
    """Files by name, of promised names if ``keep``, of all if not, or as chance has it for each directory."""
    old = keep if chance is None else chance.random() < 0.5
    for name, entry in (inode.promised_names if old else inode.names).items():
        if entry.directory:
            yield f"{prefix}{name}/", b""
            yield from _files(entry, keep, content, chance, f"{prefix}{name}/")
        else:
            yield prefix + name, content(entry)
