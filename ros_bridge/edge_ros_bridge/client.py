"""Talks to the bridge's nodes from another process: lifecycle, parameters, prompts, and what comes back, timed."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Any, TypeVar

import rclpy
from diagnostic_msgs.msg import DiagnosticArray
from geometry_msgs.msg import Twist
from lifecycle_msgs.msg import Transition
from lifecycle_msgs.srv import ChangeState, GetState
from rcl_interfaces.srv import SetParameters
from rclpy.context import Context
from rclpy.executors import SingleThreadedExecutor
from rclpy.parameter import Parameter
from rclpy.qos import QoSProfile
from rclpy.task import Future
from std_msgs.msg import String
from std_srvs.srv import Trigger

from edge_ros_bridge.motion import Velocity
from edge_sdk.errors import EdgeError, explain

Client = TypeVar("Client", bound="NodeClient")

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
    """Such as ``tokens``, ``text``, ``error`` or ``cmd_vel``."""
    data: Any
    """A Velocity of a Twist, else the message's ``data``."""


class NodeClient:
    """A node of its own that watches one of the bridge's nodes. A context manager.

    ``namespace`` is both nodes'. ``alive`` is asked while waiting; it raises when waiting on is useless, for instance
    because the node's process has ended.
    """

    def __init__(self, node_name: str, alive: Callable[[], None] = lambda: None, namespace: str = "") -> None:
        self.events: list[Event] = []
        self.diagnostics: dict[str, str] = {}
        """The last values of the node's diagnostics, ``level`` and ``message`` among them."""
        self._alive, self._name = alive, node_name
        self._context = Context()
        self._context.init()
        self.node = rclpy.create_node(f"{node_name}_client", context=self._context, namespace=namespace)
        self._executor = SingleThreadedExecutor(context=self._context)
        self._executor.add_node(self.node)
        self._services: dict[str, Any] = {}
        self._subscriptions: list[Any] = []
        for kind, name in ((ChangeState, "change_state"), (GetState, "get_state"), (SetParameters, "set_parameters")):
            self.serve(kind, name)
        self.node.create_subscription(DiagnosticArray, "/diagnostics", self._diagnose, 10)
        self.listen(String, f"{node_name}/error", "error", 10)

    def __enter__(self: Client) -> Client:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._executor.shutdown()
        self.node.destroy_node()
        self._context.shutdown()

    def listen(self, kind: Any, name: str, topic: str, qos: QoSProfile | int) -> None:
        """Records a topic's messages as events of ``topic``."""
        self._subscriptions.append(self.node.create_subscription(kind, name, self._record(topic), qos))

    def wait_until_matched(self, timeout_s: float = 10.0) -> None:
        """Until both sides know each other's topics and services, so that no message is lost."""
        self.wait(self._is_matched, f"the topics and services of the node {self._name}", timeout_s)

    def change_state(self, transition: str, timeout_s: float = 60.0) -> bool:
        """Asks for a transition, one of TRANSITIONS; False when the node could not make it."""
        request = ChangeState.Request()
        request.transition.id = TRANSITIONS[transition]
        return bool(self.call("change_state", request, timeout_s).success)

    def state(self, timeout_s: float = 10.0) -> str:
        """The node's lifecycle state, for instance ``inactive``."""
        return str(self.call("get_state", GetState.Request(), timeout_s).current_state.label)

    def set_parameter(self, name: str, value: Any, timeout_s: float = 10.0) -> str:
        """Changes a parameter; why the node did not, or nothing."""
        request = SetParameters.Request(parameters=[Parameter(name, value=value).to_parameter_msg()])
        (result,) = self.call("set_parameters", request, timeout_s).results
        return "" if result.successful else str(result.reason) or "refused"

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

    def wait_diagnostics(self, key: str, value: str, timeout_s: float = 10.0) -> dict[str, str]:
        """The diagnostics' values, once one of them is so. Raises NoAnswerError when that takes too long."""
        what = f"{key} {value} in the diagnostics"
        self.wait(lambda: self.diagnostics.get(key) == value, what, timeout_s)
        return self.diagnostics

    def forget(self) -> None:
        """Drops what came so far."""
        self.events.clear()
        self.diagnostics = {}

    def received(self, topic: str, since_s: float = 0.0) -> list[Event]:
        """The messages of a topic that arrived after a time on time.monotonic's clock."""
        return [event for event in self.events if event.topic == topic and event.time_s >= since_s]

    def velocities(self, since_s: float = 0.0) -> list[Velocity]:
        """What was asked of the robot after a time on time.monotonic's clock."""
        return [event.data for event in self.received("cmd_vel", since_s) if isinstance(event.data, Velocity)]

    def call(self, service: str, request: Any, timeout_s: float) -> Any:
        """The answer of one of the node's services."""
        future: Future = self._services[service].call_async(request)
        self.wait(future.done, f"the answer of {service}", timeout_s)
        return future.result()

    def serve(self, kind: Any, name: str) -> None:
        """Makes one of the node's services one that can be called."""
        self._services[name] = self.node.create_client(kind, f"{self._name}/{name}")

    def _is_matched(self) -> bool:
        return all(service.service_is_ready() for service in self._services.values()) and all(
            subscription.get_publisher_count() > 0 for subscription in self._subscriptions
        )

    def _record(self, topic: str) -> Callable[[Any], None]:
        def receive(message: Any) -> None:
            data = velocity_of(message) if isinstance(message, Twist) else message.data
            self.events.append(Event(time.monotonic(), topic, data))

        return receive

    def _diagnose(self, array: DiagnosticArray) -> None:
        own = f"{self.node.get_namespace().rstrip('/')}/{self._name}"
        for status in array.status:
            if status.hardware_id == own:
                values = {pair.key: pair.value for pair in status.values}
                self.diagnostics = values | {"level": str(status.level[0]), "message": status.message}


