"""What the bridge's nodes have in common: parameters, topics, errors, diagnostics, and the process around them."""

# mypy: allow-subclassing-any
# where rclpy is not installed its classes are Any

from __future__ import annotations

import functools
import signal
import traceback
from collections.abc import Callable, Sequence
from types import FrameType
from typing import Any

import rclpy
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus, KeyValue
from rcl_interfaces.msg import FloatingPointRange, IntegerRange, ParameterDescriptor, SetParametersResult
from rclpy.clock import Clock, ClockType
from rclpy.exceptions import ParameterException
from rclpy.executors import Executor, MultiThreadedExecutor, SingleThreadedExecutor
from rclpy.impl.implementation_singleton import rclpy_implementation
from rclpy.lifecycle import LifecycleNode, LifecycleState, TransitionCallbackReturn
from rclpy.logging import get_logger
from rclpy.parameter import Parameter as SetParameter
from rclpy.qos import DurabilityPolicy, QoSPolicyKind, QoSProfile, ReliabilityPolicy
from rclpy.qos_overriding_options import QoSOverridingOptions
from rclpy.signals import SignalHandlerOptions
from std_msgs.msg import String

try:
    from rclpy.event_handler import PublisherEventCallbacks, SubscriptionEventCallbacks
except ImportError:  # Humble
    from rclpy.qos_event import PublisherEventCallbacks, SubscriptionEventCallbacks

try:
    from rclpy.experimental import EventsExecutor
except ImportError:  # Humble
    EventsExecutor = SingleThreadedExecutor

from edge_ros_bridge.commands import message_class
from edge_ros_bridge.counting import Level, Status, machine_values
from edge_ros_bridge.interface import Interface, Parameter, Qos
from edge_sdk.errors import EdgeError, explain

OVERRIDABLE = (
    QoSPolicyKind.DEPTH,
    QoSPolicyKind.RELIABILITY,
    QoSPolicyKind.DURABILITY,
    QoSPolicyKind.DEADLINE,
    QoSPolicyKind.LIFESPAN,
)
"""Of every topic's QoS, by parameters such as ``qos_overrides./language/text.publisher.depth``."""

LEVELS: dict[Level, bytes] = {
    "ok": DiagnosticStatus.OK,
    "warn": DiagnosticStatus.WARN,
    "error": DiagnosticStatus.ERROR,
    "stale": DiagnosticStatus.STALE,
}

Transition = Callable[[Any, LifecycleState], TransitionCallbackReturn]


def logged(transition: Transition) -> Transition:
    """Reports what a transition raises: an error of the user's makes it fail, and rclpy would swallow all others unsaid
    on their way to the state ``errorprocessing``.
    """

    @functools.wraps(transition)
    def run(node: BridgeNode, state: LifecycleState) -> TransitionCallbackReturn:
        try:
            return transition(node, state)
        except (EdgeError, ParameterException) as error:  # the latter of a parameter that is declared only now
            node.report(str(error))
            return TransitionCallbackReturn.FAILURE
        except Exception:
            node.report(f"{transition.__name__} failed unexpectedly. {traceback.format_exc()}")
            raise

    return run


def profile(qos: Qos) -> QoSProfile:
    """rclpy's form of a topic's QoS."""
    return QoSProfile(
        depth=qos.depth,
        reliability=ReliabilityPolicy[qos.reliability.upper()],
        durability=DurabilityPolicy[qos.durability.upper()],
    )


def _descriptor(parameter: Parameter) -> ParameterDescriptor:
    note = "" if parameter.live else " Read when the node is configured."
    descriptor = ParameterDescriptor(description=f"{parameter.what}.{note}")
    if parameter.low is not None and parameter.high is not None:
        if isinstance(parameter.default, float):
            descriptor.floating_point_range = [FloatingPointRange(from_value=parameter.low, to_value=parameter.high)]
        else:
            low, high = int(parameter.low), int(parameter.high)
            descriptor.integer_range = [IntegerRange(from_value=low, to_value=high, step=1)]
    return descriptor


