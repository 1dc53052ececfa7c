"""The loop and its helpers on the machine's clock: nothing here depends on how fast the machine is."""

from __future__ import annotations

import threading
import time
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from controllers import Integrator, Ramp, config_of
from edge_sdk.control.clock import MonotonicClock, SimulatedClock
from edge_sdk.control.loop import ControlLoop
from edge_sdk.control.observers import QueuedObserver, TickRecord
from edge_sdk.control.report import Durations
from edge_sdk.control.settings import LoopSettings, Stages
from edge_sdk.errors import BusyError

PATIENT = Stages(hold_after_ms=60e3, decay_after_ms=60e3, stop_after_ms=60e3)


class Ticks:
    """Keeps the records of ticks."""

    def __init__(self) -> None:
        self.records: list[TickRecord] = []

    def tick(self, record: TickRecord) -> None:
        self.records.append(record)

    def inference(self, record: Any) -> None:
        pass


def record(tick: int) -> TickRecord:
    return TickRecord(
        tick=tick,
        planned_ns=0,
        woken_ns=0,
        done_ns=0,
        timing="on_time",
        skipped=0,
        stage="hold",
        action=None,
        wanted=None,
        violations=0,
        observation_ns=None,
        inference=None,
    )


@pytest.mark.parametrize("spin_us", [0.0, 200.0])
def test_ticks_are_planned_by_their_number_and_all_accounted_for(spin_us: float) -> None:
    clock, notes = MonotonicClock(spin_us), Ticks()
    robot = Integrator(clock)
    loop = ControlLoop(
        Ramp(config_of(rate_hz=200.0, chunk_length=50)),
        robot,
        clock=clock,
        observers=[notes],
        settings=LoopSettings(stages=PATIENT),
    )
    report = loop.run(100)
    start_ns = notes.records[0].planned_ns
    assert loop.period_ns == 5_000_000
    for one in notes.records:
        assert one.planned_ns == start_ns + one.tick * loop.period_ns
        assert one.planned_ns <= one.woken_ns <= one.done_ns
    assert report.ended == "finished"
    assert report.ticks == sum(report.timing.values()) == 100
    assert len(notes.records) + report.skipped == 100
    assert notes.records[-1].done_ns >= start_ns + notes.records[-1].tick * loop.period_ns


def test_an_emergency_stop_from_another_thread_is_the_robots_last_word() -> None:
    clock = MonotonicClock()
    robot = Integrator(clock)
    loop = ControlLoop(Ramp(config_of(rate_hz=500.0)), robot, settings=LoopSettings(stages=PATIENT))
    enough = threading.Event()
    robot.at_act = lambda index: enough.set() if index == 20 else None
    thread = threading.Thread(target=loop.run)
    thread.start()
    assert enough.wait(60)
    loop.estop()
    sent = len(robot.acts)
    time.sleep(0.05)
    loop.stop()
    thread.join(60)
    assert not thread.is_alive()
    assert len(robot.acts) <= sent + 1  # one that was being sent while it came
    assert robot.stops[-1] >= robot.acts[-1][0]


def test_a_policy_that_hangs_keeps_nobody_from_stopping() -> None:
    clock, go_on = MonotonicClock(), threading.Event()
    robot = Integrator(clock)
    policy = Ramp(config_of(), before=lambda index: None if index < 2 else (go_on.wait(60), None)[1])
    stages = Stages(hold_after_ms=10, decay_after_ms=20, stop_after_ms=40)
    loop = ControlLoop(policy, robot, settings=LoopSettings(stages=stages))
    report = loop.run()
    assert report.ended == "silent"
    assert robot.stops
    with pytest.raises(BusyError, match="An inference of the last run still computes"):
        loop.run(1)
    go_on.set()
    while any(thread.name == "edge-inference" for thread in threading.enumerate()):
        time.sleep(0.01)
    assert loop.run(1).ticks == 1


def test_a_loop_runs_once_at_a_time() -> None:
    clock, inside, go_on = MonotonicClock(), threading.Event(), threading.Event()
    robot = Integrator(clock)
    robot.at_act = lambda index: (inside.set(), go_on.wait(60), None)[2]
    loop = ControlLoop(Ramp(config_of()), robot)
    thread = threading.Thread(target=loop.run, args=(1,))
    thread.start()
    assert inside.wait(60)
    with pytest.raises(BusyError, match="runs already"):
        loop.run(1)
    go_on.set()
    thread.join(60)


def test_an_observer_behind_a_queue_never_holds_anybody_up() -> None:
    go_on, notes = threading.Event(), Ticks()
    notes.tick = lambda one: (go_on.wait(60), notes.records.append(one), None)[2]  # type: ignore[method-assign]
    with QueuedObserver(notes, capacity=4) as queued:
        for tick in range(10):
            queued.tick(record(tick))  # returns although nobody takes them
        go_on.set()
    assert len(notes.records) + queued.dropped == 10
    assert 5 <= queued.dropped <= 6
    ticks = [one.tick for one in notes.records]
    assert ticks == list(range(len(ticks)))


def test_the_error_of_an_observer_behind_a_queue_is_raised_at_the_end() -> None:
    class Failing(Ticks):
        def tick(self, record: TickRecord) -> None:
            raise OSError("full disk")

    queued = QueuedObserver(Failing())
    queued.__enter__()
    for tick in range(3):
        queued.tick(record(tick))
    with pytest.raises(OSError, match="full disk"):
        queued.__exit__()
    assert queued.dropped == 2


@given(durations=st.lists(st.integers(0, 10**12), min_size=1, max_size=200), share=st.sampled_from([0.01, 0.5, 0.99]))
def test_quantiles_are_exact_to_one_percent(durations: list[int], share: float) -> None:
    counted = Durations()
    for duration in durations:
        counted.add(duration)
    exact = float(np.quantile(durations, share, method="inverted_cdf"))
    assert exact <= counted.quantile_ns(share) <= exact * 1.01 + 1
    assert counted.max_ns == max(durations)
    assert counted.total_ns == sum(durations)


def test_simulated_time_moves_when_all_wait_and_in_order() -> None:
    clock, log, event = SimulatedClock(threads=3), [], threading.Event()

    def sleeper(name: str, period_ns: int) -> None:
        for index in range(1, 4):
            clock.sleep_until_ns(index * period_ns)
            log.append((name, clock.now_ns()))
        event.set()
        clock.wait(threading.Event())  # for ever: the clock counts on three threads

    threads = [threading.Thread(target=sleeper, args=parts, daemon=True) for parts in (("a", 100), ("b", 70))]
    for thread in threads:
        thread.start()
    clock.wait(event)
    assert log == [("b", 70), ("a", 100), ("b", 140), ("a", 200), ("b", 210)]
    clock.sleep_until_ns(300)
    assert (log[5:], clock.now_ns()) == ([("a", 300)], 300)
    clock.sleep_until_ns(200)
    assert clock.now_ns() == 300  # it never goes back
