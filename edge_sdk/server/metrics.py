"""What the server counts and measures, for Prometheus, and its log of requests."""

from __future__ import annotations

import logging
import math
import time
from collections import deque
from collections.abc import Iterable
from pathlib import Path
from statistics import median

import msgspec
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Info, ProcessCollector
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from edge_sdk.answer import Completion
from edge_sdk.server.work import Workers
from edge_sdk.telemetry import read_memory, read_power, read_temperatures

log = logging.getLogger("edge_sdk.server")

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300)
LAST = 100
"""Answers that the rate as served is of."""
RATES = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000)

MACHINE_S = 60.0
"""From one line about the machine to the next, at least."""


class Record(msgspec.Struct, kw_only=True):
    """One request, as the log tells it. It holds nothing of what was said."""

    path: str
    status: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0
    queue_ms: float = 0.0
    time_to_first_token_ms: float = 0.0
    """From the request's arrival; 0 where no token came."""
    tokens_per_second: float = 0.0
    """Of the last answer, its first token not counted."""
    total_ms: float = 0.0
    finish_reasons: list[str] = []
    arrived_s: float = msgspec.field(default_factory=time.monotonic)

    def add(self, completion: Completion, cached_tokens: int) -> None:
        """Counts an answer."""
        self.completion_tokens += len(completion.token_ids)
        self.cached_tokens += cached_tokens
        self.tokens_per_second = completion.tokens_per_second
        self.finish_reasons.append(completion.finish_reason)

    def since_ms(self) -> float:
        """Time since the request came."""
        return (time.monotonic() - self.arrived_s) * 1e3


class MachineRecord(msgspec.Struct, kw_only=True):
    """The machine while it answers, as the log tells it."""

    engine: str
    resident_bytes: int
    peak_bytes: int
    temperatures_celsius: dict[str, float]
    power_watts: dict[str, float]


class Sensors(Collector):
    """Temperatures and power at the moment when they are asked for."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def collect(self) -> Iterable[Metric]:
        """See :mod:`edge_sdk.telemetry`."""
        for name, unit, label, values in (
            ("edge_temperature", "celsius", "zone", read_temperatures(self._root)),
            ("edge_power", "watts", "rail", read_power(self._root)),
        ):
            family = GaugeMetricFamily(f"{name}_{unit}", f"By {label}, as sysfs has it", labels=[label])
            for place, value in values.items():
                family.add_metric([place], value)
            if values:
                yield family


class Metrics:
    """All of one server's."""

    def __init__(self, workers: Workers, engine: str, root: Path = Path("/")) -> None:
        """``engine``: its name; ``root``: where the machine's ``/proc`` and ``/sys`` are."""
        self._engine, self._root = engine, root
        self._told_s = -math.inf
        """When the log was last told of the machine."""
        self.registry = registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        registry.register(Sensors(root))
        Info("edge_engine", "What runs the model", registry=registry).info({"engine": engine})
        running = Gauge("edge_requests_running", "Requests being answered", registry=registry)
        running.set_function(lambda: workers.running)
        waiting = Gauge("edge_requests_waiting", "Requests in the queue", registry=registry)
        waiting.set_function(lambda: workers.waiting)
        self._requests = Counter("edge_requests", "By path and HTTP status", ["path", "status"], registry=registry)
        self._answers = Counter("edge_answers", "By why they ended", ["finish_reason"], registry=registry)
        self._tokens = Counter(
            "edge_tokens", "Prompts' (cached ones included), cached, answers'", ["kind"], registry=registry
        )
        self._queue = Histogram("edge_queue_seconds", "Time in the queue", registry=registry, buckets=SECONDS)
        self._first = Histogram(
            "edge_time_to_first_token_seconds", "From a request's arrival", registry=registry, buckets=SECONDS
        )
        self._total = Histogram("edge_request_seconds", "Whole requests", registry=registry, buckets=SECONDS)
        self._rate = Histogram(
            "edge_answer_tokens_per_second", "Decode speed of answers", registry=registry, buckets=RATES
        )

        self._last_rates: deque[float] = deque(maxlen=LAST)

    def tokens_per_second(self) -> float | None:
        """The median of the last answers'; None before the first."""
        rates = list(self._last_rates)
        return median(rates) if rates else None

    def note(self, record: Record) -> None:
        """Counts a request that has ended, and logs it as one line of JSON."""
        record.total_ms = record.since_ms()
        self._requests.labels(record.path, str(record.status)).inc()
        for reason in record.finish_reasons:
            self._answers.labels(reason).inc()
        for kind in ("prompt", "cached", "completion"):
            self._tokens.labels(kind).inc(getattr(record, f"{kind}_tokens"))
        self._total.observe(record.total_ms / 1e3)
        if record.time_to_first_token_ms:
            self._queue.observe(record.queue_ms / 1e3)
            self._first.observe(record.time_to_first_token_ms / 1e3)
        if record.tokens_per_second and math.isfinite(record.tokens_per_second):
            self._rate.observe(record.tokens_per_second)
            self._last_rates.append(record.tokens_per_second)
        fields = {
            name: round(value, 3) if isinstance(value, float) else value
            for name, value in msgspec.structs.asdict(record).items()
            if name != "arrived_s"
        }
        self._tell_of_the_machine()
        log.info("%s", msgspec.json.encode(fields).decode())

    def _tell_of_the_machine(self) -> None:
        """Logs it as a line of JSON, now and then."""
        if time.monotonic() - self._told_s < MACHINE_S:
            return
        self._told_s, memory = time.monotonic(), read_memory(self._root)
        record = MachineRecord(
            engine=self._engine,
            resident_bytes=memory.resident_bytes,
            peak_bytes=memory.peak_bytes,
            temperatures_celsius=read_temperatures(self._root),
            power_watts=read_power(self._root),
        )
        log.info("%s", msgspec.json.encode(record).decode())
