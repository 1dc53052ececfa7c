"""The lifecycle node ``instruct``: an instruction in plain words becomes a plan, which the control node drives.

python -m edge_ros_bridge.instruct_node --ros-args --params-file ros_bridge/config/instruct.yaml -p bundle:=/path
"""

# mypy: allow-subclassing-any
# where rclpy is not installed its classes are Any

from __future__ import annotations

import sys
import time
from typing import Any

from rclpy.clock import Clock, ClockType
from rclpy.duration import Duration
from rclpy.lifecycle import LifecycleState, TransitionCallbackReturn
from rclpy.timer import Timer
from std_msgs.msg import String
from std_srvs.srv import Trigger

import edge_sdk
from edge_ros_bridge.answering import Settings
from edge_ros_bridge.asking import AskedModel
from edge_ros_bridge.counting import Answers, Level
from edge_ros_bridge.counting import Status as Diagnosis
from edge_ros_bridge.instructing import Hooks, Instructor, Status, Thought
from edge_ros_bridge.interface import INSTRUCT, STEP_PARAMETERS
from edge_ros_bridge.node import BridgeNode, logged, run
from edge_ros_bridge.plans import Order, Plan, PlanError, Progress, Rules, StepKind, read_progress
from edge_sdk.errors import EdgeError, explain
from edge_sdk.grammar import Grammar

TICK_S = 0.05
"""How soon an answer and a lease that runs out are noticed."""

ACKNOWLEDGE_S = 1.0
"""How long the last order may take to reach the control node before the topic is given up."""

LEVELS: dict[str, Level] = {"refused": "warn", "stopped": "warn", "failed": "error"}
"""Of the diagnostics, by how the last instruction ended; others are well."""


