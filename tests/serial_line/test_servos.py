"""The vendors' own SDKs against servos on a pseudo-terminal that speak the vendors' protocols."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import NamedTuple

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_sdk.control.dynamixel_robot import TABLE as DYNAMIXEL
from edge_sdk.control.dynamixel_robot import dynamixel_robot, open_dynamixel_bus
from edge_sdk.control.feetech_robot import TABLE as FEETECH
from edge_sdk.control.feetech_robot import feetech_robot
from edge_sdk.control.servos import Servo, ServoBus, ServoConfig, ServoRobot
from edge_sdk.errors import ConfigError, LinkError
from servo_bus import Bus, DynamixelBus, FeetechBus, crc16

SERVOS = (Servo(1, -math.pi / 2, math.pi / 2), Servo(7, -1.0, 2.0, zero_ticks=1000, reversed=True))
START = {1: 2048 + 512, 7: 1000 + 256}


class Rig(NamedTuple):
    bus: Bus
    robot: ServoRobot


@pytest.fixture(params=["dynamixel", "feetech"])
def rig(request: pytest.FixtureRequest) -> Iterator[Rig]:
    pytest.importorskip("dynamixel_sdk" if request.param == "dynamixel" else "scservo_sdk")
    bus: Bus = DynamixelBus(START) if request.param == "dynamixel" else FeetechBus(START)
    for servo in bus.servos.values():
        servo.set("goal", 3000)  # left from yesterday
    open_robot = dynamixel_robot if request.param == "dynamixel" else feetech_robot
    robot = open_robot(ServoConfig(port=bus.path, servos=SERVOS, watchdog_ms=600))
    yield Rig(bus, robot)
    robot.close()
    bus.close()


def wait_until(true: Callable[[], bool], timeout_s: float = 10.0) -> None:
    end = time.monotonic() + timeout_s
    while not true():
        assert time.monotonic() < end
        time.sleep(0.002)


def hold(bus: ServoBus) -> None:
    """On a busy machine the simulated servos may answer later than the SDK waits."""
    for _ in range(20):
        try:
            return bus.hold()
        except LinkError:
            time.sleep(0.05)
    return bus.hold()


def test_one_lost_answer_is_no_failure(rig: Rig) -> None:
    rig.robot.wait_ready()
    rig.robot.act(np.zeros(2))
    wait_until(lambda: positions(rig.bus) == [2048, 1000])
    rig.bus.silent = {7}
    wait_until(lambda: rig.robot.unanswered > 0)
    rig.bus.silent = set()
    rig.robot.act(np.array([0.1, 0.0]))
    wait_until(lambda: positions(rig.bus) == [2048 + 65, 1000])
    assert rig.robot.failures == 0


def positions(bus: Bus) -> list[int]:
    return [servo.get("position") for servo in bus.servos.values()]


def test_angles_go_to_the_servos_and_come_back_within_the_limits(rig: Rig) -> None:
    rig.robot.wait_ready()
    assert rig.robot.observe()["position"] == pytest.approx([math.pi / 4, -math.pi / 8])
    assert positions(rig.bus) == list(START.values())  # looking moves nothing
    rig.robot.act(np.array([0.5, 0.25]))
    wait_until(lambda: abs(rig.robot.observe()["position"][0] - 0.5) < 0.01)
    assert rig.robot.observe()["position"] == pytest.approx([0.5, 0.25], abs=math.tau / 8192)
    assert positions(rig.bus) == [2048 + 326, 1000 - 163]
    rig.robot.act(np.array([9.0, -9.0]))
    wait_until(lambda: abs(rig.robot.observe()["position"][1] + 1.0) < 0.01)
    assert positions(rig.bus) == [2048 + 1024, 1000 + 652]


def test_the_torque_comes_with_the_first_action_where_the_servo_stands_and_goes_with_stop(rig: Rig) -> None:
    servo = rig.bus.servos[1]
    rig.robot.wait_ready()
    assert servo.get("torque") == 0
    rig.robot.act(np.zeros(2))
    wait_until(lambda: servo.get("position") == 2048)
    writes = [write for write in servo.history if write[0] != "watchdog"]
    assert writes[:4] == [("torque", 0), ("goal", START[1]), ("torque", 1), ("goal", START[1])]
    rig.robot.stop()
    rig.robot.stop()
    wait_until(lambda: servo.get("torque") == 0)
    time.sleep(0.1)
    assert servo.history[-1] == ("torque", 0)  # no goal follows a stop
    rig.robot.act(np.zeros(2))
    wait_until(lambda: servo.get("torque") == 1)
    rig.robot.close()
    wait_until(lambda: servo.get("torque") == 0)


@pytest.mark.parametrize("what", ["silent", "damaged"])
def test_a_servo_that_fails_is_said_and_comes_back_at_the_next_action_only(rig: Rig, what: str) -> None:
    rig.robot.wait_ready()
    act_until(rig.robot, lambda: rig.bus.servos[1].get("torque") == 1)
    if what == "silent":
        rig.bus.silent = {7}
    else:
        rig.bus.damaged = {1}  # the other one answers well
    wait_until(lambda: fails_to_answer(rig.robot))
    assert rig.robot.failures > 0
    assert rig.robot.unanswered > 0
    with pytest.raises(LinkError, match="Check cables"):
        rig.robot.act(np.zeros(2))
    wait_until(lambda: rig.bus.servos[1].get("torque") == 0)
    rig.bus.silent, rig.bus.damaged = set(), set()
    rig.robot.wait_ready()
    assert rig.bus.servos[1].get("torque") == 0
    act_until(rig.robot, lambda: rig.bus.servos[1].get("torque") == 1)


def act_until(robot: ServoRobot, true: Callable[[], bool]) -> None:
    """Acts as a loop would: on a busy machine the bus may have failed meanwhile."""

    def act() -> bool:
        with suppress(LinkError):
            robot.act(np.zeros(2))
        return true()

    wait_until(act)


def fails_to_answer(robot: ServoRobot) -> bool:
    try:
        robot.observe()
    except LinkError as error:
        return "Check cables" in str(error)
    return False


def test_a_silent_bus_stops_a_dynamixel_by_its_own_watchdog_and_this_is_said() -> None:
    pytest.importorskip("dynamixel_sdk")
    simulated = DynamixelBus(START)
    bus = open_dynamixel_bus(ServoConfig(port=simulated.path, servos=SERVOS, watchdog_ms=500))
    hold(bus)
    bus.set_goals([2000, 2000])
    wait_until(lambda: positions(simulated) == [2000, 2000])
    wait_until(lambda: simulated.servos[1].get("watchdog") == 0xFF)
    with pytest.raises(LinkError, match="silent for longer than the watchdog waits"):
        bus.set_goals([2100, 2100])
    hold(bus)
    bus.set_goals([2200, 2200])
    wait_until(lambda: positions(simulated) == [2200, 2200])
    bus.close()
    simulated.close()


@given(st.integers(-32_767, 32_767))
def test_negative_ticks_survive_the_wire(ticks: int) -> None:
    assert DYNAMIXEL.from_wire(DYNAMIXEL.to_wire(ticks)) == ticks
    assert FEETECH.from_wire(FEETECH.to_wire(ticks)) == ticks
    assert DYNAMIXEL.to_wire(-1) == 0xFFFFFFFF
    assert FEETECH.to_wire(-1) == 0x8001


def test_the_simulators_crc_is_the_vendors() -> None:
    # The example of the vendor's page on the Read instruction.
    assert crc16(bytes.fromhex("FFFFFD00010700028400 0400")) == 0x151D


def test_wrong_servos_and_wrong_angles_are_refused(rig: Rig) -> None:
    with pytest.raises(ConfigError, match="different ids"):
        ServoConfig(port="x", servos=(SERVOS[0], SERVOS[0]))
    with pytest.raises(ConfigError, match="the lower one below the upper one"):
        Servo(1, 1.0, -1.0)
    for action in (np.zeros(3), np.array([0.0, math.inf])):
        with pytest.raises(ValueError, match="expected 2 finite numbers"):
            rig.robot.act(action)


def test_a_baud_rate_that_the_sdk_does_not_know_is_said(rig: Rig) -> None:
    robot = dynamixel_robot(ServoConfig(port=rig.bus.path, servos=SERVOS, baud_rate=12_345))
    with pytest.raises(LinkError, match="12345 baud"):
        robot.wait_ready(0.3)
    robot.close()
