"""The lifecycle node ``control``: sensors in, a policy's commands out, by the control loop of Edge SDK.

python -m edge_ros_bridge.control_node --ros-args -p policy:=/path/to/bundle -p command:=twist
"""

# mypy: allow-subclassing-any
# where rclpy is not installed its classes are Any

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path
from typing import Any

from rclpy.callback_groups import MutuallyExclusiveCallbackGroup
from rclpy.clock import Clock, ClockType
from rclpy.duration import Duration
from rclpy.lifecycle import LifecycleState, TransitionCallbackReturn
from std_msgs.msg import Bool, String
from std_srvs.srv import SetBool

from edge_ros_bridge.commands import COMMANDS, Layout, Moment, layout_of, message_class, resting
from edge_ros_bridge.counting import Status
from edge_ros_bridge.following import TakesOrders
from edge_ros_bridge.interface import COMMAND_QOS, CONTROL, SENSOR_QOS, SOURCE_PARAMETERS
from edge_ros_bridge.matching import StampMatcher
from edge_ros_bridge.node import BridgeNode, logged, profile, run
from edge_ros_bridge.plans import PlanError, Progress, read_order
from edge_ros_bridge.policies import find_policy
from edge_ros_bridge.ros_clock import RosClock
from edge_ros_bridge.ros_robot import RosRobot
from edge_ros_bridge.running import Runner
from edge_ros_bridge.sensors import SENSORS, Source, usual_fields
from edge_ros_bridge.stopping import Latch
from edge_sdk.control.clock import Clock as LoopClock
from edge_sdk.control.clock import MonotonicClock
from edge_sdk.control.model_policy import stride_of
from edge_sdk.control.policy import ObservationSpec, Policy
from edge_sdk.control.robot import FloatArray
from edge_sdk.control.settings import LoopSettings, Stages

DEADLINE_PERIODS = 2
"""After so many periods a command that did not come is a missed deadline."""

LIFESPAN_S = 1.0
"""So old a command is not delivered any more; the last one is a stop, so this must not be short."""

LOOK_S = 0.05
"""How soon the node notices that the loop has ended by itself."""

ACKNOWLEDGE_S = 1.0
"""How long the last command may take to reach every subscriber before the process ends."""


