"""Tokens drafted without the model: what followed an earlier occurrence of the last tokens (prompt lookup)."""

from __future__ import annotations

import threading
from collections.abc import Hashable, Iterable, Sequence
from typing import NamedTuple

Kind = tuple[Hashable, ...]
"""What a drafted token is known by, for how often such ones are right."""

LONGEST_MATCH = 16
"""Tokens that an earlier occurrence is compared over."""

CANDIDATES = 4
"""Earlier occurrences of the last two tokens that are compared, the latest first."""

HISTORY, REMEMBERED = 2048, 512
"""Tokens of ended conversations that are known, and the last ones of each that are remembered."""


class Draft(NamedTuple):
    """Tokens that may come next."""

    tokens: list[int]
    kinds: list[Kind]
    """Of each of them."""


_BY_LENGTH: dict[tuple[bool, bool | None], list[Kind]] = {
    (old, foreseen): [("lookup", bits, old, foreseen) for bits in range(LONGEST_MATCH.bit_length() + 1)]
    for foreseen in (None, False, True)
    for old in (False, True)
}
KINDS: dict[tuple[bool, bool | None], list[Kind]] = {
    key: [kinds[match.bit_length()] for match in range(LONGEST_MATCH + 1)] for key, kinds in _BY_LENGTH.items()
}
"""By whether an earlier conversation is copied, whether the token was foreseen there, and how many tokens before it
match; equal ones are the same."""


class PromptLookup:
    """The tokens of a conversation, and the place in it that its end repeats.

    What followed the longest match of the last tokens is drafted (prompt lookup decoding: Saxena 2023; as vLLM's and
    transformers' ``prompt_lookup``). Occurrences are found as in LZ77's hash chains (RFC 1951, section 4): a table of
    pairs and a chain of earlier ones, so a token costs the same however long the conversation is.

    Two things are added for texts that repeat their form and not their content, as records in JSON do. Where a token
    differs and no pair is known, the place moves on by a token all the same (as the match models of the PAQ archivers
    recover): behind a value of as many tokens the form goes on. And of each token is known whether it was foreseen the
    same way: names and brackets were, values were not, and will be so again.
    """

    def __init__(self) -> None:
        self.tokens: list[int] = []
        """All that is known, those of earlier conversations first."""
        self._latest: dict[tuple[int, int], int] = {}
        """By pair the position of its second token."""
        self._earlier: list[int] = []
        """By position that of the pair's occurrence before; -1 where there is none."""
        self._foreseen: list[bool | None] = []
        """By position whether what was then expected came; None where nothing was expected."""
        self._own = 0
        """Where this conversation begins, behind earlier ones."""
        self._next, self._match = -1, 0
        """Where the token stands that is expected next, and how many tokens before it are the last ones; at most 1
        where the place was kept over one that differed. -1 where none is expected."""

    def __len__(self) -> int:
        """Tokens of this conversation."""
        return len(self.tokens) - self._own

    def copy(self) -> PromptLookup:
        """Another one that knows the same tokens, and expects nothing."""
        other = PromptLookup()
        other.tokens, other._latest = self.tokens.copy(), self._latest.copy()
        other._earlier, other._foreseen = self._earlier.copy(), self._foreseen.copy()
        other._own = len(self.tokens)
        return other

    def extend(self, token_ids: Iterable[int]) -> None:
        """Adds tokens to the conversation."""
        tokens, latest, earlier = self.tokens, self._latest, self._earlier
        for token in token_ids:
            pair = (tokens[-1] if tokens else -1, token)
            earlier.append(latest.get(pair, -1))
            latest[pair] = len(tokens)
            right = self._next >= 0 and tokens[self._next] == token
            self._foreseen.append(right if self._next >= 0 else None)
            tokens.append(token)
            self._move(right)

    def draft(self, count: int) -> Draft:
        """Up to ``count`` tokens, none where nothing is expected.

        A copy that reaches the end of what is known goes on with what it drafted, as a repetition does.
        """
        if self._next < 0:
            return Draft([], [])
        places = slice(self._next, self._next + count)
        tokens, foreseen = self.tokens[places], self._foreseen[places]
        while len(tokens) < count:
            tokens, foreseen = (tokens * 2)[:count], (foreseen * 2)[:count]
        matches = range(self._match, self._match + count)  # each token that is right makes it one longer
        old = self._next < self._own
        return Draft(tokens, [KINDS[old, each][min(match, LONGEST_MATCH)] for each, match in zip(foreseen, matches)])

    def _move(self, right: bool) -> None:
        """Finds the place that the end repeats, after a token that was expected or not."""
        if not right or self._match < 2:
            source, match = self._longest_match()
            if source >= 0:
                self._next, self._match = source + 1, match
                return
        if self._next >= 0:
            self._next += 1
            self._match = self._match + 1 if right else 0

    def _longest_match(self) -> tuple[int, int]:
        """Where the last two tokens, or more, occurred before, by the position of the last one, and how many did."""
        tokens, best = self.tokens, (-1, 0)
        end = len(tokens) - 1
        candidate = self._earlier[end]
        for _ in range(CANDIDATES):
            if candidate < 1 or (best[1] and candidate < self._own):
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


class History:
    """The ends of ended conversations, which new ones may repeat (as SuffixDecoding: arXiv 2411.04975)."""

    def __init__(self) -> None:
        self._lock, self._lookup = threading.Lock(), PromptLookup()

    def add(self, token_ids: Sequence[int]) -> None:
        """A conversation of these tokens ended. Of more than HISTORY tokens the older half is forgotten."""
        with self._lock:
            new = token_ids[-REMEMBERED:]
            if len(self._lookup) + len(new) > HISTORY:
                new = [*self._lookup.tokens, *new][-HISTORY // 2 :]
                self._lookup = PromptLookup()
            self._lookup.extend(new)

    def lookup(self) -> PromptLookup:
        """For a conversation that begins."""
        with self._lock:
            return self._lookup.copy()
