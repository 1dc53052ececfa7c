"""What an answer must look like: a JSON schema, a regular expression, a choice or a context-free grammar."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from types import ModuleType
from typing import Any

from edge_sdk.errors import ConfigError, explain
from edge_sdk.token_bytes import TokenBytes

Schema = Mapping[str, Any] | bool | str

# Spaces and line breaks between the parts of JSON, bounded so that a model cannot spend its budget on them.
WHITESPACE = r"[\x20\x0A\x0D\x09]{1,40}"


@dataclass(frozen=True)
class Grammar:
    """What an answer must look like, for any tokenizer. Raises ConfigError with what llguidance refuses."""

    source: str
    """The grammar in llguidance's variant of Lark, from ``start`` on. It may use ``marker_0`` and so on."""
    markers: tuple[str, ...] = ()
    """Texts for which a tokenizer may have special tokens, such as ``<tool_call>``."""
    ends_of_text: tuple[str, ...] = ()
    """Texts that end a free text, where it is not quoted: they help to find closings."""
    end_of_reasoning: str = ""
    """If given, any text through this marker comes first, as ``</think>`` where the template opened the block."""

    def __post_init__(self) -> None:
        _, messages = llguidance_module().LLMatcher.validate_grammar_with_warnings(self.serialised())
        if messages:
            raise ConfigError(
                explain(
                    "The grammar",
                    expected="one that llguidance takes, see docs/structured.md",
                    found="; ".join(message.strip() for message in messages),
                    todo="Change the part that is named.",
                )
            )

    @classmethod
    def lark(cls, source: str) -> Grammar:
        """A context-free grammar in llguidance's variant of Lark's language."""
        return cls(source)

    @classmethod
    def json_schema(cls, schema: Schema) -> Grammar:
        """JSON that a schema (draft 2020-12; a mapping or its JSON) allows, properties in the schema's order."""
        return cls(f"start: {json_rule(schema)}")

    @classmethod
    def json_object(cls) -> Grammar:
        """Any JSON object."""
        return cls.json_schema({"type": "object"})

    @classmethod
    def regex(cls, pattern: str) -> Grammar:
        """Text that a regular expression matches as a whole.

        The syntax is that of Rust's ``regex``, without look-around; ``\\d`` is 0 to 9.
        """
        return cls(f"start: /{llguidance_module().regex_to_lark(pattern, 'd')}/" if pattern else 'start: ""')

    @classmethod
    def choice(cls, options: Iterable[str]) -> Grammar:
        """One of several texts."""
        texts = tuple(options)
        if not texts or not all(isinstance(text, str) and text for text in texts):
            raise ConfigError(
                explain("The choice", expected="texts, none empty", found=repr(texts), todo="Name the options.")
            )
        return cls("start: " + " | ".join(quoted(text) for text in texts))

    def after_reasoning(self, end: str = "</think>") -> Grammar:
        """The same behind a block of reasoning that the prompt has opened; it is closed within the budget too."""
        return replace(self, end_of_reasoning=end, ends_of_text=(*self.ends_of_text, end))

    def serialised(self, vocabulary: TokenBytes | None = None) -> str:
        """llguidance's form, for a tokenizer if given."""
        specials = vocabulary.specials if vocabulary else {}
        rules = [f"marker_{index}: {_literal(marker, specials)}" for index, marker in enumerate(self.markers)]
        answer = {"lark_grammar": "\n".join([self.source, *rules])}
        before = ['" "'] if vocabulary and vocabulary.drops_first_space else []
        if (end := self.end_of_reasoning) in specials:
            before += ["/(?s:.*)/", _literal(end, specials), r'"\n"{0,2}']
        elif end:
            before += ["reasoning", r'"\n"{0,2}']
        # Forced passages are put into tokens ahead, which fails where only some texts have any.
        lines = ["" if vocabulary is None or vocabulary.says_everything else '%llguidance {"no_forcing": true}']
        lines += [f"start: {' '.join(before)} @answer", f"reasoning[suffix={quoted(end)}]: /(?s:.*)/" if end else ""]
        return json.dumps({"grammars": [{"lark_grammar": "\n".join(lines)}, {"name": "answer", **answer}]})


def json_rule(schema: Schema) -> str:
    """A schema as a term of a Lark rule. Raises ConfigError if it is not JSON."""
    try:
        parsed = json.loads(schema) if isinstance(schema, str) else schema
        if parsed is False or not isinstance(parsed, (Mapping, bool)):
            raise TypeError("false, which allows nothing" if parsed is False else type(parsed).__name__)
        body = {"x-guidance": {"whitespace_pattern": WHITESPACE}, **(parsed if isinstance(parsed, Mapping) else {})}
        return f"%json {json.dumps(body)}"
    except (TypeError, ValueError) as error:
        raise ConfigError(
            explain("The JSON schema", expected="an object of JSON", found=error, todo="Pass a dict or its JSON.")
        ) from None


def quoted(text: str) -> str:
    """A text as a literal of Lark."""
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")


def _literal(text: str, specials: Mapping[str, int]) -> str:
    """A special token where there is one, which grammars tell from the same text in other tokens."""
    return f"<[{specials[text]}]>" if text in specials else quoted(text)


def llguidance_module() -> ModuleType:
    """llguidance, which is an extra. Raises ConfigError where it is not installed."""
    try:
        import llguidance
    except ImportError:
        raise ConfigError(
            explain(
                "Structured output",
                expected="llguidance to be installed",
                found="it is not",
                todo="pip install 'edge-sdk[structured]'",
            )
        ) from None
    return llguidance
