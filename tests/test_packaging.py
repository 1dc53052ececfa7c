"""What ``pip install .`` would put on a machine, with a compiler and without one."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest

from places import ROOT

IGNORED = shutil.ignore_patterns(
    ".venvs", "build", ".git", "*.egg-info", "__pycache__", ".*_cache", "*.so", "build.log"
)
KERNEL = """
import sys
import numpy as np
import edge_plugins
from edge_plugins.native import _native

assert edge_plugins.native_library().name == "libedge_plugins_ort.so"
assert _native.isas() == ["baseline"]
x, weight = np.ones((1, 64), np.float32), np.ones((64, 3), np.float32)
print(_native.qlinear(x=x, weight=weight, exact=True).tolist(), sorted({"onnx", "onnxruntime"} & set(sys.modules)))
"""


def pip_wheel(source: Path, folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """What ``pip wheel`` says, verbosely."""
    command = [sys.executable, "-m", "pip", "wheel", "-v", "--no-deps", "--wheel-dir", folder, source]
    clean = {name: value for name, value in os.environ.items() if not name.startswith("EDGE_SDK_")}
    return subprocess.run(
        list(map(str, command)), env=clean | environment, capture_output=True, text=True, check=False, timeout=900
    )


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fresh copy of the checkout."""
    return shutil.copytree(ROOT, tmp_path_factory.mktemp("packaging") / "source", ignore=IGNORED)


@pytest.fixture(scope="module")
def wheel(source: Path) -> Path:
    """The wheel, with the kernels for one instruction set, which is enough to see whether they get there."""
    settings = {"EDGE_SDK_REQUIRE_NATIVE": "1", "EDGE_SDK_CMAKE_ARGS": "-DEDGE_ISAS=baseline"}
    result = pip_wheel(source, source.parent / "wheels", **settings)
    assert result.returncode == 0, (result.stdout + result.stderr)[-5000:]
    (wheel,) = (source.parent / "wheels").glob("edge_sdk-*.whl")
    return wheel


@pytest.fixture
def fresh(tmp_path: Path) -> Path:
    """The interpreter of an environment with numpy and nothing else."""
    venv.create(tmp_path / "venv", with_pip=True)
    python = tmp_path / "venv" / "bin" / "python"
    subprocess.run([python, "-m", "pip", "install", "--quiet", "numpy"], check=True, timeout=300)
    return python


def test_the_wheel_holds_the_three_rooms_and_both_commands(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        (entry_points,) = (name for name in names if name.endswith("entry_points.txt"))
        commands = archive.read(entry_points).decode()
        (metadata,) = (name for name in names if name.endswith("METADATA"))
        extras = archive.read(metadata).decode()
    modules = [
        path.relative_to(folder).as_posix()
        for folder in (ROOT, ROOT / "plugins", ROOT / "export")
        for room in ("edge_sdk", "edge_plugins", "edge_export")
        for path in (folder / room).rglob("*.py")
    ]
    assert len(modules) > 30
    assert {*modules, "edge_sdk/control/firmware/edge_frames.h"} <= names
    assert "edge-sdk = edge_sdk.cli:main" in commands
    assert "edge-export = edge_export.cli:main" in commands
    assert not any(name.startswith(("tests", "samples", "ros_bridge")) for name in names)
    for extra in (
        "cpu",
        "gpu",
        "jetson",
        "tensorrt",
        "tensorrt-rtx",
        "export",
        "serial",
        "dynamixel",
        "feetech",
        "vision",
        "server",
        "control",
    ):
        assert f"Provides-Extra: {extra}" in extras


def test_the_wheels_kernels_run_where_there_is_numpy_and_nothing_else(wheel: Path, fresh: Path) -> None:
    assert "py3-none-any" not in wheel.name
    subprocess.run([fresh, "-m", "pip", "install", "--quiet", "--no-deps", wheel], check=True, timeout=300)
    result = subprocess.run([fresh, "-c", KERNEL], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[[64.0, 64.0, 64.0]] []"


def test_a_compiler_that_fails_leaves_a_working_install_and_one_warning(
    source: Path, fresh: Path, tmp_path: Path
) -> None:
    result = pip_wheel(source, tmp_path, CXX="false")
    assert result.returncode == 0, (result.stdout + result.stderr)[-5000:]
    (warning,) = (line for line in (result.stdout + result.stderr).splitlines() if "did not compile" in line)
    assert "The compiler's error: cat " in warning
    (wheel,) = tmp_path.glob("edge_sdk-*.whl")
    subprocess.run([fresh, "-m", "pip", "install", "--quiet", "--no-deps", wheel], check=True, timeout=300)
    code = "import edge_plugins as p; print(p.native_library(), p.missing_reason(), sorted(p.OPERATORS))"
    said = subprocess.run([fresh, "-c", code], capture_output=True, text=True, check=True).stdout
    assert said.startswith("None The native kernels did not compile at installation")
    log = Path(said.partition("the compiler's error is in ")[2].partition(". ")[0])
    assert "false" in log.read_text()


def test_a_compiler_that_fails_is_an_error_where_the_kernels_are_required(source: Path, tmp_path: Path) -> None:
    result = pip_wheel(source, tmp_path, CXX="false", EDGE_SDK_REQUIRE_NATIVE="1")
    assert result.returncode != 0
    assert "The native kernels did not compile" in result.stdout + result.stderr
    assert "false" in result.stdout + result.stderr
