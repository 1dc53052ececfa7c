"""The control node as a real process: pictures, gyroscope, odometry, joints in, matched by stamps; and a bundle."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

import edge_sdk
from policies import CAMERA, MAMBA, MLP, VECTOR, bundle_of, make_policy, schema
from processes import Ros, end

SENSORS = Path(__file__).with_name("sensors.py")
HERE = f"sys.path.insert(0, {str(SENSORS.parent)!r})"
COMMON: dict[str, Any] = {"command": "float64_multi_array", "autostart": True, "tolerance_ms": 5.0, "max_age_ms": 1e5}
COMMON |= {f"{stage}_after_ms": 30000.0 for stage in ("hold", "decay", "stop")}  # on a busy machine, too
TYPES = {"front": "image", "small": "image", "jpeg": "compressed_image", "gyro": "imu", "place": "odometry"}
TYPES |= {"joints": "joint_state"}
FIELDS = {"gyro": "angular_velocity.x", "place": "pose.pose.position.x", "joints": "a.position"}


def sources(*names: str) -> dict[str, Any]:
    """Parameters of a policy that hands on so much."""
    settings: dict[str, Any] = {"policy_entry": "seeing_policy:make", "policy": ",".join(names)}
    settings |= {f"sources.{name}.type": TYPES[name] for name in names}
    return settings | {f"sources.{name}.fields": f"[{FIELDS[name]}]" for name in names if name in FIELDS}


def jpegs() -> list[str]:
    """Grey pictures whose every pixel is the index, in base64."""
    pictures = [np.full((48, 64, 3), number, np.uint8) for number in range(201)]
    return [base64.b64encode(cv2.imencode(".jpg", picture)[1].tobytes()).decode() for picture in pictures]


def test_every_command_comes_from_messages_of_one_stamp(ros: Ros) -> None:
    """Though pictures and odometry arrive one or two sets later than gyroscope and joints."""
    names = ("front", "small", "jpeg", "gyro", "place", "joints")
    with ros.node("control_node", before=HERE, **sources(*names), **COMMON) as node, ros.peer(SENSORS) as sensors:
        sensors.call("use", pictures=jpegs())
        sensors.call("match")
        sensors.call("run")
        commands = sensors.call("wait_for", topic="commands", count=40)
        assert end(node)[0] == 0
    for command in commands:
        assert command == pytest.approx([command[3]] * 6, abs=1), commands  # JPEG and resampling may round
        assert command[0] == command[3] == command[4] == command[5]
    assert len({command[3] for command in commands}) > 10


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A policy of a camera and a vector that is told what to do, exported as the commands do."""
    made = make_policy(schema("regression", (VECTOR, CAMERA)), instruction=True, max_length=4096, layers=[MAMBA, MLP])
    return bundle_of(made, tmp_path_factory.mktemp("policy")).path


@pytest.mark.parametrize("instruction", ["reach the left target", ""])
def test_a_bundle_drives_as_it_does_without_ros(ros: Ros, bundle: Path, instruction: str) -> None:
    """What is observed stays the same, so every inference's chunk is known, whenever it is made."""
    policy = edge_sdk.load_policy(bundle, instruction=instruction)
    settings = {"policy": bundle, "sources.state.type": "imu"} | ({"instruction": instruction} if instruction else {})
    settings |= {"sources.state.fields": "[angular_velocity.x, angular_velocity.x, angular_velocity.x]"}
    settings |= {"sources.images.front.topic": "image"}
    with ros.node("control_node", **settings, **COMMON) as node, ros.peer(SENSORS) as sensors:
        sensors.call("use", number=9)
        sensors.call("match")
        sensors.call("run")
        commands = sensors.call("wait_for", topic="commands", count=3)
        assert end(node)[0] == 0
    seen = {"state": np.full(3, 9, np.float32), "images.front": np.full((20, 28, 3), 9, np.uint8)}
    low, high = ([getattr(dim, name) for dim in policy.config.action.dims] for name in ("lower", "upper"))
    chunks = np.array([policy.infer(seen).clip(low, high) for _ in range(20)])
    np.testing.assert_allclose(commands[0], chunks[0, 0], rtol=1e-4, atol=1e-4)
    for command in commands[1:3]:
        assert np.abs(chunks - command).max(axis=2).min() < 1e-4
    assert commands[0] != commands[2]
