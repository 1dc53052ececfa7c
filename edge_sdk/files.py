"""Files that appear whole or not at all: written aside, fsynced, renamed."""

from __future__ import annotations

import ctypes
import fcntl
import glob
import hashlib
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


def sync(path: Path) -> None:
    """Force a file's or a directory's content to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _beside(path: Path) -> Path:
    return path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.tmp")


@contextmanager
def new_file(path: Path) -> Iterator[Path]:
    """A temporary path to write to; it takes ``path``'s name, fsynced, when the block ends without an error.

    What writers of the same file left that were killed is deleted.
    """
    remove_abandoned(path.parent, path.name)
    temporary = _beside(path)
    descriptor = os.open(temporary, os.O_CREAT | os.O_WRONLY, 0o666)
    try:
        with suppress(OSError):  # a file system without locks keeps what is abandoned
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield temporary
        sync(temporary)
        os.replace(temporary, path)
        sync(path.parent)
    finally:
        temporary.unlink(missing_ok=True)
        os.close(descriptor)


def remove_abandoned(folder: Path, name: str | None = None) -> None:
    """Deletes the temporary files of a file, or of all in a folder, that nobody writes any more.

    A writer holds a lock, which the kernel takes from a process that ends, however it does.
    """
    for path in folder.glob(f".{'*' if name is None else glob.escape(name)}.*.tmp"):
        with suppress(OSError):  # it is being written, has just got its name, or is a directory
            descriptor = os.open(path, os.O_WRONLY)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                path.unlink()
            finally:
                os.close(descriptor)


@contextmanager
def new_directory(path: Path) -> Iterator[Path]:
    """As :func:`new_file` for a directory. A reader sees the old one or the new one."""
    temporary = _beside(path)
    temporary.mkdir(parents=True)
    try:
        yield temporary
        put_directory(temporary, path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def put_directory(finished: Path, path: Path) -> None:
    """Gives a directory of the same file system the name ``path``, fsynced; what was there gets its name."""
    for entry in [*finished.rglob("*"), finished]:
        sync(entry)
    if path.exists():
        _exchange(finished, path)
    else:
        os.rename(finished, path)
    sync(path.parent)


def partial_directory(path: Path) -> Path:
    """Where :func:`resumable_directory` keeps what is not whole yet."""
    return path.with_name(f".{path.name}.partial")


@contextmanager
def resumable_directory(path: Path, key: str) -> Iterator[Path]:
    """As :func:`new_directory`, but what an interrupted block left is there when one of the same ``key`` begins."""
    partial = partial_directory(path)
    note = partial / "key"
    if not note.exists() or note.read_text(encoding="utf-8") != key:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        note.write_text(key, encoding="utf-8")
    yield partial
    note.unlink()
    with new_directory(path) as new:
        for entry in partial.iterdir():
            os.rename(entry, new / entry.name)
    partial.rmdir()


def _exchange(one: Path, other: Path) -> None:
    """Swaps two directories: in one step where the file system can (Linux's renameat2), else in three."""
    renameat2 = getattr(ctypes.CDLL(None), "renameat2", None)
    here, exchange = -100, 2  # AT_FDCWD, RENAME_EXCHANGE
    if renameat2 is not None and renameat2(here, os.fsencode(one), here, os.fsencode(other), exchange) == 0:
        return
    aside = _beside(other)
    os.rename(other, aside)
    try:
        os.rename(one, other)
    except OSError:
        os.rename(aside, other)
        raise
    os.rename(aside, one)


def sha256(path: Path) -> str:
    """Hex digest of a file's content."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
