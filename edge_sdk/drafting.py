"""Tokens drafted without the model: what followed an earlier occurrence of the last tokens (prompt lookup)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from edge_sdk.pace import LENGTHS

LONGEST_MATCH = 16
"""Tokens that an earlier occurrence is compared over."""

CANDIDATES = 4
"""Earlier occurrences of the last two tokens that are compared, the latest first."""


class Draft(NamedTuple):
    """Tokens that may come next."""

    tokens: list[int]
    kinds: list[tuple[str, int]]
    """What each of them is known by, for how often such ones are right."""


KINDS = [("lookup", min(match, LONGEST_MATCH).bit_length()) for match in range(LONGEST_MATCH + max(LENGTHS) + 1)]
"""By the length of the match: each token that is right makes it one longer."""


class PromptLookup:
    """The tokens of a conversation, and where each pair of them occurred before.

    What followed the longest match of the last tokens is drafted (prompt lookup decoding: Saxena 2023; as vLLM's and
    transformers' ``prompt_lookup``). Occurrences are found as in LZ77's hash chains (RFC 1951, section 4): a table of
    pairs and a chain of earlier ones, so a token costs the same however long the conversation is.
    """

    def __init__(self) -> None:
        self._tokens: list[int] = []
        self._latest: dict[tuple[int, int], int] = {}
        """By pair the position of its second token."""
        self._earlier: list[int] = []
        """By position that of the pair's occurrence before; -1 where there is none."""

    def __len__(self) -> int:
        return len(self._tokens)

    def extend(self, token_ids: Sequence[int]) -> None:
        """Adds tokens to the conversation."""
        tokens, latest, earlier = self._tokens, self._latest, self._earlier
        for token in token_ids:
            pair = (tokens[-1] if tokens else -1, token)
            earlier.append(latest.get(pair, -1))
            latest[pair] = len(tokens)
            tokens.append(token)

    def draft(self, count: int) -> Draft:
        """Up to ``count`` tokens, none where the last two never occurred before.

        A copy that reaches the end of what is known goes on with what it drafted, as a repetition does.
        """
        source, match = self._longest_match()
        if source < 0:
            return Draft([], [])
        known = self._tokens[source + 1 : source + 1 + count]
        period = len(known)
        tokens = [known[index % period] for index in range(count)]
        return Draft(tokens, KINDS[match : match + count])

    def _longest_match(self) -> tuple[int, int]:
        """Where the last tokens occurred before, by the position of the last one, and how many of them did."""
        tokens, best = self._tokens, (-1, 0)
        end = len(tokens) - 1
        candidate = self._earlier[end] if tokens else -1
        for _ in range(CANDIDATES):
            if candidate < 1:
                break
            length, limit = 2, min(LONGEST_MATCH, candidate + 1)
            while length < limit and tokens[candidate - length] == tokens[end - length]:
                length += 1
            if length > best[1]:
                best = (candidate, length)
            if length >= LONGEST_MATCH:
                break
            candidate = self._earlier[candidate]
        return best
