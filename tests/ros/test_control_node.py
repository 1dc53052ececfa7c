"""The control node as a real process, with a simulated robot in another one."""

from __future__ import annotations

import signal
import subprocess
from collections.abc import Iterator
from typing import Any

import pytest

from processes import ROVER, Peer, Ros, end

POLICY = {"policy_entry": "go_home:make", "sources.odometry.type": "odometry"}
FIELDS = {"sources.odometry.fields": "[pose.pose.position.x, pose.pose.position.y, yaw]"}
STOPPED = {"linear_x": 0.0, "angular_z": 0.0}


def start(rover: Peer) -> None:
    """Configures and activates."""
    rover.call("match")
    for transition in ("configure", "activate"):
        assert rover.call("change_state", transition=transition)


def commands(events: list[dict[str, Any]]) -> list[dict[str, float]]:
    """What was asked of the wheels."""
    found = [event["data"] for event in events if event["topic"] == "cmd_vel"]
    return [{name: data[name] for name in STOPPED} for data in found]


def told(events: list[dict[str, Any]], topic: str) -> list[Any]:
    return [event["data"] for event in events if event["topic"] == topic]


@pytest.fixture(scope="module")
def driven(ros_python: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Peer, subprocess.Popen[str]]]:
    """A node and a robot that the tests of this module share; each test leaves the node active."""
    room = Ros.new(ros_python, tmp_path_factory.mktemp("control"))
    with room.node("control_node", **POLICY, **FIELDS) as node, room.peer(ROVER) as rover:
        start(rover)
        yield rover, node


@pytest.mark.kilted
def test_a_robot_is_driven_home_by_its_odometry(driven: tuple[Peer, Any]) -> None:
    rover, _ = driven
    moves = commands(rover.call("wait_home", within_m=0.05))
    assert len(moves) > 20
    assert all(abs(move["linear_x"]) <= 0.5 and abs(move["angular_z"]) <= 2.0 for move in moves)
    assert rover.call("wait_diagnostics", key="stage", value="policy")["level"] == "0"


@pytest.mark.kilted
def test_the_service_stops_and_latches_until_it_is_released(driven: tuple[Peer, Any]) -> None:
    rover, _ = driven
    assert rover.call("estop", data=True) == [True, "latched"]
    events = rover.call("listen", seconds=0.5)
    assert commands(events)[-1] == STOPPED
    assert told(events, "estopped") == [False, True]
    assert rover.call("wait_diagnostics", key="level", value="2")["message"] == "the emergency stop is latched"
    assert commands(rover.call("listen", seconds=0.3, since_s=events[-1]["time_s"] + 1e-6)) == []
    assert rover.call("estop", data=False) == [True, "released"]
    rover.call("wait", topic="cmd_vel", since_s=events[-1]["time_s"] + 1e-6)


def test_a_pressed_button_keeps_the_stop_through_a_release_and_a_restart(driven: tuple[Peer, Any]) -> None:
    rover, _ = driven
    rover.call("press", data=True)
    rover.call("wait_diagnostics", key="estopped", value="true")
    assert rover.call("change_state", transition="deactivate")
    assert rover.call("change_state", transition="activate")
    success, message = rover.call("estop", data=False)
    assert not success
    assert "release the button first" in message
    since_s = rover.call("listen", seconds=0.3)[-1]["time_s"] + 1e-6
    rover.call("press", data=False)  # lets nothing move by itself
    rover.call("wait_diagnostics", key="estopped", value="true")
    assert commands(rover.call("listen", seconds=0.2, since_s=since_s)) == []
    assert rover.call("estop", data=False) == [True, "released"]
    rover.call("wait", topic="cmd_vel", since_s=since_s)


def test_a_parameter_that_is_read_once_cannot_be_changed_while_it_drives(driven: tuple[Peer, Any]) -> None:
    rover, _ = driven
    assert "clean it up first" in rover.call("set_parameter", name="tolerance_ms", value=5.0)
    assert rover.call("set_parameter", name="require_subscriber", value=True) == ""


