"""Limits that hold whatever goes in, and leave alone what respects them."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from edge_sdk.control.limits import KINDS, Limiter, OnViolation, steepest
from edge_sdk.control.policy import ActionDim, ActionSpec
from edge_sdk.errors import ConfigError

ROUNDING = 1e-9
"""Of differences of up to third order in float64, relative to the numbers that they are taken of."""

Sequence = NDArray[np.float64]
CLIP = OnViolation(not_finite="clip")


def spec(rate_hz: float = 50.0, **limits: float | None) -> ActionSpec:
    return ActionSpec(dims=(ActionDim(name="x", unit="rad", rest=None, **limits),), rate_hz=rate_hz)


def run(limiter: Limiter, wanted: Any) -> Sequence:
    """What comes out, (ticks,)."""
    return np.array([limiter.step(np.array([value], dtype=np.float64))[0][0] for value in wanted])


def differences(start: float, sequence: Sequence) -> list[Sequence]:
    """Position, speed, acceleration and jerk per tick of a robot that was at rest at ``start``."""
    orders = [np.concatenate([[start] * 3, sequence])]
    for _ in range(3):
        orders.append(np.diff(orders[-1]))
    return [order[-len(sequence) :] for order in orders]


limit = st.none() | st.floats(0.05, 50.0)
wild = st.lists(st.floats(-5, 5) | st.sampled_from([math.nan, math.inf, -math.inf, 1e30, -1e30]), max_size=120)
steps = st.lists(st.tuples(st.floats(-1.5, 1.5), st.integers(1, 40)), max_size=8).map(
    lambda parts: [value for value, ticks in parts for _ in range(ticks)]
)


@settings(max_examples=400, deadline=None)
@given(
    wanted=wild | steps,
    start=st.floats(-1, 1),
    low=st.none() | st.floats(-1.2, -1.0),
    high=st.none() | st.floats(1.0, 1.2),
    speed=limit,
    acceleration=limit,
    jerk=limit,
    rate_hz=st.sampled_from([10.0, 50.0, 200.0]),
    data=st.data(),
)
def test_what_comes_out_respects_every_limit(
    wanted: list[float],
    start: float,
    low: float | None,
    high: float | None,
    speed: float | None,
    acceleration: float | None,
    jerk: float | None,
    rate_hz: float,
    data: st.DataObject,
) -> None:
    limits = {"max_speed": speed, "max_acceleration": acceleration, "max_jerk": jerk}
    limiter = Limiter(spec(rate_hz, lower=low, upper=high, **limits), on_violation=CLIP, start=[start])
    out = run(limiter, wanted)
    braked = data.draw(st.integers(0, 30))
    out = np.concatenate([out, [limiter.brake()[0] for _ in range(braked)]])
    orders = differences(start, out)
    rounding = ROUNDING * max(1.0, float(np.abs(orders[0]).max(initial=0)))
    assert np.isfinite(out).all()
    assert (orders[0] >= (-math.inf if low is None else low)).all()
    assert (orders[0] <= (math.inf if high is None else high)).all()
    for order, maximum in enumerate((speed, acceleration, jerk), start=1):
        if maximum is not None:
            assert (np.abs(orders[order]) <= maximum / rate_hz**order + rounding).all(), KINDS[order]


@settings(max_examples=150, deadline=None)
@given(
    frequencies=st.lists(st.floats(0.5, 6.0), min_size=1, max_size=3),
    phases=st.lists(st.floats(0, 6.28), min_size=3, max_size=3),
    room=st.sampled_from([0.0, 0.001, 0.1]),
)
def test_a_course_that_respects_its_limits_comes_out_as_it_went_in(
    frequencies: list[float], phases: list[float], room: float
) -> None:
    rate_hz, ticks = 100.0, 300
    time_s = np.arange(ticks) / rate_hz
    window = np.sin(np.pi * np.arange(ticks) / (ticks - 1)) ** 6  # from rest, to rest
    course = window * sum(np.sin(2 * np.pi * f * time_s + p) / f**3 for f, p in zip(frequencies, phases))
    _, v, a, j = differences(0.0, course)
    extremes = {
        "max_speed": np.abs(v).max() * rate_hz,
        "max_acceleration": np.abs(a).max() * rate_hz**2,
        "max_jerk": np.abs(j).max() * rate_hz**3,
    }
    limits = {name: float(value) * (1 + 1e-9) for name, value in extremes.items()}
    span = float(np.ptp(course))
    low, high = float(course.min()) - room * span, float(course.max()) + room * span
    limiter = Limiter(spec(rate_hz, lower=low, upper=high, **limits), start=[0.0])
    out = run(limiter, course)
    assert (out == course).all(), np.abs(out - course).max()
    assert sum(limiter.counts.values()) == 0


def test_full_speed_at_the_end_of_the_range_stops_there_and_turns_back() -> None:
    limits = {"max_speed": 2.0, "max_acceleration": 10.0, "max_jerk": 200.0}
    limiter = Limiter(spec(100.0, lower=-1.0, upper=1.0, **limits), start=[0.0])
    out = run(limiter, [5.0] * 200 + [-5.0] * 300)
    assert out[:200].max() <= 1.0
    assert out[199] == pytest.approx(1.0, abs=1e-3)
    assert out[-1] == pytest.approx(-1.0, abs=1e-3)
    assert np.abs(np.diff(out)).max() == pytest.approx(2.0 / 100.0)  # the speed that is allowed is used
    assert limiter.counts["position"] == 500


@pytest.mark.parametrize(
    ("limits", "wanted", "kind"),
    [
        ({"upper": 1.0}, 1.5, "position"),
        ({"max_speed": 1.0}, 0.5, "speed"),
        ({"max_acceleration": 1.0}, 0.5, "acceleration"),
        ({"max_jerk": 1.0}, 0.5, "jerk"),
        ({}, math.nan, "not_finite"),
        ({}, -math.inf, "not_finite"),
    ],
)
@pytest.mark.parametrize("reaction", ["clip", "stop"])
def test_a_violation_is_named_counted_and_stops_where_that_is_asked_for(
    limits: dict[str, float], wanted: float, kind: Any, reaction: Any
) -> None:
    limiter = Limiter(spec(10.0, **limits), on_violation=OnViolation(**{kind: reaction}), start=[0.0])
    action, violations, stop = limiter.step(np.array([wanted]))
    assert np.isfinite(action).all()
    assert violations == 1
    assert stop == (kind if reaction == "stop" else None)
    assert limiter.counts == dict.fromkeys(KINDS, 0) | {kind: 1}


def test_what_leaves_no_room_to_stop_in_is_counted_as_that() -> None:
    limiter = Limiter(spec(10.0, upper=1.0, max_acceleration=1.0), start=[0.9])
    action, _, stop = limiter.step(np.array([0.9]))
    assert action[0] == 0.9
    for wanted in (0.91, 0.93, 0.96, 1.0):  # each within all limits, and the last at a speed with nowhere to go
        action, _, stop = limiter.step(np.array([wanted]))
        assert stop is None
    assert limiter.counts["braking"] > 0
    assert sum(limiter.counts.values()) == limiter.counts["braking"]
    assert action[0] < 1.0


def test_the_first_action_says_where_the_robot_is_unless_it_is_nonsense() -> None:
    limiter = Limiter(spec(10.0, upper=1.0, max_speed=0.1), on_violation=CLIP)
    _, violations, stop = limiter.step(np.array([math.nan]))
    assert (violations, stop, limiter.started) == (1, "not_finite", False)
    assert limiter.step(np.array([0.7]))[0][0] == 0.7
    assert limiter.step(np.array([0.9]))[0][0] == pytest.approx(0.71)


@pytest.mark.parametrize(("rest", "begins_at"), [(None, 0.7), (0.0, 0.0)], ids=["position", "speed"])
def test_a_robot_that_was_stopped_keeps_its_position_but_not_its_speed(rest: float | None, begins_at: float) -> None:
    dim = ActionDim(name="x", unit="any", upper=1.0, max_speed=1.0, rest=rest)
    limiter = Limiter(ActionSpec(dims=(dim,), rate_hz=10.0), start=[0.6])
    assert limiter.step(np.array([0.9]))[0][0] == pytest.approx(0.7)
    limiter.rest()
    assert limiter.step(np.array([0.9]))[0][0] == pytest.approx(begins_at + 0.1)


def test_dimensions_are_limited_each_by_itself() -> None:
    dims = (ActionDim(name="a", unit="m", upper=1.0), ActionDim(name="b", unit="m", max_speed=1.0))
    limiter = Limiter(ActionSpec(dims=dims, rate_hz=10.0), start=[0.0, 0.0])
    action, violations, _ = limiter.step(np.array([2.0, 2.0]))
    assert action.tolist() == pytest.approx([1.0, 0.1])
    assert violations == 2
    assert (limiter.counts["position"], limiter.counts["speed"]) == (1, 1)


@pytest.mark.parametrize("start", [[0.0], [0.0, math.nan]])
def test_a_start_that_makes_no_sense_is_refused(start: list[float]) -> None:
    dims = tuple(ActionDim(name=name, unit="m") for name in "ab")
    with pytest.raises(ConfigError, match=r"start: expected \(2,\) finite numbers"):
        Limiter(ActionSpec(dims=dims, rate_hz=10.0), start=start)


@given(room=st.floats(0, 100), step=st.floats(0.01, 10))
def test_the_steepest_acceleration_uses_its_room_and_not_more(room: float, step: float) -> None:
    a = steepest(room, step)
    total = sum(max(a - index * step, 0.0) for index in range(int(a / step) + 2))
    assert total == pytest.approx(room)
