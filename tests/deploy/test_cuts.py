"""Power cuts and kills at any moment leave a board that runs the bundle before or the one after."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from places import ROOT

LEAST = {
    ("power", "install"): 150,
    ("power", "twice"): 300,
    ("power", "rollback"): 20,
    ("power", "start"): 20,
    ("kill", "install"): 20,
    ("kill", "rollback"): 3,
    ("kill", "start"): 3,
}
"""By how it is cut and what: how often it was, at least. Kills are one for each change to the files."""


@pytest.mark.parametrize(("cut", "work"), LEAST)
def test_a_cut_at_any_moment_leaves_one_of_the_two(cut: str, work: str, tmp_path: Path) -> None:
    command = [sys.executable, ROOT / "tests" / "deploy" / "cuts.py", cut, work, tmp_path / "cuts"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if "PermissionError: this machine lets nobody trace" in result.stderr:
        pytest.skip("this machine lets nobody trace a process")
    assert result.returncode == 0, result.stderr
    assert int(result.stdout) >= LEAST[cut, work]
