"""The node's topics as seen by another vendor's DDS: Eclipse Cyclone, without any ROS code on this side."""

# mypy: disable-error-code=type-arg
# no `from __future__ import annotations`: cyclonedds needs the types of the fields, not their names

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from cyclonedds.core import Policy, Qos
from cyclonedds.domain import Domain, DomainParticipant
from cyclonedds.idl import IdlStruct
from cyclonedds.idl.types import float64, int32, sequence, uint32
from cyclonedds.pub import DataWriter
from cyclonedds.sub import DataReader
from cyclonedds.topic import Topic
from cyclonedds.util import duration

import edge_sdk
from edge_ros_bridge.motion import STOP, Speeds, Velocity, actions_of, plan
from processes import Ros, end

# Without the compatibility, types that hold sequences do not match with Kilted.
LOOPBACK = """<CycloneDDS><Domain>
  <General>
    <Interfaces><NetworkInterface name="lo" multicast="false"/></Interfaces>
    <AllowMulticast>false</AllowMulticast>
  </General>
  <Compatibility><IgnoreTypeInformation>1.15</IgnoreTypeInformation></Compatibility>
  <Discovery><ParticipantIndex>auto</ParticipantIndex><Peers><Peer address="127.0.0.1"/></Peers></Discovery>
</Domain></CycloneDDS>"""
RELIABLE = Qos(Policy.Reliability.Reliable(duration(seconds=5)), Policy.History.KeepLast(100))
TIMEOUT_S = 20


@dataclass
class String(IdlStruct, typename="std_msgs::msg::dds_::String_"):
    """std_msgs/String on the wire."""

    data: str


@dataclass
class Vector3(IdlStruct, typename="geometry_msgs::msg::dds_::Vector3_"):
    """geometry_msgs/Vector3 on the wire."""

    x: float64
    y: float64
    z: float64


@dataclass
class Twist(IdlStruct, typename="geometry_msgs::msg::dds_::Twist_"):
    """geometry_msgs/Twist on the wire."""

    linear: Vector3
    angular: Vector3


class CyclonePeer:
    """A writer of prompts and readers of everything that the node sends."""

    def __init__(self, domain_id: int) -> None:
        self._domain = Domain(domain_id, LOOPBACK)
        self._participant = DomainParticipant(domain_id)
        self._readers = {
            name: DataReader(self._participant, Topic(self._participant, topic, kind), qos=RELIABLE)
            for name, topic, kind in (
                ("tokens", "rt/language/tokens", String),
                ("text", "rt/language/text", String),
                ("error", "rt/language/error", String),
                ("cmd_vel", "rt/cmd_vel", Twist),
            )
        }
        prompt = Topic(self._participant, "rt/language/prompt", String)
        self._writer = DataWriter(self._participant, prompt, qos=RELIABLE)
        self.received: dict[str, list[Any]] = {name: [] for name in self._readers}

    def wait_until_matched(self) -> None:
        """Until the node's side of every topic is known."""
        self.wait(
            lambda: (
                len(self._writer.get_matched_subscriptions()) == 1
                and all(len(reader.get_matched_publications()) == 1 for reader in self._readers.values())
            )
        )

    def send(self, prompt: str) -> None:
        """Forgets what was received and publishes a prompt."""
        for messages in self.received.values():
            messages.clear()
        self._writer.write(String(prompt))

    def wait(self, done: Callable[[], bool]) -> None:
        """Receives until ``done``."""
        deadline_s = time.monotonic() + TIMEOUT_S
        while not done():
            assert time.monotonic() < deadline_s, self.received
            for name, reader in self._readers.items():
                self.received[name] += [_plain(message) for message in reader.take(100)]
            time.sleep(0.01)


def _plain(message: String | Twist) -> str | Velocity:
    if isinstance(message, String):
        return message.data
    linear, angular = message.linear, message.angular
    return Velocity(linear.x, linear.y, linear.z, angular.x, angular.y, angular.z)


