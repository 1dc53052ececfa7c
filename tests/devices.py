"""What the CUDA kernels run on in a test run.

``ptx``: what nvcc made of them, instruction by instruction on the CPU (plugins/tests/ptx). ``emulated``: compiled by
the C++ compiler for a model of a GPU (plugins/edge_plugins/native/emulated_device.h), for want of nvcc. ``gpu``: a GPU.
"""

from __future__ import annotations

import ctypes
import shutil
import subprocess
from functools import lru_cache
from pathlib import Path
from types import ModuleType

import pytest

from builds import build_host, import_module, need, python_options, run_cmake
from places import ROOT

DEVICES = ("ptx", "emulated", "gpu")

_chosen = "emulated"


def usual_device() -> str:
    """Where nobody chose one."""
    return "ptx" if shutil.which("nvcc") else "emulated"


def choose_device(name: str) -> None:
    """One of DEVICES, once, before the first test (conftest.py)."""
    global _chosen  # noqa: PLW0603
    _chosen = name


def chosen_device() -> str:
    return _chosen


@lru_cache
def emulated_module() -> ModuleType:
    """The test module on the model of a GPU."""
    return import_module("_cuda_emulated", build_host("cuda_module"))


def ptx_build(*targets: str) -> Path:
    """Builds targets by nvcc for the machine that runs PTX on the CPU."""
    need("nvcc")
    folder = ROOT / "build" / "test-ptx"
    options = ["-DEDGE_WERROR=ON", "-DEDGE_TESTS=ON", "-DEDGE_PTX=ON", "-DEDGE_ISAS=baseline"]
    run_cmake(folder, targets, *options, *python_options(folder))
    return folder


@lru_cache
def ptx_module() -> ModuleType:
    """The test module with the kernels as PTX."""
    return import_module("_cuda_ptx", ptx_build("cuda_module"))


@lru_cache
def ptx_machine() -> ctypes.CDLL:
    """The machine that ptx_module() runs on (plugins/tests/ptx/runtime.cc)."""
    return ctypes.CDLL(str(ptx_build("cuda_module") / "libptx_runtime.so"))


def gpu_build(architectures: tuple[str, ...]) -> tuple[Path, list[str]]:
    """The folder of a build by nvcc for GPUs of these compute capabilities, such as 87, and CMake's options for it."""
    need("nvcc")
    folder = ROOT / "build" / f"test-gpu-{'-'.join(architectures)}"
    targets = ";".join(f"{architecture}-real" for architecture in architectures)
    options = ["-DEDGE_WERROR=ON", "-DEDGE_TESTS=ON", "-DEDGE_CUDA=ON", f"-DEDGE_CUDA_ARCHITECTURES={targets}"]
    return folder, [*options, "-DEDGE_ISAS=baseline", *python_options(folder)]


@lru_cache
def gpu_module(*architectures: str) -> ModuleType:
    """The test module for GPUs of these compute capabilities."""
    folder, options = gpu_build(architectures)
    run_cmake(folder, ["cuda_module"], *options)
    return import_module("_cuda", folder)


def capability() -> str:
    """The first GPU's compute capability, such as 90; the test is skipped where there is none."""
    command = ["nvidia-smi", "--query-gpu=compute_cap", "--format=csv,noheader"]
    try:
        result = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError:
        pytest.skip("no GPU: there is no nvidia-smi")
    if result.returncode != 0:
        pytest.skip(f"no GPU: nvidia-smi said {(result.stdout + result.stderr).strip()[-300:]!r}")
    return result.stdout.splitlines()[0].strip().replace(".", "")
