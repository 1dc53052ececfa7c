"""What only a GPU can show; `make test-gpu` runs this and, on the GPU, tests/plugins/test_cuda_*.py."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from builds import need
from devices import capability, gpu_module
from places import ROOT

FOLDERS = (".", "plugins", "export", "tests", "tests/plugins")


def run_selection(device: str, *watched_by: str) -> str:
    """The output of selection.py, which must have run many cases."""
    paths = os.pathsep.join(str(ROOT / folder) for folder in FOLDERS)
    command = [*watched_by, sys.executable, str(Path(__file__).with_name("selection.py")), device]
    environment = os.environ | {"PYTHONPATH": paths}
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=400)
    output = result.stdout + result.stderr
    assert result.returncode == 0, output[-5000:]
    ran = re.search(r"^(\d+) ran$", output, re.MULTILINE)
    assert ran is not None, output[-5000:]
    assert int(ran[1]) >= 100
    return output


@pytest.mark.parametrize("device", ["emulated", "ptx"])
def test_the_selection_runs_without_a_gpu(device: str) -> None:
    if device == "ptx":
        need("nvcc")
    run_selection(device)


@pytest.mark.gpu
@pytest.mark.parametrize(
    ("tool", "clean"), [("memcheck", "ERROR SUMMARY: 0 errors"), ("racecheck", "RACECHECK SUMMARY: 0 hazards")]
)
def test_compute_sanitizer_finds_nothing(tool: str, clean: str) -> None:
    gpu_module(capability())  # built before it is watched
    need("compute-sanitizer")
    output = run_selection("gpu", "compute-sanitizer", "--tool", tool, "--error-exitcode", "9")
    assert clean in output, output[-5000:]