class BridgeNode(LifecycleNode):
    """A lifecycle node made from an interface. ``options`` are those of rclpy's Node, such as its namespace."""

    threads = 1
    """How many the executor of a process of its own needs."""
    lasting_topics = False
    """Whether its publishers and subscriptions live as long as it does."""

    def __init__(self, interface: Interface, **options: Any) -> None:
        super().__init__(interface.node, **options)
        self._interface = interface
        self.mismatches: dict[str, int] = {}
        """By topic: peers whose QoS does not fit."""
        self._live = {parameter.name for parameter in interface.parameters if parameter.live}
        self.declare(interface.parameters)
        self._errors = self.offer("~/error")  # an ordinary publisher: what is wrong is said in every state
        self._diagnostics = self.offer("/diagnostics")
        # of the steady clock, so that it goes on where a simulation stands still
        self.create_timer(1.0, self._diagnose, clock=Clock(clock_type=ClockType.STEADY_TIME))
        self.add_on_set_parameters_callback(self._check_parameters)

    def declare(self, parameters: Sequence[Parameter], prefix: str = "") -> None:
        """Declares parameters, which may be declared already."""
        for parameter in parameters:
            name, default = prefix + parameter.name, parameter.default
            if self.has_parameter(name):
                continue
            if isinstance(default, list):  # an empty list has no type that ROS could tell
                self.declare_parameter(name, SetParameter.Type.STRING_ARRAY, _descriptor(parameter))
            else:
                self.declare_parameter(name, default, _descriptor(parameter))

    def value(self, name: str) -> Any:
        """A parameter's value; None for a list that is not set."""
        return self.get_parameter_or(name, SetParameter(name)).value

    def offer(self, name: str, *, managed: bool = False) -> Any:
        """A publisher of one of the interface's topics; a managed one is silent while the node is not active."""
        topic = self._interface.topic(name)
        return self.publisher(message_class(topic.type), name, profile(topic.qos), managed=managed)

    def publisher(self, kind: Any, name: str, qos: QoSProfile, *, managed: bool) -> Any:
        """A publisher whose QoS can be overridden by parameters."""
        create = self.create_lifecycle_publisher if managed else self.create_publisher
        return create(
            kind,
            name,
            qos,
            event_callbacks=PublisherEventCallbacks(incompatible_qos=self._mismatch(name, "subscriber")),
            qos_overriding_options=QoSOverridingOptions(OVERRIDABLE),
        )

    def subscribe(self, name: str, callback: Callable[[Any], None], group: Any = None) -> Any:
        """A subscription of one of the interface's topics; ``group``: the callback group, None is the node's."""
        topic = next(topic for topic in self._interface.topics if topic.name == name and topic.direction == "in")
        return self.subscription(message_class(topic.type), name, callback, profile(topic.qos), group)

    def subscription(
        self,
        kind: Any,
        name: str,
        callback: Callable[[Any], None],
        qos: QoSProfile,
        group: Any = None,
        *,
        raw: bool = False,
    ) -> Any:
        """A subscription whose QoS can be overridden by parameters; a raw one brings bytes in CDR."""
        return self.create_subscription(
            kind,
            name,
            callback,
            qos,
            callback_group=group,
            event_callbacks=SubscriptionEventCallbacks(incompatible_qos=self._mismatch(name, "publisher")),
            qos_overriding_options=QoSOverridingOptions(OVERRIDABLE),
            raw=raw,
        )

    def report(self, message: str) -> None:
        """Logs an error and publishes it on ~/error."""
        self.get_logger().error(message)
        self._errors.publish(String(data=message))

    def bundle_path(self) -> str:
        """The parameter ``bundle``. Raises EdgeError where it is not set."""
        path = str(self.value("bundle"))
        if not path:
            raise EdgeError(
                explain("The parameter bundle", expected="a path", found="none", todo="Start with -p bundle:=PATH.")
            )
        return path

    def status(self) -> Status:
        """What the diagnostics say of this node."""
        raise NotImplementedError

    def apply(self, changed: dict[str, Any]) -> None:
        """Takes over live parameters that were changed. Raises EdgeError where they cannot be."""

    def halt(self) -> None:
        """Stops whatever runs while the node is active; may be called when nothing does."""
        raise NotImplementedError

    def free(self) -> None:
        """Gives back what configuring took, after :meth:`halt`; may be called when there is nothing."""
        raise NotImplementedError

    @logged
    def on_deactivate(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Stops; then managed topics are silent."""
        self.halt()
        return super().on_deactivate(state)

    @logged
    def on_cleanup(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Frees everything."""
        self._end()
        return super().on_cleanup(state)

    @logged
    def on_shutdown(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Stops and frees everything, from whatever state."""
        self._end()
        return super().on_shutdown(state)

    @logged
    def on_error(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Leaves nothing running after a transition that failed unexpectedly; the node is unconfigured again."""
        self._end()
        return super().on_error(state)

    def _end(self) -> None:
        self.halt()
        self.free()

    def start(self) -> bool:
        """Configures and activates by itself; False when that failed, the reason being logged."""
        return all(
            step() == TransitionCallbackReturn.SUCCESS for step in (self.trigger_configure, self.trigger_activate)
        )

    def finish(self) -> None:
        """Before the process ends."""

    @property
    def state(self) -> str:
        """The lifecycle state's name."""
        return str(self._state_machine.current_state[1])

    def _check_parameters(self, parameters: list[SetParameter]) -> SetParametersResult:
        own = {parameter.name for parameter in self._interface.parameters}
        for parameter in parameters:
            fixed = parameter.name not in self._live and (
                parameter.name in own or parameter.name.startswith(("sources.", "steps."))
            )
            if fixed and self.state in ("inactive", "active"):
                reason = f"{parameter.name} is read when the node is configured: clean it up first"
                return SetParametersResult(successful=False, reason=reason)
        try:
            self.apply({parameter.name: parameter.value for parameter in parameters if parameter.name in self._live})
        except EdgeError as error:
            return SetParametersResult(successful=False, reason=str(error))
        return SetParametersResult(successful=True)

    def _mismatch(self, topic: str, peer: str) -> Callable[[Any], None]:
        def tell(event: Any) -> None:
            self.mismatches[topic] = event.total_count
            policy = QoSPolicyKind(event.last_policy_kind).name.lower()
            self.report(f"{topic}: a {peer} asks for another QoS, {policy}; nothing passes between it and this node.")

        return tell

    def _diagnose(self) -> None:
        status = self.status()
        values = {"state": self.state} | status.values | machine_values()
        values |= {f"qos_mismatches {topic}": str(count) for topic, count in self.mismatches.items()}
        level, message = status.level, status.message
        if level == "ok" and self.mismatches:
            level, message = "warn", "the QoS of a peer does not fit"
        name = self.get_fully_qualified_name()
        array = DiagnosticArray()
        array.header.stamp = self.get_clock().now().to_msg()
        array.status = [
            DiagnosticStatus(
                level=LEVELS[level],
                name=f"{name.lstrip('/')}: {self._interface.node}",
                message=message,
                hardware_id=name,
                values=[KeyValue(key=key, value=value) for key, value in values.items()],
            )
        ]
        self._diagnostics.publish(array)


NUMBERS = (signal.SIGINT, signal.SIGTERM)
"""Signals that end a node as it should."""

SAME_S = 1.0
"""Signals within this time are one: who signals a whole group of processes, as systemd does, signals ``ros2 launch``
too, which passes it on to its nodes.
"""


class Interrupt:
    """Remembers the first SIGINT or SIGTERM; one that comes SAME_S later, or more, ends the process at once.

    By when they come, not by when Python finds the time to handle them: the kernel drops them until an alarm.
    """

    def __init__(self) -> None:
        self.received = False
        """Whether there was one."""
        signal.signal(signal.SIGALRM, self._end_by_the_next)
        for number in NUMBERS:
            signal.signal(number, self._receive)

    def ignore(self) -> None:
        """From now on: a late copy of the signal does not make a failure of a process that is ending as it should."""
        signal.setitimer(signal.ITIMER_REAL, 0)
        for number in (signal.SIGALRM, *NUMBERS):
            signal.signal(number, signal.SIG_IGN)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if not self.received:
            self.received = True
            for each in NUMBERS:
                signal.signal(each, signal.SIG_IGN)
            signal.setitimer(signal.ITIMER_REAL, SAME_S)

    def _end_by_the_next(self, number: int, frame: FrameType | None) -> None:
        for each in NUMBERS:
            signal.signal(each, signal.SIG_DFL)


def executor_for(nodes: Sequence[BridgeNode]) -> Executor:
    """The quickest of rclpy's executors that may run these nodes.

    SingleThreadedExecutor builds its wait set anew after each message, in Python and holding the interpreter, and the
    model's thread waits for that. EventsExecutor has none; but the process crashes where a topic that has event
    callbacks, as all of ours have, is destroyed while it runs (ros2/rclpy#1644, seen with 7.1.6).
    """
    threads = sum(node.threads for node in nodes)
    if threads > 1:
        return MultiThreadedExecutor(num_threads=threads)
    return EventsExecutor() if all(node.lasting_topics for node in nodes) else SingleThreadedExecutor()


def run(kinds: Sequence[Callable[[], BridgeNode]], args: list[str] | None = None) -> int:
    """Runs nodes in this process until SIGINT or SIGTERM. Exit code 1 where an autostart failed."""
    # rclpy's own handlers close the connection at once, and the zero could not be sent any more
    rclpy.init(args=args, signal_handler_options=SignalHandlerOptions.NO)
    interrupt, nodes = Interrupt(), list[BridgeNode]()
    try:
        nodes += [kind() for kind in kinds]
    except ParameterException as error:
        get_logger("edge_ros_bridge").fatal(f"{error}. Correct the value given with -p.")
        rclpy.shutdown()
        return 1
    executor = executor_for(nodes)
    for node in nodes:
        executor.add_node(node)
    try:
        for node in nodes:
            if node.value("autostart") and not node.start():
                return 1
        while not interrupt.received:
            _spin_once(nodes[0], executor)
        return 0
    finally:
        for node in nodes:
            node.finish()  # a robot must not drive on, whatever ended the loop
        executor.shutdown()
        for node in nodes:
            node.destroy_node()
        rclpy.shutdown()
        interrupt.ignore()


def _spin_once(node: BridgeNode, executor: Executor) -> None:
    try:
        executor.spin_once(timeout_sec=0.1)
    except rclpy_implementation.RCLError as error:
        # rclpy raises this out of the executor when a client asks for a transition that the state does not have
        node.get_logger().error(f"a request was refused: {error}")
