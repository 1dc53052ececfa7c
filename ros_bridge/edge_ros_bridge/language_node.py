"""The lifecycle node ``language``: prompts in; tokens, text, errors and motion out.

Where there is no ``ros2 run``:

    python -m edge_ros_bridge.language_node --ros-args -p bundle:=/path/to/bundle -p autostart:=true
"""

# mypy: allow-subclassing-any
# where rclpy is not installed its classes are Any

from __future__ import annotations

import functools
import signal
import sys
import threading
import traceback
from collections.abc import Callable
from types import FrameType

import rclpy
from geometry_msgs.msg import Twist, Vector3
from rcl_interfaces.msg import FloatingPointRange, IntegerRange, ParameterDescriptor
from rclpy.duration import Duration
from rclpy.exceptions import ParameterException
from rclpy.executors import SingleThreadedExecutor
from rclpy.impl.implementation_singleton import rclpy_implementation
from rclpy.lifecycle import LifecycleNode, LifecycleState, TransitionCallbackReturn
from rclpy.logging import get_logger
from rclpy.signals import SignalHandlerOptions
from rclpy.timer import Timer
from std_msgs.msg import String

import edge_sdk
from edge_ros_bridge.answering import Answerer, Limits, Listener
from edge_ros_bridge.motion import STOP, Speeds, Velocity, actions_of, plan
from edge_ros_bridge.player import MotionPlayer
from edge_sdk.errors import EdgeError, explain

DEFAULT_SPEEDS, DEFAULT_LIMITS = Speeds(), Limits()
ACKNOWLEDGE_S = 1.0
"""How long the last zero may take to reach every subscriber before the process ends."""


def _described(text: str) -> ParameterDescriptor:
    return ParameterDescriptor(description=f"{text} Read when the node is configured.")


def _real(text: str, low: float, high: float) -> ParameterDescriptor:
    descriptor = _described(text)
    descriptor.floating_point_range = [FloatingPointRange(from_value=low, to_value=high)]
    return descriptor


def _whole(text: str, low: int, high: int) -> ParameterDescriptor:
    descriptor = _described(text)
    descriptor.integer_range = [IntegerRange(from_value=low, to_value=high, step=1)]
    return descriptor


PARAMETERS = (
    ("bundle", "", _described("Path of the bundle to load.")),
    ("max_new_tokens", DEFAULT_LIMITS.max_new_tokens, _whole("Longest answer in tokens.", 1, 1_000_000)),
    ("queue_size", DEFAULT_LIMITS.queue_size, _whole("How many prompts may wait for their turn.", 1, 1000)),
    ("drive", True, _described("Turn answers into velocities on cmd_vel.")),
    ("linear_speed", DEFAULT_SPEEDS.linear_m_s, _real("Highest forward speed in m/s.", 0.01, 10.0)),
    ("angular_speed", DEFAULT_SPEEDS.angular_rad_s, _real("Highest turning speed in rad/s.", 0.01, 20.0)),
    ("rate_hz", DEFAULT_SPEEDS.rate_hz, _real("Velocities per second on cmd_vel.", 1.0, 200.0)),
    ("autostart", False, _described("Configure and activate at start, without a lifecycle manager.")),
)


Transition = Callable[["LanguageNode", LifecycleState], TransitionCallbackReturn]


def _logged(transition: Transition) -> Transition:
    """Logs an unexpected exception, which rclpy would swallow on its way to the state ``errorprocessing``."""

    @functools.wraps(transition)
    def run(node: LanguageNode, state: LifecycleState) -> TransitionCallbackReturn:
        try:
            return transition(node, state)
        except Exception:
            node.report(f"{transition.__name__} failed unexpectedly. {traceback.format_exc()}")
            raise

    return run