class InstructNode(BridgeNode):
    """Loads a bundle when configured; plans, and has plans driven, while active."""

    def __init__(self, **options: Any) -> None:
        super().__init__(INSTRUCT, **options)
        self._plan = self.offer("~/plan", managed=True)
        self._status = self.offer("~/status")
        self._step: Any = None
        """The publisher of steps, there while the node is active: so the graph shows who may drive."""
        self.subscribe("~/instruction", self._on_instruction)
        self.subscribe("control/progress", self._on_progress)
        self.create_service(Trigger, "~/cancel", self._on_cancel)
        self._answers = Answers()
        self._model: edge_sdk.LanguageModel | None = None
        self._rules: Rules | None = None
        self._settings = Settings()
        self._instructor: Instructor | None = None
        self._heard: Progress | None = None
        """What the control node said last."""
        self._timer: Timer | None = None

    @logged
    def on_configure(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Reads the rules and loads the bundle; FAILURE, with the reason logged, leaves the node unconfigured."""
        kinds = tuple(self._kind(name) for name in self.value("step_names") or ())
        self._rules = rules = Rules(kinds=kinds, form=self.value("format"), max_steps=self.value("max_steps"))
        json = rules.form == "json"
        self._settings = Settings(
            max_new_tokens=self.value("max_new_tokens"),
            deadline_ms=self.value("deadline_ms") or None,
            system=self.value("system_prompt") or (rules.told() if json else ""),
            grammar=Grammar.json_schema(rules.schema()) if json else None,
        )
        self._settings.options()  # refuses what makes no sense
        model = edge_sdk.load(self.bundle_path())
        if self._settings.grammar is not None:
            model.grammars.compile(self._settings.grammar).check_budget(self._settings.max_new_tokens)
        self._model = model
        self.get_logger().info(f"loaded {model.bundle.path}, which runs on {model.engine.name}")
        return super().on_configure(state)

    @logged
    def on_deactivate(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Stops; then others may instruct the control node."""
        result = super().on_deactivate(state)
        self._leave()
        return result

    @logged
    def on_activate(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Begins to take instructions; FAILURE, with the reason logged, where somebody else gives the steps."""
        assert self._rules is not None  # the state machine activates only what is configured
        self._be_alone()
        self._step = self.offer("control/step", managed=True)
        result = super().on_activate(state)
        now_s = self._simulated_s if self.value("use_sim_time") else time.monotonic
        hooks = Hooks(self._ask, self._send_order, self._send_plan, self._send_status, now_s)
        self._instructor = Instructor(self._rules, self.value("lease_ms") / 1e3, hooks)
        if self._heard is not None:
            self._instructor.hear(self._heard)
        # of the steady clock: an answer is noticed while a simulation stands still
        self._timer = self.create_timer(TICK_S, self._instructor.tick, clock=Clock(clock_type=ClockType.STEADY_TIME))
        return result

    def finish(self) -> None:
        """Before the process ends: the robot is to stand; waits until that has arrived."""
        self.halt()
        self._leave()

    def status(self) -> Diagnosis:
        """What the diagnostics say of this node."""
        instructor, heard, others = self._instructor, self._heard, ", ".join(self._others())
        values = {"control": "silent" if heard is None else heard.state} | self._answers.values()
        if instructor is None:
            return Diagnosis("ok", f"{self.state}, while {others} may give steps" if others else self.state, values)
        status = instructor.status
        values |= {"instruction": status.instruction, "plan": status.plan, "step": f"{status.step} of {status.steps}"}
        values |= {f"instructions {state}": str(count) for state, count in instructor.counts.items()}
        said = f"{status.state}: {status.reason}" if status.reason else status.state
        level = LEVELS.get(status.state, "ok")
        if others:
            return Diagnosis("error", f"steps of the control node also come from {others}", values)
        if level == "ok" and heard is None:
            return Diagnosis("warn", "the control node was not heard yet", values)
        return Diagnosis(level, said, values)

    def _others(self) -> list[str]:
        """Who else gives steps to the control node, as the graph shows it; of the same name there may be several."""
        topic, own = self.resolve_topic_name("control/step"), self.get_fully_qualified_name()
        found = self.get_publishers_info_by_topic(topic)
        names = [f"{each.node_namespace.rstrip('/')}/{each.node_name}" for each in found]
        if self._step is not None and own in names:
            names.remove(own)
        return sorted(names)

    def _be_alone(self) -> None:
        """Raises EdgeError where somebody else gives steps: the robot would do those of both, by turns."""
        if others := self._others():
            topic, todo = self.resolve_topic_name("control/step"), "Deactivate that one first."
            raise EdgeError(explain(topic, expected="no other publisher", found=", ".join(others), todo=todo))

    def _leave(self) -> None:
        """Gives up the topic of steps; the last one has arrived then."""
        step, self._step = self._step, None
        if step is not None:
            step.wait_for_all_acked(Duration(seconds=ACKNOWLEDGE_S))
            self.destroy_lifecycle_publisher(step)

    def _kind(self, name: str) -> StepKind:
        """What the parameters say of a step."""
        prefix = f"steps.{name}."
        self.declare(STEP_PARAMETERS, prefix)
        return StepKind(name=name, **{each.name: self.value(prefix + each.name) for each in STEP_PARAMETERS})

    def _simulated_s(self) -> float:
        return float(self.get_clock().now().nanoseconds) / 1e9

    def _on_instruction(self, message: String) -> None:
        if self._instructor is None:
            todo = "Activate it, then ask again."
            self.report(explain("The node", expected="active", found="not active", todo=todo))
            return
        self._instructor.instruct(message.data)

    def _on_progress(self, message: String) -> None:
        try:
            self._heard = progress = read_progress(message.data)
        except PlanError as error:
            self.report(str(error))
            return
        if self._instructor is not None:
            self._instructor.hear(progress)

    def _on_cancel(self, request: Any, response: Any) -> Any:
        instructor = self._instructor
        response.success = instructor is not None and instructor.cancel("the service ~/cancel was called")
        response.message = "cancelled" if response.success else "nothing to cancel"
        return response

    def _ask(self, instruction: str) -> Thought:
        assert self._model is not None
        self._be_alone()  # whom the graph did not show yet when the node was activated
        return AskedModel(self._model, instruction, self._settings, self._answers)

    def _send_order(self, order: Order | None) -> None:
        self._step.publish(String(data="" if order is None else order.json()))

    def _send_plan(self, plan: Plan) -> None:
        self._plan.publish(String(data=plan.json()))

    def _send_status(self, status: Status) -> None:
        self._status.publish(String(data=status.json()))
        if status.state in LEVELS:
            self.report(f"{status.state}: {status.reason}")

    def halt(self) -> None:
        """The robot is to stand, and the model to stop."""
        if self._timer is not None:
            self.destroy_timer(self._timer)
            self._timer = None
        instructor, self._instructor = self._instructor, None
        if instructor is not None:
            instructor.cancel("the node is not active any more")

    def free(self) -> None:
        """The model, and the topic of steps where a shutdown or an error came while the node was active."""
        self._leave()
        self._model = None


def main(args: list[str] | None = None) -> int:
    """Runs the node until SIGINT or SIGTERM. Exit code 1 when autostart was asked for and failed."""
    return run([InstructNode], args)


if __name__ == "__main__":
    sys.exit(main())
