"""The control node's pure parts: matching by stamps, sensors to arrays, actions to layouts, the latch, the robot."""

from __future__ import annotations

import itertools
import math
import threading
import tracemalloc
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_ros_bridge.commands import COMMANDS, layout_of, resting
from edge_ros_bridge.matching import KEPT, StampMatcher
from edge_ros_bridge.policies import find_policy
from edge_ros_bridge.ros_robot import RosRobot
from edge_ros_bridge.running import Runner
from edge_ros_bridge.sensors import (
    BYTES_PER_PIXEL,
    CHANNELS,
    SensorError,
    Source,
    fitted,
    joint_vector,
    picture_of,
    yaw_of,
)
from edge_ros_bridge.stopping import Latch
from edge_sdk.control.clock import MonotonicClock
from edge_sdk.control.policy import ActionDim, ActionSpec, ObservationSpec, PolicyConfig
from edge_sdk.control.robot import TIME_KEY, ClosedError
from edge_sdk.control.settings import LoopSettings
from edge_sdk.errors import BundleError, ConfigError

NAMES = ("camera", "joints", "imu")
stamps = st.integers(1, 60)
messages = st.lists(st.tuples(st.sampled_from(NAMES), stamps), max_size=25)


def brute_force(kept: dict[str, set[int]], tolerance: int) -> tuple[int, ...] | None:
    """Of all combinations that fit, the one with the greatest newest stamp, and then the greatest others."""
    fitting = [choice for choice in itertools.product(*kept.values()) if max(choice) - min(choice) <= tolerance]
    return max(fitting, key=lambda choice: (max(choice), sorted(choice)), default=None)


@given(messages, st.integers(0, 20))
def test_the_newest_match_is_the_one_that_trying_everything_finds(
    arrived: list[tuple[str, int]], tolerance: int
) -> None:
    matcher, kept = StampMatcher(NAMES, tolerance), {name: set[int]() for name in NAMES}
    for name, stamp in arrived:
        matcher.add(name, stamp, (name, stamp))
        kept[name].add(stamp)
    expected, match = brute_force(kept, tolerance), matcher.newest()
    assert (None if match is None else tuple(match.stamps_ns.values())) == expected
    if match is not None:
        assert match.values == {name: (name, stamp) for name, stamp in match.stamps_ns.items()}
        assert (match.oldest_ns, match.newest_ns) == (min(expected), max(expected))


@given(st.permutations(range(1, 12)))
def test_the_order_of_arrival_does_not_matter(order: list[int]) -> None:
    matcher = StampMatcher(NAMES, 3)
    for stamp in order:
        matcher.add(NAMES[stamp % 3], stamp, stamp)
    match = matcher.newest()
    assert match is not None
    assert match.stamps_ns == {"camera": 9, "joints": 10, "imu": 11}


def test_a_matcher_remembers_only_so_many_and_forgets_all_when_told() -> None:
    matcher = StampMatcher(("a", "b"), 0)
    for stamp in range(1, KEPT + 2):
        matcher.add("a", stamp, stamp)
    matcher.add("b", 1, 1)
    assert matcher.newest() is None  # a's first one is gone
    matcher.add("b", 2, 2)
    assert matcher.newest() is not None
    matcher.forget()
    assert matcher.newest() is None
    with pytest.raises(ConfigError, match="at least 0"):
        StampMatcher(("a",), -1)


def image(encoding: str, pixels: np.ndarray, padding: int = 0) -> Any:
    """A sensor_msgs/Image in all but name: of pixels (height, width, channels) uint8."""
    height, width, _ = pixels.shape
    rows = np.concatenate([pixels.reshape(height, -1), np.full((height, padding), 7, np.uint8)], axis=1)
    return SimpleNamespace(
        encoding=encoding, height=height, width=width, step=rows.shape[1], data=rows.tobytes(), is_bigendian=0
    )


@given(
    st.sampled_from(["rgb8", "bgr8", "rgba8", "bgra8", "mono8"]),
    st.integers(1, 6),
    st.integers(1, 6),
    st.integers(0, 5),
)
def test_pictures_are_read_whatever_their_order_of_channels_and_padding(
    encoding: str, height: int, width: int, padding: int
) -> None:
    rgb = np.random.default_rng(height * width).integers(0, 256, (height, width, 3), dtype=np.uint8)
    if encoding == "mono8":
        rgb, pixels = rgb[:, :, :1].repeat(3, axis=2), rgb[:, :, :1]
    else:
        alpha = np.full((height, width, 1), 255, np.uint8)
        pixels = rgb[:, :, ::-1] if encoding.startswith("bgr") else rgb
        pixels = np.concatenate([pixels, alpha], axis=2) if encoding.endswith("a8") else pixels
    np.testing.assert_array_equal(picture_of(image(encoding, pixels, padding)), rgb)


