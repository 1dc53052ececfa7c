"""The contenders of cpu_llm.py, each in a process of its own that loads once and measures when asked to.

A worker (this file, run as a program) reads one JSON task a line on its standard input and answers with one JSON
line. Between tasks it waits, so that of all loaded contenders one computes at a time. llama.cpp's llama-bench
cannot wait: it is started anew for each round, and loads again.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, Protocol

import msgspec
import numpy as np

Kind = Literal["prefill", "decode"]
PREFILL: Literal["prefill"] = "prefill"
DECODE: Literal["decode"] = "decode"


class Task(msgspec.Struct, frozen=True):
    """What one measurement does: so many tokens, after a context of so many others that is not timed."""

    kind: Kind
    tokens: int
    context: int


class Sample(msgspec.Struct, frozen=True):
    """What came of a task: the time of the whole prefill, or of each decode step, in seconds.

    llama-bench tells only the sum of its steps: then ``seconds`` holds one value and ``steps`` is empty.
    """

    task: Task
    seconds: float
    steps: tuple[float, ...] = ()

    @property
    def rate(self) -> float:
        """Tokens per second."""
        return self.task.tokens / self.seconds


class Hello(msgspec.Struct, frozen=True):
    """What a worker says once it has loaded."""

    weights: str
    """Their format: ``int4``, ``int8``, ``bfloat16``, ``float32``."""
    version: str
    vocab_size: int
    max_length: int


class Answer(msgspec.Struct, frozen=True):
    """What a worker says after a task; the peak is that of its resident memory since it started, in bytes."""

    sample: Sample
    peak_bytes: int


class Driver(Protocol):
    """A loaded model in the worker's process."""

    hello: Hello

    def begin(self, context: np.ndarray) -> None:
        """Goes to the states after the token ids ``context`` (length), which may be of none."""

    def feed(self, ids: np.ndarray) -> None:
        """Advances the states over token ids (length) and computes the logits after the last."""


class OursDriver:
    """Edge SDK's engine on a bundle. All that this benchmark knows of the engine's interface stands here."""

    def __init__(self, path: Path, threads: int) -> None:
        import edge_sdk

        model = edge_sdk.load(path, threads=threads, verify_hashes=False)
        if "torch" in sys.modules:
            raise RuntimeError("torch was loaded: what is measured here must run without it")
        self._engine = model.engine
        manifest = model.bundle.manifest
        self.hello = Hello(
            weights=manifest.weights.split("-")[0],
            version=f"Edge SDK {edge_sdk.__version__}, {model.engine.name}",
            vocab_size=model.config.vocab_size,
            max_length=model.config.max_length,
        )

    def begin(self, context: np.ndarray) -> None:
        self._states = self._engine.empty_states(batch=1)
        self.feed(context)

    def feed(self, ids: np.ndarray) -> None:
        block = self._engine.prefill_block
        for start in range(0, len(ids), block):
            wanted: Literal["last", "none"] = "last" if start + block >= len(ids) else "none"
            self._engine.step(ids[None, start : start + block], self._states, wanted)


class TransformersDriver:
    """transformers on the checkpoint, in bfloat16."""

    def __init__(self, path: Path, threads: int) -> None:
        import torch
        import transformers

        torch.set_num_threads(threads)
        self._torch = torch
        model: Any = transformers.AutoModelForCausalLM.from_pretrained(path, dtype=torch.bfloat16)
        self._model = model.eval()
        self._kept: dict[int, Any] = {}
        config = model.config
        self.hello = Hello(
            weights="bfloat16",
            version=f"transformers {transformers.__version__}, torch {torch.__version__}",
            vocab_size=config.vocab_size,
            max_length=config.max_position_embeddings,
        )

    def begin(self, context: np.ndarray) -> None:
        """A context is computed once and its cache copied: at 4B it takes minutes."""
        self._cache: Any = None
        if len(context) and len(context) not in self._kept:
            self.feed(context)
            self._kept[len(context)] = self._cache
        self._cache = copy.deepcopy(self._kept.get(len(context)))

    def feed(self, ids: np.ndarray) -> None:
        if len(ids):
            with self._torch.inference_mode():
                batch = self._torch.from_numpy(ids)[None]
                output = self._model(batch, past_key_values=self._cache, use_cache=True, logits_to_keep=1)
            self._cache = output.past_key_values


DRIVERS: dict[str, type[OursDriver] | type[TransformersDriver]] = {
    "ours": OursDriver,
    "transformers": TransformersDriver,
}


def perform(driver: Driver, task: Task) -> Sample:
    """One measurement. The tokens are random, the same for all contenders; what the logits say is not looked at."""
    ids = np.random.default_rng(0).integers(0, driver.hello.vocab_size, task.context + task.tokens)
    driver.begin(ids[: task.context])
    ids = ids[task.context :]
    if task.kind == PREFILL:
        started = time.perf_counter()
        driver.feed(ids)
        return Sample(task, time.perf_counter() - started)
    steps = []
    for index in range(task.tokens):
        started = time.perf_counter()
        driver.feed(ids[index : index + 1])
        steps.append(time.perf_counter() - started)
    return Sample(task, sum(steps), tuple(steps))


