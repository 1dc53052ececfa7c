"""Answers that follow a grammar: which tokens may come next, and how an answer that is cut off is closed."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np
from tokenizers import Tokenizer

from edge_sdk.closing import Closer, Plan, closes
from edge_sdk.errors import ConfigError, explain
from edge_sdk.grammar import Grammar, llguidance_module
from edge_sdk.token_bytes import TokenBytes, token_bytes

if TYPE_CHECKING:
    from llguidance import LLMatcher, LLTokenizer

__all__ = ["Constraint", "Grammar", "GrammarCompiler"]

LONGEST_CLOSING = 4096
KEPT_GRAMMARS = 64


class GrammarCompiler:
    """Compiles grammars for one tokenizer, and keeps what it compiled. Threads may share it.

    ``end_token_ids``: tokens that end an answer. Raises ConfigError for a tokenizer whose texts cannot be followed
    token by token, and where llguidance is not installed.
    """

    def __init__(self, tokenizer: Tokenizer, end_token_ids: Sequence[int]) -> None:
        self.vocabulary = token_bytes(tokenizer)
        self.end_token_ids = tuple(end_token_ids)
        size = len(self.vocabulary.tokens)
        if not self.end_token_ids or not all(0 <= token_id < size for token_id in self.end_token_ids):
            raise ConfigError(
                explain(
                    "Structured output",
                    expected=f"end tokens among the tokenizer's {size}",
                    found=self.end_token_ids,
                    todo="Check eos_token_ids of the bundle's manifest.",
                )
            )
        self.tokenizer = _llguidance_tokenizer(tokenizer, self.vocabulary, self.end_token_ids)
        self.closer = Closer(self.tokenizer, self.vocabulary.tokens)
        self._compiled: dict[Grammar, Constraint] = {}
        self._lock = threading.Lock()

    def compile(self, grammar: Grammar) -> Constraint:
        """A constraint at its start. Raises ConfigError where this tokenizer has no way to say what is asked for."""
        with self._lock:
            if grammar not in self._compiled:
                while len(self._compiled) >= KEPT_GRAMMARS:
                    del self._compiled[next(iter(self._compiled))]
                self._compiled[grammar] = self._start(grammar)
            return self._compiled[grammar].copy()

    def _start(self, grammar: Grammar) -> Constraint:
        specials = self.vocabulary.specials
        ends = [
            [specials[text]] if text in specials else self.tokenizer.greedy_tokenize(text)
            for text in grammar.ends_of_text
        ]
        matcher = llguidance_module().LLMatcher(self.tokenizer, grammar.serialised(self.vocabulary), log_level=0)
        plan = None if matcher.is_error() else self.closer.shortest(matcher, LONGEST_CLOSING, ends)
        if plan is None:
            raise ConfigError(
                explain(
                    "The grammar",
                    expected=f"one with an answer of at most {LONGEST_CLOSING} of this model's tokens",
                    found=matcher.get_error() or "none",
                    todo="Allow a shorter answer, or one that the model's vocabulary can write.",
                )
            )
        return Constraint(self, matcher, ends, plan)


def _llguidance_tokenizer(tokenizer: Tokenizer, vocabulary: TokenBytes, end_token_ids: Sequence[int]) -> LLTokenizer:
    """llguidance's view of a tokenizer: all tokens' bytes, and a function from text to tokens."""
    llguidance = llguidance_module()

    class Wrapped:
        eos_token_id, bos_token_id = end_token_ids[0], None
        special_token_ids = tuple(token_id for token_id, content in enumerate(vocabulary.tokens) if content is None)
        tokens = tuple(
            b"\xff<[%d]>" % token_id if content is None else content
            for token_id, content in enumerate(vocabulary.tokens)
        )

        def __call__(self, text: str | bytes) -> list[int]:
            """Tokens of exactly this text, in the tokenizer's own way where it adds no space of its own."""
            text = text.decode("utf-8", errors="ignore") if isinstance(text, bytes) else text
            for candidate in (text, text[1:]) if text.startswith(" ") else (text,):
                ids = list(tokenizer.encode(candidate, add_special_tokens=False).ids)
                if vocabulary.join(ids) == text.encode():
                    return ids
            return []

    built: LLTokenizer = llguidance.LLTokenizer(llguidance.TokenizerWrapper(Wrapped()), eos_token=list(end_token_ids))
    return built


