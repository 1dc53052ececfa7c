"""The pack for an Arm board, installed by its own script under Debian's Python for arm64, runs the runtime's tests."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

import edge_sdk
from arm import arm_python
from boards import install, pack_wheels
from builds import need
from places import ROOT

pytestmark = pytest.mark.slow

TESTS = ("runtime/test_bundle.py", "runtime/test_engine.py", "runtime/test_language.py", "native/test_ort_kernels.py")
COMMANDS = ["jump twice and walk left", "run around right thrice", "turn opposite left after look"]

ANSWER = """
import logging, platform, sys
import edge_sdk
logging.basicConfig(level=logging.INFO, stream=sys.stderr)
model = edge_sdk.load(sys.argv[1], threads=1)
print(platform.machine(), *model.generate_batch(sys.argv[2:]), sep="\\n")
"""


@pytest.fixture(scope="module")
def board(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where it is installed."""
    need("aarch64-linux-gnu-g++")
    python, folder = arm_python(), tmp_path_factory.mktemp("arm")
    packages = [part for name in ("pytest", "hypothesis", "onnx") for part in ("--with", name)]
    packed = pack_wheels("--target", "3.11-aarch64-2.36", *packages, "--out", folder / "pack")
    assert packed.returncode == 0, packed.stderr[-5000:]
    print(packed.stdout)
    result = install(folder / "pack", "--python", python, folder / "edge", timeout_s=3600)
    assert result.returncode == 0, result.stdout + result.stderr
    assert f"Edge SDK {edge_sdk.__version__} \n" in result.stdout  # with kernels that load
    return folder / "edge"


def run(board: Path, *command: object, **environment: str) -> subprocess.CompletedProcess[str]:
    clean = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    return subprocess.run(
        [board / "bin" / "python", *map(str, command)],
        env=clean | environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=3600,
        cwd=board,
    )


def test_a_bundle_answers_on_arm_as_it_does_here(board: Path, scan_bundle: Path) -> None:
    result = run(board, "-c", ANSWER, scan_bundle, *COMMANDS)
    expected = edge_sdk.load(scan_bundle, threads=1).generate_batch(COMMANDS)
    assert result.stdout.splitlines() == ["aarch64", *expected], result.stderr
    assert "the edge operators run on native kernels" in result.stderr


def test_the_runtimes_tests_pass_on_arm(board: Path, scan_bundle: Path, tmp_path: Path) -> None:
    paths = [ROOT / "tests" / name for name in TESTS]
    helpers = os.pathsep.join(str(ROOT / name) for name in ("tests",))
    result = run(
        *(
            board,
            "-m",
            "pytest",
            "-q",
            "-p",
            "no:cacheprovider",
            "--scan-bundle",
            scan_bundle,
            "--basetemp",
            tmp_path / "t",
        ),
        *paths,
        PYTHONPATH=helpers,
    )
    print(result.stdout[-2000:])
    assert result.returncode == 0, result.stdout[-10000:]
    assert " passed" in result.stdout
