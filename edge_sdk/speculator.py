"""A session's speculative decoding: tokens are drafted, fed on trial, and kept as far as they turn out to be said.

After a trial the logits after each of its tokens are known. The session chooses from them one by one, by the same
code as after plain steps, and goes on in the trial while what it chose is what was drafted. So whatever decides about
a token (temperature and seed, penalties, a grammar, stop texts) decides as it does without drafts: a draft is right if
it is what was chosen. For drawn tokens that is speculative sampling (Leviathan et al. 2023, arXiv 2211.17192, section
2.3) with a drafter that is sure of its draft: kept with the model's probability, else drawn from the rest.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import msgspec
import numpy as np

from edge_sdk.backends import States
from edge_sdk.drafting import Draft, History, Kind, PromptLookup
from edge_sdk.pace import AROUND, HEAD, LENGTHS, Acceptance, StepTimes, gain
from edge_sdk.speculation import Speculation

if TYPE_CHECKING:
    from edge_sdk.scheduler import Direct, Scheduler
    from edge_sdk.structured import Constraint


HEAD_REST = 1024
"""Steps, of all sessions, after which the head drafts a token, however seldom it was right: only so is seen whether it
is better now."""

HEAD_MARGIN = 1.15
"""How many times the rate without it the head must promise: what it reads first, to catch up, is not in its times."""

PATIENCE, LONGEST_REST = 8, 7
"""After so many looks in vain for a draft worth verifying, of all sessions, one token is passed over between looks,
after as many again two, and so on up to the longest rest: looking takes time too."""


class Counts(msgspec.Struct):
    """What drafting came to."""

    drafted: int = 0
    """Tokens that were verified."""
    accepted: int = 0
    """Those that were right."""
    trials: int = 0
    """Steps that verified some."""

    def copy(self) -> Counts:
        """As they are now."""
        return msgspec.structs.replace(self)


class _Trial(NamedTuple):
    tokens: list[int]
    """That were fed: a chosen one and drafted ones."""
    kinds: list[Kind]
    """Of the drafted ones."""
    logits: np.ndarray
    """After each of them, (tokens, vocab) float32."""
    around_s: float
    """What it took to begin besides the engine's time."""


