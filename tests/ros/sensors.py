"""A robot's sensors as a real process: numbered sets of messages out, commands in; asked as peer.py is.

Every message of a set says the set's number, and has its stamp. Runs in the ROS environment; ``processes.Peer`` is its
other end.
"""

from __future__ import annotations

import argparse
import base64
import dataclasses
import time
from typing import Any

import numpy as np
from edge_sdk_msgs.msg import ChatMessage
from nav_msgs.msg import Odometry
from rclpy.clock import Clock, ClockType
from rclpy.qos import qos_profile_sensor_data
from sensor_msgs.msg import CompressedImage, Image, Imu, JointState
from std_msgs.msg import Float64MultiArray

from edge_ros_bridge.client import NodeClient
from peer import answer_requests

TOPICS = {"image": Image, "image/compressed": CompressedImage, "imu": Imu, "odom": Odometry, "joint_states": JointState}
HEIGHT, WIDTH = 48, 64
PERIOD_S = 0.04
LAG_SETS = {"image": 2, "image/compressed": 1, "odom": 1}
"""How many sets later a message is sent, as cameras are slower than gyroscopes."""


class Sensors(NodeClient):
    """Sends sets of messages, and records what is commanded."""

    def __init__(self, namespace: str) -> None:
        super().__init__("control", namespace=namespace)
        self.listen(Float64MultiArray, "commands", "commands", 100)
        self._publishers = {
            name: self.node.create_publisher(kind, name, qos_profile_sensor_data) for name, kind in TOPICS.items()
        }
        self._chat = self.node.create_publisher(ChatMessage, "chat", 10)
        self._waiting: list[tuple[int, str, Any]] = []
        self._number, self._fixed, self._jpeg, self._encoding = 0, False, dict[int, bytes](), "rgb8"
        self._sending: Any = None
        self._stamp_ns = 0

    def use(self, pictures: list[str] = (), encoding: str = "rgb8", number: int = 0) -> None:  # type: ignore[assignment]
        """JPEGs of the sets, in base64; the encoding of images; and a number that all sets have, where it is not 0."""
        self._jpeg = {number: base64.b64decode(each) for number, each in enumerate(pictures)}
        self._encoding, self._number, self._fixed = encoding, number, number > 0

    def run(self) -> None:
        """Sends a set every PERIOD_S, from now on."""
        self._stamp_ns = int(self.node.get_clock().now().nanoseconds)
        self._sending = self.node.create_timer(PERIOD_S, self._step, clock=Clock(clock_type=ClockType.STEADY_TIME))

    def say(self, text: str) -> None:
        """A message of a type of our own."""
        self._chat.publish(ChatMessage(role="user", content=text))

    def wait_for(self, topic: str, count: int) -> list[Any]:
        """The data of so many messages."""
        self.wait(lambda: len(self.received(topic)) >= count, topic, 20)
        return [list(event.data) for event in self.received(topic)]

    def _step(self) -> None:
        if not self._fixed:
            self._number = self._number % 200 + 1
        self._stamp_ns += round(PERIOD_S * 1e9)  # exactly, however late this is called
        for name, message in self._set(self._number).items():
            message.header.stamp.sec, message.header.stamp.nanosec = divmod(self._stamp_ns, 10**9)
            self._waiting.append((LAG_SETS.get(name, 0), name, message))
        self._waiting = [(left - 1, name, message) for left, name, message in self._waiting]
        due = [each for each in self._waiting if each[0] < 0]
        self._waiting = [each for each in self._waiting if each[0] >= 0]
        for _, name, message in due:
            self._publishers[name].publish(message)

    def _set(self, number: int) -> dict[str, Any]:
        size = {"rgb8": 3, "bgr8": 3, "mono8": 1}[self._encoding]
        image = Image(height=HEIGHT, width=WIDTH, encoding=self._encoding, step=WIDTH * size)
        image.data.frombytes(np.full(HEIGHT * WIDTH * size, number, np.uint8).tobytes())
        imu, odometry, joints = Imu(), Odometry(), JointState(name=["a"], position=[float(number)])
        imu.angular_velocity.x = odometry.pose.pose.position.x = float(number)
        found = {"image": image, "imu": imu, "odom": odometry, "joint_states": joints}
        if number in self._jpeg:
            compressed = CompressedImage(format="jpeg")
            compressed.data.frombytes(self._jpeg[number])
            found["image/compressed"] = compressed
        return found


METHODS = {name: name for name in ("change_state", "state", "use", "run", "say", "wait_for", "wait_diagnostics")}
METHODS |= {"match": "wait_until_matched"}


def do(sensors: Sensors, call: str, request: dict[str, Any]) -> Any:
    """One request; the answer is something that JSON can hold."""
    if call in METHODS:
        return getattr(sensors, METHODS[call])(**request)
    end_s = time.monotonic() + request["seconds"]
    sensors.wait(lambda: time.monotonic() > end_s, "the end of listening", 10 * request["seconds"] + 5)
    return [dataclasses.asdict(event) for event in sensors.events if event.topic == "error"]


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--namespace", default="")
    with Sensors(parser.parse_args().namespace) as client:
        answer_requests(lambda call, request: do(client, call, request))
