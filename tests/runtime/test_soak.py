"""The soak program's short form: as many requests as it takes to mix everything with everything."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import soak

REQUESTS = 25
"""Of each of the eight clients, in each part."""


def test_nothing_leaks_sticks_or_changes_an_answer(scan_bundle: Path) -> None:
    def part() -> Callable[[int], bool]:
        return lambda asked: asked < REQUESTS

    # so short a run is still warming up: only the long one tells whether memory is flat
    _, wrong = soak.soak(scan_bundle, part, limit=1.0)
    assert not wrong
