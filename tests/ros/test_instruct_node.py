"""An instruction in words drives a simulated rover, through the nodes instruct and control as real processes."""

from __future__ import annotations

import json
import math
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from edge_ros_bridge.motion import Pose, Speeds, integrate, plan
from places import ROOT, ROVER
from processes import INSTRUCTED, Peer, Ros, end
from scan import interpret

CONFIG = ROOT / "ros_bridge" / "config"
SIMULATION = ROVER / "simulation.yaml"
"""What is tested here is not what the loop does when this machine is busy with something else."""
FILES = {"instruct": [CONFIG / "instruct.yaml"], "control": [CONFIG / "control.yaml", SIMULATION]}
POLICY = {"policy_entry": "edge_ros_bridge.following:make", "policy": CONFIG / "rover_policy.json"}

LONG, SHORT = "run around left thrice", "turn left"
NEAR_M = 0.05
"""How far from where it should be the rover may come: the wheels hear of an odometry some ticks later."""


@pytest.fixture(scope="module")
def room(ros_python: Path, tmp_path_factory: pytest.TempPathFactory) -> Ros:
    """The domain of the rover below."""
    return Ros.new(ros_python, tmp_path_factory.mktemp("instruct"))


@pytest.fixture(scope="module")
def driven(room: Ros, scan_bundle: Path) -> Iterator[tuple[Peer, subprocess.Popen[str]]]:
    """A rover whose nodes the tests of this module share, and the process of instruct; each test leaves both active."""
    instruct = room.node("instruct_node", files=FILES["instruct"], bundle=scan_bundle)
    control = room.node("control_node", files=FILES["control"], **POLICY)
    with instruct as node, control, room.peer(INSTRUCTED) as rover:
        rover.call("begin")
        yield rover, node


def under_way(rover: Peer) -> None:
    """Instructs, until the second step of many."""
    rover.call("instruct", text=LONG)
    rover.call("wait_status", state="driving", step=2)


def obeys(rover: Peer) -> None:
    """An instruction is carried out, whatever was before."""
    rover.call("instruct", text=SHORT)
    assert [each["state"] for each in rover.call("wait_status", state="done")][-3:] == ["thinking", "driving", "done"]


def off_the_path(path: list[Pose], actions: list[str]) -> float:
    """How far the two paths' corners are from the other one at most, in m: each was passed, and nothing else was."""
    ideal = integrate(plan(actions, Speeds(rate_hz=200)), 200).poses

    def farthest(points: Any, line: Any) -> float:
        return max(min(math.dist(point, other) for other in line) for point in points)

    driven, true = ([(pose.x_m, pose.y_m) for pose in poses] for poses in (path, ideal))
    return max(farthest(driven, true), farthest(true, driven))


def test_words_become_a_plan_and_the_plan_a_path_as_scans_grammar_says(driven: tuple[Peer, Any]) -> None:
    rover, _ = driven
    instruction = "walk around left"
    rover.call("instruct", text=instruction)
    statuses = rover.call("wait_status", state="done")
    actions = interpret(instruction)
    (said,) = rover.call("wait", topic="plan")
    steps = json.loads(said)["steps"]
    assert [step["name"] for step in steps] == actions
    assert [(step["motion"], step["amount"]) for step in steps[:2]] == [("turn", math.pi / 2), ("forward", 0.5)]
    assert [each["state"] for each in statuses] == ["thinking", *["driving"] * len(actions), "done"]
    assert {each["instruction"] for each in statuses} == {instruction}
    x_m, y_m, heading_rad = rover.call("rest")
    assert math.hypot(x_m, y_m) < NEAR_M  # a square
    assert heading_rad == pytest.approx(2 * math.pi, abs=0.05)
    path = [Pose(*pose) for pose in rover.call("path")]
    assert off_the_path(path, actions) < NEAR_M
    assert rover.call("wait", topic="cmd_vel")


