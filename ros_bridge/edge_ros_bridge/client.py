"""Talks to a language node from another process: lifecycle, prompts, and everything that comes back, timed."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import rclpy
from geometry_msgs.msg import Twist
from lifecycle_msgs.msg import Transition
from lifecycle_msgs.srv import ChangeState, GetState
from rclpy.context import Context
from rclpy.executors import SingleThreadedExecutor
from rclpy.task import Future
from std_msgs.msg import String

from edge_ros_bridge.motion import Velocity
from edge_sdk.errors import EdgeError, explain

TRANSITIONS = {
    "configure": Transition.TRANSITION_CONFIGURE,
    "activate": Transition.TRANSITION_ACTIVATE,
    "deactivate": Transition.TRANSITION_DEACTIVATE,
    "cleanup": Transition.TRANSITION_CLEANUP,
}


class NoAnswerError(EdgeError):
    """The node did not do in time what was waited for."""


@dataclass(frozen=True)
class Event:
    """One message from the node."""

    time_s: float
    """When it arrived, on time.monotonic's clock."""
    topic: str
    """``tokens``, ``text``, ``error`` or ``cmd_vel``."""
    data: str | Velocity


class LanguageClient:
    """A node of its own with a record of all that the language node sent. A context manager.

    ``alive`` is asked while waiting; it raises when waiting on is useless, for instance because the node's process
    has ended.
    """

    def __init__(self, node_name: str = "language", alive: Callable[[], None] = lambda: None) -> None:
        self.events: list[Event] = []
        self._alive, self._name = alive, node_name
        self._context = Context()
        self._context.init()
        self._node = rclpy.create_node(f"{node_name}_client", context=self._context)
        self._executor = SingleThreadedExecutor(context=self._context)
        self._executor.add_node(self._node)
        self._change_state = self._node.create_client(ChangeState, f"{node_name}/change_state")
        self._get_state = self._node.create_client(GetState, f"{node_name}/get_state")
        self._subscriptions = [
            self._node.create_subscription(String, f"{node_name}/tokens", self._record("tokens"), 100),
            self._node.create_subscription(String, f"{node_name}/text", self._record("text"), 10),
            self._node.create_subscription(String, f"{node_name}/error", self._record("error"), 10),
            self._node.create_subscription(Twist, "cmd_vel", self._record("cmd_vel"), 100),
        ]
        self._prompt = self._node.create_publisher(String, f"{node_name}/prompt", 10)

    def __enter__(self) -> LanguageClient:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._executor.shutdown()
        self._node.destroy_node()
        self._context.shutdown()

    def wait_until_matched(self, timeout_s: float = 10.0) -> None:
        """Until both sides know each other's topics and services, so that no message is lost."""
        self.wait(
            lambda: (
                self._change_state.service_is_ready()
                and self._get_state.service_is_ready()
                and self._prompt.get_subscription_count() > 0
                and all(subscription.get_publisher_count() > 0 for subscription in self._subscriptions)
            ),
            f"the topics and services of the node {self._name}",
            timeout_s,
        )

    def change_state(self, transition: str, timeout_s: float = 60.0) -> bool:
        """Asks for a transition, one of TRANSITIONS; False when the node could not make it."""
        request = ChangeState.Request()
        request.transition.id = TRANSITIONS[transition]
        return bool(self._call(self._change_state, request, f"the answer to '{transition}'", timeout_s).success)

    def state(self, timeout_s: float = 10.0) -> str:
        """The node's lifecycle state, for instance ``inactive``."""
        response = self._call(self._get_state, GetState.Request(), "the node's state", timeout_s)
        return str(response.current_state.label)

    def send(self, prompt: str | bytes) -> float:
        """Sends a prompt, as bytes without looking at them; returns the time on time.monotonic's clock."""
        sent_s = time.monotonic()
        self._prompt.publish(String(data=prompt) if isinstance(prompt, str) else _serialized(prompt))
        return sent_s

    def wait(self, done: Callable[[], bool], what: str, timeout_s: float) -> None:
        """Receives messages until ``done`` returns True. Raises NoAnswerError when that takes too long."""
        deadline_s = time.monotonic() + timeout_s
        while not done():
            self._alive()
            if time.monotonic() > deadline_s:
                raise NoAnswerError(
                    explain(
                        f"Waiting for {what}",
                        expected=f"it within {timeout_s:g} s",
                        found=f"{len(self.events)} messages and not this",
                        todo="See the node's log. Both processes need the same ROS_DOMAIN_ID.",
                    )
                )
            self._executor.spin_once(timeout_sec=0.05)

    def received(self, topic: str, since_s: float = 0.0) -> list[Event]:
        """The messages of a topic that arrived after a time on time.monotonic's clock."""
        return [event for event in self.events if event.topic == topic and event.time_s >= since_s]

    def velocities(self, since_s: float = 0.0) -> list[Velocity]:
        """What was asked of the robot after a time on time.monotonic's clock."""
        return [event.data for event in self.received("cmd_vel", since_s) if isinstance(event.data, Velocity)]

    def _record(self, topic: str) -> Callable[[String | Twist], None]:
        def receive(message: String | Twist) -> None:
            data = velocity_of(message) if isinstance(message, Twist) else message.data
            self.events.append(Event(time.monotonic(), topic, data))

        return receive

    def _call(self, service: Any, request: Any, what: str, timeout_s: float) -> Any:
        future: Future = service.call_async(request)
        self.wait(future.done, what, timeout_s)
        return future.result()


def velocity_of(message: Twist) -> Velocity:
    """The six numbers of a message."""
    linear, angular = message.linear, message.angular
    return Velocity(linear.x, linear.y, linear.z, angular.x, angular.y, angular.z)


def _serialized(text: bytes) -> bytes:
    """A std_msgs/String in CDR, little endian: the length with the final NUL, the bytes, the NUL."""
    return b"\x00\x01\x00\x00" + (len(text) + 1).to_bytes(4, "little") + text + b"\x00"
