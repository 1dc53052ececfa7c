"""Native builds for the tests: kept in build/, so that a second run compiles only what changed."""

from __future__ import annotations

import fcntl
import importlib.util
import os
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

import pytest

from places import ROOT

PATH = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
"""Where programs are looked for: first among this environment's own, CMake and Ninja."""


HOST = ROOT / "build" / f"native-{sysconfig.get_platform()}"
"""Where an install from this checkout keeps its objects (setup.py)."""


def build_host(*targets: str) -> Path:
    """Builds targets of plugins/CMakeLists.txt out of the very objects that users get, and those of the tests alone.

    CUDA kernels are those on the model of a GPU.
    """
    run_cmake(HOST, targets, "-DEDGE_TESTS=ON", "-DEDGE_TRT=ON", *python_options(HOST))
    return HOST


def build(name: str, target: str, *options: str) -> Path:
    """Builds a target compiled in another way, in a folder of that name, warnings being errors."""
    folder = ROOT / "build" / f"test-{name}"
    run_cmake(folder, [target], "-DEDGE_WERROR=ON", "-DEDGE_TESTS=ON", *options)
    return folder


def run_cmake(folder: Path, targets: Collection[str], *options: str) -> str:
    """Configures and builds; what the compilers said, if they had to be run."""
    need("cmake", "ninja")
    make = f"-DCMAKE_MAKE_PROGRAM={shutil.which('ninja', path=PATH)}"  # the one that pip found last is gone
    configure = ["cmake", "-G", "Ninja", "-S", ROOT / "plugins", "-B", folder, make, *options]
    with one_at_a_time(folder):
        for command in (configure, ["cmake", "--build", folder, "--target", *targets]):
            result = subprocess.run(
                list(map(str, command)), env=os.environ | {"PATH": PATH}, capture_output=True, text=True, check=False
            )
            assert result.returncode == 0, (result.stdout + result.stderr)[-5000:]
    return result.stdout


def python_options(folder: Path) -> list[str]:
    """The options for Python modules; those of setup.py, which has a copy of pybind11 in its folder."""
    import pybind11

    copy = folder / f"pybind11-{pybind11.__version__}"
    headers = f"{copy if copy.exists() else pybind11.get_include()};{sysconfig.get_paths()['include']}"
    return [f"-DEDGE_PYTHON_INCLUDE={headers}", f"-DEDGE_PYTHON_SUFFIX={sysconfig.get_config_var('EXT_SUFFIX')}"]


@contextmanager
def one_at_a_time(folder: Path) -> Iterator[None]:
    """Tests run side by side: those that need the same build wait for each other."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def plugin_library() -> Path:
    """The TensorRT plugins, and beside them what TensorRT-RTX needs for plugins (edge_sdk.backends.trt_module).

    Their kernels are those on the model of a GPU: to build an engine they need not run.
    """
    return build_host("edge_plugins_trt", "tensorrt_rtx_name") / "libedge_plugins_trt.so"


def import_module(name: str, folder: Path) -> ModuleType:
    """A Python module that was built in a folder."""
    path = folder / f"{name}{sysconfig.get_config_var('EXT_SUFFIX')}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    loaded = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loaded)
    return loaded


def need(*programs: str) -> None:
    """Skips the test where a program is missing; ``make test`` installs them where it may."""
    missing = [program for program in programs if shutil.which(program, path=PATH) is None]
    if missing:
        pytest.skip(f"not installed: {', '.join(missing)} (`make debian` installs them on Debian and Ubuntu)")
