"""A million tokens: time of a step, rate of reading and memory at 1k, 10k, 100k and 1M, ours beside llama.cpp's.

    python benchmarks/long_context.py build/long --json build/long/results.json \
        --llama-bench ../llama.cpp/build/bin/llama-bench --gguf build/long/long-BF16.gguf

makes a small hybrid of random weights ("long" of llm_checkpoints.py) and its bundles where they are missing, lets each
contender read the same tokens, and prints Markdown. One contender after the other; each has --limit-s seconds from one
mark to the next and stops where these are over. What was measured is in the JSON file after each mark, and contenders
that are done are not run again: the same command goes on where it was ended. docs/long_context.md says what is what.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import Any

import msgspec
import numpy as np

from edge_sdk.bundle import MANIFEST
from edge_sdk.errors import ConfigError, EdgeError, explain
from edge_sdk.files import new_file
from edge_sdk.telemetry import read_memory
from llm_contenders import DECODE, DRIVERS, PREFILL, Driver, Hello, LlamaBench, Task, TimeLimitError

MARKS = (1_000, 10_000, 100_000, 1_000_000)
CHUNK = 2048
"""Tokens that a contender is handed at once."""
STEPS, WARM_UP_STEPS = 20, 2
LLAMA_PREFILL = 512
"""Tokens whose reading llama-bench times behind a mark; how long it takes to get there it does not tell."""
SIZE = "long"
CACHES = {"ours-float16": "float16", "ours-int8": "int8"}
CONTENDERS = (*CACHES, "llama.cpp", "transformers")


class Mark(msgspec.Struct, frozen=True):
    """What was measured behind so many tokens."""

    tokens: int
    prefill_tokens_per_second: float
    """Since the mark before; of llama.cpp, of LLAMA_PREFILL tokens behind this one."""
    step_ms: float
    """Median of STEPS steps of one token; of llama.cpp their mean."""
    resident_bytes: int
    """0 where only the peak is known."""
    peak_bytes: int


class Course(msgspec.Struct):
    """How far a contender came."""

    version: str = ""
    marks: list[Mark] = []
    ending: str = ""
    """Why it ended; nothing while it has not."""


class Results(msgspec.Struct):
    """The JSON file."""

    settings: dict[str, int]
    machine: str
    courses: dict[str, Course] = {}


class Ending(msgspec.Struct, frozen=True):
    """A worker's last word."""

    ending: str


def marks_up_to(tokens: int) -> list[int]:
    """Where to measure of so many tokens: the round marks, and the end."""
    return [*(mark for mark in MARKS if mark < tokens), tokens]


def read_on(driver: Driver, tokens: int, limit_s: float) -> Iterator[Mark | Ending]:
    """Reads random tokens and measures at each mark."""
    ids = np.random.default_rng(0).integers(0, driver.hello.vocab_size, tokens + STEPS + WARM_UP_STEPS)
    driver.begin(ids[:0])
    position = 0
    for mark in marks_up_to(tokens):
        began, first = time.perf_counter(), position
        while position < mark:
            if time.perf_counter() - began > limit_s:
                yield Ending(f"{position:,} tokens read when {limit_s:,.0f} s from the last mark were over")
                return
            end = min(position + CHUNK, mark)
            driver.feed(ids[position:end])
            position = end
        read_s = time.perf_counter() - began
        steps_s = []
        for _ in range(WARM_UP_STEPS + STEPS):
            started = time.perf_counter()
            driver.feed(ids[position : position + 1])
            steps_s.append(time.perf_counter() - started)
            position += 1
        memory = read_memory()
        step_ms = median(steps_s[WARM_UP_STEPS:]) * 1e3
        yield Mark(mark, (mark - first) / read_s, step_ms, memory.resident_bytes, memory.peak_bytes)
    yield Ending("done")


def work(options: argparse.Namespace) -> None:
    """The contender's own process: one line of JSON for each mark."""
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "wb", buffering=0)
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # whatever a library prints must not stand between the answers
    driver = DRIVERS[options.kind](options.path, options.threads)
    answers.write(msgspec.json.encode(driver.hello) + b"\n")
    for said in read_on(driver, options.tokens, options.limit_s):
        answers.write(msgspec.json.encode(said) + b"\n")


def run_worker(kind: str, path: Path, options: argparse.Namespace) -> Iterator[Hello | Mark | Ending]:
    """What a worker says."""
    command = [sys.executable, __file__, "worker", kind, path, options.threads, options.tokens, options.limit_s]
    process = subprocess.Popen(list(map(str, command)), stdout=subprocess.PIPE)
    assert process.stdout is not None
    for line in process.stdout:
        fields = msgspec.json.decode(line)
        which: Any = Hello if "version" in fields else Ending if "ending" in fields else Mark
        yield msgspec.convert(fields, which)
    if process.wait() != 0:
        yield Ending(f"the process ended with code {process.returncode}")


def run_llama(options: argparse.Namespace) -> Iterator[Hello | Mark | Ending]:
    """llama-bench, which reads up to each mark anew."""
    for mark in marks_up_to(options.tokens):
        bench = LlamaBench(options.llama_bench, "", options.gguf, options.threads)
        try:
            prefill, decode = sorted(
                bench.round([Task(PREFILL, LLAMA_PREFILL, mark), Task(DECODE, STEPS, mark)], options.limit_s),
                key=lambda sample: sample.task.kind == DECODE,
            )
        except TimeLimitError:
            yield Ending(f"{mark:,} tokens were not read in {options.limit_s:,.0f} s")
            return
        yield Hello(weights="", version=bench.version, vocab_size=0, max_length=0)
        yield Mark(mark, prefill.rate, decode.seconds / STEPS * 1e3, 0, bench.peak_bytes)
    yield Ending("done")


