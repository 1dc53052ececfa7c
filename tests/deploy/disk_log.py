"""What a machine wrote to a disk, in its order, and the disks that a power cut at any moment could leave of it.

qemu's driver ``blklogwrites`` keeps the log, in the format of Linux's dm-log-writes (drivers/md/dm-log-writes.c).
What was written before a flush is on the disk when the flush is done; of what came after the last one, a disk with a
volatile cache may have kept any part.
"""

from __future__ import annotations

import os
import random
import shutil
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

SECTOR_BYTES = 512
ATOMIC_BYTES = 4096
"""What flash writes whole or not at all. ext4 needs that: no journal guards its superblock, which has a checksum."""
SUPER = struct.Struct("<QQQI")
ENTRY = struct.Struct("<QQQQ")
MAGIC = 0x6A736677736872
FLUSH, FUA, DISCARD = 1, 2, 4

Choice = Callable[[random.Random, bytes], bytes]
"""What a cut leaves of a write that was not flushed: a beginning of it."""
LOSSES: dict[str, Choice] = {
    "nothing is lost": lambda _, data: data,
    "all is lost": lambda _, data: b"",
    "some is lost": lambda rng, data: data if rng.random() < 0.5 else b"",
    "writes are torn": lambda rng, data: data[: ATOMIC_BYTES * rng.randint(0, -(-len(data) // ATOMIC_BYTES))],
}


class Write(NamedTuple):
    """One entry; without data where it only flushes or discards."""

    offset: int
    data: bytes
    flags: int


def logged_disk(disk: Path, log: Path) -> str:
    """What qemu's -blockdev takes for the node ``data``."""
    log.touch()
    nodes = {"file": disk, "log": log}
    parts = [f"{name}.driver=raw,{name}.file.driver=file,{name}.file.filename={path}" for name, path in nodes.items()]
    return f"driver=blklogwrites,node-name=data,log-sector-size={SECTOR_BYTES},{','.join(parts)}"


def entry_count(log: Path) -> int:
    """How many there are; counted anew at each flush."""
    magic, version, count, sector_bytes = SUPER.unpack(log.read_bytes()[: SUPER.size])
    assert (magic, version, sector_bytes) == (MAGIC, 1, SECTOR_BYTES)
    return int(count)


def entries(log: Path) -> Iterator[Write]:
    """All of them, in their order."""
    with log.open("rb") as file:
        for _ in range(entry_count(log)):
            file.seek(-file.tell() % SECTOR_BYTES or (SECTOR_BYTES if file.tell() == 0 else 0), os.SEEK_CUR)
            sector, sectors, flags, _ = ENTRY.unpack(file.read(ENTRY.size))
            file.seek(-file.tell() % SECTOR_BYTES, os.SEEK_CUR)
            data = b"" if flags & DISCARD else file.read(sectors * SECTOR_BYTES)
            yield Write(sector * SECTOR_BYTES, data, flags)


def cuts(log: Path, disk: Path, image: Path, begin: int, end: int, every: int) -> Iterator[tuple[int, str]]:
    """Makes ``image`` as a cut after each ``every``-th entry from ``begin`` to ``end`` could leave it, in several ways.

    ``disk``: as it was before the first entry; it is changed. Yields the number of entries and what was lost.
    """
    rng, pending = random.Random(1), list[Write]()
    with disk.open("r+b") as durable:
        for number, write in enumerate(entries(log), 1):
            if write.flags & (FLUSH | FUA):
                _apply(durable.fileno(), pending)
                pending.clear()
            if write.data:
                pending.append(write)
            if write.flags & FUA:
                _apply(durable.fileno(), [pending.pop()])
            if begin <= number <= end and number % every == 0:
                for loss, choose in LOSSES.items():
                    shutil.copyfile(disk, image)
                    with image.open("r+b") as file:
                        _apply(file.fileno(), [one._replace(data=choose(rng, one.data)) for one in pending])
                    yield number, loss


def _apply(descriptor: int, writes: list[Write]) -> None:
    for write in writes:
        os.pwrite(descriptor, write.data, write.offset)
