"""Answers prompts one after the other in a thread of its own, so that whoever submits them never waits."""

from __future__ import annotations

import queue
import threading
import traceback
from collections.abc import Callable
from dataclasses import dataclass

from edge_sdk.errors import ConfigError, EdgeError, PromptError, explain
from edge_sdk.language import LanguageModel

REPLACEMENT = "\ufffd"
"""What rclpy puts where the bytes of a string message are not UTF-8."""


class QueueFullError(EdgeError):
    """More prompts came than the node can answer."""


class CutAnswerError(EdgeError):
    """An answer was cut off, so it may not be carried out."""


@dataclass(frozen=True)
class Listener:
    """Who is told what comes out; all of it is called from the answering thread."""

    token: Callable[[str], None]
    """The text that each token adds, as it comes."""
    text: Callable[[str], None]
    """The whole answer."""
    complete: Callable[[str, threading.Event], None]
    """The whole answer again, but only if the model ended it by itself, and the event that takes it back.
    May raise EdgeError."""
    error: Callable[[str], None]
    """Why a prompt was not answered, or an answer not carried out."""


@dataclass(frozen=True)
class Limits:
    """How many tokens an answer and how many waiting prompts there may be."""

    max_new_tokens: int = 128
    queue_size: int = 8

    def __post_init__(self) -> None:
        for name in ("max_new_tokens", "queue_size"):
            value = getattr(self, name)
            if value < 1:
                raise ConfigError(explain(f"Limits.{name}", expected="at least 1", found=value, todo="Raise it."))


class Answerer:
    """A bounded queue of prompts and the thread that answers them."""

    def __init__(self, model: LanguageModel, limits: Limits, listener: Listener) -> None:
        self._model, self._limits, self._listener = model, limits, listener
        self._prompts: queue.Queue[str | None] = queue.Queue(maxsize=limits.queue_size)
        self.stopped = threading.Event()
        # a daemon, because a step of a large model may outlast the patience of whoever ends the process
        self._thread = threading.Thread(target=self._run, name="answerer", daemon=True)
        self._thread.start()

    def submit(self, prompt: str) -> None:
        """Queues a prompt. Raises QueueFullError when too many wait."""
        try:
            self._prompts.put_nowait(prompt)
        except queue.Full:
            raise QueueFullError(
                explain(
                    "The prompt",
                    expected=f"fewer than {self._limits.queue_size} prompts waiting",
                    found=self._limits.queue_size,
                    todo="It is dropped. Wait for an answer, or raise the parameter queue_size.",
                )
            ) from None

    def stop(self, timeout_s: float = 5.0) -> bool:
        """Ends the answer after its current token and drops the queue; True when the thread has ended in time."""
        self.stopped.set()
        while not self._prompts.empty():
            self._prompts.get_nowait()
        self._prompts.put(None)
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def _run(self) -> None:
        while not self.stopped.is_set():
            prompt = self._prompts.get()
            if prompt is None:
                return
            try:
                self._answer(prompt)
            except EdgeError as error:
                self._listener.error(str(error))
            except Exception:  # a bug or an engine's failure: the next prompt may still work, so say it and go on
                self._listener.error(f"Answering failed unexpectedly. {traceback.format_exc()}")

    def _answer(self, prompt: str) -> None:
        if REPLACEMENT in prompt:
            raise PromptError(
                explain("The prompt", expected="UTF-8 text", found="bytes that are not", todo="Encode it as UTF-8.")
            )
        pieces: list[str] = []
        with self._model.session() as session:
            answer = session.stream(prompt, max_new_tokens=self._limits.max_new_tokens)
            for token in answer:
                if self.stopped.is_set():
                    return
                pieces.append(token.text)
                if token.text:
                    self._listener.token(token.text)
        if self.stopped.is_set():
            return
        text = "".join(pieces)
        self._listener.text(text)
        if answer.finish_reason == "length":
            raise CutAnswerError(
                explain(
                    "The answer",
                    expected=f"to end within {len(pieces)} tokens",
                    found="no end",
                    todo="It is not carried out. Raise the parameter max_new_tokens.",
                )
            )
        self._listener.complete(text, self.stopped)
