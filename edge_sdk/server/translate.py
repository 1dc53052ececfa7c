"""From OpenAI's requests to prompts and options."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from edge_sdk.errors import ImageError, explain
from edge_sdk.grammar import Grammar
from edge_sdk.language import LanguageModel
from edge_sdk.options import Options
from edge_sdk.server.errors import RequestError
from edge_sdk.server.requests import (
    ChatMessage,
    ChatRequest,
    ImagePart,
    JsonFormat,
    NamedTool,
    Sampled,
    SchemaFormat,
    TextFormat,
    TextPart,
    TextRequest,
    ToolCall,
)
from edge_sdk.tool_grammar import call_grammar
from edge_sdk.vision import Picture, no_sight

DEFAULT_TEXT_TOKENS = 16
"""Of a completion that says nothing, in OpenAI's API."""


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """What one request may ask for."""

    body_bytes: int = 4 << 20
    new_tokens: int = 4096
    """Of one answer; also what an answer may have where the request says nothing."""
    answers: int = 8
    """To one request: prompts times ``n``."""
    images: int = 8
    image_pixels: int = 16_000_000
    """Of each: a small file may hold a large image."""


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """A request, understood."""

    prompts: list[str | list[int]]
    pictures: list[Picture] = []
    """What the prompt, then a single one, shows."""
    options: Options
    count: int
    """Answers to each prompt."""
    tools: list[dict[str, Any]] = []
    """Those whose calls are looked for in the answer."""


def plan_chat(request: ChatRequest, model: LanguageModel, limits: Limits) -> Plan:
    """Raises EdgeError for what this model or server cannot do."""
    tools = _tools(request, model)
    variables = dict(request.chat_template_kwargs or {})
    if taken := {"messages", "add_generation_prompt", "tools"} & set(variables):
        raise RequestError(400, f"{', '.join(sorted(taken))} cannot be set", param="chat_template_kwargs")
    messages, pictures = _see([_message(message) for message in request.messages], model, limits)
    prompt = model.codec.render(messages, {**variables, "tools": tools or None})
    if model.sight is not None:
        model.sight.expand(model.codec.encode(prompt), pictures)  # refuses images' tokens in the text
    wanted = request.max_completion_tokens or request.max_tokens or limits.new_tokens
    alternatives = (request.top_logprobs or 0) if request.logprobs else None
    if request.top_logprobs is not None and not request.logprobs:
        raise RequestError(400, "top_logprobs needs logprobs: true", param="top_logprobs")
    options = _options(request, limits, wanted).but(logprobs=alternatives, grammar=_grammar(request, model, tools))
    return Plan(prompts=[prompt], pictures=pictures, options=options, count=_count(request, 1, limits), tools=tools)


def plan_text(request: TextRequest, model: LanguageModel, limits: Limits) -> Plan:
    """Raises EdgeError for what this model or server cannot do."""
    prompts = _prompts(request)
    for prompt in prompts:
        _check_prompt(prompt, model.config.vocab_size)
    count = _count(request, len(prompts), limits)
    if request.best_of not in (None, count):
        raise RequestError(400, "best_of other than n is not supported", param="best_of")
    options = _options(request, limits, request.max_tokens or min(DEFAULT_TEXT_TOKENS, limits.new_tokens))
    return Plan(prompts=prompts, options=options.but(logprobs=request.logprobs), count=count)


def _options(request: Sampled, limits: Limits, wanted: int) -> Options:
    """OpenAI's defaults, where the request says nothing: temperature 1 and all tokens."""
    if wanted > limits.new_tokens:
        found = f"expected at most {limits.new_tokens}, found {wanted}"
        raise RequestError(400, f"The answer's tokens: {found}. Ask for fewer.", param="max_tokens")
    stop = request.stop or []
    return Options(
        max_new_tokens=wanted,
        deadline_ms=request.deadline_ms,
        stop=(stop,) if isinstance(stop, str) else tuple(text for text in stop if text),
        temperature=1.0 if request.temperature is None else request.temperature,
        top_k=max(0, request.top_k or 0),  # -1 is vLLM's word for all
        top_p=1.0 if request.top_p is None else request.top_p,
        min_p=request.min_p or 0.0,
        seed=None if request.seed is None else request.seed % (1 << 63),
        repetition_penalty=request.repetition_penalty or 1.0,
        presence_penalty=request.presence_penalty or 0.0,
        frequency_penalty=request.frequency_penalty or 0.0,
        logit_bias=request.logit_bias or {},
    )


def _count(request: Sampled, prompts: int, limits: Limits) -> int:
    count = request.n or 1
    if count * prompts > limits.answers:
        raise RequestError(400, f"expected at most {limits.answers} answers, found {count * prompts}", param="n")
    return count


