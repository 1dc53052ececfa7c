"""The launch files by ``ros2 launch``, where it is: a ROS install has it, PyPI has no wheels."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest

from places import ROOT
from processes import INSTRUCTED, ROS2, ROVER, Ros, end
from test_colcon import install

CONFIG = ROOT / "ros_bridge" / "config"
COMMON = {"namespace", "params_file", "autostart", "use_sim_time"}
ARGUMENTS = {
    "language": COMMON | {"bundle"},
    "control": COMMON | {"policy", "policy_entry", "instruction", "command", "command_topic"},
    "rover": COMMON | {"bundle", "policy", "control_params_file", "command", "cmd_vel", "odom"},
}


@pytest.fixture(scope="module")
def prefix(ros_python: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the bridge is installed, its programs for the interpreter of the ROS environment."""
    folder = tmp_path_factory.mktemp("launch")
    if Ros.new(ros_python, folder).run("-c", "import ros2cli, ros2launch, launch_ros.actions").returncode != 0:
        pytest.skip("ros2 launch is not installed: it comes with ROS, and PyPI has no wheels of it")
    installed = install(folder)
    for program in (installed / "lib" / "edge_ros_bridge").iterdir():
        _, rest = program.read_text().split("\n", 1)
        program.write_text(f"#!{ros_python.absolute()}\n{rest}")
    return installed


@pytest.fixture
def room(ros_python: Path, prefix: Path, tmp_path: Path) -> Ros:
    """A domain in which the bridge is installed."""
    return dataclasses.replace(Ros.new(ros_python, tmp_path), prefix=prefix)


def end_all(launch: subprocess.Popen[str], nodes: int = 1) -> None:
    """Signals launch and its nodes, to which launch passes it on: a node gets it twice, and ends as if it was once."""
    os.killpg(launch.pid, signal.SIGINT)
    code, output = end(launch, None)
    assert (code, output.count("process has finished cleanly")) == (0, nodes), output


def parameters(path: Path, node: str, **values: Any) -> Path:
    """A file of parameters."""
    path.write_text(json.dumps({f"/**/{node}": {"ros__parameters": values}}))  # which is YAML too
    return path


@pytest.mark.parametrize("file", ARGUMENTS)
def test_every_argument_is_described(room: Ros, file: str) -> None:
    shown = room.run("-c", ROS2, "launch", "edge_ros_bridge", f"{file}.launch.py", "--show-args")
    assert shown.returncode == 0, shown.stderr
    assert {line.strip(" ':") for line in shown.stdout.splitlines() if line.endswith("':")} == ARGUMENTS[file]
    assert "no description" not in shown.stdout


def test_the_language_node_waits_in_its_namespace_for_a_lifecycle_manager(room: Ros, scan_bundle: Path) -> None:
    given = {"bundle": scan_bundle, "namespace": "robot", "autostart": False}
    with room.launch("language.launch.py", **given) as launch, room.peer(namespace="/robot") as peer:
        peer.start_node()
        since_s = peer.call("send", prompt="jump")
        assert peer.events("wait", topic="text", since_s=since_s)["text"] == ["I_JUMP"]
        end_all(launch)


def test_what_the_files_of_parameters_say_counts_unless_an_argument_is_given(
    room: Ros, scan_bundle: Path, tmp_path: Path
) -> None:
    odometry = {"type": "odometry", "fields": ["pose.pose.position.x", "pose.pose.position.y", "yaw"]}
    own = {"command": "twist_stamped", "autostart": False, "sources": {"odometry": odometry}}
    own |= dict.fromkeys(("max_age_ms", "hold_after_ms", "decay_after_ms", "stop_after_ms"), 9000.0)
    given = {
        "bundle": scan_bundle,
        "namespace": "robot",
        "cmd_vel": "cmd_vel_stamped",
        "params_file": parameters_of_instruct(tmp_path),
        "control_params_file": parameters(tmp_path / "control.yaml", "control", **own),
    }
    with room.launch("rover.launch.py", **given) as launch, room.peer(INSTRUCTED, "/robot") as rover:
        rover.call("begin")  # both wait to be configured, for so say the files
        rover.call("instruct", text="turn left")
        assert rover.call("wait_status", state="done")[-1]["steps"] == 1
        assert rover.call("wait", topic="cmd_vel")
        end_all(launch, nodes=2)


def parameters_of_instruct(folder: Path) -> Path:
    """Those that come with the bridge, for a node that waits."""
    (folder / "instruct.yaml").write_text((CONFIG / "instruct.yaml").read_text() + "    autostart: false\n")
    return folder / "instruct.yaml"


def test_an_instruction_is_text_whatever_yaml_would_make_of_it(room: Ros, tmp_path: Path) -> None:
    file = parameters(tmp_path / "own.yaml", "control", policy_entry="go_home:make")
    given = {"params_file": file, "instruction": "left: then 3", "policy": "1"}
    with room.launch("control.launch.py", **given) as launch, room.peer(ROVER) as rover:
        rover.call("match")
        assert rover.call("state") == "unconfigured"
        found = room.run("-c", ROS2, "param", "get", "--no-daemon", "/control", "instruction")
        assert found.stdout.strip() == "String value is: left: then 3", found.stderr
        end_all(launch)