@dataclass
class Time(IdlStruct, typename="builtin_interfaces::msg::dds_::Time_"):
    """builtin_interfaces/Time on the wire."""

    sec: int32
    nanosec: uint32


@dataclass
class Header(IdlStruct, typename="std_msgs::msg::dds_::Header_"):
    """std_msgs/Header on the wire."""

    stamp: Time
    frame_id: str


@dataclass
class JointState(IdlStruct, typename="sensor_msgs::msg::dds_::JointState_"):
    """sensor_msgs/JointState on the wire."""

    header: Header
    name: sequence[str]
    position: sequence[float64]
    velocity: sequence[float64]
    effort: sequence[float64]


@dataclass
class Dimension(IdlStruct, typename="std_msgs::msg::dds_::MultiArrayDimension_"):
    """std_msgs/MultiArrayDimension on the wire."""

    label: str
    size: uint32
    stride: uint32


@dataclass
class Layout(IdlStruct, typename="std_msgs::msg::dds_::MultiArrayLayout_"):
    """std_msgs/MultiArrayLayout on the wire."""

    dim: sequence[Dimension]
    data_offset: uint32


@dataclass
class Float64MultiArray(IdlStruct, typename="std_msgs::msg::dds_::Float64MultiArray_"):
    """std_msgs/Float64MultiArray on the wire."""

    layout: Layout
    data: sequence[float64]


@pytest.mark.kilted
def test_cyclone_is_sensor_and_motor_of_the_control_node(ros: Ros, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CYCLONEDDS_URI", raising=False)
    names = "[x.position, y.position, yaw.position]"
    settings = {"policy_entry": "go_home:make", "command": "float64_multi_array", "autostart": True}
    with ros.node("control_node", **settings, **{"sources.odometry.fields": names}) as node:
        domain = Domain(ros.domain_id, LOOPBACK)
        participant = DomainParticipant(ros.domain_id)
        joints = DataWriter(participant, Topic(participant, "rt/joint_states", JointState), qos=RELIABLE)
        commands = DataReader(participant, Topic(participant, "rt/commands", Float64MultiArray), qos=RELIABLE)
        received: list[Float64MultiArray] = []
        deadline_s = time.monotonic() + TIMEOUT_S
        while len(received) < 5:
            assert time.monotonic() < deadline_s
            seconds, nanoseconds = divmod(time.time_ns(), 10**9)
            header = Header(Time(seconds, nanoseconds), "base_link")
            joints.write(JointState(header, ["yaw", "x", "y"], [0.0, -1.0, 0.0], [], []))
            received += commands.take(100)
            time.sleep(0.02)
        code, output = end(node)
        del domain
    assert code == 0, output
    assert [message.data for message in received] == [[0.5, 0.0]] * len(received)  # straight ahead, to the origin


@pytest.mark.kilted
def test_cyclone_asks_and_hears_everything(ros: Ros, scan_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CYCLONEDDS_URI", raising=False)
    speeds, model = Speeds(linear_m_s=5.0, angular_rad_s=15.0), edge_sdk.load(scan_bundle)
    node = ros.node(bundle=scan_bundle, autostart=True, linear_speed=5.0, angular_speed=15.0)
    with node as process:
        peer = CyclonePeer(ros.domain_id)
        peer.wait_until_matched()
        for prompt in ("walk left and jump twice", "look around right"):
            answer = model.generate(prompt).text
            peer.send(prompt)
            peer.wait(lambda: STOP in peer.received["cmd_vel"] and bool(peer.received["text"]))
            assert peer.received["text"] == [answer]
            assert "".join(peer.received["tokens"]) == answer
            assert peer.received["cmd_vel"] == plan(actions_of(answer), speeds)
        peer.send("")
        peer.wait(lambda: bool(peer.received["error"]))
        assert "expected some text" in peer.received["error"][0]
        code, output = end(process)
    assert code == 0, output
