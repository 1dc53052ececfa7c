"""SerialRobot against the C firmware over a line with faults: nothing wrong is acted upon, what is cut off stops."""

from __future__ import annotations

import itertools
import struct
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from edge_sdk.control.frames import Field, WireSchema
from edge_sdk.control.serial_robot import SerialConfig, SerialRobot
from edge_sdk.errors import ConfigError, LinkError
from serial_faults import Faults, FaultyLine
from simulated_robot import SCHEMA, Firmware

FAULTS = {
    "flipped bits": Faults(flip=0.005),
    "lost bytes": Faults(lose=0.005),
    "doubled bytes": Faults(double=0.005),
    "reordered bytes": Faults(swap=0.01),
    "noise": Faults(insert=0.005),
    "repeated frames": Faults(repeat=0.005),
    "all of them": Faults(0.001, 0.001, 0.001, 0.001, 0.001, 0.001),
}
Start = Callable[..., Firmware]


@pytest.fixture
def robot(line: FaultyLine) -> Iterator[Callable[..., SerialRobot]]:
    """Opens the host's end; it is closed, whatever the test does."""
    opened = []

    def open_it(**settings: Any) -> SerialRobot:
        opened.append(SerialRobot(SerialConfig(url=str(line.host_path), schema=SCHEMA, **settings)))
        return opened[-1]

    yield open_it
    for one in opened:
        one.close()


def numbered(i: int) -> np.ndarray:
    """An action that says which one it is."""
    return np.array([i + 0.1, -1 / (i + 1)], np.float32)


def send(robot: SerialRobot, numbers: range, period_s: float = 0.005) -> None:
    """Acts as a loop would that goes on when the link comes back."""
    for i in numbers:
        try:
            robot.act(numbered(i))
        except LinkError:
            robot.wait_ready()
        time.sleep(period_s)


def acted_upon(firmware: Firmware) -> list[int]:
    """Which actions moved the motors; fails for one that was never sent."""
    numbers = {tuple(f"{bits:08x}" for bits in struct.unpack("<2I", numbered(i).tobytes())): i for i in range(2000)}
    return [numbers[tuple(words)] for words in firmware.said("command")]


def wait_until(true: Callable[[], bool], timeout_s: float = 10.0) -> None:
    end = time.monotonic() + timeout_s
    while not true():
        assert time.monotonic() < end
        time.sleep(0.002)


def has_link(robot: SerialRobot) -> bool:
    try:
        robot.observe()
    except LinkError:
        return False
    return True


def test_actions_arrive_and_observations_come_back(firmware: Start, robot: Callable[..., SerialRobot]) -> None:
    microcontroller, host = firmware(), robot(heartbeat_timeout_ms=500, ttl_ms=900)
    host.wait_ready()
    host.act(np.array([1.5, -2.0]))
    microcontroller.wait_for("moving")
    wait_until(lambda: bool(host.observe()["position"][0] > 0.01))
    before, seen, after = time.monotonic_ns(), host.observe(), time.monotonic_ns()
    assert seen["velocity"].tolist() == [1.5, -2.0]
    assert seen["position"][1] == pytest.approx(-4 / 3 * seen["position"][0], rel=1e-5)
    assert {name: value.shape for name, value in seen.items()} == {"position": (2,), "velocity": (2,), "time_ns": ()}
    assert before - 1_000_000_000 < seen["time_ns"] <= after
    host.act(np.array([1.0, 1.0]))
    microcontroller.wait_for("command", 2)
    sent = host.statistics().events["sent"]
    host.stop()
    assert host.statistics().events["sent"] > sent
    microcontroller.wait_for("still", timeout_s=0.6)  # less than is left of the command's time
    host.act(np.array([1.0, 1.0]))
    microcontroller.wait_for("moving", 2)
    host.estop()
    microcontroller.wait_for("still", 2, timeout_s=0.6)
    with pytest.raises(LinkError, match="emergency"):
        host.act(np.array([1.0, 1.0]))
    host.stop()  # is not less than an emergency stop
    assert microcontroller.said("still")[-1][-1] == "3"


