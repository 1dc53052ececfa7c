"""What models write around their answers, reasoning and tool calls, parsed while it streams in."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

import msgspec

from edge_sdk.tool_calls import (
    CallArguments,
    CallBegun,
    CallComplete,
    CallMalformed,
    CallReader,
    ContentText,
    Event,
    JsonCallReader,
    ReasoningText,
    TaggedCallReader,
    functions,
    held_back,
)

__all__ = [
    "Answer",
    "AnswerParser",
    "CallArguments",
    "CallBegun",
    "CallComplete",
    "CallMalformed",
    "ChatFormat",
    "ContentText",
    "Event",
    "ReasoningText",
    "collect",
]

CallFormat = Literal["hermes", "tagged", "toolcall"]
Tools = Sequence[Mapping[str, Any]]

THINK, END_THINK = "<think>", "</think>"
CALL_MARKERS: dict[CallFormat, tuple[str, str]] = {
    "hermes": ("<tool_call>", "</tool_call>"),
    "tagged": ("<tool_call>", "</tool_call>"),
    "toolcall": ("<TOOLCALL>", "</TOOLCALL>"),
}


class ChatFormat(msgspec.Struct, frozen=True, kw_only=True):
    """How a model writes reasoning and tool calls."""

    calls: CallFormat | None = None
    """``hermes``: JSON in ``<tool_call>`` (Qwen3, Nemotron-H); ``tagged``: parameter by parameter in ``<tool_call>``
    (Nemotron 3, Qwen3-Coder); ``toolcall``: a JSON list in ``<TOOLCALL>`` (Nemotron Nano 2)."""
    reasoning: bool = False
    """Whether the model may think between ``<think>`` and ``</think>``."""

    @classmethod
    def of_template(cls, template: str) -> ChatFormat:
        """The format that a chat template's text speaks of."""
        calls: CallFormat | None = None
        if "<TOOLCALL>" in template:
            calls = "toolcall"
        elif "<parameter=" in template:
            calls = "tagged"
        elif "<tool_call>" in template:
            calls = "hermes"
        return cls(calls=calls, reasoning=END_THINK in template)

    @property
    def markers(self) -> tuple[str, ...]:
        """Texts that must reach the parser, even where the tokenizer counts them among its special tokens."""
        return (*(CALL_MARKERS[self.calls] if self.calls else ()), *((THINK, END_THINK) if self.reasoning else ()))

    def reasons_first(self, prompt: str) -> bool:
        """Whether the rendered prompt ends within a block of reasoning that the template opened."""
        return self.reasoning and prompt.rstrip().endswith(THINK)

    def parser(self, prompt: str = "", tools: Tools = ()) -> AnswerParser:
        """A parser for one answer to the rendered ``prompt``; calls are looked for only where there are ``tools``."""
        return AnswerParser(self, self.reasons_first(prompt), tools)


class AnswerParser:
    """Splits an answer into content, reasoning and tool calls.

    The text may come in any pieces; what could be the beginning of a marker is held back. The events' texts put
    together do not depend on the pieces. Spaces beside a marker belong to it.
    """

    def __init__(self, chat_format: ChatFormat, reasons: bool = False, tools: Tools = ()) -> None:
        self._format = chat_format
        self._schemas = functions(tools)
        self._calls = CALL_MARKERS[chat_format.calls] if chat_format.calls and tools else None
        self._held = ""
        self._may_think = chat_format.reasoning and not reasons
        """Whether a block of reasoning may still be opened: only at the answer's beginning."""
        self.reasoning = reasons
        """Whether the model is thinking."""
        self._skip_blank = reasons
        self._reader: CallReader | None = None
        self._index = 0

    def feed(self, text: str) -> list[Event]:
        """What this piece of the answer adds."""
        self._held += text
        return self._run(last=False)

    def finish(self) -> list[Event]:
        """What was held back; a call that has not ended is malformed. Call it once."""
        return self._run(last=True)

    def _run(self, last: bool) -> list[Event]:
        events = list[Event]()
        while self._step(events, last):
            pass
        return [event for event in events if not isinstance(event, (ContentText, ReasoningText)) or event.text]

    def _step(self, events: list[Event], last: bool) -> bool:
        """Consumes what it is sure of; False where it must wait for more, or at the end where nothing is left."""
        if self._reader is not None:
            return self._read_call(self._reader, events, last)
        if self._skip_blank:
            self._held = self._held.lstrip()
            self._skip_blank = not self._held
        if self.reasoning:
            return self._read_text(END_THINK, events, last)
        if self._may_think:
            start = self._held.lstrip()
            if not last and THINK.startswith(start) and start != THINK:
                return False
            self._may_think = False
            if start.startswith(THINK):
                self._held = start[len(THINK) :]
                self.reasoning = self._skip_blank = True
                return True
        return self._read_text(self._calls[0] if self._calls else None, events, last)

    def _read_text(self, marker: str | None, events: list[Event], last: bool) -> bool:
        """Content or reasoning, up to the marker that ends it."""
        kind = ReasoningText if self.reasoning else ContentText
        text, found, rest = self._held.partition(marker) if marker else (self._held, "", "")
        if found:
            kept = text.rstrip()
            events.append(kind(kept))
            self._held = rest
            if self.reasoning:
                self.reasoning, self._skip_blank = False, True
            else:
                self._reader = self._new_reader(text[len(kept) :] + found)
            return True
        if marker and not last:
            text = text[: len(text) - held_back(text, marker)].rstrip()
        events.append(kind(text))
        self._held = self._held[len(text) :]
        return False

    def _new_reader(self, opening: str) -> CallReader:
        assert self._calls is not None
        if self._format.calls == "tagged":
            return TaggedCallReader(opening, self._calls[1], self._index, self._schemas)
        return JsonCallReader(opening, self._calls[1], self._index)

    def _read_call(self, reader: CallReader, events: list[Event], last: bool) -> bool:
        found, consumed = reader.read(self._held)
        events += found
        self._held = self._held[consumed:]
        if reader.status == "open" and not last:
            return False
        cut = reader.status == "open" and reader.between and reader.closing.startswith(self._held.strip())
        if reader.status == "complete" or cut:
            self._held = "" if cut else self._held
            self._leave(reader)
            self._skip_blank = True
            return True
        return self._give_back(reader, events, last)

    def _give_back(self, reader: CallReader, events: list[Event], last: bool) -> bool:
        """A malformed call reaches to the first closing marker, wherever its reader was."""
        text, closing, rest = (reader.raw + self._held).partition(reader.closing)
        if not closing and not last:
            return False
        events.append(CallMalformed(reader.index if reader.begun is not None else None, text + closing))
        self._held = rest
        self._leave(reader)
        return True

    def _leave(self, reader: CallReader) -> None:
        self._index = reader.index + (reader.begun is not None)
        self._reader = None


class Answer(msgspec.Struct, frozen=True, kw_only=True):
    """A whole answer. Malformed calls stand in ``content`` as they were written."""

    content: str
    reasoning: str
    calls: tuple[CallComplete, ...]


def collect(events: Iterable[Event]) -> Answer:
    """Puts the events of one answer together."""
    content, reasoning, calls = "", "", list[CallComplete]()
    for event in events:
        if isinstance(event, (ContentText, CallMalformed)):
            content += event.text
        elif isinstance(event, ReasoningText):
            reasoning += event.text
        elif isinstance(event, CallComplete):
            calls.append(event)
    return Answer(content=content, reasoning=reasoning, calls=tuple(calls))