def peak_bytes(process: int | Literal["self"] = "self") -> int:
    """Peak of a process's resident memory since it started (VmHWM); 0 for one that has ended."""
    for line in Path(f"/proc/{process}/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    return 0


def serve(kind: str, path: Path, threads: int) -> None:
    """The worker: loads, warms up, says hello and performs tasks until its input ends."""
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "wb", buffering=0)
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # whatever a library prints must not stand between the answers
    driver: Driver = DRIVERS[kind](path, threads)
    perform(driver, Task(PREFILL, min(128, driver.hello.max_length), 0))
    perform(driver, Task(DECODE, 2, 0))
    answers.write(msgspec.json.encode(driver.hello) + b"\n")
    for line in sys.stdin.buffer:
        sample = perform(driver, msgspec.json.decode(line, type=Task))
        answers.write(msgspec.json.encode(Answer(sample, peak_bytes())) + b"\n")


class Worker:
    """A contender that waits in its process; a context manager that ends it."""

    def __init__(self, kind: str, path: Path, threads: int) -> None:
        command = [sys.executable, __file__, kind, str(path), "--threads", str(threads)]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        self.hello = self._read(Hello)
        self.ours = kind == "ours"
        self.name = f"{'Edge SDK' if self.ours else kind} {self.hello.weights}"
        self.weights, self.version, self.path = self.hello.weights, self.hello.version, path
        self.peak_bytes = 0

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *error: object) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()

    def _read(self, kind: Any) -> Any:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"{self._process.args!r} ended with code {self._process.wait()}: see above")
        return msgspec.json.decode(line, type=kind)

    def round(self, tasks: Sequence[Task]) -> list[Sample]:
        """One measurement of each task."""
        assert self._process.stdin is not None
        samples = []
        for task in tasks:
            self._process.stdin.write(msgspec.json.encode(task) + b"\n")
            self._process.stdin.flush()
            answer = self._read(Answer)
            self.peak_bytes = max(self.peak_bytes, answer.peak_bytes)
            samples.append(answer.sample)
        return samples


class TimeLimitError(RuntimeError):
    """A contender took longer than it may."""


class LlamaBench:
    """llama.cpp's llama-bench on one GGUF file."""

    ours = False

    def __init__(self, program: Path, weights: str, path: Path, threads: int) -> None:
        self.name, self.weights, self.path = f"llama.cpp {weights}", weights, path
        self.version = "llama.cpp"
        self.peak_bytes = 0
        self._command = [str(program), "-m", str(path), "-t", str(threads), "-r", "1", "-o", "json"]

    def round(self, tasks: Sequence[Task], limit_s: float = math.inf) -> list[Sample]:
        """One measurement of each task, llama-bench's own warming up before it. Raises TimeLimitError."""
        started = time.monotonic()
        contexts = sorted({task.context for task in tasks})
        command = [*self._command, "-d", ",".join(map(str, contexts))]
        for kind, option in ((PREFILL, "-p"), (DECODE, "-n")):
            command += [option, ",".join(str(count) for count in {task.tokens for task in tasks if task.kind == kind})]
        with tempfile.TemporaryFile() as output:
            process = subprocess.Popen(command, stdout=output)
            while process.poll() is None:
                # not ru_maxrss, in which the memory of the process that forked counts
                self.peak_bytes = max(self.peak_bytes, peak_bytes(process.pid))
                time.sleep(0.02)
                if time.monotonic() - started > limit_s:
                    process.kill()
                    process.wait()
                    raise TimeLimitError(f"{' '.join(command)} took more than {limit_s} s")
            if process.returncode != 0:
                raise RuntimeError(f"{' '.join(command)} ended with code {process.returncode}: see above")
            output.seek(0)
            entries = json.load(output)
        samples = []
        for entry in entries:
            kind, tokens = (PREFILL, entry["n_prompt"]) if entry["n_prompt"] else (DECODE, entry["n_gen"])
            task = msgspec.convert({"kind": kind, "tokens": tokens, "context": entry["n_depth"]}, Task)
            samples.append(Sample(task, entry["avg_ns"] / 1e9))
            self.version = f"llama.cpp {entry['build_commit']}"
        return samples


Contender = Worker | LlamaBench


def main() -> None:
    """The worker's command line."""
    parser = argparse.ArgumentParser()
    parser.add_argument("kind", choices=sorted(DRIVERS))
    parser.add_argument("path", type=Path)
    parser.add_argument("--threads", type=int, required=True)
    options = parser.parse_args()
    serve(options.kind, options.path, options.threads)


if __name__ == "__main__":
    main()
