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
from std_msgs.msg import String
from std_srvs.srv import SetBool, Trigger

from peer import answer_requests
from rover import ask_estop, listen
from simulated_rover import InstructedRover


class Instructed(InstructedRover):
    """One that hears more, and can be stopped."""

    def __init__(self, namespace: str) -> None:
        super().__init__(namespace=namespace)
        self.diagnosis = ["", ""]
        """Level and message of this namespace's node instruct."""
        self._instruct = f"{self.node.get_namespace().rstrip('/')}/instruct"
        self.node.create_subscription(DiagnosticArray, "/diagnostics", self._hear_diagnosis, 10)
        self._services["cancel"] = self.node.create_client(Trigger, "instruct/cancel")
        self.serve(SetBool, "estop")

    def estop(self, data: bool) -> list[Any]:
        """Asks the service."""
        return ask_estop(self, data)

    def cancel(self) -> list[Any]:
        """Asks the service."""
        response = self.call("cancel", Trigger.Request(), 10)
        return [response.success, response.message]

    def wait_for(self, node: str) -> None:
        """Until a node can be asked to change its state."""
        self.wait(self._services[node].service_is_ready, node, 20)

    def meddle(self, on: bool) -> None:
        """Whether this process may give steps to the control node too, though it gives none."""
        if on:
            self._meddler = self.node.create_publisher(String, "control/step", 1)
        else:
            self.node.destroy_publisher(self._meddler)

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

    def wait_diagnosis(self, level: str, message: str) -> None:
        """Until the node instruct says so."""
        said = lambda: self.diagnosis[0] == level and self.diagnosis[1].startswith(message)  # noqa: E731
        self.wait(said, f"{level} {message}", 10)

    def _hear_diagnosis(self, array: DiagnosticArray) -> None:
        for status in array.status:
            if status.hardware_id == self._instruct:
                self.diagnosis = [str(status.level[0]), status.message]

    def spin_until_asked(self) -> None:
        """Drives on until there is a line on standard input, or its end."""
        while not select.select([sys.stdin], [], [], 0)[0]:
            self._executor.spin_once(timeout_sec=0.02)


METHODS = ("begin", "change", "cancel", "estop", "instruct", "meddle", "wait_diagnosis", "wait_for", "wait_progress")
METHODS += ("wait_status",)


def do(rover: Instructed, call: str, request: dict[str, Any]) -> Any:
    """One request; the answer is something that JSON can hold."""
    if call in METHODS:
        return getattr(rover, call)(*request.pop("states", ()), **request)
    if call == "rest":
        return dataclasses.astuple(rover.rest())
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
