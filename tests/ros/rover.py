"""A simulated robot with two wheels as a real process: odometry out, commands in; asked as peer.py is.

Runs in the ROS environment; ``processes.Peer`` is its other end.
"""

from __future__ import annotations

import argparse
import dataclasses
import math
import time
from typing import Any

from rclpy.qos import QoSProfile, ReliabilityPolicy
from rosgraph_msgs.msg import Clock
from std_msgs.msg import Bool
from std_srvs.srv import SetBool

from edge_ros_bridge.client import NodeClient
from edge_ros_bridge.motion import Pose, advance
from peer import answer_requests
from simulated_rover import LATCHED, RATE_HZ, SimulatedRover


class Rover(SimulatedRover):
    """One whose time, senses and hands the tests hold."""

    def __init__(self, namespace: str) -> None:
        super().__init__(namespace=namespace)
        self.pose, self.sensing = Pose(x_m=1.0, y_m=0.5, heading_rad=2.0), True
        self.lag_s = 0.0
        self.time_ns: int | None = None
        """Of the simulation; None is the machine's."""
        self.pace = 1.0
        self.serve(SetBool, "estop")
        self.listen(Bool, "control/estopped", "estopped", LATCHED)
        self._button = self.node.create_publisher(Bool, "control/estop", 1)
        self._clock = self.node.create_publisher(Clock, "/clock", 10)

    def let_go(self) -> None:
        """Ends the subscriptions."""
        while self._commands:
            self.node.destroy_subscription(self._commands.pop())

    def estop(self, data: bool) -> list[Any]:
        """Asks the service."""
        return ask_estop(self, data)

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

    def simulate(self, pace: float) -> None:
        """Makes the time of a simulation, so many times as fast as the machine's; 0 lets it stand still."""
        self.pace, self.time_ns = pace, self.time_ns or 10**12

    def step(self) -> None:
        """One tick of whichever time it is."""
        if self.time_ns is not None:
            self.time_ns += round(self.pace * 1e9 / RATE_HZ)
            clock = Clock()
            clock.clock.sec, clock.clock.nanosec = divmod(self.time_ns, 10**9)
            self._clock.publish(clock)
        self.pose = advance(self.pose, self.velocity, self.pace / RATE_HZ)
        if self.sensing:
            now_ns = self.node.get_clock().now().nanoseconds if self.time_ns is None else self.time_ns
            self.send_odometry(now_ns - round(self.lag_s * 1e9))


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


def ask_estop(rover: NodeClient, data: bool) -> list[Any]:
    """Presses or releases the emergency stop by its service."""
    response = rover.call("estop", SetBool.Request(data=data), 10.0)
    return [response.success, response.message]


def listen(rover: NodeClient, seconds: float) -> None:
    """Receives for so long."""
    end_s = time.monotonic() + seconds
    rover.wait(lambda: time.monotonic() > end_s, "the end of listening", 10 * seconds + 5)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--namespace", default="")
    with Rover(parser.parse_args().namespace) as client:
        answer_requests(lambda call, request: do(client, call, request))