def test_a_picture_of_rgb_is_not_copied_and_another_size_is_resampled() -> None:
    message = image("rgb8", np.arange(4 * 6 * 3, dtype=np.uint8).reshape(4, 6, 3))
    picture = picture_of(message)
    assert np.shares_memory(picture, np.frombuffer(message.data, np.uint8))
    spec = ObservationSpec(name="front", shape=(2, 3, 3), kind="image")
    smaller = fitted(np.full((4, 6, 3), 9, np.uint8), spec)
    assert smaller.shape == (2, 3, 3)
    assert np.all(smaller == 9)


@pytest.mark.parametrize("padding", [0, 5])
@pytest.mark.parametrize("encoding", list(CHANNELS))
def test_an_image_is_copied_once_at_most(encoding: str, padding: int) -> None:
    """From the message to the policy's array; and not at all where its pixels lie as the policy reads them."""
    height, width, channels = 60, 80, BYTES_PER_PIXEL[encoding]
    message = image(encoding, np.zeros((height, width, channels), np.uint8), padding)
    source = Source(ObservationSpec(name="front", shape=(height, width, 3), kind="image"), "image", "image")
    source.read(message)
    tracemalloc.start()
    try:
        picture = source.read(message)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    as_it_is = encoding == "rgb8" and not padding
    assert np.shares_memory(picture, np.frombuffer(message.data, np.uint8)) == as_it_is
    assert peak < 2000 + (0 if as_it_is else picture.nbytes)


@pytest.mark.parametrize(("change", "found"), [({"encoding": "16UC1"}, "16UC1"), ({"data": b"1"}, "1 bytes")])
def test_a_picture_that_is_not_one_is_refused(change: dict[str, Any], found: str) -> None:
    message = image("rgb8", np.zeros((2, 2, 3), np.uint8))
    vars(message).update(change)
    with pytest.raises(SensorError, match=found):
        picture_of(message)
    assert set(CHANNELS) == {"rgb8", "bgr8", "rgba8", "bgra8", "mono8"}


def test_joints_are_found_by_name_and_a_missing_one_is_said() -> None:
    message = SimpleNamespace(name=["b", "a"], position=[1.0, 2.0], velocity=[3.0, 4.0], effort=[])
    np.testing.assert_array_equal(joint_vector(message, ["a.position", "b.velocity"]), [2.0, 3.0])
    for field in ("c.position", "a.effort"):
        with pytest.raises(SensorError, match="found none"):
            joint_vector(message, [field])


@given(st.floats(-3.1, 3.1))
def test_yaw_is_the_angle_around_z(angle: float) -> None:
    q = SimpleNamespace(x=0.0, y=0.0, z=math.sin(angle / 2), w=math.cos(angle / 2))
    assert yaw_of(q) == pytest.approx(angle, abs=1e-9)


def actions(*dims: tuple[str, str], rest: float | None = 0.0) -> ActionSpec:
    return ActionSpec(dims=tuple(ActionDim(name=name, unit=unit, rest=rest) for name, unit in dims), rate_hz=10)


@pytest.mark.parametrize(
    ("kind", "spec", "part"),
    [
        ("twist", actions(("linear.x", "m/s"), ("angular.z", "rad/s")), ""),
        ("joint_trajectory", actions(("elbow", "rad"), ("lift", "m")), "positions"),
        ("joint_trajectory", actions(("elbow", "rad/s")), "velocities"),
        ("float64_multi_array", actions(("anything", "N m")), ""),
    ],
)
def test_an_action_that_fits_a_message_has_a_layout(kind: str, spec: ActionSpec, part: str) -> None:
    layout = layout_of(kind, spec)
    assert layout.names == tuple(dim.name for dim in spec.dims)
    assert layout.part == part


