"""The loop on a simulated clock, where every tick is known beforehand."""

from __future__ import annotations

import gc
import json
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from controllers import Integrator, Ramp, config_of
from edge_sdk.control.chunks import Blending
from edge_sdk.control.clock import SimulatedClock
from edge_sdk.control.loop import ControlLoop
from edge_sdk.control.observers import Counter, InferenceRecord, TickRecord
from edge_sdk.control.policy import ActionDim, PolicyConfig
from edge_sdk.control.report import Report
from edge_sdk.control.settings import LoopSettings, Stages
from edge_sdk.errors import ConfigError

MS = 1_000_000
PERIOD_NS = 10 * MS
"""Of the 100 Hz that all loops here have."""
QUICK = Stages(hold_after_ms=20, decay_after_ms=60, stop_after_ms=100)


class Notes:
    """Remembers what it was told."""

    def __init__(self) -> None:
        self.ticks: list[TickRecord] = []
        self.inferences: list[InferenceRecord] = []
        self.at_tick: Callable[[TickRecord], None] = lambda record: None

    def tick(self, record: TickRecord) -> None:
        self.ticks.append(record)
        self.at_tick(record)

    def inference(self, record: InferenceRecord) -> None:
        self.inferences.append(record)


class Stand:
    """A loop with all its parts at hand."""

    def __init__(
        self,
        config: PolicyConfig | None = None,
        *,
        before: Callable[[int], None] | None = None,
        takes_ms: Callable[[int], float] = lambda index: 0.0,
        **settings: Any,
    ) -> None:
        self.clock, self.notes, self.counter = SimulatedClock(), Notes(), Counter(budget_ms=0.0)
        self.robot = Integrator(self.clock)
        self.policy = Ramp(config or config_of(), before or (lambda index: self.wait(takes_ms(index))))
        settings = {"stages": QUICK} | settings
        observers = [self.notes, self.counter]
        self.loop = ControlLoop(
            self.policy, self.robot, clock=self.clock, observers=observers, settings=LoopSettings(**settings)
        )

    def wait(self, milliseconds: float) -> None:
        self.clock.sleep_until_ns(self.clock.now_ns() + round(milliseconds * MS))

    def run(self, ticks: int | None, **options: Any) -> Report:
        report = self.loop.run(ticks, **options)
        consistent(report, self.notes.ticks)
        assert self.robot.stops, "a run ends in stop()"
        return report

    @property
    def stages(self) -> list[str]:
        return [record.stage for record in self.notes.ticks]

    @property
    def sent(self) -> list[float]:
        return [value for _, value in self.robot.acts]


def consistent(report: Report, records: list[TickRecord]) -> None:
    """What must hold of any run."""
    assert sum(report.timing.values()) == report.ticks
    assert sum(report.stages.values()) == len(records) == report.ticks - report.skipped == report.jitter.count
    expected = 0
    for record in records:
        assert record.tick == expected + record.skipped
        assert record.planned_ns == records[0].planned_ns + record.tick * PERIOD_NS  # exactly: no drift
        assert record.planned_ns <= record.woken_ns <= record.done_ns
        expected = record.tick + 1
    assert report.act.count == sum(record.action is not None for record in records)