class LanguageNode(LifecycleNode):
    """Loads a bundle when configured, answers and drives while active."""

    def __init__(self) -> None:
        super().__init__("language")
        for name, default, descriptor in PARAMETERS:
            self.declare_parameter(name, default, descriptor)
        self._tokens = self.create_lifecycle_publisher(String, "~/tokens", 100)
        self._text = self.create_lifecycle_publisher(String, "~/text", 10)
        self._cmd_vel = self.create_lifecycle_publisher(Twist, "cmd_vel", 10)
        # an ordinary publisher: what is wrong is said in every state
        self._errors = self.create_publisher(String, "~/error", 10)
        self.create_subscription(String, "~/prompt", self._on_prompt, 10)
        self._player = MotionPlayer()
        self._model: edge_sdk.LanguageModel | None = None
        self._answerer: Answerer | None = None
        self._timer: Timer | None = None
        self._speeds, self._limits, self._drive = DEFAULT_SPEEDS, DEFAULT_LIMITS, True

    @_logged
    def on_configure(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Loads the bundle; FAILURE, with the reason logged, leaves the node unconfigured."""
        try:
            self._read_parameters()
            self._model = edge_sdk.load(self._bundle_path())
        except EdgeError as error:
            self.report(str(error))
            return TransitionCallbackReturn.FAILURE
        self.get_logger().info(f"loaded {self._model.bundle.path}, which runs on {self._model.engine.name}")
        return super().on_configure(state)

    @_logged
    def on_activate(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Starts answering and the timer of the motion."""
        assert self._model is not None  # the state machine activates only what is configured
        result = super().on_activate(state)
        listener = Listener(self._send_token, self._send_text, self._carry_out, self.report)
        self._answerer = Answerer(self._model, self._limits, listener)
        self._timer = self.create_timer(1 / self._speeds.rate_hz, self._tick)
        return result

    @_logged
    def on_deactivate(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Stops the robot first, then the answering."""
        self._halt()
        return super().on_deactivate(state)

    def on_cleanup(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Frees the model."""
        self._model = None
        return super().on_cleanup(state)

    @_logged
    def on_shutdown(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Stops and frees everything, from whatever state."""
        self._halt()
        self._model = None
        return super().on_shutdown(state)

    @_logged
    def on_error(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Leaves nothing running after a transition that failed unexpectedly; the node is unconfigured again."""
        self._halt()
        self._model = None
        return super().on_error(state)

    def start(self) -> bool:
        """Configures and activates by itself; False when that failed, the reason being logged."""
        return all(
            step() == TransitionCallbackReturn.SUCCESS for step in (self.trigger_configure, self.trigger_activate)
        )

    def finish(self) -> None:
        """Before the process ends: stops the robot, waits until the zero has arrived, stops answering."""
        self._halt()
        self._cmd_vel.wait_for_all_acked(Duration(seconds=ACKNOWLEDGE_S))

    def report(self, message: str) -> None:
        """Logs an error and publishes it on ~/error."""
        self.get_logger().error(message)
        self._errors.publish(String(data=message))

    def _read_parameters(self) -> None:
        value = {name: self.get_parameter(name).value for name, _, _ in PARAMETERS}
        self._speeds = Speeds(value["linear_speed"], value["angular_speed"], value["rate_hz"])
        self._limits = Limits(value["max_new_tokens"], value["queue_size"])
        self._drive = value["drive"]

    def _bundle_path(self) -> str:
        path = str(self.get_parameter("bundle").value)
        if not path:
            raise EdgeError(
                explain("The parameter bundle", expected="a path", found="none", todo="Start with -p bundle:=PATH.")
            )
        return path

    def _on_prompt(self, message: String) -> None:
        try:
            if self._answerer is None:
                raise EdgeError(
                    explain("The node", expected="active", found="not active", todo="Activate it, then ask again.")
                )
            self._answerer.submit(message.data)
        except EdgeError as error:
            self.report(str(error))

    def _send_token(self, text: str) -> None:
        self._tokens.publish(String(data=text))

    def _send_text(self, text: str) -> None:
        self._text.publish(String(data=text))

    def _carry_out(self, text: str, cancelled: threading.Event) -> None:
        if self._drive:
            self._player.add(plan(actions_of(text), self._speeds), cancelled)

    def _tick(self) -> None:
        velocity = self._player.tick()
        if velocity is not None:
            self._cmd_vel.publish(twist(velocity))

    def _halt(self) -> None:
        """The zero first: ending an answer may take as long as one step of the model."""
        if self._timer is not None:
            self.destroy_timer(self._timer)
            self._timer = None
        if self._player.stop():
            self._cmd_vel.publish(twist(STOP))
        answerer, self._answerer = self._answerer, None
        if answerer is not None and not answerer.stop():
            self.get_logger().warning("the model is still busy with its last step; its result will be dropped")
        self._player.stop()


def twist(velocity: Velocity) -> Twist:
    """The message of a velocity."""
    return Twist(
        linear=Vector3(x=velocity.linear_x, y=velocity.linear_y, z=velocity.linear_z),
        angular=Vector3(x=velocity.angular_x, y=velocity.angular_y, z=velocity.angular_z),
    )


class Interrupt:
    """Remembers the first SIGINT or SIGTERM; a second one ends the process at once."""

    def __init__(self) -> None:
        self.received = False
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._receive)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        self.received = True
        signal.signal(number, signal.SIG_DFL)


def main(args: list[str] | None = None) -> int:
    """Runs the node until SIGINT or SIGTERM. Exit code 1 when autostart was asked for and failed."""
    # rclpy's own handlers close the connection at once, and the zero could not be sent any more
    rclpy.init(args=args, signal_handler_options=SignalHandlerOptions.NO)
    interrupt, executor = Interrupt(), SingleThreadedExecutor()
    try:
        node = LanguageNode()
    except ParameterException as error:
        get_logger("language").fatal(f"{error}. Correct the value given with -p.")
        rclpy.shutdown()
        return 1
    executor.add_node(node)
    try:
        if node.get_parameter("autostart").value and not node.start():
            return 1
        while not interrupt.received:
            _spin_once(node, executor)
        return 0
    finally:
        node.finish()  # a robot must not drive on, whatever ended the loop
        executor.shutdown()
        node.destroy_node()
        rclpy.shutdown()


def _spin_once(node: LanguageNode, executor: SingleThreadedExecutor) -> None:
    try:
        executor.spin_once(timeout_sec=0.1)
    except rclpy_implementation.RCLError as error:
        # rclpy raises this out of the executor when a client asks for a transition that the state does not have
        node.get_logger().error(f"a request was refused: {error}")


if __name__ == "__main__":
    sys.exit(main())