def _prompts(request: TextRequest) -> list[str | list[int]]:
    """One prompt or several, each as text or as token ids."""
    given = request.prompt
    if isinstance(given, str):
        return [given]
    ids = [part for part in given if isinstance(part, int)]
    if ids and len(ids) == len(given):
        return [ids]
    several = [part for part in given if not isinstance(part, int)]
    if ids or not several:
        raise RequestError(400, "expected a text, token ids, or a list of these", param="prompt")
    return several


def _check_prompt(prompt: str | list[int], vocab: int) -> None:
    if isinstance(prompt, list) and not all(0 <= token_id < vocab for token_id in prompt):
        raise RequestError(400, f"expected token ids from 0 to {vocab - 1}", param="prompt")
    if not prompt:
        raise RequestError(400, "The prompt is empty. Say something.", param="prompt")


def _message(message: ChatMessage) -> dict[str, Any]:
    """A message as chat templates know them; ``developer`` is OpenAI's newer word for ``system``."""
    content: Any = message.content
    if not isinstance(content, str):
        parts = [_part(part) for part in content or ()]
        images = any(part["type"] == "image" for part in parts)
        content = parts if images else "".join(part["text"] for part in parts)
    fields: dict[str, object] = {
        "role": "system" if message.role == "developer" else message.role,
        "content": content,
        "name": message.name,
        "tool_call_id": message.tool_call_id,
        "reasoning_content": message.reasoning_content,
        "tool_calls": [_call(call) for call in message.tool_calls or ()] or None,
    }
    return {name: value for name, value in fields.items() if value is not None}


def _part(part: TextPart | ImagePart) -> dict[str, Any]:
    if isinstance(part, TextPart):
        return {"type": "text", "text": part.text}
    try:
        content = base64.b64decode(part.image_url.url.partition(",")[2], validate=True)
    except ValueError as error:
        raise RequestError(400, f"An image is not base64: {error}", param="messages") from None
    return {"type": "image", "image": content}


def _see(
    messages: list[dict[str, Any]], model: LanguageModel, limits: Limits
) -> tuple[Sequence[Mapping[str, Any]], list[Picture]]:
    """Messages for the chat template, and the pictures that they show, in their order."""
    parts = [part for message in messages if isinstance(message.get("content"), list) for part in message["content"]]
    shown = [part for part in parts if part["type"] == "image"]
    if not shown and model.sight is None:
        return messages, []
    if model.sight is None:
        raise RequestError(400, str(no_sight()), param="messages")
    if len(shown) > limits.images:
        raise RequestError(400, f"expected at most {limits.images} images, found {len(shown)}", param="messages")
    try:
        pictures = [model.sight.picture(part["image"], limits.image_pixels) for part in shown]
    except ImageError as error:
        raise RequestError(400, str(error), param="messages") from None
    return model.sight.for_template(messages), pictures


def _call(call: ToolCall) -> dict[str, Any]:
    """An earlier call, whose arguments templates want as an object."""
    try:
        arguments = msgspec.json.decode(call.function.arguments or "{}", type=dict[str, Any])
    except (msgspec.DecodeError, RecursionError) as error:
        raise RequestError(400, f"A tool call's arguments are no JSON object: {error}", param="messages") from None
    return {"id": call.id, "type": "function", "function": {"name": call.function.name, "arguments": arguments}}


def _tools(request: ChatRequest, model: LanguageModel) -> list[dict[str, Any]]:
    """The tools that the model is told of."""
    if not request.tools or request.tool_choice == "none":
        if request.tool_choice not in (None, "none", "auto"):
            raise RequestError(400, "tool_choice needs tools", param="tool_choice")
        return []
    if model.codec.format.calls is None:
        message = explain(
            "tools", expected="a model that calls tools", found="a chat template without them", todo="Leave them out."
        )
        raise RequestError(400, message, param="tools")
    return [_without_nothing(msgspec.to_builtins(tool)) for tool in request.tools]


def _without_nothing(tool: dict[str, Any]) -> dict[str, Any]:
    """Templates print a tool as it is given."""
    function = {name: value for name, value in tool["function"].items() if value is not None}
    return {"type": "function", "function": function}


def _grammar(request: ChatRequest, model: LanguageModel, tools: list[dict[str, Any]]) -> Grammar | None:
    """What the answer must look like, if something is asked for."""
    choice, wanted = request.tool_choice, request.response_format
    if wanted is not None and not isinstance(wanted, TextFormat):
        if tools:
            message = "response_format cannot hold together with tools. Set tool_choice to none, or leave one out."
            raise RequestError(400, message, param="response_format")
        return _response_grammar(wanted)
    if isinstance(choice, NamedTool):
        return call_grammar(model.codec.format, tools, name=choice.function.name)
    if choice == "required":
        return call_grammar(model.codec.format, tools, parallel=request.parallel_tool_calls is not False)
    return None


def _response_grammar(wanted: JsonFormat | SchemaFormat) -> Grammar:
    if isinstance(wanted, JsonFormat) or wanted.json_schema.schema is None:
        return Grammar.json_object()
    return Grammar.json_schema(wanted.json_schema.schema)
