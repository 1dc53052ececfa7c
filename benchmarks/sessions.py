"""Saved, restored and forked sessions, prompts known and unknown, and sessions at once: ours beside llama.cpp.

    python benchmarks/sessions.py --ours build/demo/student build/bench/260m-int4 \\
      --llama-python build/bench/llama/bin/python --gguf Q4_0=build/bench/260m-Q4_0.gguf

Each contender runs in a process of its own, one after the other. It prints Markdown. ``--quick`` takes minutes less:
short contexts and few rounds. docs/benchmarks.md says what the columns are.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

import edge_sdk
from cpu_llm import named_file
from edge_sdk import LanguageModel, Session
from edge_sdk.backends import Snapshot
from edge_sdk.bundle import MANIFEST
from edge_sdk.errors import ConfigError, explain
from edge_sdk.state_file import Conversation
from machine import busy, processor

QUESTION = 16
"""Tokens that are new behind a known prompt."""


class StateTimes(msgspec.Struct, frozen=True):
    """Of a session of so many tokens, each time in milliseconds; saved files are on the disk (fsync) when it ends."""

    context: int
    bytes: int
    save_ms: list[float]
    restore_ms: list[float]
    fork_ms: list[float]
    """Until another session can be fed; a copy may be put off until then."""
    fork_step_ms: list[float]
    """With one token fed to it, and its states its own."""


class PromptTimes(msgspec.Struct, frozen=True):
    """From a prompt of so many tokens, and a question, to the first token of the answer, in milliseconds."""

    context: int
    unknown_ms: list[float]
    known_ms: list[float]
    """The states after the prompt are in memory."""


class BatchRates(msgspec.Struct, frozen=True):
    """Tokens per second of so many sessions together."""

    sessions: int
    tokens_per_s: list[float]


class Result(msgspec.Struct, frozen=True):
    """All of one contender."""

    name: str
    version: str
    states: list[StateTimes]
    prompts: list[PromptTimes]
    batches: list[BatchRates]


class Plan(msgspec.Struct, frozen=True):
    """What is measured, and how often."""

    contexts: tuple[int, ...]
    prompts: tuple[int, ...]
    sessions: tuple[int, ...]
    tokens: int
    """Of each session in a batch."""
    rounds: int
    threads: int
    folder: str
    """Where states are saved."""


def timed(action: Callable[[], Any]) -> tuple[float, Any]:
    """How long an action took, in milliseconds, and what it gave."""
    started = time.perf_counter()
    result = action()
    return (time.perf_counter() - started) * 1e3, result


def with_context(bundle: Path, context: int, folder: Path) -> Path:
    """The bundle, or one of the same files whose manifest allows so long a context."""
    manifest = json.loads((bundle / MANIFEST).read_text())
    if manifest["model"]["max_length"] >= context or not bundle.name.startswith(("260m", "4b")):
        return bundle
    manifest["model"]["max_length"] = context
    copy = folder / bundle.name
    shutil.copytree(bundle, copy, copy_function=os.link, ignore=shutil.ignore_patterns(MANIFEST, "*.tmp"))
    (copy / MANIFEST).write_text(json.dumps(manifest))
    return copy


def made_session(model: LanguageModel, context: int) -> Session:
    """A session that has random states and says that it read so many tokens."""
    random = np.random.default_rng(0)
    arrays = [
        random.random(spec.sized(batch=1, capacity=context), dtype=np.float32).astype(spec.dtype)
        for spec in model.config.past_specs()
    ]
    ids = random.integers(3, model.config.vocab_size, context).tolist()
    session = model.session()
    session.resume(ids, model.steps.load_states(Snapshot(context, tuple(arrays))), Conversation())
    return session


def state_times(model: LanguageModel, context: int, plan: Plan) -> StateTimes:
    """Saves, restores and forks a session."""
    path = Path(plan.folder) / "session.state"
    saves, restores, forks, steps = [], [], [], []
    with made_session(model, context) as session:
        for _ in range(plan.rounds):
            saves.append(timed(lambda: session.save(path))[0])
            took, restored = timed(lambda: model.restore(path))
            restores.append(took)
            restored.close()
            took, fork = timed(session.fork)
            forks.append(took)
            with fork:
                steps.append(took + timed(partial(fork.read, [3, 3]))[0])
    size = path.stat().st_size
    path.unlink()
    return StateTimes(context, size, saves, restores, forks, steps)


def prompt_times(model: LanguageModel, context: int, rounds: int) -> PromptTimes:
    """First tokens of questions behind one prompt: the first asks and the second are read, then it is known."""
    random = np.random.default_rng(1)
    vocab = model.config.vocab_size

    def ask(ids: Sequence[int]) -> float:
        with model.session() as session:
            session.append([*ids, *random.integers(3, vocab, QUESTION).tolist()])
            return timed(lambda: session.generate(None, max_new_tokens=1))[0]

    unknown = []
    for _ in range(min(rounds, 3)):
        prompt = random.integers(3, vocab, context).tolist()
        unknown.append(ask(prompt))
    ask(prompt)  # where two prompts part, the states are kept
    return PromptTimes(context, unknown, [ask(prompt) for _ in range(rounds)])


def batch_rates(model: LanguageModel, count: int, plan: Plan) -> BatchRates:
    """Sessions that answer at the same time, their prompts read before."""
    rates = []
    for _ in range(max(1, min(plan.rounds // 3, 5))):
        sessions = [model.session() for _ in range(count)]
        for number, session in enumerate(sessions):
            session.read([3 + (number * 7 + index) % (model.config.vocab_size - 3) for index in range(QUESTION)])
        rates.append(rate_together(sessions, plan.tokens))
        for session in sessions:
            session.close()
    return BatchRates(count, rates)


def rate_together(sessions: Sequence[Session], tokens: int) -> float:
    """Tokens per second of all sessions, from the moment when all may begin to the last one's end."""
    gate = threading.Barrier(len(sessions) + 1)

    def answer(session: Session) -> int:
        gate.wait()
        return len(session.generate(None, max_new_tokens=tokens).token_ids)

    with ThreadPoolExecutor(len(sessions)) as pool:
        answers = [pool.submit(answer, session) for session in sessions]
        gate.wait()
        took_ms, made = timed(lambda: sum(each.result() for each in answers))
    return float(made / took_ms * 1e3)


