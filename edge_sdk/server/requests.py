"""What OpenAI's clients send, as far as it is understood here: everything else is refused by name."""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeVar, Union

import msgspec
from msgspec import Meta

from edge_sdk.server.errors import RequestError

Text = str
Penalty = Annotated[float, Meta(ge=-2, le=2)]
Positive = Annotated[int, Meta(ge=1, le=1 << 31)]
Bias = Annotated[float, Meta(ge=-100, le=100)]


class Strict(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A part of a request that has no other fields than these."""


class StreamOptions(Strict, frozen=True, kw_only=True):
    """``include_obfuscation`` hides lengths from who listens to the network; here nothing is added."""

    include_usage: bool = False
    include_obfuscation: bool | None = None


class Sampled(Strict, frozen=True, kw_only=True):
    """What both kinds of requests have; below ``user`` what OpenAI's have not and vLLM's have."""

    model: str
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    n: Annotated[int, Meta(ge=1, le=128)] | None = None
    stop: Union[Text, Annotated[list[Text], Meta(max_length=16)], None] = None
    seed: Annotated[int, Meta(ge=-(1 << 63), le=(1 << 63) - 1)] | None = None
    temperature: Annotated[float, Meta(ge=0, le=2)] | None = None
    top_p: Annotated[float, Meta(gt=0, le=1)] | None = None
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    logit_bias: dict[int, Bias] | None = None
    max_tokens: Positive | None = None
    user: str | None = None
    """Ignored: nothing is told apart by user."""

    top_k: Annotated[int, Meta(ge=-1)] | None = None
    min_p: Annotated[float, Meta(ge=0, le=1)] | None = None
    repetition_penalty: Annotated[float, Meta(gt=0, le=10)] | None = None
    deadline_ms: Annotated[float, Meta(ge=0)] | None = None


class TextPart(Strict, frozen=True, kw_only=True, tag_field="type", tag="text"):
    """A part of a message; sounds are not understood."""

    text: str


class ImageUrl(Strict, frozen=True, kw_only=True):
    """``detail`` is ignored: a model sees in one size."""

    url: Annotated[str, Meta(pattern="^data:image/(jpeg|png);base64,")]
    """The image itself, as a data: URL. Nothing is fetched from anywhere."""
    detail: Literal["auto", "low", "high"] | None = None


class ImagePart(Strict, frozen=True, kw_only=True, tag_field="type", tag="image_url"):
    """An image in a message."""

    image_url: ImageUrl


class CalledFunction(Strict, frozen=True, kw_only=True):
    """``arguments`` is a JSON object, as text."""

    name: str
    arguments: str


class ToolCall(Strict, frozen=True, kw_only=True):
    """A call in an earlier answer; ``index`` is of streams."""

    id: str
    function: CalledFunction
    type: Literal["function"] = "function"
    index: int | None = None


class ChatMessage(Strict, frozen=True, kw_only=True):
    """One turn; the last four fields are what clients hand back of an answer and has no meaning here."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: Union[str, list[Union[TextPart, ImagePart]], None] = None
    name: str | None = None
    tool_calls: list[ToolCall] | None = None
    tool_call_id: str | None = None
    reasoning_content: str | None = None
    refusal: str | None = None
    annotations: list[Any] | None = None
    audio: None = None
    function_call: None = None


class Function(Strict, frozen=True, kw_only=True):
    """A tool; ``strict`` changes nothing, since forced calls keep to the schema always and others cannot be made to."""

    name: Annotated[str, Meta(pattern="^[a-zA-Z0-9_.-]{1,64}$")]
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class Tool(Strict, frozen=True, kw_only=True):
    """In OpenAI's form."""

    type: Literal["function"]
    function: Function


class NamedFunction(Strict, frozen=True, kw_only=True):
    """Which tool must be called."""

    name: str


class NamedTool(Strict, frozen=True, kw_only=True):
    """In OpenAI's form."""

    type: Literal["function"]
    function: NamedFunction


class TextFormat(Strict, frozen=True, kw_only=True, tag_field="type", tag="text"):
    """No format."""


class JsonFormat(Strict, frozen=True, kw_only=True, tag_field="type", tag="json_object"):
    """Any JSON object."""


class JsonSchema(Strict, frozen=True, kw_only=True):
    """The schema always holds; ``strict`` false allows more than is done here."""

    name: str
    schema: dict[str, Any] | None = None
    description: str | None = None
    strict: bool | None = None


class SchemaFormat(Strict, frozen=True, kw_only=True, tag_field="type", tag="json_schema"):
    """JSON of a schema."""

    json_schema: JsonSchema


class ChatRequest(Sampled, frozen=True, kw_only=True):
    """``POST /v1/chat/completions``. The last five fields are ignored: they are about OpenAI's own machines."""

    messages: Annotated[list[ChatMessage], Meta(min_length=1)]
    max_completion_tokens: Positive | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Meta(ge=0, le=20)] | None = None
    tools: list[Tool] | None = None
    tool_choice: Union[Literal["none", "auto", "required"], NamedTool, None] = None
    parallel_tool_calls: bool | None = None
    response_format: Union[TextFormat, JsonFormat, SchemaFormat, None] = None
    chat_template_kwargs: dict[str, Any] | None = None
    """What the chat template is given besides messages and tools, such as ``enable_thinking``, as in vLLM."""
    modalities: list[Literal["text"]] | None = None
    metadata: dict[str, str] | None = None
    store: bool | None = None
    service_tier: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None


class TextRequest(Sampled, frozen=True, kw_only=True):
    """``POST /v1/completions``."""

    prompt: Union[str, list[Union[str, int, list[int]]]]
    logprobs: Annotated[int, Meta(ge=0, le=20)] | None = None
    best_of: Annotated[int, Meta(ge=1)] | None = None
    echo: Literal[False] | None = None
    suffix: None = None


R = TypeVar("R", ChatRequest, TextRequest)


def decode(body: bytes, kind: type[R]) -> R:
    """A request's body. Raises RequestError, which names the field, for one that is not understood."""
    try:
        return msgspec.json.decode(body, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:  # ValidationError is a DecodeError
        field = str(error).partition("$.")[2].rstrip("`").split(" ")[0] or None
        raise RequestError(400, f"The request is not understood: {error}", param=field) from None
