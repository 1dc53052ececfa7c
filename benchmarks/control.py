"""How fast a policy steps, beside LeRobot's ACT, and how well the control loop keeps its deadlines meanwhile.

    python benchmarks/control.py --lerobot PYTHON --out build/control.json           # 8 minutes
    python benchmarks/control.py --lerobot PYTHON --out build/control.json --quick   # 2 minutes

First one step of each policy in turn; then the loop's jitter and missed ticks at several rates, idle and under load.
The robot is a stand-in that does nothing, so that what is measured is the loop's and the policy's. The policies are
bundles with random weights, which benchmarks/control_policies.py makes where they are missing (in the workstation's
environment), or ``perceptron``, a stand-in in numpy. PYTHON is one that can import lerobot; without it ACT is left
out. Under load, as many other processes as this one may use cores compute without end. Prints Markdown tables.
"""

from __future__ import annotations

import argparse
import itertools
import os
import platform
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from control_arm import ACTION, OBSERVATION, Nothing, actions
from control_steps import PEERS, Steps, act, ours
from control_steps import measure as measure_steps
from control_steps import table as steps_table
from edge_sdk.control.clock import MonotonicClock
from edge_sdk.control.loop import ControlLoop
from edge_sdk.control.model_policy import ModelPolicy, load_policy, stride_of
from edge_sdk.control.policy import ObservationSpec, Policy, PolicyConfig
from edge_sdk.control.report import Report, Summary
from edge_sdk.control.robot import FloatArray
from edge_sdk.control.settings import LoopSettings, Stages
from edge_sdk.files import new_file
from machine import busy, processor

CHUNK_S = 0.5
"""The time that a chunk of the perceptron lasts."""

PATIENT = Stages(hold_after_ms=1e6, decay_after_ms=1e6, stop_after_ms=1e6)
"""A run is to last as long as it was asked to, whatever is missed; ticks without an action are counted as held."""

HERE = Path(__file__).parent

PERCEPTRON = "perceptron"

ROUND_S = 0.5
"""So long everybody steps in a round."""

SPIN = "while True: pass"


def config(rate_hz: float) -> PolicyConfig:
    """Of the perceptron."""
    return PolicyConfig(
        observations=(ObservationSpec(name="state", shape=(OBSERVATION,)),),
        action=actions(rate_hz),
        chunk_length=max(2, round(CHUNK_S * rate_hz)),
        budget_ms=CHUNK_S * 500,
    )


class Perceptron:
    """A stand-in for a policy: two hidden layers of 512 in numpy, always the same arithmetic."""

    def __init__(self, config: PolicyConfig) -> None:
        self.config = config
        rng = np.random.default_rng(0)
        sizes = (OBSERVATION, 512, 512, ACTION * config.chunk_length)
        shapes = list(itertools.pairwise(sizes))
        self._weights = [rng.standard_normal(shape, dtype=np.float32) / shape[0] ** 0.5 for shape in shapes]

    def reset(self) -> None:
        """There is no state."""

    def infer(self, observation: Mapping[str, np.ndarray], committed: FloatArray | None) -> FloatArray:
        """Small actions, whatever is observed."""
        x = observation["state"]
        for weight in self._weights:
            x = np.tanh(x @ weight)
        return np.asarray(0.01 * x.reshape(self.config.chunk_length, ACTION), dtype=np.float32)

    def snapshot(self) -> Any:
        """There is no state."""

    def restore(self, snapshot: Any) -> None:
        """There is no state."""


class Measurement(msgspec.Struct, frozen=True, kw_only=True):
    """One run."""

    policy: str
    load: str
    busy_before: float
    """Share of all cores' time that others used in the second before, the load not yet begun."""
    report: Report


@contextmanager
def load(kind: str) -> Iterator[None]:
    """Other processes that keep all cores busy, or none."""
    count = len(os.sched_getaffinity(0)) if kind == "busy" else 0
    processes = [subprocess.Popen([sys.executable, "-c", SPIN]) for _ in range(count)]
    try:
        yield
    finally:
        for process in processes:
            process.kill()
            process.wait()


