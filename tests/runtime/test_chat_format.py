"""Answers split into content, reasoning and calls, whatever pieces they come in."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import tokenizers_for_tests as kinds
from edge_sdk.chat_format import (
    Answer,
    CallArguments,
    CallBegun,
    CallComplete,
    CallFormat,
    CallMalformed,
    ChatFormat,
    ContentText,
    Event,
    ReasoningText,
    collect,
)
from edge_sdk.errors import ConfigError

DRIVE = {
    "type": "object",
    "properties": {
        "to": {"type": "string"},
        "speed_m_s": {"type": "number"},
        "steps": {"type": "integer"},
        "fast": {"type": "boolean"},
        "via": {"type": "array", "items": {"type": "number"}},
        "mode": {"enum": ["careful", "bold"]},
        "load": {"type": ["string", "null"]},
        "options": {"type": "object"},
    },
    "required": ["to", "mode"],
    "additionalProperties": False,
}
TOOLS = [{"type": "function", "function": {"name": "drive", "parameters": DRIVE}}, {"name": "stop"}]
FORMATS: tuple[CallFormat, ...] = ("hermes", "tagged", "toolcall")


def parse(chat_format: ChatFormat, *pieces: str, prompt: str = "", tools: Any = TOOLS) -> list[Event]:
    parser = chat_format.parser(prompt, tools)
    return [event for piece in pieces for event in parser.feed(piece)] + parser.finish()


def joined(events: list[Event]) -> list[Event]:
    """Neighbouring pieces of one kind as one."""
    whole = list[Event]()
    for event in events:
        last = whole[-1] if whole else None
        if isinstance(event, (ContentText, ReasoningText)) and type(last) is type(event):
            whole[-1] = type(event)(last.text + event.text)
        elif isinstance(event, CallArguments) and isinstance(last, CallArguments) and last.index == event.index:
            whole[-1] = CallArguments(event.index, last.text + event.text)
        else:
            whole.append(event)
    return whole


@pytest.mark.parametrize(
    ("template", "calls", "reasoning"),
    [
        ("{{ messages[-1].content }} =>", None, False),
        ("<function=example_function_name>{{ parameters }}</function>", None, False),
        ('<tool_call>\\n{"name": <function-name>, "arguments": <args>}</tool_call> <think></think>', "hermes", True),
        ("<tool_call>\\n<function=example_function_name>\\n<parameter=example_parameter_1></think>", "tagged", True),
        ("<AVAILABLE_TOOLS> <TOOLCALL>[{...}]</TOOLCALL> {{ '<think>\\n' }} </think>", "toolcall", True),
    ],
)
def test_the_template_tells_the_format(template: str, calls: CallFormat | None, reasoning: bool) -> None:
    assert ChatFormat.of_template(template) == ChatFormat(calls=calls, reasoning=reasoning)


def test_reasoning_is_split_from_the_answer() -> None:
    thinker = ChatFormat(reasoning=True)
    answer = Answer(content="Four. ", reasoning="2 + 2 < 5\n\nso", calls=())
    assert collect(parse(thinker, "\n<think>\n2 + 2 < 5\n\nso\n</think>\n\nFour. ")) == answer
    for prompt in ("<|im_start|>assistant\n<think>\n", "<think>"):
        assert collect(parse(thinker, "2 + 2 < 5\n\nso</think>Four. ", prompt=prompt)) == answer
    assert collect(parse(thinker, "Four. ", prompt="assistant\n<think></think>")).content == "Four. "
    assert collect(parse(thinker, "Say <think> and </think>")).content == "Say <think> and </think>"
    assert collect(parse(ChatFormat(), "<think>a</think>")).content == "<think>a</think>"
    assert collect(parse(thinker, "cut of", prompt="<think>")) == Answer(content="", reasoning="cut of", calls=())
    assert collect(parse(thinker, " <thi")).content == " <thi"


def test_calls_of_every_format() -> None:
    arguments = {"to": 'the "lab"\n\n</tool_call>', "speed_m_s": 1.5, "fast": True, "via": [1, 2.5], "load": None}
    call = json.dumps({"name": "drive", "arguments": arguments})
    tagged = (
        '<function=drive>\n<parameter=to>\nthe "lab"\n\n</tool_call>\n</parameter>\n<parameter=speed_m_s>1.5'
        "</parameter>\n<parameter=fast>\nTrue\n</parameter><parameter=via>\n[1,\n 2.5]\n</parameter>\n"
        "<parameter=load>\nnull\n</parameter>\n</function>"
    )
    for chat_format, text in (
        (ChatFormat(calls="hermes"), f"Off. <tool_call>\n{call}\n</tool_call>\n<tool_call>{call}</tool_call> bye"),
        (ChatFormat(calls="tagged"), f"Off. <tool_call>\n{tagged}\n</tool_call>\n<tool_call>{tagged}</tool_call> bye"),
        (ChatFormat(calls="toolcall"), f"Off. <TOOLCALL>[{call}, {call}]</TOOLCALL> bye"),
    ):
        answer = collect(parse(chat_format, text))
        assert answer.content == "Off.bye"
        assert [(c.index, c.name) for c in answer.calls] == [(0, "drive"), (1, "drive")]
        assert all(json.loads(c.arguments) == arguments for c in answer.calls)
        assert collect(parse(chat_format, text, tools=())).content == text


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("steps", "4", 4),
        ("steps", "4.0", 4),
        ("steps", "four", "four"),
        ("speed_m_s", "2", 2),
        ("speed_m_s", "NaN", "NaN"),
        ("speed_m_s", "1e999", "1e999"),
        ("fast", "false", False),
        ("fast", "False", False),
        ("mode", "bold", "bold"),
        ("load", "None", None),
        ("load", "12", "12"),
        ("load", "two\nlines", "two\nlines"),
        ("options", '{"a": [1]}', {"a": [1]}),
        ("to", "12", "12"),
        ("to", "", ""),
        ("to", "\n\n", "\n\n"),
        ("unknown", "12", "12"),
    ],
)
def test_tagged_values_take_the_types_of_the_schema(name: str, text: str, value: Any) -> None:
    answer = f"<tool_call>\n<function=drive>\n<parameter={name}>\n{text}\n</parameter>\n</function>\n</tool_call>"
    for pieces in ([answer], list(answer)):
        (call,) = collect(parse(ChatFormat(calls="tagged"), *pieces)).calls
        assert json.loads(call.arguments) == {name: value}


def test_a_call_streams() -> None:
    parser = ChatFormat(calls="hermes").parser(tools=TOOLS)
    assert parser.feed("Go<tool") == [ContentText("Go")]
    assert parser.feed('_call>{"name": "drive') == []
    assert parser.feed('", "arguments": {"to') == [CallBegun(0, "drive"), CallArguments(0, '{"to')]
    assert parser.feed('": "a b"}') == [CallArguments(0, '": "a b"}')]
    assert parser.feed("}") == [CallComplete(0, "drive", '{"to": "a b"}')]
    assert parser.feed("</tool_call>") == parser.finish() == []

    parser = ChatFormat(calls="tagged").parser(tools=TOOLS)
    assert parser.feed("<tool_call>\n<function=drive>\n<parameter=to>\nthe l") == [
        CallBegun(0, "drive"),
        CallArguments(0, '{"to": "'),
        CallArguments(0, "the l"),
    ]
    assert parser.feed('ab"\n</par') == [CallArguments(0, 'ab\\"')]
    assert joined(parser.feed("ameter></function>")) == [
        CallArguments(0, '"}'),
        CallComplete(0, "drive", '{"to": "the lab\\""}'),
    ]


@pytest.mark.parametrize(
    ("calls", "text", "content", "names"),
    [
        ("hermes", "a <tool_call>walk!</tool_call> b", "a <tool_call>walk!</tool_call> b", []),
        ("hermes", '<tool_call>{"name": 3}</tool_call>', '<tool_call>{"name": 3}</tool_call>', []),
        ("hermes", '<tool_call>{"arguments": {}}</tool_call>', '<tool_call>{"arguments": {}}</tool_call>', []),
        ("hermes", '<tool_call>{"name":"a","arguments":[]}</tool_call>', None, []),
        ("hermes", '<tool_call>{"name":"a","name":"b"}</tool_call>', None, []),
        ("hermes", '<tool_call>{"name":"a","arguments":{"x":NaN}}</tool_call>', None, []),
        ("hermes", '<tool_call>{"name":"a" </tool_call><tool_call>{"name":"b"}</tool_call>', None, ["b"]),
        ("hermes", '<tool_call>{"name":"a","arguments":{"x":"</tool_call>c', None, []),
        ("hermes", '<tool_call>{"name":"a","arguments":{"x":"</tool_call><tool_call>{"name":"b"}', None, ["b"]),
        ("hermes", '<tool_call>{"name":"a","arguments":{}}\n</tool', "", ["a"]),
        ("hermes", '<tool_call>{"name":"a"}} c', "} c", ["a"]),
        ("toolcall", '<TOOLCALL>[{"name":"a"}, {"name":"b","arg', ', {"name":"b","arg', ["a"]),
        ("toolcall", '<TOOLCALL>[{"name":"a"},', "", ["a"]),
        ("toolcall", "<TOOLCALL>[]</TOOLCALL>c", "c", []),
        ("tagged", "<tool_call><function=a><param=x></function></tool_call>c", None, []),
        ("tagged", "<tool_call><function=a><parameter=x>1</function></tool_call>c", None, []),
        ("tagged", "<tool_call><function=a</tool_call>c", None, []),
        ("tagged", "<tool_call><function=a>\n<parameter=to>here", None, []),
        ("tagged", "<tool_call>{}</tool_call>c", None, []),
    ],
)
def test_malformed_calls_are_given_back_as_text(
    calls: CallFormat, text: str, content: str | None, names: list[str]
) -> None:
    for pieces in ([text], list(text)):
        events = parse(ChatFormat(calls=calls), *pieces)
        answer = collect(events)
        assert [call.name for call in answer.calls] == names
        if content is not None:
            assert answer.content == content
        elif not names:
            assert answer.content == text
        begun = {event.index for event in events if isinstance(event, CallBegun)}
        assert begun == {event.index for event in events if isinstance(event, (CallComplete, CallMalformed))} - {None}


PARTS = [
    *(
        "<think>",
        "</think>",
        "<tool_call>",
        "</tool_call>",
        "<TOOLCALL>",
        "</TOOLCALL>",
        "<function=",
        "drive>",
        "stop>",
    ),
    *(
        "<parameter=",
        "to>",
        "via>",
        "</parameter>",
        "</function>",
        '{"name": ',
        '"drive"',
        ', "arguments": ',
        '{"to": ',
    ),
    *("{", "}", "[", "]", '"', "\\", ",", ":", " ", "\n", "<", "</", "é", "12", "null", "word", "true"),
    '<tool_call>\n{"name": "drive", "arguments": {"to": "x"}}\n</tool_call>',
    '<tool_call>{"name": "drive", "arguments": {"to": ',
    '<tool_call>{"arguments": {"to": "x"}, "name": "drive"',
    '<TOOLCALL>[{"name": "drive", "arguments": {"via": [1, {}]}}, {"name": "stop"}]</TOOLCALL>',
    "<tool_call>\n<function=drive>\n<parameter=to>\nx\n</parameter>\n<parameter=via>\n[1]\n</parameter>\n</function>\n</tool_call>",
]
CALLS = [part for part in PARTS if len(part) > 40]


def interrupted(call: str, position: int, part: str) -> str:
    return f"Well, {call[: position % len(call)]}{part}{call[position % len(call) :]} yes"


texts = st.one_of(
    st.lists(st.sampled_from(PARTS), max_size=14).map("".join),
    st.builds(interrupted, st.sampled_from(CALLS), st.integers(0, 200), st.sampled_from(["", *PARTS])),
    st.text(max_size=30),
)


@settings(max_examples=600, deadline=None)
@given(text=texts, calls=st.sampled_from(FORMATS), opened=st.booleans(), data=st.data())
def test_the_pieces_do_not_matter(text: str, calls: CallFormat, opened: bool, data: st.DataObject) -> None:
    chat_format = ChatFormat(calls=calls, reasoning=True)
    prompt = "<think>\n" if opened else ""
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=6)))
    pieces = [text[start:end] for start, end in zip([0, *cuts], [*cuts, len(text)])]
    whole = joined(parse(chat_format, text, prompt=prompt))
    assert joined(parse(chat_format, *pieces, prompt=prompt)) == whole
    assert joined(parse(chat_format, *text, prompt=prompt)) == whole
    check_events(whole)


def check_events(events: list[Event]) -> None:
    """Calls begin before their arguments, end once, with the arguments that were streamed, as an object of JSON."""
    begun, arguments, ended = dict[int, str](), dict[int, str](), set[int]()
    for event in events:
        if isinstance(event, CallBegun):
            assert event.index == len(begun)
            begun[event.index], arguments[event.index] = event.name, ""
        elif isinstance(event, CallArguments):
            arguments[event.index] += event.text
        elif isinstance(event, CallComplete):
            assert (event.name, event.arguments) == (begun[event.index], arguments[event.index])
            assert isinstance(json.loads(event.arguments), dict)
        if isinstance(event, (CallComplete, CallMalformed)) and event.index is not None:
            assert event.index not in ended
            ended.add(event.index)
    assert ended == set(begun)


@settings(max_examples=200, deadline=None)
@given(text=texts, calls=st.sampled_from(FORMATS))
def test_no_text_is_lost(text: str, calls: CallFormat) -> None:
    answer = collect(parse(ChatFormat(calls=calls), text))
    if not answer.calls and "TOOLCALL>" not in text:
        assert answer.content == text


@settings(max_examples=100, deadline=None)
@given(
    calls=st.sampled_from(["hermes", "toolcall"]),
    arguments=st.dictionaries(st.text(max_size=8), st.recursive(st.none() | st.text() | st.integers(), st.lists)),
    indent=st.sampled_from([None, 2]),
)
def test_any_arguments_come_through(calls: CallFormat, arguments: dict[str, Any], indent: int | None) -> None:
    call = json.dumps({"name": "x", "arguments": arguments}, indent=indent, ensure_ascii=False)
    text = f"<tool_call>{call}</tool_call>" if calls == "hermes" else f"<TOOLCALL>[{call}]</TOOLCALL>"
    (found,) = collect(parse(ChatFormat(calls=calls), text)).calls
    assert json.loads(found.arguments) == arguments


@pytest.mark.parametrize("markers_special", [True, False])
@pytest.mark.parametrize("calls", FORMATS)
def test_a_forced_call_is_made_within_any_budget(calls: CallFormat, markers_special: bool) -> None:
    pytest.importorskip("llguidance")
    jsonschema = pytest.importorskip("jsonschema")
    from edge_sdk.structured import GrammarCompiler
    from edge_sdk.tool_grammar import call_grammar
    from test_structured import generate, random_model

    chat_format = ChatFormat(calls=calls, reasoning=True)
    tokenizer = kinds.byte_level(2000, markers_special)
    compiler = GrammarCompiler(tokenizer, kinds.ENDS)
    for name, opened in (("drive", False), (None, True)):
        grammar = call_grammar(chat_format, TOOLS, name=name, parallel=name is None)
        start = compiler.compile(grammar.after_reasoning() if opened else grammar)
        for budget in (start.needed, start.needed + 1, start.needed + 30, start.needed + 100):
            ids = list(generate(start.copy(), budget, random_model(budget, tokenizer.get_vocab_size())))
            text = tokenizer.decode(ids, skip_special_tokens=False)
            answer = collect(parse(chat_format, text, prompt="<think>" if opened else ""))
            assert not answer.content
            assert answer.calls
            assert name is None or [call.name for call in answer.calls] == [name]
            for call in answer.calls:
                jsonschema.validate(json.loads(call.arguments), DRIVE if call.name == "drive" else {"type": "object"})


def test_a_call_that_cannot_be_forced_is_refused() -> None:
    pytest.importorskip("llguidance")
    from edge_sdk.tool_grammar import call_grammar

    for chat_format, name in ((ChatFormat(), None), (ChatFormat(calls="hermes"), "fly")):
        with pytest.raises(ConfigError, match="one of its tools"):
            call_grammar(chat_format, TOOLS, name=name)


def test_markers_are_named_for_the_decoder() -> None:
    assert ChatFormat(calls="toolcall", reasoning=True).markers == ("<TOOLCALL>", "</TOOLCALL>", "<think>", "</think>")
    assert ChatFormat().markers == ()
