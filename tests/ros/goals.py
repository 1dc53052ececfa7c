"""Asks a language node by goals and its session service, on standard input as peer.py is; and listens late.

Runs in the ROS environment, where edge_sdk_msgs is; ``processes.Peer`` is its other end.
"""

from __future__ import annotations

import argparse
from typing import Any

from action_msgs.msg import GoalStatus
from edge_sdk_msgs.action import Generate
from edge_sdk_msgs.msg import ChatMessage, Piece
from edge_sdk_msgs.srv import ManageSession
from rclpy.action import ActionClient
from rclpy.qos import DurabilityPolicy, QoSProfile
from std_msgs.msg import String

from edge_ros_bridge.client import NodeClient
from edge_ros_bridge.generating import FEEDBACK_DEPTH
from peer import answer_requests

STATUS = {
    GoalStatus.STATUS_SUCCEEDED: "succeeded",
    GoalStatus.STATUS_CANCELED: "canceled",
    GoalStatus.STATUS_ABORTED: "aborted",
}


class Asker(NodeClient):
    """One client of the action and the service."""

    def __init__(self, namespace: str) -> None:
        super().__init__("language", namespace=namespace)
        self.serve(ManageSession, "session")
        self.pieces: list[list[Any]] = []
        self.node.create_subscription(
            Piece, "language/pieces", lambda told: self.pieces.append([told.request, told.index, told.text]), 100
        )
        qos = QoSProfile(depth=FEEDBACK_DEPTH)
        self._action = ActionClient(self.node, Generate, "language/generate", feedback_sub_qos_profile=qos)

    def match(self) -> None:
        """Until the services are known."""
        self.wait_until_matched()
        self.wait(self._action.server_is_ready, "the action", 10)

    def match_feedback(self) -> None:
        """Until the node knows of this client's subscription to pieces, too: nothing else says that it does."""
        self.wait(lambda: bool(self.generate([{"prompt": "jump"}])[0]["pieces"]), "pieces", 15)

    def generate(self, goals: list[dict[str, Any]], cancel: bool = False) -> list[dict[str, Any]]:
        """All goals at once; the first may be cancelled after its first piece.

        Of the pieces, those that come after their goal's result are not there: rclpy's client drops them.
        """
        pieces: list[list[Any]] = [[] for _ in goals]
        sent = [
            self._action.send_goal_async(
                _goal(**goal), lambda told, to=to: to.append((told.feedback.index, told.feedback.text))
            )
            for goal, to in zip(goals, pieces)
        ]
        self.wait(lambda: all(future.done() for future in sent), "the goals' acceptance", 15)
        handles = [future.result() for future in sent]
        results = [handle.get_result_async() for handle in handles]
        if cancel:
            self.wait(lambda: bool(pieces[0]) or results[0].done(), "a piece", 15)
            handles[0].cancel_goal_async()
        self.wait(lambda: all(future.done() for future in results), "the results", 15)
        return [_plain(future.result(), told) for future, told in zip(results, pieces)]

    def told(self, text: str) -> list[list[Any]]:
        """The pieces of the first request that says so much, whole; and forgets all."""

        def found() -> list[list[Any]]:
            requests = dict.fromkeys(request for request, _, _ in self.pieces)
            told = ([piece for piece in self.pieces if piece[0] == request] for request in requests)
            return next((pieces for pieces in told if "".join(piece[2] for piece in pieces) == text), [])

        self.wait(lambda: bool(found()), "pieces", 15)
        pieces, self.pieces = found(), []
        return pieces

    def manage(self, operation: str | int, **fields: str) -> str:
        """The session service; why it failed, or nothing."""
        number = getattr(ManageSession.Request, operation) if isinstance(operation, str) else operation
        response = self.call("session", ManageSession.Request(operation=number, **fields), 15)
        return "" if response.success else str(response.message)

    def latched_text(self) -> str:
        """The last text that was sent before this was asked; there is one at most."""
        qos = QoSProfile(depth=10, durability=DurabilityPolicy.TRANSIENT_LOCAL)
        self.listen(String, "language/text", "text", qos)
        self.wait(lambda: bool(self.received("text")), "a text", 10)
        (event,) = self.received("text")
        return str(event.data)


def _goal(prompt: str, **fields: Any) -> Any:
    messages = [ChatMessage(role="user", content=prompt)]
    return Generate.Goal(messages=messages, **fields)


def _plain(answer: Any, pieces: list[Any]) -> dict[str, Any]:
    result = answer.result
    fields = {name: getattr(result, name) for name in result.get_fields_and_field_types()}
    return fields | {"status": STATUS[answer.status], "pieces": pieces}


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--namespace", default="")
    with Asker(parser.parse_args().namespace) as client:
        answer_requests(lambda call, request: getattr(client, call)(**request))
