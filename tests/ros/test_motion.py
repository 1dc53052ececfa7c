"""The pure part of the ROS room: actions to velocities, velocities to a path, motions played tick by tick."""

from __future__ import annotations

import math
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_ros_bridge.motion import (
    ACTIONS,
    RUN_M,
    STOP,
    TURN_RAD,
    WALK_M,
    ActionError,
    Pose,
    Speeds,
    Velocity,
    actions_of,
    advance,
    compare,
    integrate,
    plan,
)
from edge_ros_bridge.player import MotionPlayer
from edge_sdk.errors import ConfigError

action_lists = st.lists(st.sampled_from(ACTIONS), max_size=48)
poses = st.builds(Pose, st.floats(-9, 9), st.floats(-9, 9), st.floats(-9, 9))
sensible_speeds = st.builds(
    Speeds, linear_m_s=st.floats(0.05, 10), angular_rad_s=st.floats(0.1, 20), rate_hz=st.floats(1, 200)
)


def ideal_end(actions: list[str]) -> Pose:
    """Where the actions lead by definition, counted in quarter turns so that nothing is rounded."""
    x_m = y_m = 0.0
    quarter = 0
    for action in actions:
        distance_m = {"I_WALK": 0.5, "I_RUN": 1.0}.get(action, 0.0)
        x_m += distance_m * (1, 0, -1, 0)[quarter % 4]
        y_m += distance_m * (0, 1, 0, -1)[quarter % 4]
        quarter += {"I_TURN_LEFT": 1, "I_TURN_RIGHT": -1}.get(action, 0)
    return Pose(x_m, y_m, quarter * math.pi / 2)


@given(action_lists, sensible_speeds)
def test_the_path_ends_where_the_actions_lead(actions: list[str], speeds: Speeds) -> None:
    path = integrate(plan(actions, speeds), speeds.rate_hz)
    ideal = ideal_end(actions)
    assert math.isclose(path.end.x_m, ideal.x_m, abs_tol=1e-8)
    assert math.isclose(path.end.y_m, ideal.y_m, abs_tol=1e-8)
    assert math.isclose(path.end.heading_rad, ideal.heading_rad, abs_tol=1e-8)
    assert [marker.action for marker in path.markers] == [word for word in actions if word in ("I_JUMP", "I_LOOK")]


@given(action_lists, sensible_speeds)
def test_only_the_last_velocity_is_zero_and_none_is_too_fast(actions: list[str], speeds: Speeds) -> None:
    motion = plan(actions, speeds)
    assert [velocity.is_stop for velocity in motion] == [False] * (len(motion) - 1) + [True] * bool(actions)
    assert all(velocity.linear_x <= speeds.linear_m_s * (1 + 1e-6) for velocity in motion)
    assert all(abs(velocity.angular_z) <= speeds.angular_rad_s * (1 + 1e-6) for velocity in motion)


@given(st.sampled_from([("I_WALK", WALK_M), ("I_RUN", RUN_M), ("I_TURN_LEFT", TURN_RAD)]), sensible_speeds)
def test_no_action_takes_a_tick_more_than_it_needs(action: tuple[str, float], speeds: Speeds) -> None:
    limit_per_s = speeds.angular_rad_s if "TURN" in action[0] else speeds.linear_m_s
    ticks = len(plan([action[0]], speeds)) - 1
    assert ticks == 1 or (ticks - 1) * limit_per_s / speeds.rate_hz < action[1]


def test_distances_at_the_default_speeds() -> None:
    counts = {action: len(plan([action], Speeds())) - 1 for action in ACTIONS}
    assert counts == {"I_WALK": 20, "I_RUN": 40, "I_TURN_LEFT": 20, "I_TURN_RIGHT": 20, "I_JUMP": 2, "I_LOOK": 2}


def test_a_quarter_of_an_arc_is_exact() -> None:
    arc = [Velocity(linear_x=1.0, angular_z=math.pi / 2)]
    end = integrate(arc, rate_hz=1.0).end
    assert (end.x_m, end.y_m) == pytest.approx((2 / math.pi, 2 / math.pi))


@pytest.mark.parametrize("text", ["walk", "I_WALK I_FLY", "I_WALK, I_RUN", "i_walk"])
def test_unknown_words_move_nothing(text: str) -> None:
    with pytest.raises(ActionError, match=r"only the actions I_WALK.*Nothing moves"):
        actions_of(text)
    with pytest.raises(ActionError):
        plan(text.split(), Speeds())


def test_no_actions_are_no_motion() -> None:
    assert plan([], Speeds()) == []


@pytest.mark.parametrize("values", [{"linear_m_s": 0.0}, {"angular_rad_s": math.nan}, {"rate_hz": 1e9}])
def test_senseless_speeds_are_refused(values: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match=next(iter(values))):
        Speeds(**values)


def test_compare_sees_a_wrong_turn_a_missing_jump_and_an_early_end() -> None:
    def path_of(text: str):
        return integrate(plan(text.split(), Speeds()), Speeds().rate_hz)

    true = path_of("I_TURN_LEFT I_WALK I_JUMP")
    assert compare(true, true).within(0, 0)
    assert compare(path_of("I_TURN_RIGHT I_WALK I_JUMP"), true).largest_m == pytest.approx(1.0)
    assert not compare(path_of("I_TURN_LEFT I_WALK"), true).same_markers
    assert compare(path_of("I_TURN_LEFT"), true).largest_m == pytest.approx(0.5)
    assert compare(path_of("I_TURN_LEFT I_WALK I_JUMP I_TURN_LEFT"), true).largest_rad == pytest.approx(math.pi / 2)
    assert not compare(path_of("I_TURN_LEFT I_WALK I_JUMP I_TURN_LEFT"), true).within()
    swapped = compare(path_of("I_TURN_RIGHT I_TURN_LEFT"), path_of("I_TURN_LEFT I_TURN_RIGHT"))
    assert swapped.largest_rad == pytest.approx(math.pi)
    assert not swapped.within()


@given(poses, poses, st.floats(0, 2))
def test_what_is_seen_from_a_pose_is_ahead_where_that_one_goes(origin: Pose, other: Pose, metres: float) -> None:
    ahead = advance(origin, Velocity(linear_x=metres), 1.0).seen_from(origin)
    assert (ahead.x_m, ahead.y_m, ahead.heading_rad) == pytest.approx((metres, 0.0, 0.0), abs=1e-9)
    seen = other.seen_from(origin)
    assert math.hypot(seen.x_m, seen.y_m) == pytest.approx(math.dist((origin.x_m, origin.y_m), (other.x_m, other.y_m)))
    assert seen.heading_rad == other.heading_rad - origin.heading_rad


def test_the_player_plays_motions_one_after_the_other() -> None:
    player, never = MotionPlayer(), threading.Event()
    first, second = plan(["I_JUMP"], Speeds()), plan(["I_LOOK"], Speeds())
    assert player.tick() is None
    player.add(first, never)
    assert player.tick() == first[0]
    player.add(second, never)
    assert [player.tick() for _ in range(6)] == [*first[1:], *second, None]


def test_a_stopped_player_says_whether_a_zero_is_due() -> None:
    player, cancelled = MotionPlayer(), threading.Event()
    player.add(plan(["I_WALK"], Speeds()), cancelled)
    assert not player.stop()
    player.add(plan(["I_WALK"], Speeds()), cancelled)
    assert player.tick() != STOP
    assert player.stop()
    assert player.tick() is None
    cancelled.set()
    player.add(plan(["I_WALK"], Speeds()), cancelled)
    assert player.tick() is None
