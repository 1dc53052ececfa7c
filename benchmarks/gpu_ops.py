"""The CUDA kernels' speed: bytes a second beside the device's own copy, TFLOP/s, and other people's kernels.

    python benchmarks/gpu_ops.py --module build/test-gpu-90/_cuda.cpython-312-x86_64-linux-gnu.so --out build/gpu

Every contender gets the same tensors, as many copies of them as are larger than the L2 cache, and starts one call on
each copy in turn; the calls are captured as a CUDA graph, timed by CUDA events, and the contenders take turns. Medians
over the rounds. Writes gpu_ops.md and gpu_ops.json. ``--device emulated`` runs tiny sizes on the model of a GPU, which
tests this program and says nothing about speed. `make test-gpu` compiles the module and runs this.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import math
import statistics
import subprocess
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol

import numpy as np

from gpu_workloads import TYPE, Workload, tiny_workloads, workloads

COPY_BYTES = 1 << 30
"""Of the copy that gives the device's bandwidth."""

Start = Callable[[], object]


class Device(Protocol):
    """Where kernels run and how they are timed."""

    cache_bytes: int

    def stream(self) -> int:
        """The address of the stream on which work is queued now."""

    def prepare(self, starts: Sequence[Start]) -> Callable[[], float]:
        """Makes one run of all of these repeatable; each repetition gives its seconds."""

    def copy_bandwidth(self) -> float:
        """Bytes per second, read and written, of a copy within the device."""

    def describe(self) -> dict[str, str]:
        """What it is, and the versions that matter."""


class Gpu:
    """The first GPU, by torch."""

    def __init__(self) -> None:
        import torch

        self.torch = torch
        self.cache_bytes = int(torch.cuda.get_device_properties(0).L2_cache_size)

    def stream(self) -> int:
        return int(self.torch.cuda.current_stream().cuda_stream)

    def prepare(self, starts: Sequence[Start]) -> Callable[[], float]:
        for start in starts:  # whatever compiles or allocates does it now
            start()
        self.torch.cuda.synchronize()
        graph = self.torch.cuda.CUDAGraph()
        with self.torch.cuda.graph(graph):
            for start in starts:
                start()

        def run() -> float:
            begin, end = (self.torch.cuda.Event(enable_timing=True) for _ in range(2))
            begin.record()
            graph.replay()
            end.record()
            end.synchronize()
            return float(begin.elapsed_time(end)) / 1000

        run()
        return run

    def copy_bandwidth(self) -> float:
        source = self.torch.empty(COPY_BYTES, dtype=self.torch.uint8, device="cuda").fill_(1)
        target = self.torch.empty_like(source)
        run = self.prepare([lambda: target.copy_(source)])
        return 2 * COPY_BYTES / statistics.median(run() for _ in range(20))

    def describe(self) -> dict[str, str]:
        query = ["nvidia-smi", "--query-gpu=name,driver_version,clocks.max.sm", "--format=csv,noheader"]
        said = subprocess.run(query, capture_output=True, text=True, check=True).stdout.splitlines()[0]
        return {"GPU, driver, clock": said, "CUDA of torch": str(self.torch.version.cuda)}


class Emulated:
    """The model of a GPU: times mean nothing."""

    cache_bytes = 1 << 10

    def stream(self) -> int:
        return 0

    def prepare(self, starts: Sequence[Start]) -> Callable[[], float]:
        def run() -> float:
            started = time.perf_counter()
            for start in starts:
                start()
            return time.perf_counter() - started

        return run

    def copy_bandwidth(self) -> float:
        source = np.ones(1 << 20, np.uint8)
        run = self.prepare([source.copy])
        return 2 * source.nbytes / statistics.median(run() for _ in range(5))

    def describe(self) -> dict[str, str]:
        return {"GPU, driver, clock": "none: a model of a GPU, whose times mean nothing"}


@dataclass(frozen=True)
class Row:
    """One contender on one workload."""

    workload: str
    contender: str
    decode: bool
    seconds: float | None
    """Median of a call; None if it failed."""
    bytes: int
    flops: int
    remark: str = ""
    """Why it failed, or was left out."""


