"""What the CUDA kernels run on in a test run: a model of a GPU, or a GPU."""

from __future__ import annotations

import subprocess
from functools import lru_cache
from types import ModuleType

import pytest

from builds import build, build_host, import_module, need, python_options
from places import ROOT

_chosen = "emulated"


def choose_device(name: str) -> None:
    """``emulated`` or ``gpu``, once, before the first test (conftest.py)."""
    global _chosen  # noqa: PLW0603
    _chosen = name


def chosen_device() -> str:
    return _chosen


@lru_cache
def emulated_module() -> ModuleType:
    """The test module on the model of a GPU."""
    return import_module("_cuda_emulated", build_host("cuda_module"))


@lru_cache
def gpu_module(architecture: str) -> ModuleType:
    """The test module for GPUs of one compute capability, such as 87."""
    need("nvcc")
    name = f"gpu-{architecture}"
    options = ("-DEDGE_CUDA=ON", f"-DEDGE_CUDA_ARCHITECTURES={architecture}-real", "-DEDGE_ISAS=baseline")
    return import_module(
        "_cuda", build(name, "cuda_module", *options, *python_options(ROOT / "build" / f"test-{name}"))
    )


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
