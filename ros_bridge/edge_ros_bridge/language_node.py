"""The lifecycle node ``language``: prompts in; tokens, text, errors and motion out.

Where there is no ``ros2 run``:

    python -m edge_ros_bridge.language_node --ros-args -p bundle:=/path/to/bundle -p autostart:=true
"""

# mypy: allow-subclassing-any
# where rclpy is not installed its classes are Any

from __future__ import annotations

import sys
import threading
from typing import Any

from geometry_msgs.msg import Twist, Vector3
from rclpy.callback_groups import ReentrantCallbackGroup
from rclpy.duration import Duration
from rclpy.lifecycle import LifecycleState, TransitionCallbackReturn
from rclpy.timer import Timer
from std_msgs.msg import String
from std_srvs.srv import Trigger

import edge_sdk
from edge_ros_bridge import interfaces
from edge_ros_bridge.answering import Answerer, Listener, Settings
from edge_ros_bridge.counting import Answers, Status
from edge_ros_bridge.interface import LANGUAGE
from edge_ros_bridge.motion import STOP, Speeds, Velocity, actions_of, plan
from edge_ros_bridge.node import BridgeNode, logged, run
from edge_ros_bridge.player import MotionPlayer
from edge_sdk.errors import EdgeError, explain

ACKNOWLEDGE_S = 1.0
"""How long the last zero may take to reach every subscriber before the process ends."""


class LanguageNode(BridgeNode):
    """Loads a bundle when configured, answers and drives while active."""

    lasting_topics = True

    def __init__(self, **options: Any) -> None:
        super().__init__(LANGUAGE, **options)
        self._tokens = self.offer("~/tokens", managed=True)
        self._text = self.offer("~/text", managed=True)
        self._cmd_vel = self.offer("cmd_vel", managed=True)
        self.subscribe("~/prompt", self._on_prompt)
        # of a group of its own: a cancel does not wait for other callbacks where the executor has several threads
        self.create_service(Trigger, "~/cancel", self._on_cancel, callback_group=ReentrantCallbackGroup())
        self._player = MotionPlayer()
        self._answers = Answers()
        self._model: edge_sdk.LanguageModel | None = None
        self._answerer: Answerer | None = None
        self._timer: Timer | None = None
        self._speeds, self._settings, self._drive = Speeds(), Settings(), True
        self.apply({})
        self._pieces: Any = None
        self._generating = self._begin_generating()

    @logged
    def on_configure(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Loads the bundle; FAILURE, with the reason logged, leaves the node unconfigured."""
        self._speeds = Speeds(self.value("linear_speed"), self.value("angular_speed"), self.value("rate_hz"))
        self._drive = self.value("drive")
        slots, waiting = self.value("slots"), self.value("queue_size")
        threads = self.value("threads") or None
        self._model = edge_sdk.load(self.bundle_path(), threads=threads, slots=slots, waiting=waiting)
        if self._generating is not None:
            self._generating.configure(self._model, self.value("session_folder"), waiting)
        self.get_logger().info(f"loaded {self._model.bundle.path}, which runs on {self._model.engine.name}")
        return super().on_configure(state)

    @logged
    def on_activate(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Starts answering and the timer of the motion."""
        assert self._model is not None  # the state machine activates only what is configured
        result = super().on_activate(state)
        listener = Listener(self._send_token, self._send_text, self._carry_out, self.report, self._send_numbered)
        queue_size = self.value("queue_size")
        self._answerer = Answerer(self._model, queue_size, lambda: self._settings, listener, self._answers)
        if self._generating is not None:
            self._generating.resume()
        self._timer = self.create_timer(1 / self._speeds.rate_hz, self._tick)
        return result

    def finish(self) -> None:
        """Before the process ends: stops the robot, waits until the zero has arrived, stops answering."""
        self.halt()
        self._cmd_vel.wait_for_all_acked(Duration(seconds=ACKNOWLEDGE_S))

    def status(self) -> Status:
        """What the diagnostics say of this node."""
        waiting = 0 if self._answerer is None else self._answerer.waiting
        own = "off" if self._generating is None else "on"
        values = {"waiting": str(waiting), "edge_sdk_msgs": own} | self._answers.values()
        full = waiting >= self.value("queue_size")
        return Status("warn" if full else "ok", "prompts are refused" if full else self.state, values)

    def apply(self, changed: dict[str, Any]) -> None:
        """Takes over what may change from one answer to the next. Raises ConfigError."""
        names = ("max_new_tokens", "deadline_ms", "temperature", "priority")
        values = {name: changed.get(name, self.value(name)) for name in names}
        settings = Settings(**values | {"deadline_ms": values["deadline_ms"] or None})
        settings.options()  # refuses what makes no sense
        self._settings = settings

    def _begin_generating(self) -> Any:
        """The action, the service and the pieces, or None, and why, where their messages are not generated."""
        if interfaces.MISSING:
            self.get_logger().warning(interfaces.MISSING)
            return None
        from edge_ros_bridge.generating import Generating

        self._pieces = self.offer("~/pieces", managed=True)
        return Generating(self, lambda: self._settings, self._answers, self.report, self._send_piece)

    def _on_prompt(self, message: String) -> None:
        try:
            if self._answerer is None:
                raise EdgeError(
                    explain("The node", expected="active", found="not active", todo="Activate it, then ask again.")
                )
            self._answerer.submit(message.data)
        except EdgeError as error:
            self.report(str(error))

    def _on_cancel(self, request: Any, response: Any) -> Any:
        answerer = self._answerer
        cancelled = 0 if answerer is None else answerer.cancel()
        response.success, response.message = cancelled > 0, f"{cancelled} prompts cancelled"
        return response

    def _send_token(self, text: str) -> None:
        self._tokens.publish(String(data=text))

    def _send_numbered(self, request: int, index: int, text: str) -> None:
        self._send_piece(f"prompt-{request}", index, text)

    def _send_piece(self, request: str, index: int, text: str) -> None:
        if self._pieces is not None:
            self._pieces.publish(interfaces.Piece(request=request, index=index, text=text))

    def _send_text(self, text: str) -> None:
        self._text.publish(String(data=text))

    def _carry_out(self, text: str, cancelled: threading.Event) -> None:
        if self._drive:
            self._player.add(plan(actions_of(text), self._speeds), cancelled)

    def _tick(self) -> None:
        velocity = self._player.tick()
        if velocity is not None:
            self._cmd_vel.publish(twist(velocity))

    def halt(self) -> None:
        """Stops the robot first: ending an answer may take as long as one step of the model."""
        if self._timer is not None:
            self.destroy_timer(self._timer)
            self._timer = None
        if self._player.stop():
            self._cmd_vel.publish(twist(STOP))
        if self._generating is not None:
            self._generating.pause()
        answerer, self._answerer = self._answerer, None
        if answerer is not None and not answerer.stop():
            self.get_logger().warning("the model is still busy with its last step; its result will be dropped")
        self._player.stop()

    def free(self) -> None:
        """The model and the sessions."""
        if self._generating is not None:
            self._generating.forget()
        self._model = None


def twist(velocity: Velocity) -> Twist:
    """The message of a velocity."""
    return Twist(
        linear=Vector3(x=velocity.linear_x, y=velocity.linear_y, z=velocity.linear_z),
        angular=Vector3(x=velocity.angular_x, y=velocity.angular_y, z=velocity.angular_z),
    )


def main(args: list[str] | None = None) -> int:
    """Runs the node until SIGINT or SIGTERM. Exit code 1 when autostart was asked for and failed."""
    return run([LanguageNode], args)


if __name__ == "__main__":
    sys.exit(main())
