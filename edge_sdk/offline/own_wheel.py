"""Edge SDK's own wheel for a board, with the native kernels compiled for its processor."""

from __future__ import annotations

import platform
import re
import shlex
import shutil
import tempfile
import zipfile
from pathlib import Path

from edge_sdk.errors import DeployError, explain
from edge_sdk.offline.commands import run_module
from edge_sdk.offline.target import OLDEST_PYTHON, Target

LIBRARY = "edge_plugins/native/libedge_plugins_ort.so"
LOG = "edge_plugins/native/build.log"
CROSS_COMPILER = "aarch64-linux-gnu-g++"
NO_KERNELS = ["-DEDGE_ISAS=none"]
"""CMake refuses it at once, and setup.py goes on without kernels."""


def build_wheel(source: Path, folder: Path, target: Target, *, kernels: bool = True) -> Path:
    """Builds the wheel from a checkout into a folder. Raises DeployError, but not where the kernels fail to compile.

    It is one for every Python that Edge SDK runs on: the kernels for ONNX Runtime know nothing of Python, and the
    module for NumPy, of tests and tools, comes along for this Python only, and for this machine.
    """
    settings = _cmake_settings(source, target) if kernels else NO_KERNELS
    with tempfile.TemporaryDirectory() as scratch:
        options = ["--global-option=build", f"--global-option=--build-base={scratch}"]
        options += [f"--build-option=--plat-name={target.wheel_platform}"]
        options += [f"--build-option=--py-limited-api=cp3{OLDEST_PYTHON}"]
        run_module(
            *("pip", "wheel", "--quiet", "--disable-pip-version-check", "--no-deps", "--wheel-dir", folder),
            *(f"--config-settings={option}" for option in options),
            source,
            target=target,
            environment={"EDGE_SDK_CMAKE_ARGS": shlex.join(settings), "EDGE_SDK_REQUIRE_NATIVE": "0"},
        )
    (wheel,) = folder.glob("edge_sdk-*.whl")
    return wheel


def check_wheel(wheel: Path, target: Target) -> None:
    """Raises DeployError for a wheel without kernels, or whose kernels the target cannot load."""
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        log = archive.read(LOG).decode(errors="replace") if LOG in names else "no kernels"
    if LIBRARY not in names:
        found = "\n".join(log.strip().splitlines()[-20:])
        todo = "Mend the compiler, or pack --without-kernels, which runs slower."
        raise DeployError(explain(wheel.name, expected="native kernels", found=found, todo=todo))
    if not wheel.name.endswith(f"_{target.machine}.whl"):
        raise DeployError(
            explain(wheel.name, expected=f"a wheel for {target.machine}", found="another", todo="Give one.")
        )
    said = run_module("auditwheel", "show", wheel, target=target)
    match = re.search(r'platform\s+tag:\s+"manylinux_2_(\d+)_(\w+)"', said)
    if match is None or match[2] != target.machine or int(match[1]) > target.glibc:
        found = f"what needs {match[0].split()[-1]}" if match else said.strip()
        todo = (
            "Compile them where the libraries are no newer than the board's, such as in a container of its Ubuntu "
            "or on such a board, with `pip wheel --no-deps .`, and give that wheel with --wheel."
        )
        raise DeployError(explain("The kernels", expected=f"what {target} loads", found=found, todo=todo))


def _cmake_settings(source: Path, target: Target) -> list[str]:
    """Settings to compile for the target here. Raises DeployError where there is no compiler for it."""
    if target.machine == platform.machine():
        return []  # as every install from this checkout, whose objects serve then
    if target.machine == "aarch64" and shutil.which(CROSS_COMPILER):
        # Without the module for NumPy, which would take the board's Python.h.
        toolchain = (source / "plugins" / "toolchain-aarch64.cmake").resolve()
        return [f"-DCMAKE_TOOLCHAIN_FILE={toolchain}", "-DEDGE_PYTHON_INCLUDE="]
    todo = (
        "sudo apt install g++-aarch64-linux-gnu, give a wheel from such a board with --wheel, or pack "
        "--without-kernels, which runs slower."
    )
    found = f"no {CROSS_COMPILER}" if target.machine == "aarch64" else f"a machine of {platform.machine()}"
    raise DeployError(explain("Kernels", expected=f"a compiler for {target.machine}", found=found, todo=todo))
