"""Reads the tool calls that models write, while they are written: as JSON, or parameter by parameter between tags."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

import msgspec

Status = Literal["open", "complete", "broken"]


class ContentText(msgspec.Struct, frozen=True):
    """A piece of the answer itself."""

    text: str


class ReasoningText(msgspec.Struct, frozen=True):
    """A piece of what the model thinks before it answers."""

    text: str


class CallBegun(msgspec.Struct, frozen=True):
    """The model calls a tool; ``index`` counts the answer's calls."""

    index: int
    name: str


class CallArguments(msgspec.Struct, frozen=True):
    """A piece of the JSON of a call's arguments."""

    index: int
    text: str


class CallComplete(msgspec.Struct, frozen=True):
    """A call's end; ``arguments`` is a JSON object, the same as its pieces put together."""

    index: int
    name: str
    arguments: str


class CallMalformed(msgspec.Struct, frozen=True):
    """A call that cannot be read, given back as it was written, markers included."""

    index: int | None
    """Of the call, if it had begun."""
    text: str


Event = ContentText | ReasoningText | CallBegun | CallArguments | CallComplete | CallMalformed


def functions(tools: Sequence[Mapping[str, Any]]) -> dict[str, Mapping[str, Any]]:
    """Parameter schemas by name, of tools in OpenAI's form or of bare functions."""
    bare = [tool.get("function", tool) for tool in tools]
    return {function["name"]: function.get("parameters") or {"type": "object"} for function in bare}


def held_back(text: str, *markers: str) -> int:
    """How many of the last characters could be the beginning of a marker."""
    longest = min(len(text), max(map(len, markers)) - 1)
    for length in range(longest, 0, -1):
        if any(len(marker) > length and marker.startswith(text[-length:]) for marker in markers):
            return length
    return 0


class CallReader:
    """Reads one block of calls, behind its opening marker. Subclasses consume what they are sure of."""

    def __init__(self, opening: str, closing: str, index: int) -> None:
        self.closing, self.index = closing, index
        """``index``: of the next call."""
        self.status: Status = "open"
        self.raw = opening
        """What was written since the last complete call: what is given back if it turns out malformed."""
        self.begun: str | None = None
        """The name of the call that is being read, once it is known."""
        self._arguments = list[str]()

    def read(self, text: str) -> tuple[list[Event], int]:
        """Events, and how many characters were consumed; the others are to be shown again, with more behind them."""
        events, start = list[Event](), 0
        while self.status == "open":
            calls = self.index
            consumed = self._step(text[start:], events)
            if not consumed:
                break
            self.raw = "" if self.index > calls else self.raw + text[start : start + consumed]
            start += consumed
        return events, start

    @property
    def between(self) -> bool:
        """Whether all that was written belongs to complete calls."""
        return not self.raw.strip(" \n,")

    def _step(self, text: str, events: list[Event]) -> int:
        raise NotImplementedError

    def _begin(self, name: str) -> Event:
        self.begun = name
        return CallBegun(self.index, name)

    def _argue(self, text: str) -> Event:
        self._arguments.append(text)
        return CallArguments(self.index, text)

    def _complete(self) -> Event:
        event = CallComplete(self.index, self.begun or "", "".join(self._arguments))
        self.index, self.begun, self._arguments = self.index + 1, None, []
        return event

    def _tail(self, text: str) -> int:
        """After the calls: spaces and the closing marker, or whatever else the model wrote instead."""
        blank = len(text) - len(text.lstrip())
        rest = text[blank:]
        if rest.startswith(self.closing):
            self.status = "complete"
            return blank + len(self.closing)
        if rest and not self.closing.startswith(rest):
            self.status = "complete"
        return 0


