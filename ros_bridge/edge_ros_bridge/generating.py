"""The language node's action ``~/generate`` and service ``~/session``; only where edge_sdk_msgs is installed."""

# mypy: allow-subclassing-any
# where rclpy is not installed its classes are Any

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from pathlib import Path
from typing import Any

from rclpy.action import ActionServer, CancelResponse, GoalResponse
from rclpy.callback_groups import ReentrantCallbackGroup
from rclpy.node import Node
from rclpy.qos import QoSProfile

from edge_ros_bridge.answering import Settings
from edge_ros_bridge.counting import Answers
from edge_ros_bridge.interfaces import Generate, ManageSession
from edge_ros_bridge.sessions import Sessions
from edge_sdk.answer import Completion, Stream
from edge_sdk.errors import EdgeError, PromptError, explain
from edge_sdk.grammar import Grammar
from edge_sdk.language import LanguageModel
from edge_sdk.options import Options
from edge_sdk.text import Message

END_TIMEOUT_S = 5.0
"""How long the step that runs may take when no more goals are answered."""

FEEDBACK_DEPTH = 1000
"""Pieces that are kept for a client that is slower than the model; its subscription must keep as many."""


def options_of(goal: Any, settings: Settings) -> Options:
    """What a goal asks for. Raises ConfigError for what makes no sense, PromptError for a schema that is not JSON."""
    grammar = None
    if goal.json_schema:
        try:
            grammar = Grammar.json_schema(json.loads(goal.json_schema))
        except ValueError as error:
            message = explain("json_schema", expected="a JSON schema", found=error, todo="Correct it.")
            raise PromptError(message) from None
    return Options(
        max_new_tokens=goal.max_new_tokens or settings.max_new_tokens,
        deadline_ms=goal.deadline_ms or settings.deadline_ms,
        temperature=goal.temperature,
        top_k=goal.top_k,
        top_p=goal.top_p or 1.0,
        min_p=goal.min_p,
        seed=goal.seed if goal.seed >= 0 else None,
        stop=tuple(goal.stop),
        grammar=grammar,
    )


class ThreadedActionServer(ActionServer):
    """Answers each goal in a thread of its own, while the executor does other things.

    A coroutine that waits for such a thread would keep rclpy's EventsExecutor busy, and the threads of its
    MultiThreadedExecutor add milliseconds to every message of the node.
    """

    def __init__(self, node: Node, kind: Any, name: str, answer: Callable[[Any], Any], **options: Any) -> None:
        """``answer`` is given a goal's handle, ends the goal and returns its result. Other options are rclpy's."""
        self._served_by, self._answer = node, answer
        super().__init__(node, kind, name, answer, **options)

    def notify_execute(self, goal_handle: Any, execute_callback: Any) -> None:
        """What rclpy calls for a goal that was accepted; its own has the executor call ``answer``."""
        threading.Thread(target=self._work, args=(goal_handle,), name="goal", daemon=True).start()

    def _work(self, handle: Any) -> None:
        result = Future[Any]()
        try:
            result.set_result(self._answer(handle))
        except Exception as error:  # a bug or an engine's failure: rclpy says it, and aborts the goal
            result.set_exception(error)
        if self._served_by.executor is not None:
            super().notify_execute(handle, lambda _: result.result())


