"""Native builds for the tests: kept in build/, so that a second run compiles only what changed."""

from __future__ import annotations

import fcntl
import importlib.util
import os
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

import pytest

from places import ROOT

PATH = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
"""Where programs are looked for: first among this environment's own, CMake and Ninja."""


def build(name: str, target: str, *options: str) -> Path:
    """Builds a target of plugins/CMakeLists.txt in a folder of that name, warnings being errors."""
    need("cmake", "ninja")
    folder = ROOT / "build" / f"test-{name}"
    configure = ["cmake", "-G", "Ninja", "-S", ROOT / "plugins", "-B", folder, "-DEDGE_WERROR=ON", "-DEDGE_TESTS=ON"]
    with one_at_a_time(folder):
        for command in ([*configure, *options], ["cmake", "--build", folder, "--target", target]):
            result = subprocess.run(
                list(map(str, command)), env=os.environ | {"PATH": PATH}, capture_output=True, text=True, check=False
            )
            assert result.returncode == 0, (result.stdout + result.stderr)[-5000:]
    return folder


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
    options = ("-DEDGE_TRT=ON", "-DEDGE_ISAS=baseline")
    build("trt", "tensorrt_rtx_name", *options)
    return build("trt", "edge_plugins_trt", *options) / "libedge_plugins_trt.so"


def build_module(name: str, target: str, module: str, *options: str) -> ModuleType:
    """Builds a target that is a Python module of the name ``module``, and imports it."""
    import pybind11

    suffix = sysconfig.get_config_var("EXT_SUFFIX")
    headers = f"{sysconfig.get_paths()['include']};{pybind11.get_include()}"
    folder = build(name, target, f"-DEDGE_PYTHON_INCLUDE={headers}", f"-DEDGE_PYTHON_SUFFIX={suffix}", *options)
    spec = importlib.util.spec_from_file_location(module, folder / f"{module}{suffix}")
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