class Speculator:
    """Drafts for one session and remembers the trial that runs."""

    def __init__(
        self,
        steps: Direct | Scheduler,
        times: StepTimes,
        general: Acceptance,
        history: History,
        speculation: Speculation,
    ) -> None:
        """Of all sessions: the ``times`` of steps, how often drafts are right (``general``), and what was said."""
        self.counts = Counts()
        self._steps, self._times, self._history = steps, times, history
        self._acceptance = Acceptance(general)
        self._looks_up = speculation != "head"
        self._uses_head = speculation != "lookup" and steps.engine.has_head
        self._lookup: PromptLookup | None = None
        """What was said, in earlier conversations and in this one; None before the first look."""
        self._trial: _Trial | None = None
        self._said = 0
        """How many of the trial's tokens were said; the states do not hold them before it is settled."""
        self._rest = 0
        """Tokens to be passed over before the next look for a draft."""
        self._guesses: list[tuple[Kind, int]] = []
        """Drafted tokens that were not verified: what becomes of them is seen all the same."""

    def forget(self, tokens: Sequence[int]) -> None:
        """The conversation of these tokens ended, and another one begins."""
        self._trial, self._said, self._guesses, self._lookup = None, 0, [], None
        if self._looks_up:
            self._history.add(tokens)

    def settle(self, states: States) -> None:
        """Ends the trial: the states hold what was said of it. For who uses the states otherwise."""
        if self._trial is None:
            return
        started, engine_s = time.thread_time(), self._times.engine_s
        begun_s, self._trial = self._trial.around_s, None
        with self._steps.exclusive():
            self._steps.engine.accept(self._steps.at_home(states), np.array([self._said]))
        self._times.note(AROUND, begun_s + self._besides(started, engine_s))

    def chose(self, token: int) -> None:
        """A token was chosen, be it the end: what was drafted in its place was right or not."""
        for kind, guess in self._guesses:
            self._acceptance.note(kind, guess == token)
        self._guesses = []
        if (drafted := self._next()) is not None and self._trial is not None:
            self._acceptance.note(self._trial.kinds[self._said - 1], drafted == token)

    def follow(self, token: int) -> np.ndarray | None:
        """The logits (vocab) after a token that was chosen, if the trial knows them."""
        if self._trial is None or self._next() != token:
            return None
        self._said += 1
        self.counts.accepted += 1
        row: np.ndarray = self._trial.logits[self._said - 1]
        return row

    def _next(self) -> int | None:
        """The trial's next token."""
        trial, said = self._trial, self._said
        return None if trial is None or said == len(trial.tokens) else trial.tokens[said]

    def rests(self) -> bool:
        """Whether a token is passed over without a look for drafts."""
        if not self._rest:
            return False
        self._rest -= 1
        return True

    def begin(
        self, tokens: Sequence[int], token: int, states: States, constraint: Constraint | None, room: int
    ) -> np.ndarray | None:
        """Begins a trial with a chosen token that comes after others; the logits (vocab) after it.

        None where no draft is worth it. ``room``: how many tokens may still be chosen. The states must be settled.
        """
        if self._looks_up:
            self._look_up(tokens, token)
        if room < 2 or self._times.plain is None or not self._steps.alone():
            return None
        started, engine_s = time.thread_time(), self._times.engine_s
        draft = self._draft(token, states, constraint, min(room - 1, LENGTHS[-1]))
        if not draft.tokens:
            return None
        ids = [token, *draft.tokens]
        with self._steps.exclusive():
            (logits,) = self._steps.engine.verify(np.array([ids]), self._steps.at_home(states))
        self.counts.drafted += len(draft.tokens)
        self.counts.trials += 1
        self._trial, self._said = _Trial(ids, draft.kinds, logits, self._besides(started, engine_s)), 1
        first: np.ndarray = logits[0]
        return first

    def _look_up(self, tokens: Sequence[int], token: int) -> None:
        """Adds to what was said the conversation's tokens and the chosen one, as far as they are not known yet."""
        if self._lookup is None:
            self._lookup = self._history.lookup()
        if len(self._lookup) <= len(tokens):
            self._lookup.extend(tokens[len(self._lookup) :])
            self._lookup.extend([token])

    def _besides(self, started: float, engine_s: float) -> float:
        """Seconds of this thread since then, without those of the engine."""
        return time.thread_time() - started - (self._times.engine_s - engine_s)

    def _draft(self, token: int, states: States, constraint: Constraint | None, most: int) -> Draft:
        """What is to be verified, if anything; after many looks in vain the next one is put off."""
        times = self._times
        if self._uses_head and times.steps - times.head_drafted_at > HEAD_REST:
            return self._head_draft(token, states, 1)
        draft = self._best_draft(token, states, constraint, most)
        times.in_vain = 0 if draft.tokens else times.in_vain + 1
        self._rest = min(times.in_vain // PATIENCE, LONGEST_REST)
        return draft

    def _best_draft(self, token: int, states: States, constraint: Constraint | None, most: int) -> Draft:
        """What promises the highest rate of tokens, cut to the best length; the others' first tokens are guesses."""
        best, count, rate = Draft([], []), 0, 1.0
        for draft in self._drafts(constraint, most):
            if not draft.tokens:
                continue
            self._guesses.append((draft.kinds[0], draft.tokens[0]))
            worth, promised = gain(self._times, self._acceptance.each(draft.kinds))
            if promised > rate:
                best, count, rate = draft, worth, promised
        if self._uses_head:
            worth, promised = gain(self._times, self._acceptance.each(_head_kinds(most)), self._times.of(HEAD))
            if promised > rate * HEAD_MARGIN:
                best, count = self._head_draft(token, states, worth), worth
        draft = Draft(best.tokens[:count], best.kinds[:count])
        if draft.tokens:
            self._guesses = [guess for guess in self._guesses if guess[0] != draft.kinds[0]]
        return draft

    def _drafts(self, constraint: Constraint | None, most: int) -> list[Draft]:
        """Those that need no model."""
        drafts = [] if self._lookup is None else [self._lookup.draft(most)]
        if constraint is not None:
            forced = constraint.forced()[:most]
            drafts.append(Draft(forced, [("forced", 0)] * len(forced)))
        return drafts

    def _head_draft(self, token: int, states: States, count: int) -> Draft:
        self._times.head_drafted_at = self._times.steps
        with self._steps.exclusive():
            tokens = self._steps.engine.draft(token, self._steps.at_home(states), count)
        return Draft(tokens, _head_kinds(len(tokens)))


def _head_kinds(count: int) -> list[Kind]:
    return [("head", index) for index in range(count)]
