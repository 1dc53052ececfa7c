"""How what runs on a board is doing: small files that loops and servers write anew each second, and an agent reads.

They lie in one folder, by default ``figures`` in the board's store (docs/deploy.md). They are replaced as a whole but
not fsynced: after a power cut nothing runs of which they could tell.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Optional

import msgspec

from edge_sdk.errors import ConfigError, explain

PERIOD_S = 1.0
STALE_S = 10.0
"""A file that is older is of a process that ended without a word."""


class LoopFigures(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Of a control loop since its process began."""

    ticks: int
    missed: int
    """Ticks whose action came a period or more too late, or never."""
    late: int
    inferences: int
    over_budget: int
    """Inferences that took longer than the policy's budget."""


class Figures(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Of one process."""

    name: str
    loop: Optional[LoopFigures] = None
    tokens_per_second: Optional[float] = None
    """Of a server: the median of its last answers; None before the first."""


class FigureFile:
    """Writes a process's figures each second, from a thread of its own, until it is closed; then the file is gone."""

    def __init__(self, folder: Path, name: str, figures: Callable[[], Figures]) -> None:
        """Raises OSError where the folder cannot be written to; an error later ends the writing."""
        self.path = folder / f"{name}-{os.getpid()}.json"
        self._figures, self._closing = figures, threading.Event()
        folder.mkdir(parents=True, exist_ok=True)
        self._write()
        self._thread = threading.Thread(target=self._work, name="edge-figures", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Ends it."""
        self._closing.set()
        self._thread.join()
        self.path.unlink(missing_ok=True)

    def __enter__(self) -> FigureFile:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _work(self) -> None:
        while not self._closing.wait(PERIOD_S):
            self._write()

    def _write(self) -> None:
        aside = self.path.with_suffix(".new")
        aside.write_bytes(msgspec.json.encode(self._figures()))
        aside.replace(self.path)


def loop_figures(folder: Path, name: str, figures: Callable[[], LoopFigures]) -> FigureFile:
    """Of a control loop. Raises ConfigError where the folder cannot be written to."""
    try:
        return FigureFile(folder, name, lambda: Figures(name=name, loop=figures()))
    except OSError as error:
        todo = "Name another, or let this user write there."
        raise ConfigError(explain(str(folder), expected="a folder for figures", found=error, todo=todo)) from None


def read_figures(folder: Path) -> list[Figures]:
    """Of all processes that run now, by their names; a file that cannot be read is passed over."""
    found = []
    for path in folder.glob("*.json"):
        try:
            if time.time() - path.stat().st_mtime < STALE_S:
                found.append(msgspec.json.decode(path.read_bytes(), type=Figures))
        except (OSError, msgspec.DecodeError):
            continue  # it went just now, or a power cut left half of it
    return sorted(found, key=lambda one: one.name)
