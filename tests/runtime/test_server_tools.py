"""Tool calls, JSON and reasoning over OpenAI's API, of a model that can write them and does so by chance only."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
from jsonschema import validate

import edge_sdk
from edge_sdk.grammar import Grammar
from servers import Server, serving

SCHEMA = {
    "type": "object",
    "properties": {"fast": {"type": "boolean"}, "name": {"enum": ["on", "nose"]}},
    "required": ["fast", "name"],
    "additionalProperties": False,
}
TOOLS = [
    {"type": "function", "function": {"name": "on", "parameters": SCHEMA}},
    {"type": "function", "function": {"name": "stroll", "parameters": {"type": "object", "properties": {}}}},
]


@pytest.fixture(scope="module")
def server(json_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with serving(json_bundle, tmp_path_factory.mktemp("server") / "log") as started:
        yield started


def ask(server: Server, **more: Any) -> Any:
    request = {"model": server.name, "messages": [{"role": "user", "content": "rattle"}], "max_tokens": 150, **more}
    return server.client().chat.completions.create(**request)


@pytest.mark.parametrize("seed", range(5))
def test_json_follows_the_schema(server: Server, seed: int) -> None:
    schema = {"name": "state", "schema": SCHEMA, "strict": True}
    answer = ask(server, response_format={"type": "json_schema", "json_schema": schema}, seed=seed, temperature=2)
    validate(json.loads(answer.choices[0].message.content), SCHEMA)
    assert answer.choices[0].finish_reason == "stop"


@pytest.mark.parametrize("max_tokens", [10, 40])
def test_any_json_object_is_closed_within_its_budget(server: Server, max_tokens: int) -> None:
    answer = ask(server, response_format={"type": "json_object"}, temperature=2, seed=3, max_tokens=max_tokens)
    assert isinstance(json.loads(answer.choices[0].message.content), dict)
    assert answer.usage.completion_tokens <= max_tokens


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("named", [False, True])
def test_a_forced_call_is_one_whole_and_in_pieces(server: Server, seed: int, named: bool) -> None:
    choice: Any = {"type": "function", "function": {"name": "on"}} if named else "required"
    request = {"tools": TOOLS, "tool_choice": choice, "parallel_tool_calls": False, "seed": seed, "temperature": 1.5}
    answer = ask(server, **request).choices[0]
    assert answer.finish_reason == "tool_calls"
    assert answer.message.content is None
    (call,) = answer.message.tool_calls
    if named or call.function.name == "on":
        validate(json.loads(call.function.arguments), SCHEMA)
        assert call.function.name == "on"
    pieces = [
        piece
        for chunk in ask(server, **request, stream=True)
        for choice in chunk.choices
        for piece in choice.delta.tool_calls or []
    ]
    assert pieces[0].function.name == call.function.name
    assert pieces[0].id.startswith("call_")
    assert "".join(piece.function.arguments for piece in pieces) == call.function.arguments
    assert len(pieces) > 2


def test_an_answer_with_a_call_can_be_handed_back(server: Server) -> None:
    message = ask(server, tools=TOOLS, tool_choice="required", seed=1).choices[0].message
    messages = [
        {"role": "user", "content": "rattle"},
        message.model_dump(),
        {"role": "tool", "tool_call_id": message.tool_calls[0].id, "content": "true"},
    ]
    assert ask(server, messages=messages, tools=TOOLS, max_tokens=3).usage.completion_tokens <= 3
    messages[1]["tool_calls"][0]["function"]["arguments"] = "{"
    with pytest.raises(openai.BadRequestError, match="no JSON object"):
        ask(server, messages=messages, tools=TOOLS)


def test_the_template_is_told_of_tools_and_variables(server: Server) -> None:
    plain = ask(server, max_tokens=1).usage.prompt_tokens
    tools = ask(server, max_tokens=1, tools=TOOLS).usage.prompt_tokens
    none = ask(server, max_tokens=1, tools=TOOLS, tool_choice="none").usage.prompt_tokens
    assert plain == none < tools


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"tools": TOOLS, "response_format": {"type": "json_object"}}, "response_format"),
        ({"tools": TOOLS, "tool_choice": {"type": "function", "function": {"name": "off"}}}, "off"),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "?"}}}},
            "grammar",
        ),
        ({"response_format": {"type": "json_object"}, "max_tokens": 1}, "max_new_tokens"),
        ({"chat_template_kwargs": {"messages": []}}, "messages"),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_what_cannot_be_done_is_refused(server: Server, changes: dict[str, Any], expected: str, stream: bool) -> None:
    with pytest.raises(openai.BadRequestError, match=expected):
        ask(server, stream=stream, extra_body=changes)


def test_reasoning_is_told_apart_and_ended_before_the_json(server: Server) -> None:
    request: dict[str, Any] = {
        "response_format": {"type": "json_object"},
        "extra_body": {"chat_template_kwargs": {"enable_thinking": True}},
        "max_tokens": 60,
        "temperature": 1.5,
        "seed": 2,
    }
    message = ask(server, **request).choices[0].message
    assert message.reasoning_content
    assert "think" not in message.reasoning_content
    assert isinstance(json.loads(message.content), dict)
    deltas = [choice.delta for chunk in ask(server, **request, stream=True) for choice in chunk.choices]
    assert "".join(delta.content or "" for delta in deltas) == message.content
    thoughts = "".join(getattr(delta, "reasoning_content", None) or "" for delta in deltas)
    assert thoughts == message.reasoning_content


def test_a_constrained_answer_is_complete_however_it_is_ended(json_bundle: Path) -> None:
    model = edge_sdk.load(json_bundle, threads=1)
    grammar = Grammar.json_schema(SCHEMA)
    late = model.generate("rattle", grammar=grammar, deadline_ms=0)
    assert late.finish_reason == "deadline"
    validate(json.loads(late.text), SCHEMA)
    with model.session() as session:
        stream = session.stream("rattle", grammar=grammar, temperature=1.0, seed=0)
        next(stream)
        stream.cancel()
        cut = stream.result()
        assert cut.finish_reason == "cancelled"
        validate(json.loads(cut.text), SCHEMA)
        assert session.messages[-1]["content"] == cut.text
        again = session.generate("name", grammar=grammar)
        validate(json.loads(again.text), SCHEMA)
