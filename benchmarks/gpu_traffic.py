"""What the CUDA kernels do with memory, counted without a GPU: their PTX on the CPU (plugins/tests/ptx).

    python benchmarks/gpu_traffic.py build/test-ptx

The folder is one that the tests built for PTX. Counts say nothing about time, but what is counted costs time on every
GPU: sectors of 32 bytes that warps ask global memory for (caches may serve some of them), passes over the banks of
shared memory, each beside the fewest that the same bytes need, and instructions that warps issue (of PTX, of which
ptxas leaves out some moves).
"""

from __future__ import annotations

import argparse
import csv
import ctypes
import re
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from gpu_ops import load
from gpu_workloads import TYPE, Workload, attention, mamba2, moe, qlinear

SECTOR_BYTES = 32


@dataclass(frozen=True)
class Access:
    """One instruction of a kernel that reaches memory, over all warps."""

    place: str
    """File and line."""
    shared: bool
    requests: int
    parts: int
    """Sectors of global memory, or passes over the banks of shared memory."""
    fewest: int
    """Parts, had what lanes asked for lain together."""


@dataclass(frozen=True)
class Kernel:
    """What one kernel did in one call of an operator."""

    name: str
    instructions: int
    """Of PTX, each counted once for a warp."""
    accesses: tuple[Access, ...]

    def parts(self, shared: bool) -> tuple[int, int]:
        """Parts of shared or of global memory, and the fewest."""
        chosen = [access for access in self.accesses if access.shared == shared]
        return sum(access.parts for access in chosen), sum(access.fewest for access in chosen)


class Machine:
    """The test module of a build for PTX, and the machine that it runs on."""

    def __init__(self, module: Any, machine: ctypes.CDLL) -> None:
        self._module, self._machine = module, machine

    def run(self, work: Workload) -> list[Kernel]:
        """The kernels of one call."""
        tensors = work.make(np.random.default_rng(0))
        call = getattr(self._module, work.operator)(**tensors, **work.attributes, type=TYPE)
        self._machine.edge_ptx_forget()
        call.run()
        with tempfile.NamedTemporaryFile("r", suffix=".tsv") as report:
            self._machine.edge_ptx_report(report.name.encode())
            return read_report(report)


def read_report(lines: Iterable[str]) -> list[Kernel]:
    """The kernels of a report (plugins/tests/ptx/runtime.cc)."""
    found: list[tuple[str, int, list[Access]]] = []
    for first, *rest in csv.reader(lines, delimiter="\t", quoting=csv.QUOTE_NONE):
        if first == "-":
            place, space, *counts = rest
            found[-1][2].append(Access(place, space == "shared", *map(int, counts)))
        else:
            found.append((re.sub(r"^void |\(anonymous namespace\)::|edge::cuda::|edge::", "", first), int(rest[1]), []))
    return [Kernel(name.split("(")[0], instructions, tuple(accesses)) for name, instructions, accesses in found]


def workloads() -> dict[str, Workload]:
    """Layers of published models' shapes: decoding at batch 1, and short prompts."""
    experts = {"top_k": 6, "width": 2048, "intermediate": 1024}
    few = {"experts": 4, "top_k": 2, "width": 512, "intermediate": 256}
    return {
        "Mamba2Mixer, 64x64": mamba2(1, 1, heads=64, head_dim=64, groups=8, state=128),
        "Mamba2Mixer, 96x80": mamba2(1, 1, heads=96, head_dim=80, groups=8, state=128),
        "MoE, int4": moe(1, 1, experts=8, bits=4, **experts),
        "MoE, bfloat16": moe(1, 1, experts=8, bits=16, **experts),
        "QLinear, int4": qlinear(1, 1, width=2048, out=2048),
        "QLinear, int4, batch 8": qlinear(8, 1, width=2048, out=2048),
        "CachedAttention, 32:8": attention(1, 1, past=4095, heads=32, kv_heads=8, head_dim=128),
        "CachedAttention, 32:2": attention(1, 1, past=4095, heads=32, kv_heads=2, head_dim=128),
        "Mamba2Mixer, 8x64, 256 tokens": mamba2(1, 256, heads=8, head_dim=64, groups=1, state=128),
        "Mamba2Mixer, 8x80, 256 tokens": mamba2(1, 256, heads=8, head_dim=80, groups=1, state=128),
        "Mamba2Mixer, 4x128, 256 tokens": mamba2(1, 256, heads=4, head_dim=128, groups=1, state=128),
        "MoE, int4, 256 tokens": moe(1, 256, bits=4, **few),
        "MoE, bfloat16, 256 tokens": moe(1, 256, bits=16, **few),
        "QLinear, int4, 256 tokens": qlinear(1, 256, width=512, out=512),
        "CachedAttention, 8:2, 256 tokens": attention(1, 256, past=0, heads=8, kv_heads=2, head_dim=128),
    }


def table(machine: Machine) -> str:
    """The workloads as a table in Markdown; of those that decode, also what must move."""
    lines = [
        "| layer | sectors, over the fewest | passes over banks, over the fewest | asked for, over what must move "
        "| bytes that must move, an instruction | instructions, in thousands |",
        "|---|---|---|---|---|---|",
    ]
    for name, work in workloads().items():
        kernels = machine.run(work)
        (sectors, fewest_sectors), (passes, fewest_passes) = (
            tuple(map(sum, zip(*(kernel.parts(shared) for kernel in kernels)))) for shared in (False, True)
        )
        instructions = sum(kernel.instructions for kernel in kernels)
        asked, each = sectors * SECTOR_BYTES / work.bytes, work.bytes / instructions
        decode = f"{asked:.2f} | {each:.1f}" if work.decode else " | "
        over = f"{sectors / fewest_sectors:.2f} | {passes / max(1, fewest_passes):.2f}"
        lines.append(f"| {name} | {over} | {decode} | {instructions / 1000:,.0f} |")
    return "\n".join(lines)


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="with the module and the machine, as the tests build them")
    folder = parser.parse_args().folder.resolve()
    module = next(folder.glob("_cuda_ptx.*so"), None)
    if module is None:
        parser.error(f"expected a folder with _cuda_ptx.*so, found none in {folder}: `pytest tests/gpu` builds one")
    print(table(Machine(load(module), ctypes.CDLL(str(folder / "libptx_runtime.so")))))


if __name__ == "__main__":
    main()
