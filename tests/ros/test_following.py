"""Steps are driven in a simulation to where they lead, in the control loop as it is, and end safely."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_ros_bridge.following import NEAR_M, NEAR_RAD, Follower, make
from edge_ros_bridge.motion import STOP, Pose
from edge_ros_bridge.plans import Motion, Order, Progress, Step
from edge_sdk.errors import ConfigError
from world import POLICY, World, changed

Said = tuple[Motion, float]


def order_of(said: Said, index: int = 0, plan: str = "plan", timeout_s: float = 20.0, lease_s: float = 1.0) -> Order:
    """One step by its motion and amount."""
    step = Step(name=said[0], motion=said[0], amount=said[1], timeout_s=timeout_s)
    return Order(plan=plan, index=index, step=step, lease_s=lease_s)


def ideal_ends(start: Pose, steps: Sequence[Said]) -> list[Pose]:
    """Where each step leads by definition."""
    ends, pose = [], start
    for motion, amount in steps:
        forward_m = amount if motion == "forward" else 0.0
        pose = Pose(
            pose.x_m + forward_m * math.cos(pose.heading_rad),
            pose.y_m + forward_m * math.sin(pose.heading_rad),
            pose.heading_rad + (amount if motion == "turn" else 0.0),
        )
        ends.append(pose)
    return ends


def drive(world: World, steps: Sequence[Said]) -> list[Pose]:
    """Orders the steps one after another, each until it is done; where the rover was then."""
    ends = list[Pose]()

    def script() -> Iterator[None]:
        for index, said in enumerate(steps):
            order = order_of(said, index)
            while world.follower.progress != Progress(state="done", order=order.id):
                world.follower.take(order)
                yield
            ends.append(world.pose)

    world.play(script())
    return ends


some_steps = st.lists(
    st.one_of(
        st.tuples(st.just("forward"), st.floats(-1.0, 1.5)),
        st.tuples(st.just("turn"), st.floats(-7.0, 7.0)),
        st.tuples(st.sampled_from(["wait", "jump", "look"]), st.floats(0.0, 0.5)),
    ),
    min_size=1,
    max_size=5,
)


@settings(max_examples=12, deadline=None)
@given(some_steps, st.floats(-4.0, 4.0))
def test_every_step_ends_where_it_leads(steps: list[Said], heading_rad: float) -> None:
    world = World(heading_rad=heading_rad)
    for driven, ideal in zip(drive(world, steps), ideal_ends(world.start, steps), strict=True):
        along_m = math.hypot(driven.x_m - ideal.x_m, driven.y_m - ideal.y_m)
        assert along_m < NEAR_M + 0.03  # one tick beyond, and what a turn has left to make up for
        assert abs(driven.heading_rad - ideal.heading_rad) < NEAR_RAD + 0.02


def test_what_a_step_misses_the_next_ones_make_up_for() -> None:
    world = World(heading_rad=0.0)
    steps: list[Said] = [("turn", math.pi / 2), ("forward", 0.2)] * 12
    end, ideal = drive(world, steps)[-1], ideal_ends(world.start, steps)[-1]
    assert math.hypot(end.x_m - ideal.x_m, end.y_m - ideal.y_m) < 2 * NEAR_M
    assert abs(end.heading_rad - ideal.heading_rad) < NEAR_RAD


def test_speeds_and_accelerations_stay_within_the_schemas() -> None:
    world = World(changed(linear_x={"lower": -0.3, "upper": 0.3, "max_speed": 0.6}))
    drive(world, [("forward", 0.5), ("turn", math.pi / 2)])
    speeds = [velocity.linear_x for velocity in world.sent]
    assert 0.29 < max(speeds) <= 0.3 + 1e-6
    assert all(abs(after - before) <= 0.6 / 20 + 1e-6 for before, after in itertools.pairwise(speeds))
    assert max(abs(velocity.angular_z) for velocity in world.sent) <= 4.5


@pytest.mark.parametrize(("motion", "field"), [("jump", "linear_z"), ("look", "angular_y")])
def test_a_gesture_goes_there_and_back(motion: Motion, field: str) -> None:
    world = World()
    drive(world, [(motion, 0.2), (motion, 0.2)])
    speeds = [getattr(velocity, field) for velocity in world.sent if velocity != STOP]
    assert speeds == [0.5, 0.5, -0.5, -0.5] * 2
    assert world.pose == world.start


def half_way(world: World) -> Iterator[None]:
    """Of a script: orders 1 m, and goes about the half of it."""
    while math.dist((world.pose.x_m, world.pose.y_m), (world.start.x_m, world.start.y_m)) < 0.5:
        world.follower.take(METRE)
        yield
    assert world.follower.progress == Progress(state="moving", order=METRE.id)


METRE = order_of(("forward", 1.0), timeout_s=10.0, lease_s=0.5)


def test_nothing_ordered_is_to_stand() -> None:
    world = World()
    world.play(world.ticks(1))
    assert set(world.sent) == {STOP}
    assert world.follower.progress == Progress(state="standing")


def test_an_order_that_is_not_renewed_ends_when_its_lease_does() -> None:
    world = World(changed(linear_x={"lower": -0.2, "upper": 0.2}))

    def script() -> Iterator[None]:
        yield from half_way(world)
        since_s = world.now_s
        yield from world.until(lambda: world.sent[-1] == STOP)
        assert 0.4 < world.now_s - since_s < 1.0

    world.play(script())
    reason = "it was not ordered again for 0.5 s"
    assert world.follower.progress == Progress(state="stopped", order=METRE.id, reason=reason)


def test_a_step_that_takes_too_long_fails_and_is_not_begun_again() -> None:
    world = World()
    world.blocked = True

    def script() -> Iterator[None]:
        while world.now_s < 4:
            world.follower.take(order_of(("forward", 1.0), timeout_s=2.0))
            yield

    world.play(script())
    reason = "forward has not ended within 2 s"
    assert world.follower.progress == Progress(state="failed", order="plan/0", reason=reason)
    assert set(world.sent[-30:]) == {STOP}


def test_asked_to_stand_it_brakes_and_the_same_order_begins_nothing() -> None:
    world = World()

    def script() -> Iterator[None]:
        yield from half_way(world)
        world.follower.take(None)
        assert world.follower.progress == Progress(state="stopped", order=METRE.id, reason="asked to stand")
        yield from world.until(lambda: world.sent[-1] == STOP)
        stood = world.pose
        world.follower.take(METRE)  # a renewal that was on its way
        yield from world.ticks(1)
        assert world.pose == stood

    world.play(script())
    assert world.follower.progress.state == "stopped"


def test_a_new_plan_takes_the_place_of_the_last_and_begins_where_the_robot_is() -> None:
    world = World(heading_rad=0.0)

    def script() -> Iterator[None]:
        yield from half_way(world)
        for index, said in enumerate([("turn", 1.0), ("forward", 0.0)]):
            order = order_of(said, index, plan="other")
            world.follower.take(order)
            done = Progress(state="done", order=order.id)
            yield from world.until(lambda done=done: world.follower.progress == done)  # type: ignore[misc]

    world.play(script())
    assert world.pose.heading_rad == pytest.approx(1.0, abs=0.1)  # it turned while it braked
    assert world.start.x_m + 0.5 < world.pose.x_m < world.start.x_m + 0.9


def test_an_emergency_stop_ends_the_order_for_good() -> None:
    world = World()

    def script() -> Iterator[None]:
        yield from half_way(world)
        world.loop.estop()
        stood = world.pose
        yield from world.ticks(0.3)
        world.loop.reset_estop()
        for _ in range(40):
            world.follower.take(METRE)
            yield
        assert world.pose == stood

    world.play(script())
    assert world.follower.progress == Progress(state="stopped", order=METRE.id, reason="a new episode began")


def test_a_robot_without_the_dimension_of_a_gesture_says_so() -> None:
    world = World(changed(linear_z=None))

    def script() -> Iterator[None]:
        yield
        world.follower.take(order_of(("jump", 0.2)))
        yield from world.until(lambda: world.follower.progress.state == "failed")

    world.play(script())
    assert world.follower.progress.reason == "the robot has no linear.z"


@pytest.mark.parametrize(
    ("dims", "message"),
    [
        ({"linear_x": None}, "actions linear.x and angular.z, found"),
        ({"linear_x": {"lower": 0.0}}, "linear.x: expected a lower below 0"),
        ({"angular_z": {"rest": None}}, "and rest 0, found -4.5, 4.5 and None"),
    ],
)
def test_a_schema_that_cannot_be_driven_so_is_refused(
    dims: dict[str, dict[str, float | None] | None], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        Follower(changed(**dims))


def test_the_shipped_policy_is_made_by_its_path() -> None:
    assert make(str(POLICY)).config.action.rate_hz == 20.0
    with pytest.raises(ConfigError, match="policy's configuration"):
        make("")
