"""From tokens to OpenAI's answers, whole or in pieces."""

from __future__ import annotations

import time
import uuid
from collections.abc import Sequence
from typing import Any, Literal

from edge_sdk.answer import Completion, FinishReason, Token
from edge_sdk.chat_format import AnswerParser, CallArguments, CallBegun, CallComplete, Event, ReasoningText, collect
from edge_sdk.server.translate import Plan
from edge_sdk.text import TextCodec

FINISH: dict[FinishReason, str] = {"stop": "stop", "length": "length", "deadline": "length", "cancelled": "stop"}
"""OpenAI's words; its clients know no deadline."""

Choice = dict[str, Any]


class ChatChoice:
    """One answer of a chat: content, reasoning and tool calls told apart while they come."""

    objects = ("chat.completion", "chat.completion.chunk")
    prefix = "chatcmpl-"

    def __init__(self, index: int, plan: Plan, codec: TextCodec) -> None:
        prompt = plan.prompts[0]
        assert isinstance(prompt, str)
        self._index, self._codec, self._asked = index, codec, plan.options.logprobs is not None
        self._parser: AnswerParser = codec.format.parser(prompt, plan.tools)
        self._events: list[Event] = []
        self._ids: list[str] = []
        """Of the tool calls."""
        self._logprobs: list[dict[str, Any]] = []
        self._sent = 0
        """How many of the log-probabilities were sent."""
        self._finish: str | None = None

    def opening(self) -> list[Choice]:
        """What a stream begins with."""
        return [self._piece({"role": "assistant", "content": ""})]

    def feed(self, token: Token) -> list[Choice]:
        """The pieces of a stream that a token adds."""
        if token.logprob is not None:
            entry = _logprob(self._codec, token.token_id, token.logprob)
            top = [_logprob(self._codec, *alternative) for alternative in token.alternatives]
            self._logprobs.append({**entry, "top_logprobs": top})
        return self._pieces(self._parser.feed(token.text))

    def finish(self, completion: Completion) -> list[Choice]:
        """The last pieces of a stream."""
        pieces = self._pieces(self._parser.finish())
        called = any(isinstance(event, CallComplete) for event in self._events)
        reason = FINISH[completion.finish_reason]
        self._finish = "tool_calls" if called and reason == "stop" else reason
        return [*pieces, self._piece({})]

    def whole(self) -> Choice:
        """The answer, once it is complete."""
        answer = collect(self._events)
        message: dict[str, Any] = {"role": "assistant", "content": answer.content, "refusal": None}
        if answer.reasoning:
            message["reasoning_content"] = answer.reasoning
        if answer.calls:
            message["content"] = answer.content or None
            message["tool_calls"] = [
                {
                    "id": self._call_id(call.index),
                    "type": "function",
                    "function": {"name": call.name, "arguments": call.arguments},
                }
                for call in answer.calls
            ]
        logprobs = {"content": self._logprobs, "refusal": None} if self._asked else None
        return {"index": self._index, "message": message, "logprobs": logprobs, "finish_reason": self._finish}

    def _pieces(self, events: Sequence[Event]) -> list[Choice]:
        self._events += events
        return [self._piece(delta) for event in events if (delta := self._delta(event))]

    def _delta(self, event: Event) -> dict[str, Any]:
        if isinstance(event, ReasoningText):
            return {"reasoning_content": event.text}
        if isinstance(event, CallBegun):
            function = {"name": event.name, "arguments": ""}
            call = {"index": event.index, "id": self._call_id(event.index), "type": "function", "function": function}
            return {"tool_calls": [call]}
        if isinstance(event, CallArguments):
            return {"tool_calls": [{"index": event.index, "function": {"arguments": event.text}}]}
        if isinstance(event, CallComplete):
            return {}
        return {"content": event.text}  # a malformed call is shown as it was written

    def _piece(self, delta: dict[str, Any]) -> Choice:
        logprobs = None
        if self._sent < len(self._logprobs):
            logprobs = {"content": self._logprobs[self._sent :], "refusal": None}
            self._sent = len(self._logprobs)
        return {"index": self._index, "delta": delta, "logprobs": logprobs, "finish_reason": self._finish}

    def _call_id(self, index: int) -> str:
        while len(self._ids) <= index:
            self._ids.append(f"call_{uuid.uuid4().hex[:24]}")
        return self._ids[index]


class TextChoice:
    """One answer of the older kind: text and nothing else."""

    objects = ("text_completion", "text_completion")
    prefix = "cmpl-"

    def __init__(self, index: int, plan: Plan, codec: TextCodec) -> None:
        self._index, self._codec, self._asked = index, codec, plan.options.logprobs is not None
        self._tokens: list[Token] = []
        self._finish: str | None = None

    def opening(self) -> list[Choice]:
        """What a stream begins with: nothing."""
        return []

    def feed(self, token: Token) -> list[Choice]:
        """The pieces of a stream that a token adds."""
        self._tokens.append(token)
        return [self._choice(self._tokens[-1:])] if token.text or self._asked else []

    def finish(self, completion: Completion) -> list[Choice]:
        """The last pieces of a stream."""
        self._finish = FINISH[completion.finish_reason]
        return [self._choice([])]

    def whole(self) -> Choice:
        """The answer, once it is complete."""
        return self._choice(self._tokens)

    def _choice(self, tokens: Sequence[Token]) -> Choice:
        return {
            "index": self._index,
            "text": "".join(token.text for token in tokens),
            "logprobs": self._columns(tokens) if self._asked else None,
            "finish_reason": self._finish,
        }

    def _columns(self, tokens: Sequence[Token]) -> dict[str, list[Any]]:
        start = sum(len(token.text) for token in self._tokens) - sum(len(token.text) for token in tokens)
        offsets = []
        for token in tokens:
            offsets.append(start)
            start += len(token.text)
        return {
            "tokens": [self._codec.token_text(token.token_id) for token in tokens],
            "token_logprobs": [token.logprob for token in tokens],
            "top_logprobs": [
                {self._codec.token_text(other): logprob for other, logprob in token.alternatives} for token in tokens
            ],
            "text_offset": offsets,
        }


class Envelope:
    """What is the same around all pieces of an answer."""

    def __init__(self, kind: type[ChatChoice] | type[TextChoice], model_name: str, fingerprint: str) -> None:
        self._objects = kind.objects
        self._fields = {
            "id": kind.prefix + uuid.uuid4().hex,
            "created": int(time.time()),
            "model": model_name,
            "system_fingerprint": fingerprint,
        }

    def around(self, choices: list[Choice], usage: dict[str, Any] | None, form: Literal["whole", "piece"]) -> Choice:
        """An answer or a piece of one."""
        name = self._objects[form == "piece"]
        return {**self._fields, "object": name, "choices": choices, "usage": usage}


def usage(prompt_tokens: int, cached_tokens: int, completion_tokens: int) -> dict[str, Any]:
    """OpenAI's count of tokens; the end token is not counted."""
    return {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": completion_tokens,
        "total_tokens": prompt_tokens + completion_tokens,
        "prompt_tokens_details": {"cached_tokens": cached_tokens},
    }


def _logprob(codec: TextCodec, token_id: int, logprob: float) -> dict[str, Any]:
    text = codec.token_text(token_id)
    return {"token": text, "logprob": logprob, "bytes": list(text.encode())}
