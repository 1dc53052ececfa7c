"""Text to tokens and back: the tokenizer and the chat template that a checkpoint or bundle carries."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, NoReturn, TypedDict

from jinja2 import TemplateError
from jinja2.ext import Extension
from jinja2.nodes import Node
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment
from tokenizers import Tokenizer
from tokenizers.decoders import DecodeStream

from edge_sdk.chat_format import ChatFormat
from edge_sdk.errors import BundleError, PromptError, explain

TOKENIZER_FILE = "tokenizer.json"
TEMPLATE_FILE = "chat_template.jinja"

TOKENIZER_CONFIG = "tokenizer_config.json"
"""Where checkpoints of before 2025 have the template; those of today may have it in either."""


class Message(TypedDict):
    """One turn of a conversation; see :func:`edge_sdk.vision.take_images` for one with images."""

    role: str
    content: str


NO_VARIABLES: Mapping[str, Any] = {}


def check_prompt(prompt: object) -> str:
    """The prompt as text. Raises PromptError when it is empty or is not valid UTF-8."""
    if isinstance(prompt, bytes):
        try:
            prompt = prompt.decode("utf-8")
        except UnicodeDecodeError as error:
            raise PromptError(
                explain("The prompt", expected="UTF-8 text", found=error.reason, todo="Encode it as UTF-8.")
            ) from None
    if not isinstance(prompt, str):
        raise PromptError(
            explain("The prompt", expected="text", found=type(prompt).__name__, todo="Pass a str or UTF-8 bytes.")
        )
    if any(0xD800 <= ord(char) < 0xE000 for char in prompt):  # how Python's argv carries bytes that are not UTF-8
        raise PromptError(
            explain("The prompt", expected="UTF-8 text", found="bytes that are not", todo="Encode it as UTF-8.")
        )
    if not prompt.strip():
        raise PromptError(explain("The prompt", expected="some text", found="none", todo="Say what to do."))
    return prompt


def read_template(folder: Path) -> str:
    """The chat template of a bundle, or of a checkpoint as transformers writes it. Raises BundleError without one."""
    if (folder / TEMPLATE_FILE).exists():
        return (folder / TEMPLATE_FILE).read_text(encoding="utf-8")
    path = folder / TOKENIZER_CONFIG
    found = json.loads(path.read_text(encoding="utf-8")).get("chat_template") if path.exists() else None
    if isinstance(found, list):  # several, by name
        found = {item["name"]: item["template"] for item in found}.get("default")
    if not isinstance(found, str):
        expected, todo = f"a {TEMPLATE_FILE}, or one in {TOKENIZER_CONFIG}", "Write one (docs/export.md)."
        raise BundleError(explain(str(folder), expected=expected, found="none", todo=todo))
    return found


class TextCodec:
    """Renders messages by the chat template and converts between text and token ids.

    Raises BundleError when the folder's tokenizer or template cannot be read.
    """

    def __init__(self, folder: Path) -> None:
        try:
            self.tokenizer = Tokenizer.from_str((folder / TOKENIZER_FILE).read_text(encoding="utf-8"))
            source = read_template(folder)
            self._template = _environment().from_string(source)
            self.format = ChatFormat.of_template(source)
            self.shows_images = "image" in source
            """Whether the template takes a message in parts, and writes an image's token by itself."""
        except BundleError:
            raise
        except Exception as error:  # tokenizers raises plain Exception
            raise BundleError(
                explain(
                    str(folder),
                    expected=f"a readable {TOKENIZER_FILE} and {TEMPLATE_FILE}",
                    found=error,
                    todo="Export the checkpoint again.",
                )
            ) from error
        added = self.tokenizer.get_added_tokens_decoder()
        self._markers = {
            token_id: token.content
            for token_id, token in added.items()
            if token.special and token.content in self.format.markers
        }

    def render(self, messages: Sequence[Mapping[str, object]], variables: Mapping[str, Any] = NO_VARIABLES) -> str:
        """The conversation as the model reads it, up to where its answer begins.

        ``variables``: what else the template may ask for, such as ``tools`` and ``enable_thinking``. Raises PromptError
        where the template refuses them or their text is not Unicode.
        """
        try:
            text = self._template.render(**{"tools": None, **variables}, messages=messages, add_generation_prompt=True)
            text.encode()
        except Exception as error:  # a template is a program: what it cannot do with the messages raises anything
            raise PromptError(
                explain("The chat template", expected="to accept the messages", found=error, todo="Check their roles.")
            ) from error
        return text

    def encode(self, text: str) -> list[int]:
        """Token ids of a text, special tokens as they are written in it."""
        return list(self.tokenizer.encode(text, add_special_tokens=False).ids)

    def messages(self, prompt: str | bytes | Sequence[Message]) -> list[Message]:
        """A prompt as messages: text is what the user says. Raises PromptError for one that is not text."""
        if isinstance(prompt, Sequence) and not isinstance(prompt, (str, bytes)):
            return list(prompt)
        return [{"role": "user", "content": check_prompt(prompt)}]

    def encode_prompt(self, prompt: str | bytes | Sequence[Message]) -> list[int]:
        """Token ids of a prompt, a single user message or a whole conversation."""
        return self.encode(self.render(self.messages(prompt)))

    def decode(self, ids: Sequence[int]) -> str:
        """The text of token ids, special tokens left out."""
        return str(self.tokenizer.decode(list(ids), skip_special_tokens=True))

    def token_text(self, token_id: int) -> str:
        """How a token is shown by itself; a special one by its name, part of a character as U+FFFD."""
        return str(self.tokenizer.decode([token_id], skip_special_tokens=False))

    def stream(self) -> TextStream:
        """A decoder for tokens that come one by one."""
        return TextStream(self.tokenizer, self._markers)


class TextStream:
    """Decodes tokens one by one: the pieces put together are the text, and no piece splits a character.

    Special tokens are left out but for ``markers`` (text by id), of reasoning and tool calls.
    """

    def __init__(self, tokenizer: Tokenizer, markers: Mapping[int, str]) -> None:
        self._tokenizer, self._markers = tokenizer, markers
        self._stream = DecodeStream(skip_special_tokens=True)

    def step(self, token_id: int) -> str:
        """The text that this token adds; empty while a character is incomplete."""
        if token_id in self._markers:
            return self._markers[token_id]
        return self._stream.step(self._tokenizer, token_id) or ""


class _Generation(Extension):
    """``{% generation %}``, by which transformers marks what is learnt from in training; here it says nothing."""

    tags = {"generation"}  # noqa: RUF012  jinja2 declares it so

    def parse(self, parser: Parser) -> list[Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _environment() -> ImmutableSandboxedEnvironment:
    """What chat templates expect of Jinja, as transformers gives it to them."""

    def to_json(value: Any, ensure_ascii: bool = False, indent: int | None = None, **options: Any) -> str:
        return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, **options)

    def raise_exception(message: str) -> NoReturn:
        raise TemplateError(message)

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols", _Generation]
    )
    environment.filters["tojson"] = to_json  # jinja2's own escapes what HTML does
    environment.globals["raise_exception"] = raise_exception
    environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
    return environment
