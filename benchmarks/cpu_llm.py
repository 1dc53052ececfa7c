"""Prefill and decode of whole models on the CPU: our bundles beside llama.cpp and transformers, on the same weights.

    python benchmarks/cpu_llm.py make build/bench/260m --size 260m
    python benchmarks/cpu_llm.py export build/bench/260m --weights int4 --out build/bench/260m-int4
    python benchmarks/cpu_llm.py run --ours build/bench/260m-int4

``run`` loads every contender once, each in a process of its own, and then goes round: in every round each contender
in turn is measured at each context. It prints Markdown. docs/benchmarks.md says how to bring llama.cpp in.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import json
import math
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, get_args

import msgspec
import numpy as np

from edge_sdk.bundle import GRAPH
from edge_sdk.errors import ConfigError, EdgeError, explain
from edge_sdk.machine import read_bandwidth
from llm_contenders import DECODE, PREFILL, Contender, LlamaBench, Sample, Task, Worker
from machine import Reader, busy, processor

COUNTERPARTS = {"int4": "Q4_0", "int8": "Q8_0", "bfloat16": "F16"}
"""llama.cpp's format that each of ours is compared with, where decode reads the weights."""

PASS_THROUGH = {"Cast", "Identity", "Transpose"}
"""ONNX operators behind which a weight is still the same weight."""


def weights_read(bundle: Path) -> float | None:
    """Bytes of a bundle's weights that one decode step of one sequence reads; None where onnx is not installed.

    All of them but the embedding, of which a row is read, and the experts that were not chosen.
    """
    try:
        import onnx
    except ImportError:
        return None
    graph = onnx.load(str(bundle / GRAPH), load_external_data=False).graph
    alias = {node.output[0]: node.input[0] for node in graph.node if node.op_type in PASS_THROUGH}
    share = {tensor.name: 1.0 for tensor in graph.initializer}
    shapes = {tensor.name: list(tensor.dims) for tensor in graph.initializer}
    for node in graph.node:
        sources = [alias.get(name, name) for name in node.input]
        if node.op_type == "Gather" and sources[0] in share:
            share[sources[0]] /= max(1, shapes[sources[0]][0])
        if node.op_type == "MoE":
            chosen = next(item.i for item in node.attribute if item.name == "top_k")
            for name in sources:
                if len(shapes.get(name, ())) == 3:  # (experts, in, out): weights and scales of all experts
                    share[name] = chosen / shapes[name][0]
    return sum(share[tensor.name] * stored_bytes(onnx, tensor) for tensor in graph.initializer)


def stored_bytes(onnx: Any, tensor: Any) -> float:
    """Size of an initializer's elements; two int4 values share a byte."""
    count = float(math.prod(tensor.dims))
    if tensor.data_type in (onnx.TensorProto.INT4, onnx.TensorProto.UINT4):
        return count / 2
    return count * int(onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize)


def regularity(steps: Sequence[float]) -> list[str]:
    """Steps' median and 99th percentile in milliseconds, and the second over the first."""
    median, late = np.percentile(steps, [50, 99])
    return [f"{1e3 * median:.2f}", f"{1e3 * late:.2f}", f"{late / median:.2f}"]


