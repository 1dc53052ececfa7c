"""How well the control loop keeps its deadlines: jitter and missed ticks at several rates, idle and under load.

    python benchmarks/control.py --out build/control.json              # 6 minutes: 3 rates, idle and loaded, 60 s each
    python benchmarks/control.py --seconds 2 --rates 200 --loads idle  # a look

The robot is a stand-in that does nothing, so that what is measured is the loop's; the policy computes always the same.
Under load, as many other processes as this one may use cores compute without end. Prints Markdown tables; a policy
to measure besides is an entry of ``POLICIES``.
"""

from __future__ import annotations

import argparse
import itertools
import os
import platform
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from edge_sdk.control.clock import MonotonicClock
from edge_sdk.control.loop import ControlLoop
from edge_sdk.control.policy import ActionDim, ActionSpec, ObservationSpec, Policy, PolicyConfig
from edge_sdk.control.report import Report, Summary
from edge_sdk.control.robot import FloatArray
from edge_sdk.control.settings import LoopSettings, Stages
from edge_sdk.files import new_file
from machine import busy, processor

OBSERVATION, ACTION, CHUNK_S = 17, 7, 0.5
"""Sizes of an arm's observation and action, and the time that a chunk lasts."""

PATIENT = Stages(hold_after_ms=1e6, decay_after_ms=1e6, stop_after_ms=1e6)
"""A run is to last as long as it was asked to, whatever is missed; ticks without an action are counted as held."""

SPIN = "while True: pass"


def config(rate_hz: float) -> PolicyConfig:
    """Of an arm: every joint with all limits, which are not reached."""
    dims = tuple(
        ActionDim(
            name=f"joint{index}",
            unit="rad",
            lower=-3.0,
            upper=3.0,
            max_speed=1e3,
            max_acceleration=1e6,
            max_jerk=1e9,
            rest=None,
        )
        for index in range(ACTION)
    )
    return PolicyConfig(
        observations=(ObservationSpec(name="state", shape=(OBSERVATION,)),),
        action=ActionSpec(dims=dims, rate_hz=rate_hz),
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


POLICIES: dict[str, Callable[[PolicyConfig], Policy]] = {"perceptron": Perceptron}


class Nothing:
    """A robot that costs no time."""

    def __init__(self) -> None:
        self._state = np.zeros(OBSERVATION, dtype=np.float32)

    def observe(self) -> dict[str, np.ndarray]:
        """Always the same."""
        return {"state": self._state}

    def act(self, action: FloatArray) -> None:
        """Goes nowhere."""

    def stop(self) -> None:
        """Stands already."""


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


def measure(policy: str, rate_hz: float, seconds: float, kind: str, spin_us: float) -> Measurement:
    """One run of so many seconds."""
    loop = ControlLoop(
        POLICIES[policy](config(rate_hz)),
        Nothing(),
        settings=LoopSettings(stages=PATIENT),
        clock=MonotonicClock(spin_us),
        start=np.zeros(ACTION),
    )
    busy_before = busy(1.0)
    with load(kind):
        report = loop.run(round(seconds * rate_hz))
    return Measurement(policy=policy, load=kind, busy_before=busy_before, report=report)


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


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--policies", nargs="+", choices=POLICIES, default=["perceptron"])
    parser.add_argument("--rates", nargs="+", type=float, default=[50.0, 200.0, 1000.0], help="Hz")
    parser.add_argument("--loads", nargs="+", choices=("idle", "busy"), default=["idle", "busy"])
    parser.add_argument("--seconds", type=float, default=60.0, help="of each run")
    parser.add_argument("--spin-us", type=float, default=0.0, help="last microseconds of a sleep that are spun")
    parser.add_argument("--out", type=Path, help="where to write all numbers as JSON")
    options = parser.parse_args()
    cores = len(os.sched_getaffinity(0))
    print(f"{processor()}, {cores} of them used, Linux {platform.release()}, Python {platform.python_version()}")
    measurements = []
    for policy in options.policies:
        for rate_hz in options.rates:
            for kind in options.loads:
                measurements.append(measure(policy, rate_hz, options.seconds, kind, options.spin_us))
    print(table(measurements))
    if options.out is not None:
        with new_file(options.out) as new:
            new.write_bytes(msgspec.json.format(msgspec.json.encode(measurements), indent=2) + b"\n")


if __name__ == "__main__":
    main()