class Generating:
    """Serves goals and sessions while a model is there."""

    def __init__(
        self,
        node: Node,
        settings: Callable[[], Settings],
        answers: Answers,
        report: Callable[[str], None],
        piece: Callable[[str, int, str], None],
    ) -> None:
        """``piece`` is told every piece, with the goal's UUID in hex and the token's index."""
        self._settings, self._answers, self._report, self._piece = settings, answers, report, piece
        self._active = False
        self._sessions: Sessions | None = None
        self._most = 0
        self._open: dict[bytes, Stream | None] = {}
        """Goals that are being answered, None before their stream begins."""
        self._lock = threading.Condition()
        """Of all of the above; tells when a goal has ended."""
        group = ReentrantCallbackGroup()
        self._action = ThreadedActionServer(
            node,
            Generate,
            "~/generate",
            self._complete,
            callback_group=group,
            goal_callback=self._accept,
            handle_accepted_callback=self._begin,
            cancel_callback=self._cancel,
            feedback_pub_qos_profile=QoSProfile(depth=FEEDBACK_DEPTH),
        )
        self._service = node.create_service(ManageSession, "~/session", self._manage, callback_group=group)

    def configure(self, model: LanguageModel, folder: str, most: int) -> None:
        """Has a model, and keeps at most so many sessions of it; takes no goals yet, and then at most so many."""
        with self._lock:
            self._most, self._active = most, False
            self._sessions = Sessions(model, Path(folder) if folder else None, most)

    def resume(self) -> None:
        """Takes goals."""
        with self._lock:
            self._active = True

    def pause(self) -> None:
        """Takes no more goals and ends those that are being answered after their current step; sessions are kept."""
        with self._lock:
            self._active = False
            for stream in self._open.values():
                if stream is not None:
                    stream.cancel()
            self._lock.wait_for(lambda: not self._open, END_TIMEOUT_S)

    def forget(self) -> None:
        """Frees the sessions too."""
        self.pause()
        sessions, self._sessions = self._sessions, None
        if sessions is not None:
            sessions.close_all()

    def _accept(self, goal: Any) -> Any:
        with self._lock:
            return GoalResponse.ACCEPT if self._active and len(self._open) < self._most else GoalResponse.REJECT

    def _cancel(self, handle: Any) -> Any:
        with self._lock:
            stream = self._open.get(bytes(handle.goal_id.uuid))
        if stream is not None:
            stream.cancel()
        return CancelResponse.ACCEPT

    def _begin(self, handle: Any) -> None:
        with self._lock:
            self._open[bytes(handle.goal_id.uuid)] = None
        handle.execute()

    def _complete(self, handle: Any) -> Any:
        """Answers a goal, in its thread; the result."""
        key = bytes(handle.goal_id.uuid)
        with self._lock:
            sessions = self._sessions if self._active else None
        try:
            if sessions is None:
                raise EdgeError("The node is not active any more.")
            result = _result(self._answer(handle, key, sessions))
            self._end(handle, str(result.finish_reason))
        except EdgeError as error:
            self._answers.failed()
            self._report(str(error))
            handle.abort()
            result = Generate.Result(finish_reason="error", error=str(error))
        finally:
            with self._lock:
                self._open.pop(key, None)
                self._lock.notify_all()
        return result

    def _end(self, handle: Any, finish_reason: str) -> None:
        """The goal's state by why its answer ended: what was not cancelled by its client, but by us, is aborted."""
        if handle.is_cancel_requested:
            handle.canceled()
        elif finish_reason == "cancelled":
            handle.abort()
        else:
            handle.succeed()

    def _answer(self, handle: Any, key: bytes, sessions: Sessions) -> Completion:
        goal = handle.request
        messages: list[Message] = [{"role": message.role, "content": message.content} for message in goal.messages]
        options = options_of(goal, self._settings())
        with sessions.use(goal.session, goal.priority) as session:
            stream = session.stream(messages, options)
            with self._lock:
                self._open[key] = stream
                paused = not self._active
            if paused or handle.is_cancel_requested:  # asked for while there was no stream yet
                stream.cancel()
            for token in stream:
                if token.text:
                    handle.publish_feedback(Generate.Feedback(index=token.index, text=token.text))
                    self._piece(key.hex(), token.index, token.text)
            completion = stream.result()
        self._answers.add(completion)
        return completion

    def _manage(self, request: Any, response: Any) -> Any:
        sessions = self._sessions
        calls: Mapping[int, Callable[[Sessions], None]] = {
            request.RESET: lambda kept: kept.reset(request.session),
            request.CLOSE: lambda kept: kept.close(request.session),
            request.FORK: lambda kept: kept.fork(request.session, request.other),
            request.SAVE: lambda kept: kept.save(request.session, request.file),
            request.RESTORE: lambda kept: kept.restore(request.session, request.file),
        }
        try:
            if sessions is None or request.operation not in calls:
                expected, found = "a configured node and a known operation", f"operation {request.operation}"
                raise EdgeError(explain("~/session", expected=expected, found=found, todo="Configure the node."))
            calls[request.operation](sessions)
            response.success = True
        except (EdgeError, OSError) as error:
            response.message = str(error)
        return response


def _result(completion: Completion) -> Any:
    return Generate.Result(
        text=completion.text,
        finish_reason=str(completion.finish_reason),
        prompt_tokens=completion.prompt_tokens,
        cached_tokens=completion.cached_tokens,
        new_tokens=len(completion.token_ids),
        time_to_first_token_ms=completion.time_to_first_token_ms,
        tokens_per_second=completion.tokens_per_second,
    )
