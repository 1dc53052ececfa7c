"""Asks a language model about one instruction, in a thread of its own. No ROS in it."""

from __future__ import annotations

import queue

from edge_ros_bridge.answering import Answerer, Listener, Settings
from edge_ros_bridge.counting import Answers
from edge_sdk.errors import EdgeError, PromptError, explain
from edge_sdk.language import LanguageModel
from edge_sdk.text import TextCodec, check_prompt


def unknown_words(codec: TextCodec, text: str) -> list[str]:
    """The parts of a text that the tokenizer has no token for; a tokenizer of bytes has one for all."""
    unknown = getattr(codec.tokenizer.model, "unk_token", None)
    if not unknown:
        return []
    encoding = codec.tokenizer.encode(text, add_special_tokens=False)
    return [text[begin:end] for token, (begin, end) in zip(encoding.tokens, encoding.offsets) if token == unknown]


class AskedModel:
    """Implements :class:`edge_ros_bridge.instructing.Thought`."""

    def __init__(self, model: LanguageModel, instruction: str, settings: Settings, answers: Answers) -> None:
        """Begins. ``answers`` counts it. Raises PromptError for an instruction that the model cannot read."""
        if unknown := unknown_words(model.codec, check_prompt(instruction)):
            found = ", ".join(unknown[:5])
            raise PromptError(explain("The instruction", expected="words of the model", found=found, todo="Reword it."))
        self._came: queue.SimpleQueue[str | EdgeError] = queue.SimpleQueue()
        listener = Listener(
            token=lambda text: None,
            text=lambda text: None,
            complete=lambda text, cancelled: self._came.put(text),
            error=lambda message: self._came.put(EdgeError(message)),
        )
        self._answerer = Answerer(model, 1, lambda: settings, listener, answers)
        self._answerer.submit(instruction)

    def poll(self) -> str | EdgeError | None:
        """The answer, or why there is none; None while it is being made."""
        try:
            return self._came.get_nowait()
        except queue.Empty:
            return None

    def forget(self) -> None:
        """Ends it; it may compute for one more step."""
        self._answerer.stop(timeout_s=0.0)