def measure_ours(bundle: Path, plan: Plan) -> Result:
    """Everything of one bundle, as far as its context goes."""
    with tempfile.TemporaryDirectory(dir=bundle.parent) as temporary:
        path = with_context(bundle, max(plan.contexts) + 2, Path(temporary))
        load: dict[str, Any] = {"threads": plan.threads, "verify_hashes": False}
        model = edge_sdk.load(path, prefix_cache_bytes=0, **load)
        longest = model.config.max_length
        contexts = sorted({min(context, longest - 2) for context in plan.contexts})
        states = [state_times(model, context, plan) for context in contexts]
        remembering = edge_sdk.load(path, prefix_cache_bytes=1 << 30, **load)
        known = [context for context in plan.prompts if context + QUESTION + 1 < longest]
        prompts = [prompt_times(remembering, context, plan.rounds) for context in known]
        del remembering
        shared = edge_sdk.load(path, prefix_cache_bytes=0, slots=max(plan.sessions), **load)
        room = msgspec.structs.replace(plan, tokens=min(plan.tokens, longest - QUESTION - 1))
        batches = [batch_rates(shared, count, room) for count in plan.sessions]
    weights = model.bundle.manifest.weights.split("-")[0]
    return Result(f"Edge SDK, {bundle.name} ({weights})", model.engine.name, states, prompts, batches)


def percentiles(times: Sequence[float]) -> str:
    """Median and 99th percentile."""
    return " / ".join(f"{value:,.2f}" for value in np.percentile(times, [50, 99]))


