"""Searches the tokens that complete a constrained answer without the model."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from llguidance import LLMatcher, LLTokenizer

Plan = tuple[int, ...]

# In free text, such as a string of JSON, everything else is content. This character is no grammar's syntax.
FREE = b"~"
ENDS_OF_TEXT = (b'"', b"'", b"`", b"\n", b"/", b")", b"]", b"}", b">")
# Elsewhere: what closes comes before what separates, digits, letters, what opens, and spaces; and first of all what can
# stand only once in an address, whose local part would else go on for ever.
STRUCTURE = b"@}])\">'`;,.:/=0123456789-tfnabcdeghijklmopqrsuvwxyz"
LAST = b"[({<\\ \n\t\r"

# A walk's steps are characters, forced passages or tokens. The greedy walk may be long, as a string with a minimal
# length needs it; random ones start short, and together take no more steps than these: where the greedy one was only
# too long, where it failed, and when a grammar is compiled.
GREEDY_STEPS = 8192
RANDOM_STEPS = (16, 48, 144, 432)
TRIES = 8
STEPS_TO_IMPROVE, STEPS_TO_FIND, STEPS_TO_COMPILE = 256, 2048, 8192


class Closer:
    """Finds closings for all grammars of one vocabulary.

    Raises nothing: where no closing is found within the limits there is none to give.
    """

    def __init__(self, tokenizer: LLTokenizer, tokens: Sequence[bytes | None]) -> None:
        self._tokenizer, self._tokens = tokenizer, tokens
        self._single = {content: [token_id] for token_id, content in enumerate(tokens) if content and len(content) == 1}
        rest = sorted(set(range(256)) - {*STRUCTURE, *LAST})
        ranked = (bytes([byte]) for byte in (*STRUCTURE, *rest, *LAST))
        self._ranked = [self._single[char] for char in ranked if char in self._single]
        self._single_ids = np.array([token_id for step in self._ranked for token_id in step], dtype=np.int64)
        self._free = self._single.get(FREE)

    def find(self, matcher: LLMatcher, limit: int, ends_of_text: Iterable[list[int]] = ()) -> Plan | None:
        """At most ``limit`` tokens that complete what ``matcher`` has read, or None; not always the fewest there are.

        First the walk that always takes the likeliest end, then random ones. ``ends_of_text``: tokens by which this
        grammar's free texts end, tried before the usual characters.
        """
        ends = self._ends(ends_of_text)
        plan = self._walk(matcher, ends, min(GREEDY_STEPS, 64 + 8 * limit))
        if plan is not None and len(plan) <= limit:
            return plan
        walks = self._random_walks(matcher, ends, STEPS_TO_FIND if plan is None else STEPS_TO_IMPROVE)
        return next((plan for plan in walks if len(plan) <= limit), None)

    def shortest(self, matcher: LLMatcher, limit: int, ends_of_text: Iterable[list[int]] = ()) -> Plan | None:
        """As :meth:`find`, with more patience: the shortest of many, in tokens and then in bytes."""
        ends = self._ends(ends_of_text)
        greedy = self._walk(matcher, ends, GREEDY_STEPS)
        plans = [*([] if greedy is None else [greedy]), *self._random_walks(matcher, ends, STEPS_TO_COMPILE)]
        return min((plan for plan in plans if len(plan) <= limit), key=self._size, default=None)

    def rests(self, plan: Plan, token_id: int) -> Iterator[Plan]:
        """What is left of a plan behind a token that says its beginning in other tokens, or with other spaces."""
        said, content = self._bytes([token_id]), self._bytes(plan)
        for start in dict.fromkeys((said, said.lstrip(), said.rstrip(), said.strip())):
            if start and content.startswith(start):
                yield tuple(self._greedy(content[len(start) :]))

    def _bytes(self, ids: Iterable[int]) -> bytes:
        return b"".join(self._tokens[token_id] or b"" for token_id in ids)

    def _ends(self, ends_of_text: Iterable[list[int]]) -> list[list[int]]:
        return [*ends_of_text, *(self._single[char] for char in ENDS_OF_TEXT if char in self._single)]

    def _size(self, plan: Plan) -> tuple[int, int]:
        return len(plan), len(self._bytes(plan))

    def _random_walks(self, matcher: LLMatcher, ends: list[list[int]], effort: int) -> Iterator[Plan]:
        """Ends that walks by chance found, which together took about ``effort`` steps. The same ones every time."""
        dice = random.Random(0)
        for attempt in itertools.count():
            steps = RANDOM_STEPS[attempt // TRIES % len(RANDOM_STEPS)]
            if (effort := effort - steps) < 0:
                return
            if (plan := self._walk(matcher, ends, steps, dice)) is not None:
                yield plan

    def _walk(
        self, matcher: LLMatcher, ends: list[list[int]], steps: int, dice: random.Random | None = None
    ) -> Plan | None:
        """One way to the end, by the first candidate at every fork, or by chance."""
        walker, path = matcher.deep_copy(), list[int]()
        for _ in range(steps):
            if walker.is_accepting():
                return self._merged(matcher, path)
            step = self.forced(walker) or self._choice(walker, ends, dice)
            if not step or walker.try_consume_tokens(step) != len(step):
                return None
            path += step
        return None

    def forced(self, walker: LLMatcher) -> list[int]:
        """Tokens of the bytes that must follow; none where nothing is forced or no token says it."""
        content = walker.compute_ff_bytes()
        ids = self._tokenizer.greedy_tokenize(content.decode("utf-8", errors="ignore")) if content else []
        return ids[: walker.validate_tokens(ids)] if ids else []

    def _choice(self, walker: LLMatcher, ends: list[list[int]], dice: random.Random | None) -> list[int] | None:
        if dice is not None and dice.random() < 0.5:
            return self._any_token(walker, dice)
        if self._free and walker.validate_tokens(self._free):
            leaving = (end for end in ends if walker.validate_tokens([*end, *self._free]) == len(end))
            if step := next(leaving, None):
                return step
        ranked = (step for step in self._ranked if walker.validate_tokens(step))
        return next(ranked, None) or self._any_token(walker, random.Random(0))

    def _any_token(self, walker: LLMatcher, dice: random.Random) -> list[int] | None:
        """One of the single bytes that fit, or where none of them is a token one of the shortest tokens that do."""
        bits = np.unpackbits(np.frombuffer(walker.compute_bitmask(), dtype=np.uint8), bitorder="little")
        fitting = self._single_ids[bits[self._single_ids] == 1]
        if not len(fitting):
            fitting = np.array(sorted(np.flatnonzero(bits).tolist(), key=self._length)[:64])
        return [int(dice.choice(fitting))] if len(fitting) else None

    def _length(self, token_id: int) -> int:
        return len((self._tokens[token_id] if token_id < len(self._tokens) else None) or b"")

    def _merged(self, matcher: LLMatcher, path: list[int]) -> Plan:
        """The same bytes in fewer tokens, where the grammar takes those too."""
        merged, content = list[int](), b""
        for token_id in path:
            if part := self._tokens[token_id]:
                content += part
            else:
                merged += [*self._greedy(content), token_id]
                content = b""
        merged += self._greedy(content)
        if len(merged) < len(path) and closes(matcher, merged):
            return tuple(merged)
        return tuple(path)

    def _greedy(self, content: bytes) -> list[int]:
        text = content.decode("utf-8", errors="ignore")
        return self._tokenizer.greedy_tokenize(text) if text else []


def closes(matcher: LLMatcher, plan: Sequence[int]) -> bool:
    """Whether exactly these tokens complete what ``matcher`` has read."""
    ids = list(plan)
    if matcher.validate_tokens(ids) < len(ids):  # spares the copy
        return False
    walker = matcher.deep_copy()
    return walker.try_consume_tokens(ids) == len(ids) and bool(walker.is_accepting())
