"""A simulated robot with two wheels as a ROS 2 node: odometry out, commands in; and somebody who instructs it.

Runs in the ROS environment.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from typing import Any

from geometry_msgs.msg import Twist, TwistStamped
from lifecycle_msgs.srv import ChangeState
from nav_msgs.msg import Odometry
from rclpy.clock import Clock, ClockType
from rclpy.qos import DurabilityPolicy, QoSProfile
from std_msgs.msg import String

from edge_ros_bridge.client import TRANSITIONS, Event, NodeClient, velocity_of
from edge_ros_bridge.motion import Marker, Pose, Velocity, advance
from edge_ros_bridge.plans import read_progress
from edge_sdk.errors import EdgeError, explain

RATE_HZ = 50.0
RESTS = 20
"""Poses that are the same when it stands: for 0.4 s."""
LATCHED = QoSProfile(depth=1, durability=DurabilityPolicy.TRANSIENT_LOCAL)
STATUSES = QoSProfile(depth=10, durability=DurabilityPolicy.TRANSIENT_LOCAL)


class SimulatedRover(NodeClient):
    """Goes where the commands say; a command holds until the next one."""

    def __init__(self, alive: Callable[[], None] = lambda: None, namespace: str = "") -> None:
        super().__init__("control", alive, namespace)
        self.pose, self.velocity = Pose(), Velocity()
        self._odometry = self.node.create_publisher(Odometry, "odom", 10)
        self._commands: list[Any] = []
        self.drive()
        self.node.create_timer(1 / RATE_HZ, self.step, clock=Clock(clock_type=ClockType.STEADY_TIME))

    def drive(self) -> None:
        """Subscribes to the commands."""
        for kind, name in ((Twist, "cmd_vel"), (TwistStamped, "cmd_vel_stamped")):
            self._commands.append(self.node.create_subscription(kind, name, self._hear_command, 10))

    def obey(self, velocity: Velocity) -> None:
        """Goes so from now on."""
        self.velocity = velocity
        self.events.append(Event(time.monotonic(), "cmd_vel", velocity))

    def step(self) -> None:
        """One tick of the simulation."""
        self.pose = advance(self.pose, self.velocity, 1 / RATE_HZ)
        self.send_odometry(self.node.get_clock().now().nanoseconds)

    def send_odometry(self, stamp_ns: int) -> None:
        """Where it is."""
        message = Odometry()
        message.header.stamp.sec, message.header.stamp.nanosec = divmod(stamp_ns, 10**9)
        message.header.frame_id, message.child_frame_id = "odom", "base_link"
        message.pose.pose.position.x, message.pose.pose.position.y = self.pose.x_m, self.pose.y_m
        message.pose.pose.orientation.z = math.sin(self.pose.heading_rad / 2)
        message.pose.pose.orientation.w = math.cos(self.pose.heading_rad / 2)
        self._odometry.publish(message)

    def _hear_command(self, message: Twist | TwistStamped) -> None:
        self.obey(velocity_of(message.twist if isinstance(message, TwistStamped) else message))


class InstructedRover(SimulatedRover):
    """Tells the node instruct what to do, and records what comes of it."""

    def __init__(self, alive: Callable[[], None] = lambda: None, namespace: str = "") -> None:
        super().__init__(alive, namespace)
        self.path = list[Pose]()
        """After each tick since the last instruction."""
        self.markers = list[Marker]()
        """Gestures of steps that were done since the last instruction."""
        self._shown = dict[str, Pose]()
        """Where a gesture was begun in this step: once, however often a late loop begins it."""
        self.step_ends = dict[str, Pose]()
        """Where it was when a step was said to be done, by its order's id."""
        for name, topic, qos in (("plan", "plan", LATCHED), ("status", "status", STATUSES), ("error", "refusal", 10)):
            self.listen(String, f"instruct/{name}", topic, qos)
        self.listen(String, "control/progress", "progress", STATUSES)
        self.node.create_subscription(String, "control/progress", self._hear_progress, STATUSES)
        self._instruction = self.node.create_publisher(String, "instruct/instruction", 10)
        for node in ("control", "instruct"):
            self._services[node] = self.node.create_client(ChangeState, f"{node}/change_state")

    def begin(self) -> None:
        """Configures and activates both nodes. Raises EdgeError where one of them cannot."""
        self.wait(self._instruction.get_subscription_count, "a node that is instructed", 20)
        self.wait_until_matched()
        for node in ("control", "instruct"):
            for transition in ("configure", "activate"):
                if not self.change(node, transition):
                    what = f"The answer of the node {node} to '{transition}'"
                    raise EdgeError(explain(what, expected="yes", found="no", todo="See its log above."))

    def change(self, node: str, transition: str) -> bool:
        """A transition of one of the nodes."""
        request = ChangeState.Request()
        request.transition.id = TRANSITIONS[transition]
        return bool(self.call(node, request, 60).success)

    def instruct(self, text: str) -> None:
        """Forgets what was before, and says it."""
        for record in (self.events, self.path, self.markers, self._shown):
            record.clear()
        self._instruction.publish(String(data=text))

    def statuses(self) -> list[dict[str, Any]]:
        """What was said of instructions."""
        return [json.loads(event.data) for event in self.received("status")]

    def rest(self, timeout_s: float = 20.0) -> Pose:
        """Until the rover stands, not only between two steps; where it is then."""
        still = lambda: len(self.path) > RESTS and len(set(self.path[-RESTS:])) == 1  # noqa: E731
        self.wait(still, "the rover to stand", timeout_s)
        return self.pose

    def obey(self, velocity: Velocity) -> None:
        """Goes so from now on; up, or looking down, is a gesture."""
        if velocity.linear_z > 0:
            self._shown.setdefault("I_JUMP", self.pose)
        if velocity.angular_y > 0:
            self._shown.setdefault("I_LOOK", self.pose)
        super().obey(velocity)

    def step(self) -> None:
        """One tick of the simulation."""
        super().step()
        self.path.append(self.pose)

    def _hear_progress(self, message: String) -> None:
        progress = read_progress(message.data)
        if progress.state == "done":
            self.step_ends[progress.order] = self.pose
            self.markers += [Marker(action, pose) for action, pose in self._shown.items()]
            self._shown.clear()
