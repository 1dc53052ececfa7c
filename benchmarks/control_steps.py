"""How long one step of a policy takes, ours and LeRobot's ACT in turn, for benchmarks/control.py."""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import msgspec
import numpy as np

from edge_sdk.control.model_policy import ModelPolicy

HERE = Path(__file__).parent

PEERS = {"small": "act-small", "small-flow": "act-small", "medium": "act-medium", "large": "act-large"}
"""Which of ACT's sizes a policy is compared with."""

LEAST_STEPS, WARM_UP_S = 5, 0.5

Runner = Callable[[float], list[int]]
"""Steps for so many seconds, and returns their times in nanoseconds."""


class Steps(msgspec.Struct, frozen=True, kw_only=True):
    """All steps of one contender."""

    name: str
    parameters: int
    threads: int
    steps: int
    p50_ms: float
    p99_ms: float
    max_ms: float

    @classmethod
    def of(cls, name: str, parameters: int, threads: int, times_ns: Sequence[int]) -> Steps:
        """Summed up."""
        p50_ms, p99_ms, max_ms = np.quantile(np.asarray(times_ns) / 1e6, (0.5, 0.99, 1.0)).tolist()
        count = len(times_ns)
        return cls(
            name=name, parameters=parameters, threads=threads, steps=count, p50_ms=p50_ms, p99_ms=p99_ms, max_ms=max_ms
        )


class Contender(msgspec.Struct, frozen=True):
    """Who takes part."""

    name: str
    parameters: int
    threads: int
    run: Runner


def ours(name: str, policy: ModelPolicy, threads: int) -> Contender:
    """A policy's bundle; an episode ends where attention's context does."""
    observation = {spec.name: np.zeros(spec.shape, spec.dtype) for spec in policy.config.observations}

    def run(seconds: float) -> list[int]:
        policy.reset()
        times: list[int] = []
        end_ns = time.perf_counter_ns() + round(seconds * 1e9)
        while len(times) < LEAST_STEPS or time.perf_counter_ns() < end_ns:
            if policy.position == policy.max_positions:
                policy.reset()
            started_ns = time.perf_counter_ns()
            policy.infer(observation)
            times.append(time.perf_counter_ns() - started_ns)
        return times

    return Contender(name, policy.bundle.manifest.model.parameters(), threads, run)


@contextmanager
def act(python: Path) -> Iterator[tuple[list[Contender], str]]:
    """ACT's sizes with one thread and with all, in a process of ``python``, and what they run on."""
    process = subprocess.Popen(
        [python, HERE / "control_act.py"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdin is not None
    assert process.stdout is not None
    sending, receiving = process.stdin, process.stdout

    def runner(name: str, threads: int) -> Runner:
        def run(seconds: float) -> list[int]:
            print(json.dumps({"contender": name, "threads": threads, "seconds": seconds}), file=sending, flush=True)
            answer: list[int] = json.loads(receiving.readline())
            return answer

        return run

    try:
        said = json.loads(receiving.readline())
        cores = len(os.sched_getaffinity(0))
        contenders = [
            Contender(name, parameters, threads, runner(name, threads))
            for name, parameters in said["parameters"].items()
            for threads in sorted({1, cores})
        ]
        yield contenders, said["versions"]
    finally:
        sending.close()
        process.wait()


def measure(contenders: Sequence[Contender], rounds: int, seconds: float) -> list[Steps]:
    """So many rounds, in each of which everybody steps for so long in turn."""
    times: list[list[int]] = [[] for _ in contenders]
    for contender in contenders:
        contender.run(WARM_UP_S)
    for _ in range(rounds):
        for contender, mine in zip(contenders, times):
            mine.extend(contender.run(seconds))
    return [Steps.of(one.name, one.parameters, one.threads, mine) for one, mine in zip(contenders, times)]


def table(rows: Sequence[Steps]) -> str:
    """Markdown; the ratio is to the faster of the peer's medians."""
    lines = ["| policy | parameters | threads | steps | step, ms | ACT takes |", "|---|---|---|---|---|---|"]
    for row in rows:
        peers = [other.p50_ms for other in rows if other.name == PEERS.get(row.name)]
        ratio = f"{min(peers) / row.p50_ms:.1f} times as long" if peers else ""
        times = f"{row.p50_ms:.3f} / {row.p99_ms:.3f} / {row.max_ms:.3f}"
        lines.append(f"| {row.name} | {row.parameters:,} | {row.threads} | {row.steps:,} | {times} | {ratio} |")
    return "\n".join(lines)
