"""What every token of a tokenizer adds to the text, as bytes: grammars are matched byte by byte."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from typing import Any

import msgspec
from tokenizers import Tokenizer

from edge_sdk.errors import ConfigError, explain

Ids = Sequence[int]


class TokenBytes(msgspec.Struct, frozen=True, kw_only=True):
    """The bytes of all tokens of one tokenizer."""

    tokens: tuple[bytes | None, ...]
    """By token id: what it adds to the text; None for special tokens and ids without a token, which add nothing."""
    specials: dict[str, int]
    """Special tokens, by their text."""
    drops_first_space: bool
    """Whether the space before the first word of a text is not written, as in SentencePiece's and word-level ones."""

    @property
    def says_everything(self) -> bool:
        """Whether every byte is a token, and so every text can be written."""
        return {token for token in self.tokens if token and len(token) == 1} == {bytes([byte]) for byte in range(256)}

    def join(self, ids: Ids) -> bytes:
        """The bytes of several tokens."""
        return b"".join(self.tokens[token_id] or b"" for token_id in ids)

    def text(self, ids: Ids) -> str:
        """What the tokenizer must decode ``ids`` to; U+FFFD for what is not UTF-8."""
        text = self.join(ids).decode("utf-8", errors="replace")
        return text[1:] if self.drops_first_space and text.startswith(" ") else text


def token_bytes(tokenizer: Tokenizer) -> TokenBytes:
    """Finds the bytes of all tokens, and proves on samples that the tokenizer's texts are made of them.

    Raises ConfigError where a token's text depends on more than whether it stands first, as in WordPiece's clean-up.
    """
    added = tokenizer.get_added_tokens_decoder()
    specials = {token.content: token_id for token_id, token in added.items() if token.special}
    names = {token_id: name for name, token_id in tokenizer.get_vocab(with_added_tokens=True).items()}
    for token_id in specials.values():
        names.pop(token_id, None)
    decoders = _decoders(tokenizer)
    if "ByteLevel" in decoders:
        found = _byte_level(names, {token_id: token.content for token_id, token in added.items()})
    else:
        found = _by_decoding(tokenizer, sorted(names))
    if "ByteFallback" in decoders:
        in_model = {token_id: name for token_id, name in names.items() if token_id not in added}
        found |= {token_id: bytes([int(name[3:5], 16)]) for token_id, name in in_model.items() if _is_byte(name)}
    size = max([*names, *specials.values()]) + 1
    tokens = tuple(found.get(token_id) or None for token_id in range(size))
    spaced = next((token_id for token_id, content in found.items() if content[:1] == b" " and len(content) > 1), None)
    drops = spaced is not None and _decode(tokenizer, [spaced]) != found[spaced].decode(errors="replace")
    table = TokenBytes(tokens=tokens, specials=specials, drops_first_space=drops)
    _prove(tokenizer, table)
    return table


def _decode(tokenizer: Tokenizer, ids: Ids) -> str:
    return str(tokenizer.decode(list(ids), skip_special_tokens=True))


def _decoders(tokenizer: Tokenizer) -> set[str]:
    """The types of the tokenizer's decoding steps."""
    if tokenizer.decoder is None:
        return set()
    state: dict[str, Any] = json.loads(tokenizer.decoder.__getstate__())
    return {step["type"] for step in state.get("decoders", [state])}


def _is_byte(name: str) -> bool:
    return len(name) == 6 and name.startswith("<0x") and name.endswith(">")


def _byte_level(names: dict[int, str], added: dict[int, str]) -> dict[int, bytes]:
    """GPT-2's alphabet, in which every byte is a printable character (``bytes_to_unicode`` of its encoder.py)."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    alphabet = {chr(byte): byte for byte in printable} | {chr(256 + n): byte for n, byte in enumerate(others)}
    found = {}
    for token_id, name in names.items():
        if token_id in added:
            found[token_id] = added[token_id].encode()
        elif all(char in alphabet for char in name):
            found[token_id] = bytes(alphabet[char] for char in name)
        else:  # the decoder takes such a token's name as it is
            found[token_id] = name.encode()
    return found


def _by_decoding(tokenizer: Tokenizer, ids: list[int]) -> dict[int, bytes]:
    """What each token adds to the text when it stands behind another."""
    for first in ids:
        if (start := _decode(tokenizer, [first])) and _decode(tokenizer, [first, first]).startswith(start):
            break
    else:
        return {}
    texts = tokenizer.decode_batch([[first, token_id] for token_id in ids], skip_special_tokens=True)
    return {token_id: text[len(start) :].encode() for token_id, text in zip(ids, texts) if text.startswith(start)}


def _prove(tokenizer: Tokenizer, table: TokenBytes) -> None:
    """Raises ConfigError where samples of up to 12 tokens are not decoded to the bytes found."""
    whole = [token_id for token_id, content in enumerate(table.tokens) if content and _is_utf8(content)]
    dice = random.Random(0)
    for _ in range(100):
        sample = [dice.choice(whole) for _ in range(dice.randint(1, 12))] if whole else []
        expected, decoded = table.text(sample), _decode(tokenizer, sample)
        if not sample or decoded != expected:
            raise ConfigError(
                explain(
                    "Structured output",
                    expected=f"a tokenizer that decodes token by token (tokens {sample} to {expected!r})",
                    found=f"{decoded!r}",
                    todo="Use a byte-level, SentencePiece or word-level tokenizer, or generate without a grammar.",
                )
            )


def _is_utf8(content: bytes) -> bool:
    try:
        content.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True