class Results:
    """All samples of all contenders, and what the tables say of them."""

    def __init__(self, contenders: Sequence[Contender]) -> None:
        self.contenders = contenders
        self.samples: dict[str, list[Sample]] = {contender.name: [] for contender in contenders}
        self.bandwidths: list[float] = []
        """How fast the memory was read before each round, in bytes per second."""
        self.disturbances: list[float] = []
        """Share of the cores that other processes kept busy before each round, while all contenders waited."""
        self.readings: list[float] = []
        """Times of steps that only read memory, taken before each round, in seconds."""

    @property
    def bandwidth(self) -> float:
        """Median over the rounds, in bytes per second."""
        return statistics.median(self.bandwidths)

    def of(self, contender: Contender, kind: str, context: int) -> list[Sample]:
        """The samples of one cell of the table."""
        found = self.samples[contender.name]
        return [sample for sample in found if (sample.task.kind, sample.task.context) == (kind, context)]

    def rate(self, contender: Contender, kind: str, context: int) -> float:
        """Median over the rounds, in tokens per second."""
        return statistics.median(sample.rate for sample in self.of(contender, kind, context))

    def table(self, context: int, prefill: int, decode: int) -> Iterable[str]:
        """A row per contender: rates, step times, memory, and how much of the memory's read rate decode uses."""
        yield (
            f"| context {context} | prefill {prefill}, tokens/s | decode {decode}, tokens/s | step, median ms "
            "| step, p99 ms | p99 / median | peak memory, MiB | weights read, MB a step | at, GB/s "
            "| of the memory's rate |"
        )
        yield "|---" * 10 + "|"
        for contender in self.contenders:
            steps = [step for sample in self.of(contender, DECODE, context) for step in sample.steps]
            read = weights_read(contender.path) if contender.ours else None
            cells = [f"{self.rate(contender, kind, context):,.1f}" for kind in (PREFILL, DECODE)]
            cells += regularity(steps) if steps else ["", "", ""]
            cells += [f"{contender.peak_bytes / 2**20:,.0f}"]
            if read is None:
                cells += ["", "", ""]
            else:
                rate = read / float(np.median(steps))
                cells += [f"{read / 1e6:,.1f}", f"{rate / 1e9:.1f}", f"{rate / self.bandwidth:.0%}"]
            yield "| " + " | ".join([contender.name, *cells]) + " |"

    def ratios(self, contexts: Sequence[int]) -> Iterable[str]:
        """Ours over llama.cpp: prefill over the fastest of its formats, decode over the format of as many bits."""
        theirs = {contender.weights: contender for contender in self.contenders if isinstance(contender, LlamaBench)}
        if not theirs:
            return
        yield "| ours / llama.cpp | context | prefill, over its best | decode, format for format |"
        yield "|---|---|---|---|"
        for ours in (contender for contender in self.contenders if contender.ours):
            for context in contexts:
                best = max(theirs.values(), key=lambda peer: self.rate(peer, PREFILL, context))
                prefill = self.rate(ours, PREFILL, context) / self.rate(best, PREFILL, context)
                peer = theirs.get(COUNTERPARTS.get(ours.weights, ""))
                decode = ""
                if peer is not None:
                    ratio = self.rate(ours, DECODE, context) / self.rate(peer, DECODE, context)
                    decode = f"{ratio:.2f} ({peer.weights})"
                yield f"| {ours.weights} | {context} | {prefill:.2f} ({best.weights}) | {decode} |"


def measure(options: argparse.Namespace) -> Results:
    """Loads the contenders and goes round."""
    tasks = [Task(PREFILL, options.prefill, context) for context in options.contexts]
    tasks += [Task(DECODE, options.decode, context) for context in options.contexts]
    with contextlib.ExitStack() as stack:
        contenders: list[Contender] = [
            stack.enter_context(Worker(kind, path, options.threads))
            for kind, paths in (("ours", options.ours), ("transformers", options.transformers))
            for path in paths
        ]
        contenders += [LlamaBench(options.llama_bench, name, path, options.threads) for name, path in options.gguf]
        check(contenders, tasks)
        results, reader = Results(contenders), Reader(options.threads)
        for number in range(1, options.rounds + 1):
            results.disturbances.append(busy(1.0))
            results.bandwidths.append(read_bandwidth(options.threads))
            results.readings += reader.steps(options.decode)
            for contender in contenders:
                started = time.perf_counter()
                results.samples[contender.name] += contender.round(tasks)
                took = time.perf_counter() - started
                print(f"round {number} of {options.rounds}: {contender.name}, {took:.1f} s", file=sys.stderr)
    return results


def check(contenders: Sequence[Contender], tasks: Sequence[Task]) -> None:
    """Refuses contenders that cannot be told apart and tasks longer than a model's context."""
    names = [contender.name for contender in contenders]
    if len(set(names)) < len(names):
        raise ConfigError(
            explain("Contenders", expected="different names", found=names, todo="Measure one model only.")
        )
    longest = max(task.context + task.tokens for task in tasks)
    for contender in contenders:
        if isinstance(contender, Worker) and contender.hello.max_length < longest:
            raise ConfigError(
                explain(
                    str(contender.path),
                    expected=f"a context of {longest} tokens",
                    found=contender.hello.max_length,
                    todo="Choose shorter --contexts, --prefill and --decode.",
                )
            )


def report(results: Results, options: argparse.Namespace) -> Iterable[str]:
    """The Markdown."""
    versions = dict.fromkeys(contender.version for contender in results.contenders)
    software = [platform.system(), f"Python {platform.python_version()}", *versions]
    yield f"{processor()}, {options.threads} threads, {datetime.date.today()}; {', '.join(software)}."
    yield f"Medians of {options.rounds} interleaved rounds; step times over the steps of all rounds."
    yield f"Memory read by {options.threads} threads at {results.bandwidth / 1e9:.1f} GB/s. Before the rounds other"
    yield f"processes kept {min(results.disturbances):.0%} to {max(results.disturbances):.0%} of the cores busy."
    median, late, ratio = regularity(results.readings)
    yield f"Steps of a stock ONNX Runtime graph that only reads: median {median} ms, p99 {late} ms, {ratio} times.\n"
    for context in options.contexts:
        yield from results.table(context, options.prefill, options.decode)
        yield ""
    yield from results.ratios(options.contexts)


