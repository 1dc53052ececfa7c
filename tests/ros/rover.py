"""A simulated robot with two wheels as a real process: odometry out, commands in; asked as peer.py is.

Runs in the ROS environment; ``processes.Peer`` is its other end.
"""

from __future__ import annotations

import argparse
import dataclasses
import math
import time
from typing import Any

from geometry_msgs.msg import Twist, TwistStamped
from nav_msgs.msg import Odometry
from rclpy.clock import Clock as RclpyClock
from rclpy.clock import ClockType
from rclpy.qos import DurabilityPolicy, QoSProfile, ReliabilityPolicy
from rosgraph_msgs.msg import Clock
from std_msgs.msg import Bool
from std_srvs.srv import SetBool

from edge_ros_bridge.client import Event, NodeClient
from edge_ros_bridge.motion import Pose, Velocity, integrate
from peer import answer_requests

RATE_HZ = 50.0
LATCHED = QoSProfile(depth=1, durability=DurabilityPolicy.TRANSIENT_LOCAL)


class Rover(NodeClient):
    """Goes where the commands say; a command holds until the next one."""

    def __init__(self, namespace: str) -> None:
        super().__init__("control", namespace=namespace)
        self.pose, self.sensing, self.velocity = Pose(x_m=1.0, y_m=0.5, heading_rad=2.0), True, Velocity()
        self.lag_s = 0.0
        self.time_ns: int | None = None
        """Of the simulation; None is the machine's."""
        self.pace = 1.0
        self.serve(SetBool, "estop")
        self.listen(Bool, "control/estopped", "estopped", LATCHED)
        self._odometry = self.node.create_publisher(Odometry, "odom", 10)
        self._button = self.node.create_publisher(Bool, "control/estop", 1)
        self._clock = self.node.create_publisher(Clock, "/clock", 10)
        self._commands: list[Any] = []
        self.drive()
        self.node.create_timer(1 / RATE_HZ, self._step, clock=RclpyClock(clock_type=ClockType.STEADY_TIME))

    def drive(self) -> None:
        """Subscribes to the commands."""
        for kind, name in ((Twist, "cmd_vel"), (TwistStamped, "cmd_vel_stamped")):
            self._commands.append(self.node.create_subscription(kind, name, self._obey, 10))

    def let_go(self) -> None:
        """Ends the subscriptions."""
        while self._commands:
            self.node.destroy_subscription(self._commands.pop())

    def estop(self, data: bool) -> list[Any]:
        """Asks the service."""
        response = self.call("estop", SetBool.Request(data=data), 10.0)
        return [response.success, response.message]

    def press(self, data: bool) -> None:
        """What the button's topic says."""
        self._button.publish(Bool(data=data))

    def best_effort_button(self) -> None:
        """A publisher whose QoS does not fit what the node asks for."""
        qos = QoSProfile(depth=1, reliability=ReliabilityPolicy.BEST_EFFORT)
        self._button = self.node.create_publisher(Bool, "control/estop", qos)

    def sense(self, on: bool, lag_s: float = 0.0) -> None:
        """Whether there is odometry, and how old it is when it is sent."""
        self.sensing, self.lag_s = on, lag_s

    def _obey(self, message: Twist | TwistStamped) -> None:
        twist = message.twist if isinstance(message, TwistStamped) else message
        self.velocity = Velocity(linear_x=twist.linear.x, angular_z=twist.angular.z)
        self.events.append(Event(time.monotonic(), "cmd_vel", self.velocity))

    def simulate(self, pace: float) -> None:
        """Makes the time of a simulation, so many times as fast as the machine's; 0 lets it stand still."""
        self.pace, self.time_ns = pace, self.time_ns or 10**12

    def _step(self) -> None:
        if self.time_ns is not None:
            self.time_ns += round(self.pace * 1e9 / RATE_HZ)
            clock = Clock()
            clock.clock.sec, clock.clock.nanosec = divmod(self.time_ns, 10**9)
            self._clock.publish(clock)
        moved = integrate([self.velocity], RATE_HZ / self.pace).end if self.pace else Pose()
        cos, sin = math.cos(self.pose.heading_rad), math.sin(self.pose.heading_rad)
        self.pose = Pose(
            self.pose.x_m + moved.x_m * cos - moved.y_m * sin,
            self.pose.y_m + moved.x_m * sin + moved.y_m * cos,
            self.pose.heading_rad + moved.heading_rad,
        )
        if self.sensing:
            self._odometry.publish(self._measured())

    def _measured(self) -> Odometry:
        message = Odometry()
        now_ns = self.node.get_clock().now().nanoseconds if self.time_ns is None else self.time_ns
        stamp_ns = now_ns - round(self.lag_s * 1e9)
        message.header.stamp.sec, message.header.stamp.nanosec = divmod(stamp_ns, 10**9)
        message.header.frame_id, message.child_frame_id = "odom", "base_link"
        message.pose.pose.position.x, message.pose.pose.position.y = self.pose.x_m, self.pose.y_m
        message.pose.pose.orientation.z = math.sin(self.pose.heading_rad / 2)
        message.pose.pose.orientation.w = math.cos(self.pose.heading_rad / 2)
        return message


METHODS = {name: name for name in ("change_state", "set_parameter", "estop", "press", "simulate", "sense", "state")}
METHODS |= {name: name for name in ("let_go", "drive", "best_effort_button", "wait_diagnostics")}
METHODS |= {"match": "wait_until_matched"}


def do(rover: Rover, call: str, request: dict[str, Any]) -> Any:
    """One request; the answer is something that JSON can hold."""
    if call in METHODS:
        return getattr(rover, METHODS[call])(**request)
    if call == "wait_state":
        states: list[str] = []
        while states[-1:] != [request["state"]] and len(states) < 100:
            states.append(rover.state())
            listen(rover, 0.1)
        return states[-1]
    if call == "wait_home":
        rover.wait(lambda: math.hypot(rover.pose.x_m, rover.pose.y_m) < request["within_m"], "the origin", 20)
    if call == "wait":
        since_s, topic = request.get("since_s", 0.0), request["topic"]
        rover.wait(lambda: len(rover.received(topic, since_s)) >= request.get("count", 1), topic, 15)
    if call == "listen":
        listen(rover, request["seconds"])
    return [dataclasses.asdict(event) for event in rover.events if event.time_s >= request.get("since_s", 0.0)]


def listen(rover: Rover, seconds: float) -> None:
    """Receives for so long."""
    end_s = time.monotonic() + seconds
    rover.wait(lambda: time.monotonic() > end_s, "the end of listening", 10 * seconds + 5)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--namespace", default="")
    with Rover(parser.parse_args().namespace) as client:
        answer_requests(lambda call, request: do(client, call, request))