@pytest.mark.parametrize("lost", ["sensor", "subscriber", "stale"])
def test_what_is_lost_ends_in_a_stop_and_an_inactive_node(driven: tuple[Peer, Any], lost: str) -> None:
    rover, _ = driven
    since_s = rover.call("listen", seconds=0.1)[-1]["time_s"]
    if lost == "subscriber":
        rover.call("let_go")
    else:
        rover.call("sense", on=lost == "stale", lag_s=1.0)
    assert rover.call("wait_state", state="inactive") == "inactive"
    events = rover.call("listen", seconds=0.2, since_s=since_s)
    waited = {"sensor": "not too old", "stale": "not too old", "subscriber": "a subscriber of the commands"}[lost]
    assert any("ended: silent while waiting for" in error and waited in error for error in told(events, "error"))
    if lost != "subscriber":
        assert commands(events)[-1] == STOPPED
    rover.call("drive")
    rover.call("sense", on=True)
    assert rover.call("change_state", transition="activate")
    rover.call("wait", topic="cmd_vel", since_s=events[-1]["time_s"] + 1e-6)
    if lost != "subscriber":  # one subscription of each kind is enough
        rover.call("let_go")
        rover.call("drive")


@pytest.mark.kilted
def test_a_peer_with_another_qos_is_reported(driven: tuple[Peer, Any]) -> None:
    rover, _ = driven
    rover.call("best_effort_button")
    rover.call("wait_diagnostics", key="qos_mismatches ~/estop", value="1")
    events = rover.call("listen", seconds=0.1)
    assert any("asks for another QoS, reliability" in error for error in told(events, "error"))


@pytest.mark.kilted
def test_a_signal_stops_the_robot(driven: tuple[Peer, Any]) -> None:
    rover, node = driven
    code, output = end(node, signal.SIGINT)
    assert code == 0, output
    assert commands(rover.call("listen", seconds=0.2))[-1] == STOPPED


def test_the_loop_runs_by_a_simulations_time_and_ends_while_it_stands_still(ros: Ros) -> None:
    with ros.node("control_node", use_sim_time=True, **POLICY, **FIELDS) as node, ros.peer(ROVER) as rover:
        rover.call("simulate", pace=0.5)
        start(rover)
        events = rover.call("wait", topic="cmd_vel", count=26)
        times_s = [event["time_s"] for event in events if event["topic"] == "cmd_vel"][:26]
        assert (times_s[25] - times_s[0]) / 25 == pytest.approx(2 / 25, rel=0.25)  # 25 Hz, at half the pace
        rover.call("simulate", pace=0.0)
        since_s = rover.call("listen", seconds=0.3)[-1]["time_s"] + 1e-6
        assert commands(rover.call("listen", seconds=0.3, since_s=since_s)) == []
        assert rover.call("change_state", transition="deactivate")
        assert commands(rover.call("listen", seconds=0.2))[-1] == STOPPED
        assert end(node)[0] == 0


def test_a_stamped_twist_and_a_remapped_topic(ros: Ros) -> None:
    settings = {"command": "twist_stamped", "command_topic": "cmd_vel_stamped"}
    with ros.node("control_node", "/robot", **settings, **POLICY, **FIELDS) as node, ros.peer(ROVER, "/robot") as rover:
        start(rover)
        assert len(commands(rover.call("wait", topic="cmd_vel", count=3))) >= 3
        assert end(node)[0] == 0


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "expected a bundle or a function, found neither"),
        (POLICY, "expected 3 fields, found 5 fields"),
        (POLICY | FIELDS | {"hold_after_ms": 5000.0}, "Stages: expected 0 <= hold <= decay <= stop"),
        (POLICY | FIELDS | {"command": "pose"}, "The command: expected one of twist"),
    ],
)
def test_a_node_that_cannot_drive_fails_to_configure_and_says_why(
    ros: Ros, settings: dict[str, Any], message: str
) -> None:
    with ros.node("control_node", autostart=True, **settings) as node:
        code, output = end(node, None)
    assert code == 1
    assert message in output
    assert "Traceback" not in output
