"""What diagnostics are made of: counters that the threads of a node add to, and their summary. No ROS in it."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

from edge_sdk.answer import Completion
from edge_sdk.control.observers import InferenceRecord, Stage, TickRecord
from edge_sdk.telemetry import read_memory, read_temperatures

Level = Literal["ok", "warn", "error", "stale"]

RECENT = 1000
"""Measurements that a quantile is of."""


@dataclass(frozen=True)
class Status:
    """One entry of a diagnostic_msgs/DiagnosticArray."""

    level: Level
    message: str
    values: dict[str, str] = field(default_factory=dict)


def quantile(values: list[float], share: float) -> float:
    """The least that so large a share of them does not exceed; 0 of none."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else 0.0


def machine_values() -> dict[str, str]:
    """This process's memory and the machine's temperatures, as far as they can be read."""
    memory = read_memory()
    temperatures = read_temperatures()
    values = {"resident_mb": f"{memory.resident_bytes / 1e6:.0f}"}
    return values | {f"temperature_{name}_c": f"{celsius:.1f}" for name, celsius in temperatures.items()}


class Answers:
    """Counts answers and how fast they came."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._first_ms: deque[float] = deque(maxlen=RECENT)
        self._rates: deque[float] = deque(maxlen=RECENT)
        self.answers = self.tokens = self.failures = 0

    def add(self, completion: Completion) -> None:
        """One answer."""
        with self._lock:
            self.answers += 1
            self.tokens += len(completion.token_ids)
            self._first_ms.append(completion.time_to_first_token_ms)
            if completion.tokens_per_second:
                self._rates.append(completion.tokens_per_second)

    def failed(self) -> None:
        """One prompt without an answer, or an answer that was cut off."""
        with self._lock:
            self.failures += 1

    def values(self) -> dict[str, str]:
        """For diagnostics."""
        with self._lock:
            first_ms, rates = list(self._first_ms), list(self._rates)
            return {
                "answers": str(self.answers),
                "tokens": str(self.tokens),
                "failures": str(self.failures),
                "first_token_p50_ms": f"{quantile(first_ms, 0.5):.3f}",
                "first_token_p99_ms": f"{quantile(first_ms, 0.99):.3f}",
                "tokens_per_second_p50": f"{quantile(rates, 0.5):.1f}",
            }


class Ticks:
    """An observer of a control loop: what the last ticks were. ``at_stop`` is called when a tick stops the robot."""

    def __init__(self, at_stop: Callable[[], None] = lambda: None) -> None:
        self._lock = threading.Lock()
        self._at_stop = at_stop
        self._ages_ms: deque[float] = deque(maxlen=RECENT)
        self._steps_ms: deque[float] = deque(maxlen=RECENT)
        self._since_s, self._since_ticks = time.monotonic(), 0
        self.ticks = self.late = self.missed = self.violations = 0
        self.stage: Stage | None = None
        """Of the last tick."""

    def tick(self, record: TickRecord) -> None:
        """One tick, in the loop's thread."""
        with self._lock:
            self.ticks += 1
            self.late += record.timing == "late"
            self.missed += (record.timing == "missed") + record.skipped
            self.violations += record.violations
            self.stage = record.stage
            if record.observation_ns is not None:
                self._ages_ms.append((record.done_ns - record.observation_ns) / 1e6)
        if record.stage == "stop":
            self._at_stop()

    def inference(self, record: InferenceRecord) -> None:
        """One inference, in its thread."""
        with self._lock:
            self._steps_ms.append((record.done_ns - record.observed_ns) / 1e6)

    def values(self) -> dict[str, str]:
        """For diagnostics; the rate is since the last call."""
        with self._lock:
            now_s = time.monotonic()
            rate = (self.ticks - self._since_ticks) / max(1e-9, now_s - self._since_s)
            self._since_s, self._since_ticks = now_s, self.ticks
            return {
                "stage": self.stage or "none",
                "ticks": str(self.ticks),
                "rate_hz": f"{rate:.2f}",
                "late": str(self.late),
                "missed": str(self.missed),
                "limit_violations": str(self.violations),
                "observation_age_p50_ms": f"{quantile(list(self._ages_ms), 0.5):.3f}",
                "observation_age_p99_ms": f"{quantile(list(self._ages_ms), 0.99):.3f}",
                "inference_p50_ms": f"{quantile(list(self._steps_ms), 0.5):.3f}",
                "inference_p99_ms": f"{quantile(list(self._steps_ms), 0.99):.3f}",
            }