def run(options: argparse.Namespace) -> None:
    """The subcommand ``run``."""
    if not options.ours and not options.transformers and not options.gguf:
        raise ConfigError(explain("Contenders", expected="some", found="none", todo="Give --ours or --gguf."))
    if options.gguf and options.llama_bench is None:
        raise ConfigError(explain("--gguf", expected="--llama-bench with it", found="none", todo="Give its path."))
    results = measure(options)
    print("\n".join(report(results, options)))
    if options.json:
        samples = {name: msgspec.to_builtins(found) for name, found in results.samples.items()}
        options.json.write_text(json.dumps({"read_bytes_per_s": results.bandwidths, "samples": samples}) + "\n")


def make(options: argparse.Namespace) -> None:
    """The subcommand ``make``."""
    import llm_checkpoints

    if options.size not in llm_checkpoints.SIZES:
        known = ", ".join(llm_checkpoints.SIZES)
        raise ConfigError(
            explain("--size", expected=f"one of {known}", found=options.size, todo="Choose one of these.")
        )
    started = time.perf_counter()
    parameters = llm_checkpoints.make(options.folder, options.size)
    print(f"{options.folder}: {parameters:,} parameters in {time.perf_counter() - started:.1f} s")


def export(options: argparse.Namespace) -> None:
    """The subcommand ``export``."""
    from edge_export.pack import Storage, WeightFormat, export_graph, make_bundle

    if options.weights not in get_args(WeightFormat):
        known = ", ".join(get_args(WeightFormat))
        raise ConfigError(explain("--weights", expected=known, found=options.weights, todo="Choose one of these."))
    weights = msgspec.convert(options.weights, WeightFormat)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=options.out.parent) as folder:
        graph = Path(folder) / "graph"
        export_graph(options.folder, graph, Storage(weights=weights, block_size=options.block_size))
        bundle = make_bundle(options.folder, graph, options.out)
    print(f"{options.out}: {bundle.manifest.weights}, {bundle.total_bytes():,} bytes")


def named_file(text: str) -> tuple[str, Path]:
    """An argument of the form name=path."""
    name, equals, path = text.partition("=")
    if not equals:
        raise argparse.ArgumentTypeError(f"expected name=path, found {text!r}, e.g. Q4_0=model-Q4_0.gguf")
    return name, Path(path)


def command_line() -> argparse.ArgumentParser:
    """The parser of all subcommands."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True, metavar="make | export | run")
    command = commands.add_parser("make", help="write a random checkpoint, always the same one for a size")
    command.add_argument("folder", type=Path)
    command.add_argument("--size", required=True, metavar="260m | 260m-moe | 4b")
    command.set_defaults(function=make)
    command = commands.add_parser("export", help="make a bundle of a checkpoint")
    command.add_argument("folder", type=Path)
    command.add_argument("--weights", required=True, metavar="int4 | int8 | bfloat16 | float32")
    command.add_argument("--block-size", type=int, default=32)
    command.add_argument("--out", type=Path, required=True)
    command.set_defaults(function=export)
    command = commands.add_parser("run", help="measure bundles, GGUF files and checkpoints of one model, in turn")
    command.add_argument("--ours", type=Path, nargs="+", default=[], metavar="BUNDLE")
    command.add_argument("--transformers", type=Path, nargs="+", default=[], metavar="CHECKPOINT")
    command.add_argument("--llama-bench", type=Path, help="the program")
    command.add_argument("--gguf", type=named_file, nargs="+", default=[], metavar="FORMAT=FILE")
    command.add_argument("--threads", type=int, default=2)
    command.add_argument("--rounds", type=int, default=5)
    command.add_argument("--prefill", type=int, default=512, help="tokens")
    command.add_argument("--decode", type=int, default=128, help="tokens")
    command.add_argument("--contexts", type=int, nargs="+", default=[0, 4096], help="tokens before the timed ones")
    command.add_argument("--json", type=Path, metavar="FILE", help="write every sample there")
    command.set_defaults(function=run)
    return parser


def main() -> None:
    """Command line."""
    options = command_line().parse_args()
    try:
        options.function(options)
    except EdgeError as error:
        raise SystemExit(str(error)) from None


if __name__ == "__main__":
    main()
