"""Answers prompts one after the other in a thread of its own, so that whoever submits them never waits."""

from __future__ import annotations

import queue
import threading
import traceback
from collections.abc import Callable
from dataclasses import dataclass

from edge_ros_bridge.counting import Answers
from edge_sdk.answer import Stream
from edge_sdk.errors import ConfigError, EdgeError, PromptError, explain
from edge_sdk.grammar import Grammar
from edge_sdk.language import LanguageModel
from edge_sdk.options import Options
from edge_sdk.session import Prompt

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
    piece: Callable[[int, int, str], None] = lambda request, index, text: None
    """As ``token``, with the prompt's number, counted from 1 on, and the token's index."""


@dataclass(frozen=True)
class Settings:
    """How prompts are answered; may change from one to the next."""

    max_new_tokens: int = 128
    deadline_ms: float | None = None
    temperature: float = 0.0
    priority: int = 0
    system: str = ""
    """What the model is told before the prompt; nothing where it is empty."""
    grammar: Grammar | None = None
    """What answers must look like."""

    def options(self) -> Options:
        """Of an answer. Raises ConfigError."""
        return Options(
            max_new_tokens=self.max_new_tokens,
            deadline_ms=self.deadline_ms,
            temperature=self.temperature,
            grammar=self.grammar,
        )

    def conversation(self, prompt: str) -> Prompt:
        """What the model is given to answer."""
        if not self.system:
            return prompt
        return [{"role": "system", "content": self.system}, {"role": "user", "content": prompt}]


class Answerer:
    """A bounded queue of prompts and the thread that answers them."""

    def __init__(
        self,
        model: LanguageModel,
        queue_size: int,
        settings: Callable[[], Settings],
        listener: Listener,
        answers: Answers | None = None,
    ) -> None:
        """``settings`` is asked before every answer; ``answers`` counts them. Raises ConfigError for no queue."""
        if queue_size < 1:
            raise ConfigError(explain("queue_size", expected="at least 1", found=queue_size, todo="Raise it."))
        self._model, self._size, self._settings, self._listener = model, queue_size, settings, listener
        self._answers = answers or Answers()
        self._prompts: queue.Queue[str | None] = queue.Queue(maxsize=queue_size)
        self.stopped = threading.Event()
        self._stream: Stream | None = None
        """The answer that is being made."""
        self._number = 0
        """Of its prompt."""
        # a daemon, because a step of a large model may outlast the patience of whoever ends the process
        self._thread = threading.Thread(target=self._run, name="answerer", daemon=True)
        self._thread.start()

    @property
    def waiting(self) -> int:
        """Prompts that wait for their turn."""
        return self._prompts.qsize()

    def submit(self, prompt: str) -> None:
        """Queues a prompt. Raises QueueFullError when too many wait."""
        try:
            self._prompts.put_nowait(prompt)
        except queue.Full:
            raise QueueFullError(
                explain(
                    "The prompt",
                    expected=f"fewer than {self._size} prompts waiting",
                    found=self._size,
                    todo="It is dropped. Wait for an answer, or raise the parameter queue_size.",
                )
            ) from None

    def cancel(self) -> int:
        """Ends the answer after its current step and drops the queue; how many prompts that were."""
        dropped = self._drop()
        stream = self._stream
        if stream is not None:
            stream.cancel()
        return dropped + (stream is not None)

    def stop(self, timeout_s: float = 5.0) -> bool:
        """Ends the answer after its current token and drops the queue; True when the thread has ended in time."""
        self.stopped.set()
        self.cancel()
        self._prompts.put(None)
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def _drop(self) -> int:
        dropped = 0
        while not self._prompts.empty():
            self._prompts.get_nowait()
            dropped += 1
        return dropped

    def _run(self) -> None:
        while not self.stopped.is_set():
            prompt = self._prompts.get()
            if prompt is None:
                return
            try:
                self._answer(prompt)
            except EdgeError as error:
                self._fail(str(error))
            except Exception:  # a bug or an engine's failure: the next prompt may still work, so say it and go on
                self._fail(f"Answering failed unexpectedly. {traceback.format_exc()}")
            finally:
                self._stream = None

    def _fail(self, message: str) -> None:
        self._answers.failed()
        self._listener.error(message)

    def _answer(self, prompt: str) -> None:
        if REPLACEMENT in prompt:
            raise PromptError(
                explain("The prompt", expected="UTF-8 text", found="bytes that are not", todo="Encode it as UTF-8.")
            )
        settings, pieces = self._settings(), list[str]()
        self._number += 1
        with self._model.session(priority=settings.priority) as session:
            self._stream = answer = session.stream(settings.conversation(prompt), settings.options())
            for token in answer:
                if self.stopped.is_set():
                    return
                pieces.append(token.text)
                if token.text:
                    self._listener.token(token.text)
                    self._listener.piece(self._number, token.index, token.text)
        if self.stopped.is_set():
            return
        result, text = answer.result(), "".join(pieces)
        self._answers.add(result)
        if result.finish_reason != "cancelled":
            self._listener.text(text)
        if result.finish_reason != "stop":
            raise CutAnswerError(_why_cut(result.finish_reason, len(pieces)))
        self._stream = None  # from here on it can only be taken back
        self._listener.complete(text, self.stopped)


def _why_cut(finish_reason: str, tokens: int) -> str:
    expected, found, todo = {
        "length": (f"to end within {tokens} tokens", "no end", "Raise the parameter max_new_tokens."),
        "deadline": ("to end within the parameter deadline_ms", f"{tokens} tokens by then", "Raise it."),
        "cancelled": ("to be wanted", f"it cancelled after {tokens} tokens", "Ask again."),
    }[finish_reason]
    return explain("The answer", expected=expected, found=found, todo=f"It is not carried out. {todo}")