class LanguageClient(NodeClient):
    """A record of all that a language node sends."""

    def __init__(
        self, node_name: str = "language", alive: Callable[[], None] = lambda: None, namespace: str = ""
    ) -> None:
        super().__init__(node_name, alive, namespace)
        self.serve(Trigger, "cancel")
        self.listen(String, f"{node_name}/tokens", "tokens", 100)
        self.listen(String, f"{node_name}/text", "text", 10)
        self.listen(Twist, "cmd_vel", "cmd_vel", 100)
        self._prompt = self.node.create_publisher(String, f"{node_name}/prompt", 10)

    def send(self, prompt: str | bytes) -> float:
        """Sends a prompt, as bytes without looking at them; returns the time on time.monotonic's clock."""
        sent_s = time.monotonic()
        self._prompt.publish(String(data=prompt) if isinstance(prompt, str) else _serialized(prompt))
        return sent_s

    def send_prompts_to(self, topic: str) -> None:
        """Where the node's topic of prompts was given another name."""
        self.node.destroy_publisher(self._prompt)
        self._prompt = self.node.create_publisher(String, topic, 10)

    def cancel(self, timeout_s: float = 10.0) -> bool:
        """Ends the answer and drops what waits; whether there was anything."""
        return bool(self.call("cancel", Trigger.Request(), timeout_s).success)

    def _is_matched(self) -> bool:
        return super()._is_matched() and self._prompt.get_subscription_count() > 0


def velocity_of(message: Twist) -> Velocity:
    """The six numbers of a message."""
    linear, angular = message.linear, message.angular
    return Velocity(linear.x, linear.y, linear.z, angular.x, angular.y, angular.z)


def _serialized(text: bytes) -> bytes:
    """A std_msgs/String in CDR, little endian: the length with the final NUL, the bytes, the NUL."""
    return b"\x00\x01\x00\x00" + (len(text) + 1).to_bytes(4, "little") + text + b"\x00"
