"""What a run of the control loop did, in numbers that take the same memory however long it runs."""

from __future__ import annotations

import math
from collections import Counter
from typing import Any, Literal, get_args

import msgspec

from edge_sdk.control.limits import Kind
from edge_sdk.control.observers import Stage, TickRecord, Timing

Ended = Literal["finished", "asked", "silent", "limit", "robot", "policy", "observer"]
"""Why a run ended: its ticks were done; ``stop()`` was called; the policy was silent for too long; a limit that stops
was violated; the robot, the policy or an observer raised an error."""

GROWTH = 1.01
"""A quantile is exact to 1 %."""


class Durations:
    """Nanoseconds, counted in classes that grow by 1 %; count, mean and maximum are exact."""

    def __init__(self) -> None:
        self._counts: dict[int, int] = {}
        self.count = self.total_ns = self.max_ns = 0

    def add(self, duration_ns: int) -> None:
        """One more; less than 0 counts as 0."""
        duration_ns = max(0, duration_ns)
        index = math.ceil(math.log(duration_ns, GROWTH)) if duration_ns > 0 else -1
        self._counts[index] = self._counts.get(index, 0) + 1
        self.count += 1
        self.total_ns += duration_ns
        self.max_ns = max(self.max_ns, duration_ns)

    def quantile_ns(self, share: float) -> int:
        """The least that so large a share of all does not exceed, rounded up to 1 %; 0 where there are none."""
        wanted, seen = math.ceil(share * self.count), 0
        for index in sorted(self._counts):
            seen += self._counts[index]
            if seen >= wanted:
                return 0 if index < 0 else min(self.max_ns, math.ceil(GROWTH**index))
        return 0

    def summary(self) -> Summary:
        """In milliseconds."""
        return Summary(
            count=self.count,
            mean_ms=self.total_ns / max(1, self.count) / 1e6,
            p50_ms=self.quantile_ns(0.5) / 1e6,
            p99_ms=self.quantile_ns(0.99) / 1e6,
            max_ms=self.max_ns / 1e6,
        )


class Summary(msgspec.Struct, frozen=True, kw_only=True):
    """Of many durations; quantiles are exact to 1 %, the rest as the clock is."""

    count: int
    mean_ms: float
    p50_ms: float
    p99_ms: float
    max_ms: float


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """One run. Every tick is in exactly one class of timing; every one that was begun in one stage."""

    ended: Ended
    error: str | None
    rate_hz: float
    ticks: int
    timing: dict[Timing, int]
    stages: dict[Stage, int]
    skipped: int
    """Of the missed ticks, those that were never begun."""
    inferences: int
    over_budget: int
    """Inferences that took longer than the policy's budget."""
    delays: dict[int, int]
    """Inferences by the ticks that passed from the one they were begun for until their chunk was there."""
    violations: dict[Kind, int]
    """Of limits, by kind, over all dimensions and ticks."""
    estops: int
    step: Summary
    """One inference: from asking the robot for an observation to the chunk."""
    observe: Summary
    """The robot's part of it."""
    jitter: Summary
    """From a tick's planned time to the awakening for it."""
    act: Summary
    """The call of ``Robot.act``."""
    age: Summary
    """Of the observation behind an action, when ``Robot.act`` had returned."""

    def as_dict(self) -> dict[str, Any]:
        """Of plain types, for JSON."""
        return dict(msgspec.to_builtins(self))

    def as_table(self) -> str:
        """As lines to read."""
        lines = [f"{'ms':<10} {'p50':>9} {'p99':>9} {'max':>9} {'count':>9}"]
        for name in ("step", "observe", "jitter", "act", "age"):
            row: Summary = getattr(self, name)
            lines.append(f"{name:<10} {row.p50_ms:>9.3f} {row.p99_ms:>9.3f} {row.max_ms:>9.3f} {row.count:>9}")
        lines.append(f"{self.ticks} ticks at {self.rate_hz:g} Hz: {_counts(self.timing)}; {self.skipped} never begun")
        lines.append(f"stages: {_counts(self.stages)}; {self.estops} emergency stops")
        delays = ", ".join(f"{count} by {ticks}" for ticks, count in sorted(self.delays.items())) or "none"
        lines.append(f"{self.inferences} inferences, {self.over_budget} over budget; delayed in ticks: {delays}")
        lines.append(f"violated limits: {_counts(self.violations)}")
        lines.append(f"ended: {self.ended}" + (f", {self.error}" if self.error else ""))
        return "\n".join(lines)


def _counts(counts: dict[Any, int]) -> str:
    return ", ".join(f"{count} {name}" for name, count in counts.items() if count) or "none"


class Tally:
    """What a run counts while it runs; the two threads write different parts of it."""

    def __init__(self) -> None:
        self.timing: dict[Timing, int] = dict.fromkeys(get_args(Timing), 0)
        self.stages: dict[Stage, int] = dict.fromkeys(get_args(Stage), 0)
        self.skipped = self.inferences = self.over_budget = self.estops = 0
        self.delays: Counter[int] = Counter()
        self.step, self.observe, self.jitter, self.act, self.age = (Durations() for _ in range(5))

    def tick(self, record: TickRecord, act_ns: int) -> None:
        """Of the actuation thread: one tick that was begun."""
        self.timing[record.timing] += 1
        self.stages[record.stage] += 1
        self.jitter.add(record.woken_ns - record.planned_ns)
        if record.action is not None:
            self.act.add(act_ns)
        if record.observation_ns is not None:
            self.age.add(record.done_ns - record.observation_ns)

    def skip(self, ticks: int) -> None:
        """Of the actuation thread: ticks that were not begun."""
        self.skipped += ticks
        self.timing["missed"] += ticks

    def inference(self, step_ns: int, observe_ns: int, budget_ns: int, delay: int) -> None:
        """Of the inference thread: one that made a chunk, ``delay`` ticks after that which it was begun for."""
        self.inferences += 1
        self.delays[delay] += 1
        self.over_budget += step_ns > budget_ns
        self.step.add(step_ns)
        self.observe.add(observe_ns)

    def report(self, *, ended: Ended, error: str | None, rate_hz: float, violations: dict[Kind, int]) -> Report:
        """All of it."""
        return Report(
            ended=ended,
            error=error,
            rate_hz=rate_hz,
            ticks=sum(self.timing.values()),
            timing=self.timing,
            stages=self.stages,
            skipped=self.skipped,
            inferences=self.inferences,
            over_budget=self.over_budget,
            delays=dict(self.delays),
            violations=violations,
            estops=self.estops,
            step=self.step.summary(),
            observe=self.observe.summary(),
            jitter=self.jitter.summary(),
            act=self.act.summary(),
            age=self.age.summary(),
        )
