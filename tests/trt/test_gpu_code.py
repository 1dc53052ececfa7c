"""The CUDA kernels compile, and take no more registers and local memory than they are meant to.

This says nothing about how they run: that takes a GPU. The boards' architectures are compiled unless others are asked
for; the limits hold for ``--architectures 87,90,110,120``.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import pytest

from builds import run_cmake
from devices import gpu_build, gpu_module
from places import ROOT

PLUGINS = ROOT / "plugins" / "edge_plugins"
SOURCES = sorted(path.relative_to(PLUGINS).as_posix() for path in PLUGINS.rglob("*.cu"))


@dataclass(frozen=True)
class Limit:
    """What a kernel may take at most, whatever it is specialised for, on any architecture."""

    registers: int
    """Of a thread. An SM has 65,536: 128 of them leave room for 512 threads, 255 for 256."""
    spills: int = 0
    """Bytes of a thread that are stored in local memory for want of registers."""


LIMITS = {
    # cached_attention
    "attend_vector": Limit(168),
    "attend_tensor": Limit(255, spills=32),
    "combine": Limit(56, spills=4),
    "copy": Limit(40),
    "store": Limit(48),
    # mamba2_mixer
    "convolve_all": Limit(64),
    "finish": Limit(48),
    "prepare_chunks": Limit(56),
    "scan_chunks": Limit(255),
    "scan_step": Limit(80),
    "scan_steps": Limit(128),
    # moe and qlinear
    "combine_products": Limit(56),
    "plain_product": Limit(48),
    "route_and_sort": Limit(56),
    "route_tokens": Limit(40),
    "slice_product": Limit(168),
    "sort_slots": Limit(40),
    "tile_product": Limit(208),
}
"""By the kernel's name. Those that read a model's weights and states in decoding spill nothing."""


@dataclass(frozen=True)
class Kernel:
    """One kernel, specialised, on one architecture, as ptxas describes it."""

    name: str
    specialised: str
    architecture: str
    registers: int
    spills: int
    shared: int


@pytest.fixture
def architectures(request: pytest.FixtureRequest) -> tuple[str, ...]:
    """Compute capabilities, such as 87."""
    return tuple(request.config.getoption("--architectures").split(","))


@lru_cache
def compiled(source: str, architectures: tuple[str, ...]) -> str:
    """What ptxas says of a source, warnings being errors; kept beside the object."""
    folder, options = gpu_build(architectures)
    name = f"CMakeFiles/cuda_kernels.dir/edge_plugins/{source}.o"
    made, log = folder / name, folder / f"{name}.log"
    if made.exists() and not (log.exists() and log.stat().st_mtime >= made.stat().st_mtime):
        made.unlink()  # whoever compiled it did not keep what was said
    if "ptxas info" in (said := run_cmake(folder, [name], *options)):
        log.write_text(said)
    return log.read_text()


def kernels_of(source: str, architectures: tuple[str, ...]) -> Iterator[Kernel]:
    """The kernels of a source."""
    described = re.finditer(
        r"Compiling entry function '(\w+)' for 'sm_(\d+)a?'\n.*\n"
        r"\s*\d+ bytes stack frame, (\d+) bytes spill stores, \d+ bytes spill loads\n"
        r".*Used (\d+) registers(?:.*?(\d+) bytes smem)?",
        compiled(source, architectures),
    )
    for mangled, architecture, spills, registers, shared in (match.groups() for match in described):
        full = subprocess.run(["c++filt", mangled], capture_output=True, text=True, check=True).stdout.strip()
        name = re.split(r"[<(]", full.replace("(anonymous namespace)::", "").removeprefix("void "))[0].split("::")[-1]
        yield Kernel(name, full, architecture, int(registers), int(spills), int(shared or 0))


@pytest.mark.parametrize("source", SOURCES)
def test_kernels_compile_and_keep_to_their_limits(source: str, architectures: tuple[str, ...]) -> None:
    kernels = list(kernels_of(source, architectures))
    for kernel in kernels:
        limit, where = LIMITS[kernel.name], f"{kernel.specialised} for sm_{kernel.architecture}"
        assert kernel.registers <= limit.registers, where
        assert kernel.spills <= limit.spills, where
        assert kernel.shared == 0, f"{where}: shared memory is asked for at the launch (device.h)"
    if kernels:
        assert {kernel.architecture for kernel in kernels} == set(architectures)


def test_every_limit_has_its_kernel(architectures: tuple[str, ...]) -> None:
    assert {kernel.name for source in SOURCES for kernel in kernels_of(source, architectures)} == set(LIMITS)


def test_the_module_for_gpus_says_that_there_is_none(architectures: tuple[str, ...]) -> None:
    """It is what `make test-gpu` runs: it links and imports without a GPU or its driver."""
    if shutil.which("nvidia-smi"):
        pytest.skip("there is a GPU: `make test-gpu` runs the kernels")
    module = gpu_module(*architectures)
    with pytest.raises(
        RuntimeError, match=r"^cudaMalloc: (CUDA driver version is insufficient|no CUDA-capable device)"
    ):
        module.qlinear(x=np.ones((2, 64), np.float32), weight=np.ones((64, 8), np.float32))