def measure(name: str, policy: Policy, rate_hz: float, seconds: float, kind: str, spin_us: float) -> Measurement:
    """One run of so many seconds; a bundle's policy steps as often as it was trained to: here beside every tick."""
    loop = ControlLoop(
        policy,
        Nothing(),
        rate_hz,
        settings=LoopSettings(stages=PATIENT, replan_ticks=stride_of(policy)),
        clock=MonotonicClock(spin_us),
        start=np.zeros(ACTION),
    )
    busy_before = busy(1.0)
    with load(kind):
        report = loop.run(round(seconds * rate_hz))
    return Measurement(policy=name, load=kind, busy_before=busy_before, report=report)


def milliseconds(summary: Summary) -> str:
    """p50 / p99 / max."""
    return f"{summary.p50_ms:.3f} / {summary.p99_ms:.3f} / {summary.max_ms:.3f}"


def table(measurements: list[Measurement]) -> str:
    """Markdown."""
    lines = [
        "| policy | Hz | load | ticks | on time | late | missed | jitter, ms | step, ms | age, ms | busy before |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for one in measurements:
        report, timing = one.report, one.report.timing
        counts = f"{report.ticks:,} | {timing['on_time']:,} | {timing['late']:,} | {timing['missed']:,}"
        times = " | ".join(milliseconds(part) for part in (report.jitter, report.step, report.age))
        lines.append(f"| {one.policy} | {report.rate_hz:g} | {one.load} | {counts} | {times} | {one.busy_before:.0%} |")
    return "\n".join(lines)


def bundles(folder: Path) -> dict[str, ModelPolicy]:
    """The policies that have bundles, which are made where they are missing."""
    if not all((folder / name).exists() for name in PEERS):
        subprocess.run([sys.executable, HERE / "control_policies.py", folder], check=True)
    return {name: load_policy(folder / name) for name in PEERS}


def compare(policies: Mapping[str, ModelPolicy], lerobot: Path | None, rounds: int) -> list[Steps]:
    """One step of each, beside ACT's where a Python has it."""
    mine = [ours(name, policy, 1) for name, policy in policies.items()]
    if lerobot is None:
        return measure_steps(mine, rounds, ROUND_S)
    with act(lerobot) as (peers, versions):
        print(f"\nACT: {versions}")
        return measure_steps([*mine, *peers], rounds, ROUND_S)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lerobot", type=Path, metavar="PYTHON", help="a Python interpreter that has lerobot")
    parser.add_argument("--bundles", type=Path, default=Path("build/bench/policies"), help="where they are, or will be")
    parser.add_argument("--policies", nargs="*", choices=(PERCEPTRON, *PEERS), default=["small"], help="in the loop")
    parser.add_argument("--rates", nargs="+", type=float, default=[50.0, 200.0, 1000.0], help="Hz")
    parser.add_argument("--loads", nargs="+", choices=("idle", "busy"), default=["idle", "busy"])
    parser.add_argument("--seconds", type=float, default=60.0, help="of each run of the loop")
    parser.add_argument("--rounds", type=int, default=20, help="of steps")
    parser.add_argument("--quick", action="store_true", help="10 s and 4 rounds")
    parser.add_argument("--spin-us", type=float, default=0.0, help="last microseconds of a sleep that are spun")
    parser.add_argument("--out", type=Path, help="where to write all numbers as JSON")
    options = parser.parse_args()
    seconds, rounds = (10.0, 4) if options.quick else (options.seconds, options.rounds)
    cores = len(os.sched_getaffinity(0))
    print(f"{processor()}, {cores} of them used, Linux {platform.release()}, Python {platform.python_version()}")
    policies = bundles(options.bundles)
    steps = compare(policies, options.lerobot, rounds)
    print(f"\n{steps_table(steps)}\n")
    measurements = []
    for name in options.policies:
        for rate_hz in options.rates:
            policy = Perceptron(config(rate_hz)) if name == PERCEPTRON else policies[name]
            for kind in options.loads:
                measurements.append(measure(name, policy, rate_hz, seconds, kind, options.spin_us))
    print(table(measurements))
    if options.out is not None:
        with new_file(options.out) as new:
            written = {"steps": steps, "loop": measurements}
            new.write_bytes(msgspec.json.format(msgspec.json.encode(written), indent=2) + b"\n")


if __name__ == "__main__":
    main()
