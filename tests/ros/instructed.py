"""The simulated rover of rover.py with somebody who instructs it; drives on while nobody asks anything of this process.

Runs in the ROS environment; ``processes.Peer`` is its other end.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import select
import sys
from typing import Any

from diagnostic_msgs.msg import DiagnosticArray
from lifecycle_msgs.srv import ChangeState
from rclpy.qos import DurabilityPolicy, QoSProfile
from std_msgs.msg import String
from std_srvs.srv import Trigger

from edge_ros_bridge.client import TRANSITIONS
from edge_ros_bridge.motion import Pose
from peer import answer_requests
from rover import LATCHED, Rover, listen

RESTS = 20
"""Poses that are the same when it stands: for 0.4 s."""

STATUSES = QoSProfile(depth=10, durability=DurabilityPolicy.TRANSIENT_LOCAL)


class Instructed(Rover):
    """A client of the nodes control and instruct."""

    def __init__(self, namespace: str) -> None:
        super().__init__(namespace)
        self.pose, self.path = Pose(), list[Pose]()
        for name, topic, qos in (("plan", "plan", LATCHED), ("status", "status", STATUSES), ("error", "refusal", 10)):
            self.listen(String, f"instruct/{name}", topic, qos)
        self.listen(String, "control/progress", "progress", STATUSES)
        self._instruction = self.node.create_publisher(String, "instruct/instruction", 10)
        for node in ("control", "instruct"):
            self._services[node] = self.node.create_client(ChangeState, f"{node}/change_state")
        self.diagnosis = ["", ""]
        """Level and message of the node instruct."""
        self.node.create_subscription(DiagnosticArray, "/diagnostics", self._hear_diagnosis, 10)
        self._services["cancel"] = self.node.create_client(Trigger, "instruct/cancel")

    def begin(self) -> None:
        """Configures and activates both nodes."""
        self.wait(self._instruction.get_subscription_count, "a node that is instructed", 20)
        self.wait_until_matched()
        for node in ("control", "instruct"):
            for transition in ("configure", "activate"):
                if not self.change(node, transition):
                    raise AssertionError(f"{node} did not {transition}")

    def change(self, node: str, transition: str) -> bool:
        """A transition of one of the nodes."""
        request = ChangeState.Request()
        request.transition.id = TRANSITIONS[transition]
        return bool(self.call(node, request, 60).success)

    def cancel(self) -> list[Any]:
        """Asks the service."""
        response = self.call("cancel", Trigger.Request(), 10)
        return [response.success, response.message]

    def instruct(self, text: str) -> None:
        """Forgets what was before, and says it."""
        self.events.clear()
        self.path.clear()
        self._instruction.publish(String(data=text))

    def wait_status(self, state: str, step: int = 0, timeout_s: float = 45.0) -> list[dict[str, Any]]:
        """Until the instruction is in a state, or beyond a step of its plan; everything that was said since."""

        def said() -> bool:
            statuses = self.statuses()
            return bool(statuses) and statuses[-1]["state"] == state and statuses[-1].get("step", 0) >= step

        self.wait(said, f"{state} {step} after {self.statuses()[-3:]}", timeout_s)
        return self.statuses()

    def wait_progress(self, *states: str) -> dict[str, Any]:
        """Until what the control node said last is one of these."""

        def last() -> dict[str, Any]:
            said = self.received("progress")
            return dict(json.loads(said[-1].data)) if said else {}

        self.wait(lambda: last().get("state") in states, f"{states} after {last()}", 20)
        return last()

    def statuses(self) -> list[dict[str, Any]]:
        """What was said of instructions."""
        return [json.loads(event.data) for event in self.received("status")]

    def rest(self, seconds: float = 20.0) -> list[float]:
        """Until the rover stands, not only between two steps; where it is then."""
        self.wait(lambda: len(self.path) > RESTS and len(set(self.path[-RESTS:])) == 1, "the rover to stand", seconds)
        return [self.pose.x_m, self.pose.y_m, self.pose.heading_rad]

    def wait_diagnosis(self, level: str, message: str) -> None:
        """Until the node instruct says so."""
        said = lambda: self.diagnosis[0] == level and self.diagnosis[1].startswith(message)  # noqa: E731
        self.wait(said, f"{level} {message}", 10)

    def _hear_diagnosis(self, array: DiagnosticArray) -> None:
        for status in array.status:
            if status.hardware_id.endswith("/instruct"):
                self.diagnosis = [str(status.level[0]), status.message]

    def _step(self) -> None:
        super()._step()
        self.path.append(self.pose)

    def spin_until_asked(self) -> None:
        """Drives on until there is a line on standard input, or its end."""
        while not select.select([sys.stdin], [], [], 0)[0]:
            self._executor.spin_once(timeout_sec=0.02)


METHODS = ("begin", "change", "cancel", "instruct", "wait_status", "rest", "estop", "wait_diagnosis", "wait_progress")


def do(rover: Instructed, call: str, request: dict[str, Any]) -> Any:
    """One request; the answer is something that JSON can hold."""
    if call in METHODS:
        return getattr(rover, call)(*request.pop("states", ()), **request)
    if call == "path":
        return [dataclasses.astuple(pose) for pose in rover.path]
    if call == "wait":
        rover.wait(lambda: len(rover.received(request["topic"])) >= request.get("count", 1), request["topic"], 20)
    if call == "listen":
        listen(rover, request["seconds"])
    return [dataclasses.asdict(event)["data"] for event in rover.received(request["topic"])]


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--namespace", default="")
    with Instructed(parser.parse_args().namespace) as client:
        answer_requests(lambda call, request: do(client, call, request), client.spin_until_asked)