@pytest.mark.parametrize(
    ("kind", "spec", "message"),
    [
        ("twist", actions(("linear.x", "km/h")), "linear.x in km/h"),
        ("twist_stamped", actions(("speed", "m/s")), "speed in m/s"),
        ("joint_trajectory", actions(("elbow", "rad"), ("lift", "m/s")), "m/s, rad"),
        ("joint_trajectory", actions(("elbow", "N m")), "N m"),
        ("pose", actions(("x", "m")), ", ".join(COMMANDS)),
    ],
)
def test_an_action_that_does_not_fit_is_refused(kind: str, spec: ActionSpec, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        layout_of(kind, spec)


def test_only_what_rests_can_be_commanded_to() -> None:
    assert resting(actions(("linear.x", "m/s"), rest=0.0)).tolist() == [0.0]
    assert resting(actions(("elbow", "rad"), rest=None)) is None


@pytest.mark.parametrize(
    ("spec", "type_", "fields", "message"),
    [
        (ObservationSpec(name="s", shape=(2,)), "image", (), "one of joint_state, imu, odometry"),
        (ObservationSpec(name="s", shape=(2,)), "joint_state", ("a.position",), "2 fields, found 1 fields"),
        (ObservationSpec(name="s", shape=(1,)), "joint_state", ("a",), r"names that end in \.position"),
        (ObservationSpec(name="s", shape=(2, 2, 1), kind="image"), "image", (), "three channels"),
    ],
)
def test_a_source_that_cannot_be_is_refused(spec: ObservationSpec, type_: str, fields: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Source(spec, type_, "topic", fields)


@given(st.lists(st.sampled_from(["press", "let go", "set", "release"]), max_size=20))
def test_the_latch_is_set_by_anybody_and_released_only_on_request(events: list[str]) -> None:
    latch, pressed, latched = Latch(), False, False
    for event in events:
        if event in ("press", "let go"):
            pressed = event == "press"
            assert latch.press(pressed) == (pressed and not latched)
            latched = latched or pressed
        elif event == "set":
            assert latch.set() == (not latched)
            latched = True
        else:
            latched = latched and pressed
            assert latch.release() == (not latched)
        assert latch.latched == latched


def robot_of(now_ns: list[int], listening: list[bool]) -> tuple[RosRobot, list[Any]]:
    """A robot that is told what time it is; and what it published."""
    spec = ObservationSpec(name="joints", shape=(1,))
    source = Source(spec, "joint_state", "joint_states", ("a.position",))
    sent: list[Any] = []
    robot = RosRobot(
        [source],
        StampMatcher(["joints"], 0),
        max_age_ns=100,
        stamp_now_ns=lambda: now_ns[0],
        loop_now_ns=lambda: now_ns[0] + 5000,
        publish=sent.append,
        halt=lambda: sent.append("halt"),
        has_listener=lambda: listening[0],
    )
    return robot, sent


JOINTS = SimpleNamespace(name=["a"], position=[2.5], velocity=[], effort=[])


def test_an_observation_has_its_age_by_the_loops_clock() -> None:
    robot, sent = robot_of([1000], [True])
    assert robot.receive("joints", 940, JOINTS)
    observation = robot.observe()
    assert observation["joints"].tolist() == [2.5]
    assert int(observation[TIME_KEY]) == 1000 + 5000 - 60
    robot.act(np.array([1.0], np.float32))
    robot.stop()
    assert sent == [1.0, "halt"]


def test_messages_from_the_future_are_dropped_and_those_without_a_stamp_are_of_now() -> None:
    robot, _ = robot_of([1000], [True])
    assert not robot.receive("joints", 1101, JOINTS)
    assert robot.receive("joints", 0, JOINTS)
    assert int(robot.observe()[TIME_KEY]) == 6000


@pytest.mark.parametrize(
    ("stamp_ns", "listening", "waiting"),
    [(800, True, "not too old"), (990, False, "a subscriber"), (None, True, "close")],
)
def test_an_observation_is_waited_for_until_the_robot_is_closed(
    stamp_ns: int | None, listening: bool, waiting: str
) -> None:
    robot, _ = robot_of([1000], [listening])
    if stamp_ns is not None:
        robot.receive("joints", stamp_ns, JOINTS)
    threading.Timer(0.1, robot.close).start()
    with pytest.raises(ClosedError):
        robot.observe()
    assert waiting in str(robot.waiting_for)


def test_a_run_that_is_ended_while_it_waits_for_an_observation_logs_no_error(caplog: pytest.LogCaptureFixture) -> None:
    robot, sent = robot_of([1000], [True])
    joints = ObservationSpec(name="joints", shape=(1,))
    action = ActionSpec(dims=(ActionDim(name="a", unit="rad"),), rate_hz=50.0)
    config = PolicyConfig(observations=(joints,), action=action, chunk_length=1, budget_ms=100.0)
    policy: Any = SimpleNamespace(config=config)  # which is never asked
    runner = Runner(policy, robot, None, LoopSettings(freeze_gc=False), MonotonicClock(), estopped=False)
    while robot.waiting_for is None:
        threading.Event().wait(0.01)
    assert runner.end()
    assert caplog.records == []
    assert sent == ["halt"]


def test_what_was_waited_for_ends_the_waiting() -> None:
    now_ns, listening = [1000], [False]
    robot, _ = robot_of(now_ns, listening)
    robot.receive("joints", 990, JOINTS)
    threading.Timer(0.1, listening.__setitem__, (0, True)).start()
    assert robot.observe()["joints"].tolist() == [2.5]
    assert robot.waiting_for is None


@pytest.mark.parametrize(
    ("path", "entry", "message"),
    [
        ("", "", "a bundle or a function, found neither"),
        ("", "math", "module:function"),
        ("", "no_such_module:make", "no_such_module"),
        ("", "math:no_such_function", "no_such_function"),
    ],
)
def test_a_policy_that_is_not_there_is_refused(path: str, entry: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        find_policy(path, entry)


def test_a_path_alone_is_a_bundle(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=r"manifest\.json"):
        find_policy(str(tmp_path), "")


def test_a_function_makes_a_policy_of_a_path() -> None:
    assert find_policy("walk", "builtins:str") == "walk"