def follow(name: str, options: argparse.Namespace) -> Iterator[Hello | Mark | Ending]:
    """What a contender says as it goes on; its files are made where they are missing."""
    if name == "llama.cpp":
        return run_llama(options)
    checkpoint = options.folder / "checkpoint"
    if not (checkpoint / "config.json").exists():
        import llm_checkpoints

        llm_checkpoints.make(checkpoint, options.size)
    if name == "transformers":
        return run_worker(name, checkpoint, options)
    bundle = options.folder / name
    if not (bundle / MANIFEST).exists():
        export(checkpoint, bundle, CACHES[name])
    return run_worker("ours", bundle, options)


def export(checkpoint: Path, bundle: Path, cache: str) -> None:
    """A bundle with bfloat16 weights, as the others have them, and this cache."""
    from edge_export.pack import Storage, export_graph, make_bundle

    storage = msgspec.convert({"weights": "bfloat16", "cache_dtype": cache}, Storage)
    with tempfile.TemporaryDirectory(dir=bundle.parent) as folder:
        export_graph(checkpoint, Path(folder) / "graph", storage)
        make_bundle(checkpoint, Path(folder) / "graph", bundle)


def table(results: Results) -> Iterator[str]:
    """The Markdown."""
    settings = results.settings
    yield f"{results.machine}, {settings['threads']} threads, at most {settings['limit_s']} s from mark to mark.\n"
    yield "| | tokens of context | step, ms | reading, tokens/s | resident, MiB | at most, MiB |"
    yield "|---|---|---|---|---|---|"
    for name, course in results.courses.items():
        for mark in course.marks:
            resident = f"{mark.resident_bytes / 2**20:,.0f}" if mark.resident_bytes else ""
            cells = [f"{mark.tokens:,}", f"{mark.step_ms:.2f}", f"{mark.prefill_tokens_per_second:,.0f}", resident]
            yield f"| {name} | {' | '.join(cells)} | {mark.peak_bytes / 2**20:,.0f} |"
    yield ""
    for name, course in results.courses.items():
        yield f"{name}: {course.version}; {course.ending or 'not ended'}."


def load(options: argparse.Namespace) -> Results:
    """The file's content, or nothing yet. Raises ConfigError where it was measured with other settings."""
    from machine import processor

    settings = {"tokens": options.tokens, "threads": options.threads, "limit_s": options.limit_s}
    if not options.json.exists():
        return Results(settings, processor())
    results = msgspec.json.decode(options.json.read_bytes(), type=Results)
    if results.settings != settings:
        todo = "Give the same settings, or another --json."
        raise ConfigError(explain(str(options.json), expected=settings, found=results.settings, todo=todo))
    return results


def save(results: Results, path: Path) -> None:
    """Writes the file, whole or not at all."""
    with new_file(path) as temporary:
        temporary.write_bytes(msgspec.json.format(msgspec.json.encode(results)) + b"\n")


def run(options: argparse.Namespace) -> None:
    """All contenders that are not done yet."""
    if (options.llama_bench is None) != (options.gguf is None):
        raise ConfigError(explain("llama.cpp", expected="--llama-bench and --gguf", found="one", todo="Give both."))
    options.folder.mkdir(parents=True, exist_ok=True)
    options.json = options.json or options.folder / "results.json"
    results = load(options)
    for name in options.contenders:
        if results.courses.get(name, Course()).ending or (name == "llama.cpp" and options.gguf is None):
            continue
        course = results.courses[name] = Course()
        for said in follow(name, options):
            if isinstance(said, Hello):
                course.version = said.version
            elif isinstance(said, Mark):
                course.marks.append(said)
            else:
                course.ending = said.ending
            print(f"{name}: {said}", file=sys.stderr, flush=True)
            save(results, options.json)
    print("\n".join(table(results)))


def command_line() -> argparse.ArgumentParser:
    """The arguments of who measures; ``worker`` as the first one is a contender's process."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="where the checkpoint and the bundles are, or are made")
    parser.add_argument("--tokens", type=int, default=MARKS[-1])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--limit-s", type=int, default=1200, help="seconds from one mark to the next")
    parser.add_argument("--contenders", nargs="+", choices=CONTENDERS, default=list(CONTENDERS))
    parser.add_argument("--size", default=SIZE, help="of the checkpoint, where it is made: see llm_checkpoints.py")
    parser.add_argument("--llama-bench", type=Path, help="the program")
    parser.add_argument("--gguf", type=Path, help="the checkpoint as GGUF")
    parser.add_argument("--json", type=Path, help="results; by default results.json in the folder")
    return parser


def worker_line() -> argparse.ArgumentParser:
    """A worker's arguments."""
    parser = argparse.ArgumentParser()
    parser.add_argument("kind", choices=sorted(DRIVERS))
    parser.add_argument("path", type=Path)
    parser.add_argument("threads", type=int)
    parser.add_argument("tokens", type=int)
    parser.add_argument("limit_s", type=float)
    return parser


def main(arguments: list[str]) -> None:
    """Command line."""
    if arguments[:1] == ["worker"]:
        return work(worker_line().parse_args(arguments[1:]))
    try:
        run(command_line().parse_args(arguments))
    except EdgeError as error:
        raise SystemExit(str(error)) from None


if __name__ == "__main__":
    main(sys.argv[1:])