class JsonCallReader(CallReader):
    """Calls as ``{"name": ..., "arguments": {...}}``: one in Hermes' format, a list of them in Nemotron Nano 2's."""

    def __init__(self, opening: str, closing: str, index: int) -> None:
        super().__init__(opening, closing, index)
        self._depth, self._base = 0, 0
        """Open brackets, and how many there are inside a call's object."""
        self._start_object()
        self._in_string = self._escaped = False
        self._ended = False

    def _start_object(self) -> None:
        self._object, self._part = list[str](), list[str]()
        """The call's characters, and those of the key or value that is being read."""
        self._key: str | None = None
        self._blank = ""
        """Spaces in the arguments that are theirs only if more follows."""
        self._waiting = list[str]()
        """Arguments that are not given out yet: those of this piece, or all while the name is not known."""

    def _step(self, text: str, events: list[Event]) -> int:
        if self._ended:
            return self._tail(text)
        calls, consumed = self.index, 0
        for char in text:
            consumed += 1
            if not self._in_string and self._misplaced(char):
                self.status = "broken"
            else:
                self._advance(char, events)
            if self._ended or self.status == "broken" or self.index > calls:
                break
        self._flush(events)
        return consumed

    def _misplaced(self, char: str) -> bool:
        if self._depth == 0:
            return char not in "{[" and not char.isspace()
        if self._base == 0:
            return char not in "{]" and not char.isspace()
        if self._depth < self._base:
            return char not in "{,]" and not char.isspace()
        return char == "<"

    def _advance(self, char: str, events: list[Event]) -> None:
        inside = self._base and self._depth >= self._base
        was_string = self._in_string
        if self._in_string:
            self._in_string = self._escaped or char != '"'
            self._escaped = char == "\\" and not self._escaped
        elif char == '"':
            self._in_string = True
        elif char in "{[":
            self._depth += 1
            if char == "{" and not inside:
                self._base, self._object = self._depth, [char]
                return
        elif char in "}]":
            self._depth -= 1
        if not inside:
            self._ended = self._depth == 0 and char == "]"
            return
        self._object.append(char)
        at_key_level = not was_string and self._depth - (char in "{[") + (char in "}]") == self._base
        if at_key_level and char in ":,}":
            self._end_part(char, events)
        else:
            self._add(char, was_string or self._in_string)
        if self._depth < self._base:
            self._end_object(events)

    def _add(self, char: str, in_string: bool) -> None:
        """One more character of a key or a value."""
        if self._key != "arguments":
            self._part.append(char)
        elif char.isspace() and not in_string:
            self._blank += char if self._part else ""
        else:
            self._part = [char]  # from here on spaces count
            self._waiting.append(self._blank + char)
            self._blank = ""

    def _end_part(self, char: str, events: list[Event]) -> None:
        if char == ":":
            self._key = _text_of("".join(self._part))
        elif self._key == "name" and self.begun is None and (name := _text_of("".join(self._part))):
            events.append(self._begin(name))
        if char != ":":
            self._key = None
        self._part, self._blank = [], ""

    def _flush(self, events: list[Event]) -> None:
        if self._waiting and self.begun is not None:
            events.append(self._argue("".join(self._waiting)))
            self._waiting = []

    def _end_object(self, events: list[Event]) -> None:
        self._flush(events)
        if self.begun is None or not _is_call("".join(self._object)):
            self.status = "broken"
            return
        if not self._arguments:
            events.append(self._argue("{}"))
        events.append(self._complete())
        self._start_object()
        self._ended = self._depth == 0


def _text_of(part: str) -> str | None:
    try:
        value = json.loads(part)
    except ValueError:
        return None
    return value if isinstance(value, str) else None


def _is_call(text: str) -> bool:
    """Whether an object has a name, its arguments (none for no ``arguments``) as an object, and no key twice."""

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        if len({key for key, _ in pairs}) < len(pairs):
            raise ValueError("a key stands twice")
        return dict(pairs)

    try:
        call = json.loads(text, object_pairs_hook=unique, parse_constant=_refuse)
    except (ValueError, RecursionError):
        return False
    return isinstance(call.get("name"), str) and isinstance(call.get("arguments", {}), dict)


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is not JSON")


