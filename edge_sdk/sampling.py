"""Chooses the next token from a model's logits."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

import msgspec
import numpy as np

from edge_sdk.errors import ConfigError, explain
from edge_sdk.options import Options

if TYPE_CHECKING:
    from edge_sdk.structured import Constraint

LIKELIEST_FIRST = 1024
"""Tokens that are looked at for top_p before all of a large vocabulary are sorted."""

COLDEST = 1e-5
"""Below this temperature the draw is the likeliest token, and a division by it would overflow."""

LARGEST = 1e30
"""Of logits that a penalty changed: differences of them may be divided by any temperature."""


class Choice(msgspec.Struct, frozen=True):
    """A chosen token and, where they were asked for, log-probabilities by the model's own logits."""

    token_id: int
    logprob: float | None = None
    alternatives: tuple[tuple[int, float], ...] = ()
    """The likeliest token ids and their log-probabilities, likeliest first."""


class Sampler:
    """Chooses the tokens of one answer; remembers what it chose, for the penalties."""

    def __init__(self, options: Options, context: Sequence[int], vocab: int) -> None:
        """``context``: the token ids before the answer. Raises ConfigError for a logit_bias outside the vocabulary."""
        self.options = options
        self._random = np.random.default_rng(options.seed)
        self._seen = set(context) if options.repetition_penalty != 1 else set()
        self._chosen: Counter[int] = Counter()
        outside = [token for token in options.logit_bias if not 0 <= token < vocab]
        if outside:
            raise ConfigError(
                explain("logit_bias", expected=f"ids below {vocab}", found=outside[0], todo="Leave it out.")
            )
        self._biased = np.fromiter(options.logit_bias.keys(), np.int64)
        self._bias = np.fromiter(options.logit_bias.values(), np.float32)

    @property
    def takes_the_likeliest(self) -> bool:
        """Whether the choice is simply the largest logit, so that an engine may choose by itself."""
        options = self.options
        penalised = options.repetition_penalty != 1 or options.presence_penalty or options.frequency_penalty
        return not (options.temperature or penalised or len(self._biased) or options.logprobs is not None)

    def choose(self, logits: np.ndarray, allowed: np.ndarray | None = None) -> Choice:
        """The next token from logits (vocab) float32; of the allowed ones (vocab) bool, if they are given."""
        adjusted = self._adjusted(logits)
        if allowed is not None:
            adjusted = np.where(allowed, adjusted, -np.inf)
        if self.options.temperature < COLDEST:
            token = int(adjusted.argmax())
        else:
            ids, probabilities = distribution(adjusted, self.options)
            token = int(ids[draw(probabilities, self._random.random())])
        return self._with_logprobs(token, logits)

    def choose_constrained(self, logits: np.ndarray, constraint: Constraint, room: int) -> Choice:
        """The next token from logits (vocab) float32 of an answer that is complete within ``room`` tokens."""
        known = constraint.allowed()[: len(logits)]
        allowed = np.zeros(len(logits), dtype=np.bool_)
        allowed[: len(known)] = known
        choice = self.choose(logits, allowed)
        token = constraint.choose(choice.token_id, room)
        constraint.accept(token)
        return choice if token == choice.token_id else self._with_logprobs(token, logits)

    def note(self, token_id: int) -> None:
        """Counts a token of the answer, for the penalties."""
        self._chosen[token_id] += 1
        self._seen.add(token_id)

    def _adjusted(self, logits: np.ndarray) -> np.ndarray:
        options, adjusted = self.options, np.array(logits)
        if options.repetition_penalty != 1:
            seen = np.fromiter(self._seen, np.int64)
            adjusted[seen] = _penalised(adjusted[seen], options.repetition_penalty)
        if self._chosen and (options.presence_penalty or options.frequency_penalty):
            chosen = np.fromiter(self._chosen.keys(), np.int64)
            counts = np.fromiter(self._chosen.values(), np.float32)
            adjusted[chosen] -= options.presence_penalty + options.frequency_penalty * counts
        adjusted[self._biased] += self._bias
        return adjusted

    def _with_logprobs(self, token: int, logits: np.ndarray) -> Choice:
        count = self.options.logprobs
        if count is None:
            return Choice(token)
        logprobs = logits - logits.max()
        logprobs -= np.log(np.exp(logprobs).sum())
        best = _largest(logprobs, count) if count else ()
        return Choice(token, float(logprobs[token]), tuple((int(index), float(logprobs[index])) for index in best))


def _penalised(logits: np.ndarray, penalty: float) -> np.ndarray:
    """Logits of tokens that were there before (Keskar et al. 2019, arXiv 1909.05858, 4.1), finite at any penalty."""
    with np.errstate(all="ignore"):
        adjusted = np.nan_to_num(np.where(logits > 0, logits / penalty, logits * penalty))
    finite: np.ndarray = np.clip(adjusted, -LARGEST, LARGEST)
    return finite


def distribution(logits: np.ndarray, options: Options) -> tuple[np.ndarray, np.ndarray]:
    """What is drawn from: token ids and their probabilities, from logits (vocab) float32.

    In the order that transformers has: temperature, top_k, top_p, min_p. Of equal logits at the edge of top_k those are
    kept that numpy's partition leaves there.
    """
    ids = np.arange(len(logits))
    if 0 < options.top_k < len(logits):
        ids = np.argpartition(logits, -options.top_k)[-options.top_k :]
    scaled = (logits[ids] - logits[ids].max()) / options.temperature
    probabilities = np.exp(scaled)
    probabilities /= probabilities.sum()
    if options.top_p < 1:
        kept = _nucleus(probabilities, options.top_p)
        ids, probabilities = ids[kept], probabilities[kept]
    if options.min_p > 0:
        kept = np.flatnonzero(probabilities >= options.min_p * probabilities.max())
        ids, probabilities = ids[kept], probabilities[kept]
    return ids, probabilities / probabilities.sum()


def _nucleus(probabilities: np.ndarray, top_p: float) -> np.ndarray:
    """Indices of the fewest likeliest entries that together reach top_p."""
    for count in (LIKELIEST_FIRST, len(probabilities)):
        order = _largest(probabilities, count)
        together = np.cumsum(probabilities[order], dtype=np.float64)
        if together[-1] >= top_p:
            break
    return order[: np.searchsorted(together, top_p) + 1]


def _largest(values: np.ndarray, count: int) -> np.ndarray:
    """Indices of the ``count`` largest values, largest first."""
    if count < len(values):
        candidates = np.argpartition(values, len(values) - count)[len(values) - count :]
    else:
        candidates = np.arange(len(values))
    return candidates[np.argsort(-values[candidates], kind="stable")]


def draw(probabilities: np.ndarray, uniform: float) -> int:
    """The index that a number between 0 and 1 falls on."""
    edges = np.cumsum(probabilities, dtype=np.float64)
    return min(int(np.searchsorted(edges, uniform * edges[-1], side="right")), len(edges) - 1)