def measure(module: ModuleType, device: Device, work: Workload, rounds: int) -> list[Row]:
    """Our kernels and, on a GPU, the peer; the first row is ours."""
    tensors = work.make(np.random.default_rng(0))
    copies = 1 + math.ceil(2 * device.cache_bytes / work.bytes)

    def ours() -> list[Start]:
        function = getattr(module, work.operator)
        calls = [function(**tensors, **work.attributes, type=TYPE) for _ in range(copies)]
        return [lambda call=call: call.start(device.stream()) for call in calls]  # type: ignore[misc]

    contenders: dict[str, Callable[[], list[Start]]] = {"Edge SDK": ours}
    rows: list[Row] = []

    def row(name: str, seconds: float | None, remark: str = "") -> Row:
        return Row(work.name, name, work.decode, seconds, work.bytes, work.flops, remark)

    if isinstance(device, Gpu):
        from gpu_peers import peer_of

        try:
            if peer := peer_of(work):
                contenders[peer[0]] = lambda: [peer[1](tensors) for _ in range(copies)]
        except ImportError as error:
            rows.append(row("peer", None, f"left out: {error}"))
    runs: dict[str, Callable[[], float]] = {}
    for name, make in contenders.items():
        try:
            runs[name] = device.prepare(make())
        except Exception as error:  # whatever a peer says is its result
            rows.append(row(name, None, f"failed: {type(error).__name__}: {str(error)[:300]}"))
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(rounds):
        for name, run in runs.items():
            times[name].append(run() / copies)
    return [*(row(name, statistics.median(values)) for name, values in times.items()), *rows]


def table(report: dict[str, Any]) -> str:
    """The report as Markdown."""
    copy = report["copy_bytes_per_second"]
    lines = [*(f"* {name}: {value}" for name, value in report["machine"].items())]
    lines += [f"* copy within the device: {copy / 1e9:,.0f} GB/s, read and written", ""]
    lines += ["| | | µs | GB/s | of the copy's | TFLOP/s | ours is faster by |", "|---|---|---|---|---|---|---|"]
    ours: dict[str, float] = {}
    for row in report["rows"]:
        name, seconds = row["workload"], row["seconds"]
        if seconds is None:
            lines.append(f"| {name} | {row['contender']} | {row['remark']} | | | | |")
            continue
        ratio = f"{seconds / ours[name]:.2f}" if name in ours else ""
        ours.setdefault(name, seconds)
        rate = row["bytes"] / seconds
        cells = [
            f"{seconds * 1e6:,.1f}",
            *([f"{rate / 1e9:,.0f}", f"{rate / copy:.0%}"] if row["decode"] else ["", ""]),
        ]
        cells += ["" if row["decode"] else f"{row['flops'] / seconds / 1e12:.2f}", ratio]
        lines.append(f"| {name} | {row['contender']} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def versions(names: Iterable[str]) -> dict[str, str]:
    """Of installed packages."""
    found = {}
    for name in names:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return found


def load(path: Path) -> ModuleType:
    """The test module of this file; its name is that before the first dot."""
    spec = importlib.util.spec_from_file_location(path.name.partition(".")[0], path)
    if spec is None or spec.loader is None:
        raise SystemExit(f"--module: expected a compiled Python module, found {path}. `make test-gpu` compiles one.")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--module", type=Path, required=True, help="the tests' module of the kernels")
    parser.add_argument("--device", choices=("gpu", "emulated"), default="gpu")
    parser.add_argument("--rounds", type=int, default=25)
    parser.add_argument("--out", type=Path, required=True, help="a folder")
    options = parser.parse_args()
    module = load(options.module)
    device: Device = Gpu() if options.device == "gpu" else Emulated()
    machine = device.describe() | versions(("torch", "triton", "mamba_ssm")) | {"date": time.strftime("%Y-%m-%d")}
    report: dict[str, Any] = {"machine": machine, "copy_bytes_per_second": device.copy_bandwidth(), "rows": []}
    for work in workloads() if options.device == "gpu" else tiny_workloads():
        report["rows"] += [asdict(row) for row in measure(module, device, work, options.rounds)]
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "gpu_ops.json").write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    (options.out / "gpu_ops.md").write_text(table(report), encoding="utf-8")
    print(table(report))


if __name__ == "__main__":
    main()