@pytest.mark.parametrize("name", FAULTS)
def test_under_faults_only_what_was_sent_moves_the_motors_and_in_its_order(
    name: str, line: FaultyLine, firmware: Start, robot: Callable[..., SerialRobot]
) -> None:
    microcontroller, host = firmware(), robot(heartbeat_timeout_ms=200)
    host.wait_ready()
    line.faults = FAULTS[name]
    send(host, range(150))
    acted = acted_upon(microcontroller)
    assert len(acted) > 30
    assert all(one < other for one, other in itertools.pairwise(acted))
    results = host.statistics().results
    assert sum(count for reason, count in results.items() if reason != "accepted") > 0


def test_a_cut_line_stops_the_motors_within_one_heartbeat_by_their_own_clock(
    line: FaultyLine, firmware: Start, robot: Callable[..., SerialRobot]
) -> None:
    microcontroller, host = firmware(), robot(heartbeat_timeout_ms=300, ttl_ms=990)
    host.wait_ready()
    host.act(numbered(1))
    microcontroller.wait_for("moving")
    line.cut = {"to_robot"}
    microcontroller.wait_for("still")
    stopped, _, heard, _, state = microcontroller.said("still")[0]
    # The firmware looks every millisecond, or when this busy machine lets it.
    assert 300 <= (int(stopped) - int(heard)) % 2**32 < 400
    assert state == "0"
    wait_until(lambda: not has_link(host))  # and this end hears that the session is over


def test_a_line_that_is_dead_towards_the_host_stops_the_robot_too(
    line: FaultyLine, firmware: Start, robot: Callable[..., SerialRobot]
) -> None:
    microcontroller, host = firmware(), robot(heartbeat_timeout_ms=200, ttl_ms=990)
    host.wait_ready()
    host.act(numbered(1))
    microcontroller.wait_for("moving")
    line.cut = {"to_host"}
    microcontroller.wait_for("still")
    wait_until(lambda: not has_link(host))
    with pytest.raises(LinkError, match="heartbeat timeout"):
        host.act(numbered(2))
    line.cut = set()
    host.wait_ready()
    assert acted_upon(microcontroller) == [1]
    assert host.statistics().events["lost"] >= 1


def test_a_shorted_line_keeps_neither_end_believing(
    line: FaultyLine, firmware: Start, robot: Callable[..., SerialRobot]
) -> None:
    microcontroller, host = firmware(), robot(heartbeat_timeout_ms=200, ttl_ms=990)
    host.wait_ready()
    host.act(numbered(1))
    microcontroller.wait_for("moving")
    line.shorted = {"to_robot", "to_host"}
    microcontroller.wait_for("still")
    assert microcontroller.said("still")[0][-1] == "0"
    wait_until(lambda: not has_link(host))
    assert host.statistics().results["direction"] > 0


def test_after_replugging_the_robot_moves_again_but_only_at_the_next_action(
    line: FaultyLine, firmware: Start, robot: Callable[..., SerialRobot]
) -> None:
    microcontroller, host = firmware(), robot(heartbeat_timeout_ms=200, ttl_ms=990)
    host.wait_ready()
    for round_, name in enumerate(("first", "second"), 1):
        host.act(numbered(round_))
        microcontroller.wait_for("moving", round_)
        line.unplug()
        microcontroller.wait_for("still", round_)
        wait_until(lambda: not has_link(host))
        with pytest.raises(LinkError):
            host.act(numbered(100))
        line.plug()
        host.wait_ready()
        assert acted_upon(microcontroller) == list(range(1, round_ + 1)), name
    assert host.statistics().events["opened"] >= 3


def test_a_port_that_stays_open_but_silent_is_opened_anew(
    line: FaultyLine, firmware: Start, robot: Callable[..., SerialRobot]
) -> None:
    firmware()
    host = robot(heartbeat_timeout_ms=100, reopen_ms=300)
    host.wait_ready()
    line.cut = {"to_host"}
    wait_until(lambda: host.statistics().events["opened"] >= 3)
    line.cut = set()
    host.wait_ready()