def report(results: Sequence[Result], plan: Plan, disturbed: float) -> Iterable[str]:
    """The Markdown."""
    yield f"{processor()}, {plan.threads} threads, {datetime.date.today()}; {plan.rounds} rounds; before them other"
    yield f"processes kept {disturbed:.0%} of the cores busy. Times in ms, median / p99.\n"
    yield "| contender | context | bytes | save | restore | fork | fork and a step |"
    yield "|---|---|---|---|---|---|---|"
    for result in results:
        for state in result.states:
            times = (state.save_ms, state.restore_ms, state.fork_ms, state.fork_step_ms)
            yield f"| {result.name} | {state.context:,} | {state.bytes:,} | {' | '.join(map(percentiles, times))} |"
    yield f"\n| first token after a prompt and {QUESTION} tokens | prompt | unknown | known | unknown / known |"
    yield "|---|---|---|---|---|"
    for result in results:
        for prompt in result.prompts:
            ratio = float(np.median(prompt.unknown_ms) / np.median(prompt.known_ms))
            unknown, known = percentiles(prompt.unknown_ms), percentiles(prompt.known_ms)
            yield f"| {result.name} | {prompt.context:,} | {unknown} | {known} | {ratio:.1f} |"
    yield f"\n| tokens/s of all sessions | {' | '.join(str(count) for count in plan.sessions)} |"
    yield f"|---|{'---|' * len(plan.sessions)}"
    for result in results:
        rates = [float(np.median(batch.tokens_per_s)) for batch in result.batches]
        cells = [f"{rate:,.1f} ({rate / rates[0]:.2f})" for rate in rates]
        yield f"| {result.name} | {' | '.join(cells)} |"


def in_process(command: Sequence[object], plan: Plan) -> Result:
    """What a contender's process measures; it takes the plan as its last argument."""
    text = [*map(str, command), msgspec.json.encode(plan).decode()]
    print(" ".join(text[:4]), file=sys.stderr)
    output = subprocess.run(text, check=True, stdout=subprocess.PIPE).stdout
    return msgspec.json.decode(output.splitlines()[-1], type=Result)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ours", type=Path, nargs="+", default=[], metavar="BUNDLE")
    parser.add_argument("--llama-python", type=Path, help="an interpreter that has llama-cpp-python")
    parser.add_argument("--gguf", type=named_file, nargs="+", default=[], metavar="NAME=FILE")
    parser.add_argument("--contexts", type=int, nargs="+", default=[128, 4096, 32768], help="of saved sessions")
    parser.add_argument("--prompts", type=int, nargs="+", default=[128, 4096], help="tokens that are known or unknown")
    parser.add_argument("--sessions", type=int, nargs="+", default=[1, 2, 4, 8], help="at once")
    parser.add_argument("--tokens", type=int, default=64, help="of each session at once")
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--folder", type=Path, default=Path(), help="where states are saved (default: here)")
    parser.add_argument("--quick", action="store_true", help="contexts and prompts up to 1024 tokens, 10 rounds")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every time there, after each contender")
    options = parser.parse_args()
    if options.gguf and options.llama_python is None:
        raise ConfigError(explain("--gguf", expected="--llama-python with it", found="none", todo="Give its path."))
    plan = msgspec.convert({**vars(options), "folder": str(options.folder.resolve())}, Plan)
    if options.quick:
        plan = msgspec.structs.replace(plan, contexts=(128, 1024), prompts=(128, 1024), tokens=32, rounds=10)
    disturbed = busy(1.0)
    peer, results = Path(__file__).with_name("sessions_llama.py"), []
    contenders = [[sys.executable, __file__, "worker", bundle] for bundle in options.ours]
    contenders += [[options.llama_python, peer, name, path] for name, path in options.gguf]
    for command in contenders:
        results.append(in_process(command, plan))
        if options.json:  # after each one: the next may take hours
            options.json.write_bytes(msgspec.json.format(msgspec.json.encode(results)) + b"\n")
    print("\n".join(report(results, plan, disturbed)))


if __name__ == "__main__":
    if sys.argv[1:2] == ["worker"]:
        found = measure_ours(Path(sys.argv[2]), msgspec.json.decode(sys.argv[3], type=Plan))
        print(msgspec.json.encode(found).decode())
    else:
        main()