def test_nonsense_is_refused_and_nothing_moves(driven: tuple[Peer, Any]) -> None:
    rover, _ = driven
    before = rover.call("rest")
    rover.call("instruct", text="make me a coffee")
    statuses = rover.call("wait_status", state="refused")
    assert "expected words of the model, found make, me, a, coffee" in statuses[-1]["reason"]
    assert rover.call("listen", seconds=0.5, topic="plan") == []
    (error,) = rover.call("wait", topic="refusal")
    assert error.startswith("refused: The instruction")
    rover.call("wait_diagnosis", level="1", message="refused: The instruction")
    assert rover.call("rest") == before
    obeys(rover)
    rover.call("wait_diagnosis", level="0", message="done")


def test_another_instruction_takes_the_place_of_the_one_that_is_driven(driven: tuple[Peer, Any]) -> None:
    rover, _ = driven
    under_way(rover)
    rover.call("instruct", text=SHORT)
    statuses = rover.call("wait_status", state="done")
    assert [each["state"] for each in statuses] == ["replaced", "thinking", "driving", "done"]
    assert [each["instruction"] for each in statuses] == [LONG, SHORT, SHORT, SHORT]


def test_the_service_cancels(driven: tuple[Peer, Any]) -> None:
    rover, _ = driven
    under_way(rover)
    assert rover.call("cancel") == [True, "cancelled"]
    assert rover.call("wait_status", state="cancelled")[-1]["step"] >= 2
    stood = rover.call("rest")
    rover.call("listen", seconds=0.5, topic="status")
    assert rover.call("rest") == stood
    assert rover.call("cancel") == [False, "nothing to cancel"]
    obeys(rover)


@pytest.mark.kilted
def test_an_emergency_stop_ends_the_plan_and_its_release_does_not_go_on(driven: tuple[Peer, Any]) -> None:
    rover, _ = driven
    under_way(rover)
    rover.call("estop", data=True)
    statuses = rover.call("wait_status", state="stopped")
    assert statuses[-1]["reason"] == "the emergency stop is latched"
    stood = rover.call("rest")
    rover.call("instruct", text=SHORT)
    assert rover.call("wait_status", state="refused")[-1]["reason"] == "the emergency stop is latched"
    assert rover.call("estop", data=False) == [True, "released"]
    rover.call("listen", seconds=1.0, topic="status")
    assert rover.call("rest") == stood
    obeys(rover)


@pytest.mark.parametrize("node", ["instruct", "control"])
def test_deactivating_in_mid_plan_stops_the_robot_and_ends_the_plan(driven: tuple[Peer, Any], node: str) -> None:
    rover, _ = driven
    under_way(rover)
    assert rover.call("change", node=node, transition="deactivate")
    state, reason = {
        "instruct": ("cancelled", "the node is not active any more"),
        "control": ("stopped", "the control node is not active"),
    }[node]
    assert rover.call("wait_status", state=state)[-1]["reason"] == reason
    stood = rover.call("rest")
    rover.call("instruct", text=SHORT)
    (error,) = rover.call("wait", topic="refusal")
    assert "not active" in error
    assert rover.call("change", node=node, transition="activate")
    rover.call("listen", seconds=1.0, topic="status")
    assert rover.call("rest") == stood
    obeys(rover)


def test_the_control_node_says_what_became_of_a_step(driven: tuple[Peer, Any]) -> None:
    rover, _ = driven
    obeys(rover)
    (said,) = rover.call("wait", topic="plan")
    progress = rover.call("wait_progress", states=["done"])  # topics are not ordered among each other
    assert progress == {"state": "done", "order": json.loads(said)["plan"] + "/0", "reason": ""}


def test_a_second_instructor_cannot_be_active_before_the_first_is_not(
    driven: tuple[Peer, Any], room: Ros, scan_bundle: Path
) -> None:
    rover, _ = driven
    steps = {"control/step": "/control/step"}
    second = room.node("instruct_node", "/other", files=FILES["instruct"], remap=steps, bundle=scan_bundle)
    with second, room.peer(INSTRUCTED, "/other") as other:
        other.call("wait_for", node="instruct")
        assert other.call("change", node="instruct", transition="configure")
        other.call("wait_diagnosis", level="0", message="inactive, while /instruct may give steps")
        assert not other.call("change", node="instruct", transition="activate")
        (error,) = other.call("wait", topic="refusal")
        assert error.startswith("/control/step: expected no other publisher, found /instruct.")
        obeys(rover)
        assert rover.call("change", node="instruct", transition="deactivate")
        activate(other)
        assert other.call("change", node="instruct", transition="deactivate")
    activate(rover)
    obeys(rover)