class Constraint:
    """Where one answer stands in its grammar. It always knows tokens that complete the answer.

    A step: ``apply`` masks the logits, the sampler draws, ``choose`` keeps the drawn token or, where the answer could
    then no longer be completed within the budget, gives the next of those that complete it; ``accept`` moves on.
    """

    def __init__(
        self, compiler: GrammarCompiler, matcher: LLMatcher, ends_of_text: list[list[int]], plan: Plan
    ) -> None:
        self._compiler, self._matcher, self._ends_of_text = compiler, matcher, ends_of_text
        self._plan = plan
        self._chosen: tuple[int, Plan] | None = None
        """What :meth:`choose` found out about the token that it let through."""
        self._ended = False

    @property
    def needed(self) -> int:
        """Tokens within which the answer can be completed from here, the end token not counted."""
        return len(self._plan)

    @property
    def finished(self) -> bool:
        """Whether nothing but the end may follow."""
        return self._ended or (not self._plan and bool(self._matcher.is_stopped()))

    def copy(self) -> Constraint:
        """An independent one at the same place, for a forked session."""
        twin = Constraint(self._compiler, self._matcher.deep_copy(), self._ends_of_text, self._plan)
        twin._ended = self._ended
        return twin

    def check_budget(self, max_new_tokens: int) -> None:
        """Raises ConfigError with the number needed, where the answer could not be completed."""
        if max_new_tokens < self.needed:
            raise ConfigError(
                explain(
                    "max_new_tokens",
                    expected=f"at least {self.needed}, which the grammar's shortest answer takes",
                    found=max_new_tokens,
                    todo="Ask for more tokens.",
                )
            )

    def closing(self) -> list[int]:
        """Tokens that complete the answer from here without the model; none where it is complete."""
        return list(self._plan)

    def forced(self) -> list[int]:
        """Tokens of what must follow, in the tokenizer's own way; a model may say the same in others."""
        return [] if self._ended else self._compiler.closer.forced(self._matcher)

    def allowed(self) -> np.ndarray:
        """Tokens that the grammar lets follow, end tokens among them, as bool (vocabulary)."""
        return np.unpackbits(self._mask(), bitorder="little").view(np.bool_)[: len(self._compiler.vocabulary.tokens)]

    def apply(self, logits: np.ndarray) -> None:
        """Sets the logits (vocabulary) float32 of all other tokens to minus infinity, in place."""
        mask = self._mask()
        covered = min(len(logits), 8 * len(mask))
        logits[:covered] += BIASES.take(mask, axis=0).reshape(-1)[:covered]
        logits[covered:] = -np.inf

    def choose(self, token_id: int, remaining: int) -> int:
        """The drawn token, or the one to take instead so that the answer is complete within ``remaining`` tokens.

        ``remaining`` counts this token and not the end token. An end token is the answer where nothing else fits.
        """
        plan = self._plan_after(token_id, remaining - 1) if remaining > 0 else None
        if plan is None:
            return self._plan[0] if self._plan else self._compiler.end_token_ids[0]
        self._chosen = (token_id, plan)
        return token_id

    def accept(self, token_id: int) -> None:
        """Moves on by a token. Raises ConfigError if the grammar does not allow it."""
        known, self._chosen = self._chosen, None
        plan = known[1] if known and known[0] == token_id else self._plan_after(token_id, LONGEST_CLOSING)
        if plan is None:
            raise ConfigError(
                explain(
                    "The answer's next token",
                    expected="one that the grammar allows",
                    found=token_id,
                    todo="Take what Constraint.choose returns.",
                )
            )
        if token_id in self._compiler.end_token_ids:
            self._ended = True
        else:
            self._matcher.consume_token(token_id)
        self._plan = plan

    def _mask(self) -> np.ndarray:
        """Bit mask (vocabulary / 8, rounded up) uint8; only ends where llguidance gave up, which choose sees to."""
        return np.frombuffer(self._matcher.compute_bitmask(), dtype=np.uint8)

    def _plan_after(self, token_id: int, limit: int) -> Plan | None:
        """What completes the answer after this token in at most ``limit`` tokens; None where nothing is known to."""
        if self._plan and token_id == self._plan[0]:
            return self._plan[1:]
        if self._ended or token_id in self._compiler.end_token_ids:
            return None if self._ended or self._plan else ()
        if not self._matcher.validate_tokens([token_id]):
            return None
        after = self._matcher.deep_copy()
        after.consume_token(token_id)
        return () if after.is_accepting() else self._search(after, token_id, limit)

    def _search(self, after: LLMatcher, token_id: int, limit: int) -> Plan | None:
        for plan in self._old_plans(token_id):
            if len(plan) <= limit and closes(after, plan):
                return plan
        return self._compiler.closer.find(after, limit, self._ends_of_text) if limit else None

    def _old_plans(self, token_id: int) -> Iterator[Plan]:
        """The closing known so far, which mostly still fits, as inside a string, its ends, and what is left to say."""
        yield from (self._plan[start:] for start in range(min(len(self._plan), 32)))
        yield from self._compiler.closer.rests(self._plan, token_id)


BIASES = np.where(np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1, bitorder="little"), 0, -np.inf).astype(
    np.float32
)
"""What to add to the logits of 8 tokens, by a byte of the mask, (256, 8)."""