def test_an_emergency_stop_holds_across_replugging_and_the_robot_is_still_seen(
    line: FaultyLine, firmware: Start, robot: Callable[..., SerialRobot]
) -> None:
    firmware()
    host = robot(heartbeat_timeout_ms=200)
    host.wait_ready()
    line.unplug()
    wait_until(lambda: not has_link(host))
    host.estop()
    line.plug()
    host.wait_ready()
    with pytest.raises(LinkError, match="emergency stop"):
        host.act(numbered(1))
    assert host.observe()["position"].tolist() == [0.0, 0.0]


def test_a_flood_neither_moves_the_robot_nor_swamps_the_host(
    line: FaultyLine, firmware: Start, robot: Callable[..., SerialRobot]
) -> None:
    microcontroller, host = firmware(), robot(heartbeat_timeout_ms=300, ttl_ms=990)
    host.wait_ready()
    host.act(numbered(0))
    microcontroller.wait_for("moving")
    line.flooded = {"to_robot", "to_host"}
    began = time.monotonic()
    time.sleep(1.0)
    floods = host.statistics().events["flood"]
    assert 5 < floods < 200 * (time.monotonic() - began) + 10  # 400 kB/s
    assert acted_upon(microcontroller) == [0]
    assert len(microcontroller.said("still")) == 1
    line.flooded = set()
    send(host, range(1, 100))
    microcontroller.wait_for("moving", 2)


def test_what_was_held_up_on_the_way_is_not_acted_upon(
    line: FaultyLine, firmware: Start, robot: Callable[..., SerialRobot]
) -> None:
    microcontroller, host = firmware(), robot(heartbeat_timeout_ms=900, ttl_ms=60)
    host.wait_ready()
    line.held = {"to_robot"}
    send(host, range(20))
    time.sleep(0.2)
    line.held = set()
    time.sleep(0.1)
    assert acted_upon(microcontroller) == []
    for i in range(50, 250):  # a busy machine holds some up too
        send(host, range(i, i + 1))
        if microcontroller.said("moving"):
            break
    assert min(acted_upon(microcontroller)) >= 50


def test_a_full_line_never_holds_up_the_loop(
    line: FaultyLine, firmware: Start, robot: Callable[..., SerialRobot]
) -> None:
    firmware(heartbeat_limit_ms=60_000)
    host = robot(heartbeat_timeout_ms=4000)
    host.wait_ready()
    line.paused = True
    slowest_s, sent = 0.0, 0
    while "write_timeout" not in host.statistics().events:
        before = time.monotonic()
        host.act(numbered(sent))
        slowest_s = max(slowest_s, time.monotonic() - before)
        sent += 1
        time.sleep(0.0002)
    line.paused = False
    assert host.statistics().events["superseded"] > 10
    assert slowest_s < 0.5  # a write waits for a second


def test_a_firmware_for_another_robot_is_refused(firmware: Start, robot: Callable[..., SerialRobot]) -> None:
    other = WireSchema(action=(Field("left", "rad"), Field("right", "rad")), observation=SCHEMA.observation)
    firmware(other)
    with pytest.raises(LinkError, match=f"refused the connection .schema.*found schema {other.hash:#018x}"):
        robot().wait_ready(1.0)


def test_a_port_that_is_not_there_is_named(line: FaultyLine, robot: Callable[..., SerialRobot]) -> None:
    line.unplug()
    host = robot()
    with pytest.raises(LinkError, match=r"could not open port .*usb-robot"):
        host.wait_ready(0.3)
    line.plug()
    host.stop()


def test_wrong_settings_and_wrong_actions_are_refused(robot: Callable[..., SerialRobot]) -> None:
    with pytest.raises(ConfigError, match="ttl_ms of a serial robot: expected at least 1 and at most 999, found 1000"):
        SerialConfig(url="x", schema=SCHEMA, ttl_ms=1000)
    host = robot()
    for action in (np.zeros(3), np.array([np.nan, 0.0])):
        with pytest.raises(ValueError, match="expected 2 finite numbers"):
            host.act(action)