class TaggedCallReader(CallReader):
    """Calls as ``<function=name><parameter=key>value</parameter></function>``: Qwen3-Coder's, and Nemotron 3's.

    One line break on each side of a value belongs to the tags. Values become JSON by the types in the tool's schema.
    """

    FUNCTION, PARAMETER, END_PARAMETER, END_FUNCTION = "<function=", "<parameter=", "</parameter>", "</function>"

    def __init__(self, opening: str, closing: str, index: int, schemas: Mapping[str, Mapping[str, Any]]) -> None:
        super().__init__(opening, closing, index)
        self._schemas = schemas
        self._ended = False
        self._types: frozenset[str] | None = None
        """What the value that is being read may be; None between values."""
        self._value = ""
        self._fresh = False
        """Whether a value's first character is still to come."""

    def _step(self, text: str, events: list[Event]) -> int:
        if self._ended:
            return self._tail(text)
        if self._types is not None:
            return self._read_value(text, self._types, events)
        blank = len(text) - len(text.lstrip())
        consumed = self._read_tag(text[blank:], events)
        return blank + consumed

    def _read_tag(self, text: str, events: list[Event]) -> int:
        tags = (self.FUNCTION,) if self.begun is None else (self.PARAMETER, self.END_FUNCTION)
        tag = next((tag for tag in tags if text.startswith(tag)), "")
        if tag == self.END_FUNCTION:
            events += [self._argue("}" if self._arguments else "{}"), self._complete()]
            self._ended = True
            return len(tag)
        name, end, _ = text[len(tag) :].partition(">") if tag else ("", "", "")
        if tag and end and name and not set(name) & {"<", "\n"}:
            self._open(tag, name, events)
            return len(tag) + len(name) + 1
        could_come = any(start.startswith(text) for start in tags) if not tag else not (end or set(name) & {"<", "\n"})
        self.status = "open" if could_come else "broken"
        return 0

    def _open(self, tag: str, name: str, events: list[Event]) -> None:
        if tag == self.FUNCTION:
            events.append(self._begin(name))
            return
        properties = self._schemas.get(self.begun or "", {}).get("properties", {})
        self._types = types_of(properties.get(name, {"type": "string"}))
        self._value, self._fresh = "", True
        quote = '"' if self._types == {"string"} else ""
        separator = ", " if self._arguments else "{"
        events.append(self._argue(f"{separator}{json.dumps(name, ensure_ascii=False)}: {quote}"))

    def _read_value(self, text: str, types: frozenset[str], events: list[Event]) -> int:
        content, found, _ = text.partition(self.END_PARAMETER)
        if not found:
            content = text[: len(text) - held_back(text, self.END_PARAMETER, "\n" + self.END_PARAMETER)]
        consumed = len(content) + len(found)
        content = content.removesuffix("\n") if found else content
        if self._fresh and content:
            content, self._fresh = content.removeprefix("\n"), False
        if types != {"string"}:
            self._value += content
            if found:
                events.append(self._argue(json.dumps(converted(self._value, types), ensure_ascii=False)))
        elif escaped := json.dumps(content, ensure_ascii=False)[1:-1] + ('"' if found else ""):
            events.append(self._argue(escaped))
        if found:
            self._types = None
        return consumed


ALL_TYPES = frozenset({"string", "integer", "number", "boolean", "object", "array", "null"})


def types_of(schema: Any) -> frozenset[str]:
    """The JSON types that a schema may allow; all of them where it does not say."""
    if not isinstance(schema, Mapping):
        return ALL_TYPES
    if isinstance(named := schema.get("type"), str):
        return frozenset({named})
    if isinstance(named, (list, tuple)):
        return frozenset(named)
    if values := options_of(schema):
        return frozenset(type_name(value) for value in values)
    choices = schema.get("anyOf") or schema.get("oneOf")
    return frozenset[str]().union(*map(types_of, choices)) if isinstance(choices, (list, tuple)) else ALL_TYPES


def options_of(schema: Any) -> list[Any]:
    """The values that a schema lists; none where it lists none."""
    if not isinstance(schema, Mapping):
        return []
    return [schema["const"]] if "const" in schema else list(schema.get("enum", ()))


def type_name(value: Any) -> str:
    """JSON's name for a value's type."""
    names = ((bool, "boolean"), (int, "integer"), (float, "number"), (str, "string"), (list, "array"), (dict, "object"))
    return next((name for kind, name in names if isinstance(value, kind)), "null")


def converted(text: str, types: frozenset[str]) -> Any:
    """A value written without quotes, as the first of the types that it can be; as text where it can be none."""
    for candidate in _readings(text.strip()):
        name = type_name(candidate)
        if name != "string" and (name in types or (name == "integer" and "number" in types)):
            return candidate
        if name == "number" and "integer" in types and candidate.is_integer():
            return int(candidate)
    return text


def _readings(text: str) -> Iterator[Any]:
    """The text as JSON, and as Python's words for what JSON has other words for."""
    try:
        value = json.loads(text, parse_constant=_refuse)
        json.dumps(value, allow_nan=False)  # 1e999 is read as infinity
        yield value
    except (ValueError, RecursionError):
        words = {"true": True, "false": False, "none": None}
        if text.lower() in words:
            yield words[text.lower()]