def test_actions_come_from_the_chunk_for_their_tick() -> None:
    stand = Stand(config_of(chunk_length=10))
    report = stand.run(25)
    assert report.ended == "finished"
    assert report.timing == {"on_time": 25, "late": 0, "missed": 0}
    assert report.stages["policy"] == 25
    assert stand.sent == pytest.approx([n // 5 + (n % 5) / 1000 for n in range(25)])
    assert [record.inference for record in stand.notes.ticks] == [n // 5 for n in range(25)]
    assert [record.first_tick for record in stand.notes.inferences] == [0, 5, 10, 15, 20, 25][: report.inferences]
    assert stand.policy.resets == 2  # for the warm-up and after it


def test_a_policy_that_takes_its_time_is_no_matter_as_long_as_chunks_last() -> None:
    stand = Stand(config_of(chunk_length=10, budget_ms=50), takes_ms=lambda index: 30, replan_ticks=5)
    report = stand.run(50)
    assert report.stages["policy"] == report.timing["on_time"] == 50
    assert report.over_budget == 0
    assert report.step.max_ms == 30
    assert report.delays == {0: 1, 2: report.inferences - 1}  # the run waits for its first chunk
    second = next(record for record in stand.notes.ticks if record.inference == 1)
    assert (second.tick, stand.sent[second.tick]) == (7, pytest.approx(1.002))  # made for tick 5, ready at 7
    assert second.done_ns - (second.observation_ns or 0) == 30 * MS  # observed at the end of tick 4
    assert report.age.max_ms == 90  # of tick 6: its chunk's observation was 30 ms old when the run began


def test_ticks_that_take_too_long_are_late_missed_or_never_begun_and_nothing_drifts() -> None:
    stand = Stand(config_of(chunk_length=100))
    takes_ms = {5: 25.0, 12: 1.0, 14: 1.5, 20: 10.0}
    stand.robot.at_act = lambda index: stand.wait(takes_ms.get(stand.notes.ticks[-1].tick + 1 if index else 0, 0.0))
    report = stand.run(30)
    by_tick = {record.tick: (record.timing, record.skipped) for record in stand.notes.ticks}
    assert by_tick[5] == ("missed", 0)
    assert 6 not in by_tick  # its time was up before tick 5 had ended
    assert by_tick[7] == ("late", 1)
    assert by_tick[8] == ("on_time", 0)
    assert by_tick[12] == ("on_time", 0)  # a tenth of the period
    assert by_tick[14] == ("late", 0)
    assert by_tick[20] == ("missed", 0)
    assert by_tick[21] == ("on_time", 0)
    assert report.timing == {"on_time": 25, "late": 2, "missed": 3}
    assert report.skipped == 1
    counted = stand.counter.figures()
    assert (counted.ticks, counted.late, counted.missed) == (30, 2, 3)
    assert counted.inferences == report.inferences


def test_a_robot_that_hangs_is_noticed_and_stopped() -> None:
    stand = Stand(config_of(chunk_length=20))
    stand.robot.at_act = lambda index: stand.wait(500) if index == 8 else None
    report = stand.run(200)
    assert report.ended == "silent"
    assert [record.timing for record in stand.notes.ticks][8:] == ["missed", "on_time"]
    assert stand.stages == ["policy"] * 9 + ["stop"]
    assert stand.notes.ticks[-1].skipped == report.skipped == 49
    assert len(stand.robot.acts) == 9


def test_silence_goes_through_its_stages_in_order() -> None:
    dims = (ActionDim(name="u", unit="N", rest=-1.0),)
    config = config_of(chunk_length=10, budget_ms=50, dims=dims)
    stand = Stand(config, takes_ms=lambda index: 1e6 if index == 2 else 0)
    report = stand.run(None)
    assert report.ended == "silent"
    # Inference 2 is begun after 90 ms, its budget ends after 140 ms, and the plan of inference 1 after 150 ms.
    assert stand.stages == ["policy"] * 15 + ["hold"] * 5 + ["decay"] * 4 + ["stop"]
    assert stand.notes.ticks[-1].planned_ns - stand.notes.ticks[14].planned_ns == 10 * PERIOD_NS
    last = 1.009
    assert stand.sent[14:20] == pytest.approx([last] * 6)
    assert stand.sent[20:] == pytest.approx([last + share * (-1 - last) for share in (0, 0.25, 0.5, 0.75)], abs=1e-6)
    assert stand.robot.stops[0] == stand.notes.ticks[-1].planned_ns


def test_a_budget_that_is_exceeded_is_staged_although_the_plan_goes_on() -> None:
    config = config_of(chunk_length=40, budget_ms=50)
    stand = Stand(config, takes_ms=lambda index: 95 if index == 1 else 0, replan_ticks=10)
    report = stand.run(40)
    assert report.over_budget == 1
    # Begun at the end of tick 9, over its budget from 140 ms, held after 160 ms, ready at 185 ms.
    assert stand.stages == ["policy"] * 16 + ["hold"] * 3 + ["policy"] * 21
    assert stand.sent[15:19] == pytest.approx([0.015] * 4)
    assert stand.sent[19] == pytest.approx(1.009)


def test_a_policy_that_fails_ends_through_the_stages() -> None:
    def fail(index: int) -> None:
        if index == 1:
            raise RuntimeError("no more ideas")

    stand = Stand(config_of(chunk_length=10), before=fail)
    report = stand.run(None)
    assert (report.ended, report.error) == ("policy", "RuntimeError: no more ideas")
    # It fails at the end of tick 4; silent from then on, the plan goes on for 20 ms.
    assert stand.stages == ["policy"] * 6 + ["hold"] * 4 + ["decay"] * 4 + ["stop"]
    assert stand.sent[-1] < stand.sent[9]


@pytest.mark.parametrize("answer", [np.zeros((10, 2)), np.zeros(10), np.zeros((9, 1)), None])
def test_a_chunk_of_another_shape_is_refused_before_anything_is_sent(answer: Any) -> None:
    stand = Stand(config_of(chunk_length=10))
    stand.policy.infer = lambda observation, committed: answer  # type: ignore[method-assign]
    report = stand.run(10)
    assert (report.ended, report.ticks) == ("policy", 0)
    assert stand.robot.acts == []
    assert report.error is not None


def test_an_emergency_stop_latches_and_a_reset_begins_an_episode() -> None:
    dims = (ActionDim(name="u", unit="rad", max_speed=20.0, rest=None),)
    stand = Stand(config_of(chunk_length=10, dims=dims))
    at = {7: stand.loop.estop, 12: stand.loop.reset_estop}
    stand.notes.at_tick = lambda record: at.get(record.tick, lambda: None)()
    report = stand.run(20)
    assert stand.stages == ["policy"] * 8 + ["estop"] * 5 + ["hold"] + ["policy"] * 6
    sent_at = [record.tick for record in stand.notes.ticks if record.action is not None]
    assert sent_at == [*range(8), *range(14, 20)]  # in tick 13 nothing either: there is no new chunk yet
    assert stand.robot.stops[0] == stand.notes.ticks[7].done_ns
    assert report.estops == 1
    assert stand.policy.resets == 3
    before, after = stand.notes.ticks[7], stand.notes.ticks[14]
    assert (after.observation_ns or 0) >= stand.notes.ticks[13].planned_ns
    assert (after.inference or 0) > (before.inference or 0)
    assert after.action is not None
    assert before.action is not None
    assert after.action - before.action == pytest.approx(0.2)  # the speed's limit, from rest


def test_an_emergency_stop_from_before_holds() -> None:
    stand = Stand()
    stand.loop.estop()
    report = stand.run(5)
    assert stand.loop.estopped
    assert report.stages["estop"] == 5
    assert stand.robot.acts == []


def test_an_emergency_stop_during_an_act_is_the_last_that_the_robot_hears() -> None:
    stand = Stand()
    stand.robot.at_act = lambda index: stand.loop.estop() if index == 3 else None
    stand.run(4)
    assert len(stand.robot.acts) == 4
    assert len(stand.robot.stops) == 3  # of estop() itself, after the act, at the run's end


@pytest.mark.parametrize("part", ["observe", "act", "stop"])
def test_a_robots_error_ends_in_stop(part: str) -> None:
    stand, asked = Stand(), []

    def fail(*_: Any) -> Any:
        asked.append(stand.clock.now_ns())
        raise OSError("unplugged")

    if part == "act":
        stand.robot.at_act = lambda index: fail() if index == 3 else None
    elif part == "observe":
        stand.robot.at_observe = lambda: fail() if stand.robot.acts else None
    else:
        stand.robot.stop = fail  # type: ignore[method-assign]
    report = stand.loop.run(30)
    assert asked
    if part == "stop":  # at the end of a run, whose end is no error
        assert (report.ended, report.ticks) == ("finished", 30)
    else:
        assert (report.ended, report.error) == ("robot", "OSError: unplugged")
        assert stand.robot.stops
        assert len(stand.robot.acts) <= 6


def test_an_observers_error_ends_in_stop() -> None:
    stand = Stand()

    def fail(record: TickRecord) -> None:
        if record.tick == 4:
            raise ValueError("full disk")

    stand.notes.at_tick = fail
    report = stand.run(30)
    assert (report.ended, report.error, report.ticks) == ("observer", "ValueError: full disk", 5)


def test_nan_ends_in_stop_and_is_never_sent() -> None:
    stand = Stand()
    infer = stand.policy.infer
    stand.policy.infer = lambda o, c: infer(o, c) * (np.nan if stand.policy.inferences == 2 else 1)  # type: ignore[method-assign]
    report = stand.run(100)
    assert (report.ended, report.error) == ("limit", "violated: not_finite")
    assert report.violations["not_finite"] == 1
    assert np.isfinite(stand.sent).all()
    assert stand.stages[-1] == "stop"


def test_limits_are_of_the_loops_rate_and_counted() -> None:
    dims = (ActionDim(name="u", unit="rad", upper=1.5, max_speed=5.0),)
    stand = Stand(config_of(chunk_length=10, dims=dims))
    report = stand.run(40)
    assert np.abs(np.diff(stand.sent)).max() == pytest.approx(0.05, rel=1e-5)
    assert max(stand.sent) == 1.5
    assert report.violations["speed"] > 0
    assert report.violations["position"] > 0
    assert sum(report.violations.values()) == sum(record.violations for record in stand.notes.ticks)


def test_a_policy_is_told_what_will_have_been_executed() -> None:
    config = config_of(chunk_length=10, budget_ms=50)
    stand = Stand(config, takes_ms=lambda index: 30, replan_ticks=5, blending=Blending(mode="committed"))
    stand.run(60)
    told = [record for record in stand.notes.inferences if record.committed is not None]
    assert len(told) > 8
    assert len(told[0].committed) == 5  # type: ignore[arg-type]  # the budget, before anything was measured
    for record in told[:-1]:
        executed = stand.sent[record.first_tick : record.first_tick + 2]
        assert record.committed[:2, 0].tolist() == pytest.approx(executed)  # type: ignore[index]
    assert [None if c is None else len(c) for c in stand.policy.committed[:2]] == [None, None]


def test_a_run_can_be_ended_and_repeated() -> None:
    stand = Stand()
    stand.notes.at_tick = lambda record: stand.loop.stop() if record.tick == 3 else None
    assert stand.run(None).ended == "asked"
    stand.notes.ticks.clear()
    stand.notes.at_tick = lambda record: None
    report = stand.run(None, until=lambda: len(stand.notes.ticks) == 6)
    assert (report.ended, report.ticks) == ("finished", 6)


def test_pythons_own_settings_are_as_before() -> None:
    stand = Stand()
    seen = []
    stand.notes.at_tick = lambda record: seen.append((gc.isenabled(), gc.get_freeze_count() > 0))
    before = (gc.isenabled(), gc.get_freeze_count(), sys.getswitchinterval())
    stand.run(3)
    assert seen == [(False, True)] * 3
    assert (gc.isenabled(), gc.get_freeze_count(), sys.getswitchinterval()) == before

    def until() -> bool:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stand.loop.run(3, until=until)
    assert (gc.isenabled(), gc.get_freeze_count(), sys.getswitchinterval()) == before
    assert len(stand.robot.stops) == 2


def test_the_report_is_readable_by_people_and_machines() -> None:
    stand = Stand()
    report = stand.run(12)
    assert json.loads(json.dumps(report.as_dict()))["timing"]["on_time"] == 12
    table = report.as_table()
    assert "12 ticks at 100 Hz: 12 on_time; 0 never begun" in table
    assert "delayed in ticks: 3 by 0" in table
    assert "ended: finished" in table


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda: Stages(hold_after_ms=200, decay_after_ms=100), "Stages: expected 0 <= hold <= decay <= stop"),
        (lambda: LoopSettings(replan_ticks=0), "replan_ticks: expected at least 1, found 0"),
        (lambda: LoopSettings(late_after_ms=-1), "late_after_ms: expected at least 0, found -1"),
        (lambda: ControlLoop(Ramp(config_of()), Integrator(SimulatedClock()), 0.0), "action.rate_hz: expected more"),
        (lambda: ControlLoop(Ramp(config_of()), Integrator(SimulatedClock()), start=[1, 2]), "start: expected"),
    ],
)
def test_settings_that_make_no_sense_are_refused(change: Callable[[], Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        change()
