"""What the control loop tells others of every tick, and how they listen without holding it up."""

from __future__ import annotations

import queue
import threading
from collections.abc import Mapping
from typing import Literal, Protocol

import msgspec
import numpy as np

from edge_sdk.control.robot import FloatArray
from edge_sdk.figures import LoopFigures

Timing = Literal["on_time", "late", "missed"]
Stage = Literal["policy", "hold", "decay", "stop", "estop"]


class TickRecord(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """One tick of the loop; times are of ``time.monotonic_ns()``, and None is what there was not."""

    tick: int
    """Its number from the start of the run; its planned time is start + tick * period."""
    planned_ns: int
    woken_ns: int
    """When the loop awoke for it; what it is over planned_ns is the jitter."""
    done_ns: int
    """When ``Robot.act`` had returned."""
    timing: Timing
    skipped: int
    """Ticks right before this one that were never begun, for an earlier one took their time; each counts as missed."""
    stage: Stage
    action: FloatArray | None
    """(action_dim,) as it was sent; None where nothing was sent."""
    wanted: FloatArray | None
    """(action_dim,) before the limits."""
    violations: int
    """Dimensions in which a limit changed the action or stopped the loop."""
    observation_ns: int | None
    """When the newest observation that the action comes from was taken; done_ns less this is the action's age."""
    inference: int | None
    """The number, from the start of the run, of the newest inference that the action comes from."""


class InferenceRecord(msgspec.Struct, frozen=True, kw_only=True):
    """One finished inference: what went in, and what came out before it was blended with earlier chunks."""

    inference: int
    begins_episode: bool
    """Whether the policy was reset right before it."""
    first_tick: int
    """The tick that the chunk's first action is for."""
    observation_ns: int
    started_ns: int
    observed_ns: int
    done_ns: int
    observation: Mapping[str, np.ndarray]
    committed: FloatArray | None
    """(n, action_dim), as it was handed to the policy."""
    chunk: FloatArray
    """(chunk_length, action_dim)"""


class Observer(Protocol):
    """Who wants to know. A method that raises ends the run in ``stop``; one that blocks holds up its thread."""

    def tick(self, record: TickRecord) -> None:
        """Called in the actuation thread, after the actuation."""
        ...

    def inference(self, record: InferenceRecord) -> None:
        """Called in the inference thread; the arrays are the record's own and do not change."""
        ...


class Counter:
    """An observer that counts what came too late, for :mod:`edge_sdk.figures`, over all runs of a loop."""

    def __init__(self, budget_ms: float) -> None:
        """``budget_ms``: what an inference may take."""
        self._budget_ns = round(budget_ms * 1e6)
        self._ticks = self._missed = self._late = self._inferences = self._over_budget = 0

    def tick(self, record: TickRecord) -> None:
        """One that was begun, and those before it that were not."""
        self._ticks += 1 + record.skipped
        self._missed += (record.timing == "missed") + record.skipped
        self._late += record.timing == "late"

    def inference(self, record: InferenceRecord) -> None:
        """One that made a chunk."""
        self._inferences += 1
        self._over_budget += record.done_ns - record.started_ns > self._budget_ns

    def figures(self) -> LoopFigures:
        """So far; from any thread."""
        return LoopFigures(
            ticks=self._ticks,
            missed=self._missed,
            late=self._late,
            inferences=self._inferences,
            over_budget=self._over_budget,
        )


class QueuedObserver:
    """Hands records to another observer from a thread of its own, through a queue; never blocks the loop.

    A record that finds the queue full is dropped and counted. As a context manager it begins its thread and, at the
    end, waits until the queue is empty; an error of the other observer is raised there.
    """

    def __init__(self, observer: Observer, *, capacity: int = 4096) -> None:
        self._observer = observer
        self._queue: queue.Queue[TickRecord | InferenceRecord | None] = queue.Queue(capacity)
        self._thread = threading.Thread(target=self._work, name="edge-observer", daemon=True)
        self._error: Exception | None = None
        self._counting = threading.Lock()
        self.dropped = 0
        """Records that found the queue full, or came after an error."""

    def tick(self, record: TickRecord) -> None:
        """Queues it."""
        self._put(record)

    def inference(self, record: InferenceRecord) -> None:
        """Queues it."""
        self._put(record)

    def __enter__(self) -> QueuedObserver:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._queue.put(None)
        self._thread.join()
        if self._error is not None:
            raise self._error

    def _put(self, record: TickRecord | InferenceRecord) -> None:
        try:
            self._queue.put_nowait(record)
        except queue.Full:
            self._drop()

    def _drop(self) -> None:
        with self._counting:  # three threads do
            self.dropped += 1

    def _work(self) -> None:
        while (record := self._queue.get()) is not None:
            if self._error is not None:
                self._drop()  # the queue is emptied all the same, so that the end is not waited for in vain
                continue
            try:
                if isinstance(record, TickRecord):
                    self._observer.tick(record)
                else:
                    self._observer.inference(record)
            except Exception as error:
                self._error = error