def activate(peer: Peer) -> None:
    """Once the graph shows that nobody else may give steps."""
    end_s = time.monotonic() + 20
    while not peer.call("change", node="instruct", transition="activate"):
        assert time.monotonic() < end_s


def test_who_else_could_give_steps_is_told_of_and_nothing_is_driven(driven: tuple[Peer, Any]) -> None:
    rover, _ = driven
    rover.call("meddle", on=True)
    rover.call("wait_diagnosis", level="2", message="steps of the control node also come from /")
    rover.call("instruct", text=SHORT)
    refused = rover.call("wait_status", state="refused")[-1]
    assert "expected no other publisher, found /" in refused["reason"]
    rover.call("meddle", on=False)
    rover.call("wait_diagnosis", level="1", message="refused: /control/step")
    obeys(rover)


def test_a_killed_instructor_stops_the_robot_when_its_lease_ends(driven: tuple[Peer, Any]) -> None:
    """The last of those that share the nodes."""
    rover, node = driven
    under_way(rover)
    node.kill()
    node.wait()
    rover.call("rest")
    progress = rover.call("wait_progress", states=["stopped", "done"])  # the step may have ended before the lease did
    assert progress["reason"] in ("", "it was not ordered again for 1 s")
    assert int(progress["order"].split("/")[1]) < 5  # of 24; the second order may have been lost with its sender
    stood = rover.call("rest")
    rover.call("listen", seconds=0.5, topic="status")
    assert rover.call("rest") == stood


@pytest.mark.kilted
def test_one_process_in_a_namespace_drives_with_stamped_twists(ros: Ros, scan_bundle: Path, tmp_path: Path) -> None:
    control = POLICY | {"command": "twist_stamped", "command_topic": "cmd_vel_stamped"}
    own = {"/**/control": control, "/**/instruct": {"bundle": scan_bundle}}  # -p takes no node of a namespace
    content = {node: {"ros__parameters": settings} for node, settings in own.items()}
    (tmp_path / "own.yaml").write_text(json.dumps(content, default=str))  # which is YAML too
    files = [*FILES["instruct"], *FILES["control"], tmp_path / "own.yaml"]
    container = ros.node("container", "/robot", names=("instruct", "control"), files=files)
    with container as process, ros.peer(INSTRUCTED, "/robot") as rover:
        rover.call("begin")
        obeys(rover)
        assert rover.call("rest")[2] == pytest.approx(math.pi / 2, abs=0.05)
        under_way(rover)
        process.send_signal(signal.SIGINT)
        rover.call("rest")
        code, output = end(process, None)
    assert code == 0, output


@pytest.mark.parametrize(
    ("files", "settings", "message"),
    [
        ([], {}, "step_names: expected at least one name"),
        (FILES["instruct"], {}, "The parameter bundle: expected a path, found none"),
        (FILES["instruct"], {"steps.I_WALK.high": 2.0}, "low and high to be equal, found I_WALK"),
        (FILES["instruct"], {"steps.I_WALK.motion": "fly"}, "I_WALK: motion: expected one of forward, turn"),
        (
            FILES["instruct"],
            {"steps.I_WALK.high": 1},
            "'steps.I_WALK.high' to '1' of type 'INTEGER', expecting type 'DOUBLE'",
        ),
        (FILES["instruct"], {"format": "prose"}, "format: expected words or json, found prose"),
    ],
)
def test_a_node_that_cannot_plan_fails_to_configure_and_says_why(
    ros: Ros, files: list[Path], settings: dict[str, Any], message: str
) -> None:
    with ros.node("instruct_node", files=files, autostart=True, **settings) as node:
        code, output = end(node, None)
    assert code == 1
    assert message in output
    assert "Traceback" not in output
