"""Text to tokens and back: the tokenizer and the chat template that a checkpoint or bundle carries."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TypedDict

from jinja2 import TemplateError
from jinja2.sandbox import ImmutableSandboxedEnvironment
from tokenizers import Tokenizer
from tokenizers.decoders import DecodeStream

from edge_sdk.errors import BundleError, PromptError, explain

TOKENIZER_FILE = "tokenizer.json"
TEMPLATE_FILE = "chat_template.jinja"


class Message(TypedDict):
    """One turn of a conversation."""

    role: str
    content: str


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


class TextCodec:
    """Renders messages by the chat template and converts between text and token ids.

    Raises BundleError when the folder's tokenizer or template cannot be read.
    """

    def __init__(self, folder: Path) -> None:
        try:
            self.tokenizer = Tokenizer.from_str((folder / TOKENIZER_FILE).read_text(encoding="utf-8"))
            source = (folder / TEMPLATE_FILE).read_text(encoding="utf-8")
            self._template = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True).from_string(source)
        except Exception as error:  # tokenizers raises plain Exception
            raise BundleError(
                explain(
                    str(folder),
                    expected=f"a readable {TOKENIZER_FILE} and {TEMPLATE_FILE}",
                    found=error,
                    todo="Export the checkpoint again.",
                )
            ) from error

    def render(self, messages: Sequence[Message]) -> str:
        """The conversation as the model reads it, up to where its answer begins."""
        try:
            return self._template.render(messages=messages, add_generation_prompt=True)
        except TemplateError as error:
            raise PromptError(
                explain("The chat template", expected="to accept the messages", found=error, todo="Check their roles.")
            ) from None

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

    def stream(self) -> TextStream:
        """A decoder for tokens that come one by one."""
        return TextStream(self.tokenizer)


class TextStream:
    """Decodes tokens one by one: the pieces put together are the text, and no piece splits a character."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._stream = DecodeStream(skip_special_tokens=True)

    def step(self, token_id: int) -> str:
        """The text that this token adds; empty while a character is incomplete."""
        return self._stream.step(self._tokenizer, token_id) or ""
