"""What a command will take, said before anything is written; and the refusal where the disk is too small for it."""

from __future__ import annotations

import errno
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from edge_export.terminal import console
from edge_sdk.errors import explain
from edge_sdk.files import partial_directory
from edge_sdk.machine import read_machine

DryRun = Annotated[
    bool, typer.Option("--dry-run", help="Only say what it would take: memory, disk, time. Writes nothing.")
]

DISK_BYTES_PER_SECOND = 500e6
"""Of reading and of writing: an assumption, that of a SATA solid-state disk. Disks are not measured."""


@dataclass(frozen=True)
class Estimate:
    """What a command takes, in bytes; ``seconds`` is None where nothing honest can be said."""

    read_bytes: float
    write_bytes: float
    memory_bytes: float
    seconds: float | None
    largest: str = ""
    """What takes most of the memory."""
    time_from: str = "this processor's speed, measured now, and 500 MB/s for the disk, assumed"


def show_estimate(estimate: Estimate, target: Path) -> None:
    """Says what a command would take that writes to ``target``. Raises OSError if the disk has no room for it."""
    gigabytes = {
        "reads": f"{estimate.read_bytes / 1e9:.3f} GB",
        "writes": f"{estimate.write_bytes / 1e9:.3f} GB to {target}; {_free_bytes(target) / 1e9:.1f} GB are free there",
        "memory": f"about {estimate.memory_bytes / 1e9:.2f} GB at the peak{_by(estimate.largest)}; "
        f"{read_machine().memory_free_bytes / 1e9:.1f} GB are free",
        "time": "not estimated" if estimate.seconds is None else f"about {_duration(estimate.seconds)}",
    }
    for name, value in gigabytes.items():
        console.print(f"  {name:<7} {value}", highlight=False, soft_wrap=True)
    console.print(f"  Time: from {estimate.time_from}. Nothing was written.", style="dim", soft_wrap=True)
    require_room(target, estimate.write_bytes)


def _by(largest: str) -> str:
    return f", by {largest}" if largest else ""


def _duration(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min"


def require_room(target: Path, needed_bytes: float) -> None:
    """Raises OSError if the disk of ``target`` has less room; what an interrupted run left there is used again."""
    partial = partial_directory(target)
    there = sum(file.stat().st_blocks * 512 for file in partial.rglob("*")) if partial.exists() else 0
    free = _free_bytes(target)
    if needed_bytes - there > free:
        raise OSError(
            errno.ENOSPC,
            explain(
                str(target),
                expected=f"{(needed_bytes - there) / 1e9:.3f} GB of room",
                found=f"{free / 1e9:.3f} GB",
                todo="Make room, or write to another disk.",
            ),
        )


def _free_bytes(target: Path) -> int:
    """Of the disk that a file or folder is on, or will be."""
    folder = target.absolute()
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free
