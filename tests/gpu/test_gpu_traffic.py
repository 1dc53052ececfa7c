"""How the CUDA kernels reach memory: counted on their PTX, against the limits that were reached (docs/gpu.md)."""

from __future__ import annotations

from functools import lru_cache

import pytest

from devices import ptx_machine, ptx_module
from gpu_traffic import SECTOR_BYTES, Machine, read_report, workloads

WORKLOADS = workloads()
BANKS = 1.1
"""Passes over the banks of shared memory, over the fewest."""
SECTORS = 1.2
"""Sectors of global memory, over the fewest, in all of a layer's kernels."""

DECODE = {
    "Mamba2Mixer, 64x64": (1, 1.35, 9.2),
    "Mamba2Mixer, 96x80": (1, 1.35, 9.2),
    "MoE, int4": (3, 1.45, 4.4),
    "MoE, bfloat16": (3, 1.1, 16),
    "QLinear, int4": (1, 1.3, 4.5),
    "QLinear, int4, batch 8": (1, 1.8, 2.8),
    "CachedAttention, 32:8": (3, 1.15, 7.3),
    "CachedAttention, 32:2": (3, 1.4, 5.6),
}
"""Kernels; bytes asked for over those that must move, at most (caches serve what is asked for twice); the latter over a
warp's instructions, at least."""

PREFILL = {
    "Mamba2Mixer, 8x64, 256 tokens": 600,
    "Mamba2Mixer, 8x80, 256 tokens": 720,
    "Mamba2Mixer, 4x128, 256 tokens": 600,
    "MoE, int4, 256 tokens": 1800,
    "MoE, bfloat16, 256 tokens": 1350,
    "QLinear, int4, 256 tokens": 570,
    "CachedAttention, 8:2, 256 tokens": 1200,
}
"""Thousands of instructions of warps, at most."""


@lru_cache
def machine() -> Machine:
    return Machine(ptx_module(), ptx_machine())


@pytest.mark.parametrize("name", WORKLOADS)
def test_kernels_reach_memory_as_they_are_meant_to(name: str) -> None:
    work = WORKLOADS[name]
    kernels = machine().run(work)
    for kernel in kernels:
        passes, fewest = kernel.parts(shared=True)
        assert passes <= BANKS * fewest, kernel
    sectors, fewest = (sum(counts) for counts in zip(*(kernel.parts(shared=False) for kernel in kernels)))
    assert sectors <= SECTORS * fewest
    asked = SECTOR_BYTES * sectors
    assert asked >= 0.99 * work.bytes
    instructions = sum(kernel.instructions for kernel in kernels)
    if work.decode:
        launches, most_asked, least_each = DECODE[name]
        assert len(kernels) == launches
        assert asked <= most_asked * work.bytes
        assert work.bytes >= least_each * instructions
    else:
        assert instructions <= 1000 * PREFILL[name]


def test_every_layer_has_its_limits() -> None:
    assert set(DECODE) == {name for name, work in WORKLOADS.items() if work.decode}
    assert set(PREFILL) == set(WORKLOADS) - set(DECODE)


def test_a_report_is_read() -> None:
    lines = [
        "void edge::cuda::finish<edge::bfloat16>(edge::cuda::Call, float const*)\t1\t250\n",
        "-\tfinish.cuh:57\tglobal\t4\t48\t16\n",
        "-\tfinish.cuh:22\tshared\t2\t2\t2\n",
        "edge::cuda::route_and_sort(edge::cuda::Routing)\t1\t10\n",
    ]
    first, second = read_report(lines)
    assert (first.name, first.instructions) == ("finish<bfloat16>", 250)
    assert (first.parts(shared=False), first.parts(shared=True)) == ((48, 16), (2, 2))
    assert (second.name, second.accesses) == ("route_and_sort", ())