class ControlNode(BridgeNode):
    """Loads a policy when configured, drives while active; inactive again when the loop ends by itself."""

    threads = 2
    """An emergency stop does not wait for other callbacks."""

    def __init__(self, **options: Any) -> None:
        super().__init__(CONTROL, **options)
        self._latch = Latch()
        urgent = MutuallyExclusiveCallbackGroup()  # a press and a release are not answered at the same time
        self.subscribe("~/estop", lambda message: self._stop_if(self._latch.press(message.data)), group=urgent)
        self.create_service(SetBool, "~/estop", self._on_estop, callback_group=urgent)
        self._estopped = self.offer("~/estopped")
        self._estopped.publish(Bool(data=False))
        self.subscribe("~/step", self._on_step)
        self._progress = self.offer("~/progress")
        self._told: Progress | None = None
        """The progress that was published last."""
        self._policy: Policy | None = None
        self._sources: tuple[Source, ...] = ()
        self._subscriptions_made: list[Any] = []
        self._commands: Any = None
        self._layout, self._settings = Layout(()), LoopSettings()
        self._runner: Runner | None = None
        self._robot: RosRobot | None = None
        self._sim_clock: RosClock | None = None
        self._from_future = 0
        self.create_timer(LOOK_S, self._look, clock=Clock(clock_type=ClockType.STEADY_TIME))

    @logged
    def on_configure(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Loads the policy and makes its topics; FAILURE, with the reason logged, leaves the node unconfigured."""
        policy = find_policy(self.value("policy"), self.value("policy_entry"), self.value("instruction"))
        self._layout = layout_of(self.value("command"), policy.config.action)
        self._sources = tuple(self._source(spec, policy) for spec in policy.config.observations)
        stages = Stages(**{f"{name}_after_ms": self.value(f"{name}_after_ms") for name in ("hold", "decay", "stop")})
        # others may live in this process
        self._settings = LoopSettings(stages=stages, replan_ticks=stride_of(policy), freeze_gc=False)
        self._policy = policy
        kind, qos = COMMANDS[self.value("command")], profile(COMMAND_QOS)
        qos.deadline = Duration(nanoseconds=DEADLINE_PERIODS * self._period_ns(policy))
        qos.lifespan = Duration(seconds=LIFESPAN_S)
        topic = self.value("command_topic") or kind.topic
        self._commands = self.publisher(message_class(kind.message), topic, qos, managed=True)
        self._subscriptions_made = [
            self.subscription(
                message_class(SENSORS[source.type].message),
                source.topic,
                partial(self._receive, source.spec.name),
                profile(SENSOR_QOS),
            )
            for source in self._sources
        ]
        return super().on_configure(state)

    @logged
    def on_activate(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Starts the control loop, which waits for the first observation."""
        assert self._policy is not None  # the state machine activates only what is configured
        result = super().on_activate(state)
        matcher = StampMatcher([source.spec.name for source in self._sources], self._nanoseconds("tolerance_ms"))
        self._sim_clock = RosClock(self.get_clock()) if self.value("use_sim_time") else None
        clock: LoopClock = self._sim_clock or MonotonicClock()
        self._robot = RosRobot(
            self._sources,
            matcher,
            max_age_ns=self._nanoseconds("max_age_ms"),
            stamp_now_ns=lambda: int(self.get_clock().now().nanoseconds),
            loop_now_ns=clock.now_ns,
            publish=partial(self._command, self._period_ns(self._policy)),
            halt=partial(self._rest, self._period_ns(self._policy)),
            has_listener=self._has_listener,
        )
        rate_hz, latched = self.value("rate_hz") or None, self._latch.latched
        self._runner = Runner(
            self._policy,
            self._robot,
            rate_hz,
            self._settings,
            clock,
            estopped=latched,
            name=self.get_name(),
            figures=Path(self.value("figures")).expanduser() if self.value("figures") else None,
        )
        if self._latch.latched:  # in another thread, while there was no runner yet
            self._runner.estop()
        return result

    def finish(self) -> None:
        """Before the process ends: stops the robot, waits until that has arrived."""
        self.halt()
        if self._commands is not None:
            self._commands.wait_for_all_acked(Duration(seconds=ACKNOWLEDGE_S))

    def status(self) -> Status:
        """What the diagnostics say of this node."""
        runner, robot = self._runner, self._robot
        waiting = None if robot is None or runner is None else robot.waiting_for
        values = {"estopped": str(self._latch.latched).lower(), "from_the_future": str(self._from_future)}
        values |= {"waiting_for": waiting or "nothing"} | ({} if runner is None else runner.ticks.values())
        if self._latch.latched:
            return Status("error", "the emergency stop is latched", values)
        if waiting is not None and self.state == "active":
            return Status("warn", f"waiting for {waiting}", values)
        return Status("ok", self.state, values)

    def _source(self, spec: ObservationSpec, policy: Policy) -> Source:
        """What the parameters say of one entry of the observation."""
        prefix = f"sources.{spec.name}."
        self.declare(SOURCE_PARAMETERS, prefix)
        kind = self.value(f"{prefix}type") or ("image" if spec.kind == "image" else "joint_state")
        usual = SENSORS[kind].topic if kind in SENSORS else ""
        joints = [dim.name for dim in policy.config.action.dims]
        fields = self.value(f"{prefix}fields") or usual_fields(kind, joints)
        return Source(spec, kind, self.value(f"{prefix}topic") or usual, tuple(fields))

    def _period_ns(self, policy: Policy) -> int:
        return round(1e9 / (self.value("rate_hz") or policy.config.action.rate_hz))

    def _nanoseconds(self, parameter: str) -> int:
        return round(float(self.value(parameter)) * 1e6)

    def _receive(self, name: str, message: Any) -> None:
        robot = self._robot
        if robot is not None:
            stamp = message.header.stamp
            self._from_future += not robot.receive(name, stamp.sec * 10**9 + stamp.nanosec, message)

    def _command(self, period_ns: int, action: FloatArray) -> None:
        moment = Moment(self.get_clock().now().to_msg(), self.value("frame_id"), period_ns)
        self._commands.publish(COMMANDS[self.value("command")].make(action, self._layout, moment))

    def _rest(self, period_ns: int) -> None:
        """Commands rest, where the policy's schema has one for every dimension; else the controller holds."""
        policy = self._policy
        rest = None if policy is None else resting(policy.config.action)
        if rest is not None:
            self._command(period_ns, rest)

    def _has_listener(self) -> bool:
        return not self.value("require_subscriber") or self._commands.get_subscription_count() > 0

    def _on_estop(self, request: Any, response: Any) -> Any:
        if request.data:
            self._stop_if(self._latch.set())
            response.success, response.message = True, "latched"
            return response
        response.success = self._latch.release()
        response.message = "released" if response.success else "~/estop still says true: release the button first"
        if response.success:
            if self._runner is not None:
                self._runner.reset_estop()
            self._estopped.publish(Bool(data=False))
        return response

    def _stop_if(self, latched: bool) -> None:
        """The robot first, then everybody else."""
        if latched:
            if self._runner is not None:
                self._runner.estop()
            self._estopped.publish(Bool(data=True))
            self.report("The emergency stop is latched. Release it with the service ~/estop, data: false.")

    def _on_step(self, message: String) -> None:
        """Hands a step to the policy, while it drives."""
        policy = self._policy
        try:
            order = read_order(message.data)
            if not isinstance(policy, TakesOrders):
                raise PlanError("~/step: the policy does no steps. Set policy_entry to edge_ros_bridge.following:make.")
        except PlanError as error:
            self.report(str(error))
            return
        if order is None or (self.state == "active" and not self._latch.latched):
            policy.take(order)

    def _progress_now(self) -> Progress | None:
        """What a sender of steps is to know; None where the policy does none."""
        if not isinstance(self._policy, TakesOrders):
            return None if self._told is None else Progress(state="inactive", reason="the control node has no policy")
        if self._latch.latched:
            return Progress(state="stopped", reason="the emergency stop is latched")
        if self.state != "active":
            return Progress(state="inactive", reason="the control node is not active")
        return self._policy.progress

    def _look(self) -> None:
        progress = self._progress_now()
        if progress is not None and progress != self._told:
            self._told = progress
            self._progress.publish(String(data=progress.json()))
        if self._runner is not None and self._runner.ended_by_itself:
            self.report(f"The control loop has ended: {self._runner.reason}. The node is inactive; activate it again.")
            self.trigger_deactivate()

    def halt(self) -> None:
        """Ends the loop, which stops the robot."""
        runner, self._runner = self._runner, None
        if self._sim_clock is not None:
            self._sim_clock.end()
        if runner is not None and not runner.end():
            self.get_logger().warning("the policy is still busy with its last inference; its actions will be dropped")
        self._robot = None

    def free(self) -> None:
        """The policy and its topics."""
        for subscription in self._subscriptions_made:
            self.destroy_subscription(subscription)
        self._subscriptions_made = []
        if self._commands is not None:
            self.destroy_lifecycle_publisher(self._commands)
            self._commands = None
        self._policy = None


def main(args: list[str] | None = None) -> int:
    """Runs the node until SIGINT or SIGTERM. Exit code 1 when autostart was asked for and failed."""
    return run([ControlNode], args)


if __name__ == "__main__":
    sys.exit(main())
