"""One run of the control loop: its ticks, and what each of them sends."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from edge_sdk.control.chunks import ChunkQueue, Planned
from edge_sdk.control.clock import Clock
from edge_sdk.control.inference import Inference
from edge_sdk.control.limits import Limiter
from edge_sdk.control.observers import Observer, Stage, TickRecord, Timing
from edge_sdk.control.policy import ActionSpec
from edge_sdk.control.report import Ended, Report, Tally
from edge_sdk.control.robot import FloatArray, Robot
from edge_sdk.control.settings import Stages

LOGGER = logging.getLogger(__name__)


class Pace(NamedTuple):
    """A loop's times."""

    period_ns: int
    late_ns: int
    """From a tick's planned time to where it begins to be late."""
    replan_ticks: int


class Decision(NamedTuple):
    """What a tick does."""

    stage: Stage
    action: FloatArray | None = None
    """(action_dim,), None where nothing is sent."""
    violations: int = 0


class Actuation:
    """Sends an action in every tick, and begins inferences; runs in the thread that calls :meth:`run`."""

    def __init__(
        self,
        robot: Robot,
        clock: Clock,
        queue: ChunkQueue,
        limiter: Limiter,
        inference: Inference,
        tally: Tally,
        *,
        spec: ActionSpec,
        pace: Pace,
        stages: Stages,
        observers: Sequence[Observer],
        estop: threading.Event,
        stopping: threading.Event,
    ) -> None:
        self._robot, self._clock, self._queue, self._limiter = robot, clock, queue, limiter
        self._inference, self._tally, self._spec, self._pace = inference, tally, spec, pace
        self._stages, self._observers, self._estop, self._stopping = stages, observers, estop, stopping
        self._rest = np.array([np.nan if dim.rest is None else dim.rest for dim in spec.dims])
        self._start_ns = self._resumed_ns = 0
        self._halted = False
        """Whether an emergency stop was seen and not yet reset."""
        self._moving = False
        """Whether anything was sent since the start, or since an emergency stop."""
        self._decay_from: NDArray[np.float64] | None = None
        self._ended: Ended | None = None
        self._error: str | None = None

    def run(self, ticks: int | None, until: Callable[[], bool] | None) -> None:
        """All ticks, until the run ends."""
        self._start_ns = self._resumed_ns = self._clock.now_ns()
        tick = skipped = 0
        while not self._over(tick, ticks):
            planned_ns = self._start_ns + tick * self._pace.period_ns
            self._clock.sleep_until_ns(planned_ns)
            self._tick(tick, planned_ns, skipped)
            if until is not None and until():
                self._end("finished")
            # Ticks whose time is up are not made up for: an action that is late is worth less than one that is not.
            reached = max(tick + 1, (self._clock.now_ns() - self._start_ns) // self._pace.period_ns)
            skipped = min(reached, ticks or reached) - tick - 1
            self._tally.skip(skipped)
            tick = reached

    def halt_robot(self) -> None:
        """``Robot.stop``; an error of it is reported."""
        self._call_robot(self._robot.stop)

    def report(self) -> Report:
        """What happened."""
        return self._tally.report(
            ended=self._ended or "finished",
            error=self._error,
            rate_hz=self._spec.rate_hz,
            violations=self._limiter.counts,
        )

    def _over(self, tick: int, ticks: int | None) -> bool:
        failure = self._inference.failure
        if failure is not None and (failure.ended != "policy" or tick == 0):
            self._end(failure.ended, failure.error)
        elif self._stopping.is_set():
            self._end("asked")
        elif ticks is not None and tick >= ticks:
            self._end("finished")
        return self._ended is not None

    def _end(self, ended: Ended, error: str | None = None) -> None:
        """The first reason is the one that is reported."""
        if self._ended is None:
            self._ended, self._error = ended, error

    def _call_robot(self, call: Callable[[], None]) -> bool:
        """Whether it went well."""
        try:
            call()
        except Exception as error:
            LOGGER.exception("The robot raised an error")
            self._end("robot", f"{type(error).__name__}: {error}")
            return False
        return True

    def _tick(self, tick: int, planned_ns: int, skipped: int) -> None:
        woken_ns = self._clock.now_ns()
        planned = self._queue.at(tick)
        decision = self._decide(tick, planned_ns, planned)
        sending_ns = self._clock.now_ns()
        self._send(decision)
        done_ns = self._clock.now_ns()
        self._inference.next_tick = tick + 1
        self._replan(tick + 1)
        cause = planned if decision.stage == "policy" else None
        record = TickRecord(
            tick=tick,
            planned_ns=planned_ns,
            woken_ns=woken_ns,
            done_ns=done_ns,
            timing=self._timing(done_ns - planned_ns),
            skipped=skipped,
            stage=decision.stage,
            action=decision.action,
            wanted=None if cause is None else cause.action,
            violations=decision.violations,
            observation_ns=None if cause is None else cause.observation_ns,
            inference=None if cause is None else cause.inference,
        )
        self._tally.tick(record, done_ns - sending_ns)
        self._tell(record)

    def _send(self, decision: Decision) -> None:
        action = decision.action
        if decision.stage == "stop":
            self.halt_robot()
        elif action is not None:
            self._moving = True
            went_well = self._call_robot(lambda: self._robot.act(action))
            if not went_well or self._estop.is_set():  # an emergency stop while it acted: the stop is to be the last
                self.halt_robot()

    def _timing(self, after_ns: int) -> Timing:
        if after_ns <= self._pace.late_ns:
            return "on_time"
        return "late" if after_ns < self._pace.period_ns else "missed"

    def _decide(self, tick: int, planned_ns: int, planned: Planned | None) -> Decision:
        if self._estop.is_set():
            if not self._halted:
                self._halted = True
                self._tally.estops += 1
                self.halt_robot()
            return Decision("estop")
        if self._halted:
            self._resume(tick, planned_ns)
            planned = None
        silent_ms = self._silent_ns(planned_ns, planned) / 1e6
        if silent_ms >= self._stages.stop_after_ms:
            failure = self._inference.failure
            self._end("silent") if failure is None else self._end(failure.ended, failure.error)
            return Decision("stop")
        if silent_ms >= self._stages.decay_after_ms:
            return self._decay(silent_ms)
        self._decay_from = None
        if planned is None or silent_ms >= self._stages.hold_after_ms:
            return Decision("hold", self._limiter.brake().astype(np.float32) if self._moving else None)
        return self._follow(planned)

    def _follow(self, planned: Planned) -> Decision:
        """The policy's action, within the limits."""
        limited, violations, stopping = self._limiter.step(planned.action)
        if stopping is not None:
            self._end("limit", f"violated: {stopping}")
            return Decision("stop", None, violations)
        return Decision("policy", limited.astype(np.float32), violations)

    def _decay(self, silent_ms: float) -> Decision:
        """On the way to rest from where decaying began."""
        if not self._moving:
            return Decision("decay")
        if self._decay_from is None:
            self._decay_from = self._limiter.last.copy()
        span_ms = self._stages.stop_after_ms - self._stages.decay_after_ms  # not 0, or it would have stopped
        rest = np.where(np.isnan(self._rest), self._decay_from, self._rest)
        share = (silent_ms - self._stages.decay_after_ms) / span_ms
        target = self._decay_from + share * (rest - self._decay_from)
        return Decision("decay", self._limiter.approach(target).astype(np.float32))

    def _resume(self, tick: int, planned_ns: int) -> None:
        """After an emergency stop: as at the start of an episode, from rest."""
        self._halted = self._moving = False
        self._resumed_ns = planned_ns
        self._queue.clear(from_tick=tick + 1)
        self._limiter.rest()
        self._inference.begin_episode()

    def _silent_ns(self, planned_ns: int, planned: Planned | None) -> int:
        """How long a chunk has been overdue: since the plan's end, a failure, or the end of an inference's budget."""
        since = [planned_ns]
        if planned is None:
            since.append(max(self._start_ns + self._queue.end_tick * self._pace.period_ns, self._resumed_ns))
        if (overdue_ns := self._inference.silent_from_ns) is not None:
            since.append(max(overdue_ns, self._resumed_ns))
        return planned_ns - min(since)

    def _replan(self, next_tick: int) -> None:
        inference = self._inference
        if self._halted or self._ended is not None or inference.started_ns is not None or inference.failure is not None:
            return
        if next_tick - inference.first_tick >= self._pace.replan_ticks or self._queue.end_tick <= next_tick:
            inference.begin(next_tick)

    def _tell(self, record: TickRecord) -> None:
        try:
            for observer in self._observers:
                observer.tick(record)
        except Exception as error:
            LOGGER.exception("An observer raised an error")
            self._end("observer", f"{type(error).__name__}: {error}")
