"""What is made once for all the test processes of a run."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from builds import one_at_a_time


def made_once(factory: pytest.TempPathFactory, name: str, make: Callable[[Path], object]) -> Path:
    """A folder that the first process to ask for the name fills with ``make``; others get a copy. Each has its own."""
    mine = factory.mktemp(name)
    if "PYTEST_XDIST_WORKER" not in os.environ:
        make(mine)
        return mine
    shared = factory.getbasetemp().parent / f"once-{name}"  # the workers' folders lie beside it
    with one_at_a_time(shared):
        if (shared / "whole").exists():
            shutil.copytree(shared / "whole", mine, dirs_exist_ok=True)
        else:
            make(mine)
            shutil.copytree(mine, shared / "copying")
            (shared / "copying").rename(shared / "whole")
    return mine
