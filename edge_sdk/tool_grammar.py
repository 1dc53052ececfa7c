"""Grammars that make a model call a tool, in the format that it knows."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from edge_sdk.chat_format import CALL_MARKERS, ChatFormat, Tools
from edge_sdk.errors import ConfigError, explain
from edge_sdk.grammar import Grammar, json_rule, quoted
from edge_sdk.tool_calls import TaggedCallReader, functions, options_of, types_of


def call_grammar(chat_format: ChatFormat, tools: Tools, *, name: str | None = None, parallel: bool = False) -> Grammar:
    """One call of one of the tools, or of the named one; ``parallel`` allows several.

    In the tagged format a parameter that may be a string is free text: of its schema only ``enum`` and ``const`` are
    kept to. Raises ConfigError for a model without a call format, an unknown name, and what llguidance refuses.
    """
    known = functions(tools)
    chosen = {key: schema for key, schema in known.items() if name in (None, key)}
    if chat_format.calls is None or not chosen:
        raise ConfigError(
            explain(
                "The tool call",
                expected="a model that calls tools, and one of its tools",
                found=f"the call format {chat_format.calls} and {name or 'any'} of the tools {list(known)}",
                todo="Name a tool that is passed, to a model whose chat template knows tools.",
            )
        )
    rules = [
        rule
        for index, (key, schema) in enumerate(chosen.items())
        for rule in (_tagged if chat_format.calls == "tagged" else _json)(index, key, {"type": "object", **schema})
    ]
    call = "(" + " | ".join(f"call_{index}" for index in range(len(chosen))) + ")"
    if chat_format.calls == "toolcall":
        more = f'(", " {call})*' if parallel else ""
        start = f'start: marker_0 "[" {call} {more} "]" marker_1'
    else:
        more = '("\\n" one)*' if parallel else ""
        start = f'start: one {more}\none: marker_0 "\\n" {call} "\\n" marker_1'
    return Grammar(
        "\n".join([start, *rules]),
        markers=CALL_MARKERS[chat_format.calls],
        ends_of_text=(TaggedCallReader.END_PARAMETER,) if chat_format.calls == "tagged" else (),
    )


def _json(index: int, name: str, schema: Mapping[str, Any]) -> list[str]:
    head = f'{{"name": {quoted(name)}, "arguments": '
    return [f'call_{index}: {quoted(head)} {json_rule(schema)} "}}"']


def _tagged(index: int, name: str, schema: Mapping[str, Any]) -> list[str]:
    rules, parts = list[str](), list[str]()
    for number, (key, value) in enumerate(schema.get("properties", {}).items()):
        parameter = f"parameter_{index}_{number}"
        parts.append(parameter if key in schema.get("required", ()) else f"{parameter}?")
        definitions = {part: schema[part] for part in ("$defs", "definitions") if part in schema}
        rules += _tagged_parameter(parameter, key, value, definitions)
    opening, closing = f"{TaggedCallReader.FUNCTION}{name}>\n", TaggedCallReader.END_FUNCTION
    return [f"call_{index}: {' '.join([quoted(opening), *parts, quoted(closing)])}", *rules]


def _tagged_parameter(rule: str, key: str, schema: Any, definitions: Mapping[str, Any]) -> list[str]:
    opening, end = quoted(f"{TaggedCallReader.PARAMETER}{key}>\n"), TaggedCallReader.END_PARAMETER
    closing = quoted(f"\n{end}\n")
    if "string" not in types_of(schema):
        return [f"{rule}: {opening} {json_rule({**definitions, **schema})} {closing}"]
    if options := options_of(schema):
        texts = " | ".join(quoted(option if isinstance(option, str) else json.dumps(option)) for option in options)
        return [f"{rule}: {opening} ({texts}) {closing}"]
    return [f'{rule}: {opening} {rule}_value "\\n"', f"{rule}_value[suffix={quoted(end)}]: /(?s:.*)/"]
