"""The control loop: a policy's actions to a robot at a fixed rate, by absolute deadlines (docs/control.md)."""

from __future__ import annotations

import gc
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import msgspec
from numpy.typing import ArrayLike

from edge_sdk.control.actuation import Actuation, Pace
from edge_sdk.control.chunks import ChunkQueue
from edge_sdk.control.clock import Clock, MonotonicClock
from edge_sdk.control.inference import Inference
from edge_sdk.control.limits import Limiter
from edge_sdk.control.observers import Observer
from edge_sdk.control.policy import Policy
from edge_sdk.control.report import Report, Tally
from edge_sdk.control.robot import Robot
from edge_sdk.control.settings import LoopSettings
from edge_sdk.errors import BusyError

SWITCH_INTERVAL_S = 1e-4
"""How long Python may keep the actuation thread waiting for the inference thread's Python code; 5 ms by default."""

CLOSE_TIMEOUT_S = 1.0
"""So long is an inference waited for that is being made when a run ends."""


class ControlLoop:
    """Runs a policy on a robot: actuation in the caller's thread, inference in one beside it.

    Args:
        policy: Makes chunks of actions.
        robot: Is stopped at the end of every run, however it ends.
        rate_hz: Ticks per second, one action each; None is the rate that the policy was made for.
        settings: Of blending, stages, limits and deadlines.
        observers: Are told of every tick and inference.
        clock: The machine's; a simulated one lets a simulation run as fast as it computes.
        start: (action_dim,), the action that corresponds to where the robot is, at rest; None takes the first action
            for it, which is then limited by position only.

    Raises ConfigError for a rate or a start that makes no sense.
    """

    def __init__(
        self,
        policy: Policy,
        robot: Robot,
        rate_hz: float | None = None,
        *,
        settings: LoopSettings | None = None,
        observers: Sequence[Observer] = (),
        clock: Clock | None = None,
        start: ArrayLike | None = None,
    ) -> None:
        self._policy, self._robot, self._observers, self._start = policy, robot, observers, start
        self._settings, self._clock = settings or LoopSettings(), clock or MonotonicClock()
        spec = policy.config.action
        self._spec = spec if rate_hz is None else msgspec.structs.replace(spec, rate_hz=rate_hz)
        Limiter(self._spec, start=start)  # a wrong start is refused here rather than when it runs
        period_ns = round(1e9 / self._spec.rate_hz)
        late_ms, replan_ticks = self._settings.late_after_ms, self._settings.replan_ticks
        self._pace = Pace(
            period_ns=period_ns,
            late_ns=period_ns // 10 if late_ms is None else round(late_ms * 1e6),
            replan_ticks=replan_ticks or max(1, policy.config.chunk_length // 2),
        )
        self._estop, self._stopping, self._running = threading.Event(), threading.Event(), threading.Lock()
        self._last: Inference | None = None
        """That of the last run, where it still computes."""

    @property
    def period_ns(self) -> int:
        """From one tick to the next; tick k is planned for exactly the start + k * period_ns."""
        return self._pace.period_ns

    def run(self, ticks: int | None = None, *, until: Callable[[], bool] | None = None) -> Report:
        """Runs for so many ticks, until a condition holds after one, until :meth:`stop`, or until it has to end.

        An emergency stop from before holds. What the robot, the policy or an observer raises is in the report; what
        ``until`` raises is raised here, after the robot was stopped. Raises BusyError while another run of this loop,
        or an inference of one, has not ended.
        """
        if not self._running.acquire(blocking=False):
            raise BusyError("This loop runs already. Wait until it has ended.")
        try:
            if self._last is not None and not self._last.close(0.0):
                raise BusyError("An inference of the last run still computes. Wait for it, or start a new process.")
            self._stopping.clear()
            with _undisturbed(self._settings.freeze_gc):
                return self._run(ticks, until)
        finally:
            self._running.release()

    def stop(self) -> None:
        """Ends the run after the tick that is going on; from any thread."""
        self._stopping.set()

    def estop(self) -> None:
        """Stops the robot at once and sends nothing more until :meth:`reset_estop`; from any thread."""
        self._estop.set()
        self._robot.stop()  # here and now; the actuation thread repeats it, should it be acting just now

    def reset_estop(self) -> None:
        """Lets a run go on, as a new episode: the policy is reset, and nothing is sent before its first new chunk."""
        self._estop.clear()

    @property
    def estopped(self) -> bool:
        """Whether an emergency stop holds."""
        return self._estop.is_set()

    def _run(self, ticks: int | None, until: Callable[[], bool] | None) -> Report:
        settings, tally, queue = self._settings, Tally(), ChunkQueue(self._settings.blending)
        inference = Inference(
            self._policy,
            self._robot,
            self._clock,
            queue,
            tally,
            observers=self._observers,
            period_ns=self._pace.period_ns,
            commit=settings.blending.mode == "committed",
        )
        actuation = Actuation(
            self._robot,
            self._clock,
            queue,
            Limiter(self._spec, on_violation=settings.on_violation, start=self._start),
            inference,
            tally,
            spec=self._spec,
            pace=self._pace,
            stages=settings.stages,
            observers=self._observers,
            estop=self._estop,
            stopping=self._stopping,
        )
        try:
            inference.start()
            actuation.run(ticks, until)
        finally:
            actuation.halt_robot()
            self._last = None if inference.close(CLOSE_TIMEOUT_S) else inference
        return actuation.report()


@contextmanager
def _undisturbed(freeze_gc: bool) -> Iterator[None]:
    """Python's garbage collector rests, and threads that want the interpreter get it sooner; afterwards as before."""
    interval_s, enabled, others = sys.getswitchinterval(), gc.isenabled(), gc.get_freeze_count()
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    if freeze_gc:
        gc.collect()
        gc.freeze()
        gc.disable()
    try:
        yield
    finally:
        sys.setswitchinterval(interval_s)
        if freeze_gc and enabled:
            gc.enable()
        if freeze_gc and others == 0:  # what somebody else froze cannot be told from ours
            gc.unfreeze()
