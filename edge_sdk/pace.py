"""How many drafted tokens are worth verifying, by how long steps took and how often drafts were right."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Hashable, Iterable, Iterator

WINDOW = 7
"""Steps of a kind whose lower quartile counts: what slows a step down from outside is not what it takes."""

LENGTHS = (1, 2, 4, 7, 15)
"""Drafted tokens that are verified at once: few, since each length has buffers of its own. With the token before them
they are 8 and 16: the CPU's scan takes more than 8 in another way, and each has its price."""

HOPED_GROWTH = 0.02
"""Of a plain step's time: what another verified token is thought to take before one was measured."""

MARGIN = 1.05
"""How many times a plain step's rate verifying must promise."""

STALE = 256
"""Steps after which the time of a length is no longer believed: machines are busy now and then."""

UNLIKELY = 0.05
"""Chance to be right below which further drafted tokens are not looked at."""

SAMPLED = 4
"""Of so many plain steps one is measured: looking at the clock of a thread takes time too."""

ROLLBACK_RUN, HEAD, AROUND = "rollback", "head", "around"


class StepTimes:
    """Seconds that steps of one row took: of a length, of taking back, of drafting a token with the head, and around.

    In the CPU time of the thread that runs them (time.thread_time), which other programs do not change; an engine's
    further threads work while it works or waits in a loop.
    """

    def __init__(self) -> None:
        self._taken: dict[int | str, deque[float]] = {}
        self._usual: dict[int | str, float] = {}
        self.steps = 0
        """How many there were."""
        self.engine_s = 0.0
        """What the engine spent on them, typical or not."""
        self.head_drafted_at = 0
        """How many there had been when the head last drafted."""
        self.in_vain = 0
        """Looks for a draft since one was worth verifying."""
        self._noted: dict[int, int] = {}
        """By length how many steps there had been when one was last measured."""

    def passes(self) -> bool:
        """Whether the plain step that comes need not be measured; counts it then."""
        if self.plain is None or self.steps % SAMPLED == 0:
            return False
        self.steps += 1
        return True

    def note_engine(self, kind: int | str, started: float, count: int = 1, typical: bool = True) -> None:
        """Of the engine, by when it began, in time.thread_time(); ``count``: how many of the kind it did at once."""
        spent = time.thread_time() - started
        self.engine_s += spent
        if typical:
            self.note(kind, spent / count)

    def note(self, kind: int | str, seconds: float) -> None:
        """``kind``: the tokens of the step, ROLLBACK_RUN, HEAD, or AROUND: what a session does for a trial besides."""
        taken = self._taken.setdefault(kind, deque(maxlen=WINDOW))
        if isinstance(kind, int):
            self.steps += 1
            if kind > 1 and self.steps - self._noted.get(kind, 0) > STALE:
                taken.clear()
            self._noted[kind] = self.steps
        taken.append(seconds)
        self._usual[kind] = sorted(taken)[len(taken) // 4]

    def of(self, kind: str) -> float:
        """Seconds; 0 where it was never measured."""
        return self._usual.get(kind, 0.0)

    @property
    def plain(self) -> float | None:
        """Seconds of a plain step; None before enough of them were measured."""
        return self._usual[1] if len(self._taken.get(1, ())) > WINDOW // 2 else None

    def verify(self, length: int) -> float:
        """Seconds of a step of so many tokens, guessed from other lengths where it is not known or no longer so."""
        if self._known(length):
            return self._usual[length]
        known = [kind for kind in list(self._noted) if self._known(kind)]
        below = max(kind for kind in known if kind < length)
        above = min((kind for kind in known if kind > length), default=None)
        if above is None:
            return max(self._usual[1] * (1 + HOPED_GROWTH * (length - 1)), self._usual[below])
        share = (length - below) / (above - below)
        return self._usual[below] + share * (self._usual[above] - self._usual[below])

    def _known(self, length: int) -> bool:
        noted = self._noted.get(length)
        return noted is not None and (length == 1 or self.steps - noted <= STALE)


def gain(times: StepTimes, rights: Iterable[float], draft_s: float = 0.0) -> tuple[int, float]:
    """How many of some drafted tokens to verify, and how many times a plain step's rate of tokens that promises.

    ``rights``: for each token how likely it is right if those before it are; ``draft_s``: what drafting one takes.
    0 tokens and a rate of 1 where none are worth it. Expected tokens as in Leviathan et al. 2023, arXiv 2211.17192,
    section 3.1, with a likelihood for each token in place of one for all.
    """
    best, plain = (0, 1.0), times.plain
    if plain is None:
        return best
    likely, expected = 1.0, 1.0
    for count, right in enumerate(rights, start=1):
        likely *= right
        if likely < UNLIKELY:
            break
        expected += likely
        if count not in LENGTHS:
            continue
        spent = times.verify(count + 1) + (1 - likely) * times.of(ROLLBACK_RUN) + count * draft_s + times.of(AROUND)
        if (rate := expected * plain / spent) > max(MARGIN, best[1]):
            best = (count, rate)
    return best


class Acceptance:
    """How often drafted tokens were right, by kind: a moving share, which begins at what is known in general."""

    PRIOR, PACE = 0.5, 1 / 12

    def __init__(self, general: Acceptance | None = None) -> None:
        """``general``: of all sessions, which learns along: at first as a mean does, then more slowly."""
        self._general = general
        self._shares: dict[Hashable, float] = {}
        self._seen: dict[Hashable, int] = {}

    def of(self, kind: Hashable) -> float:
        """The share of tokens of this kind that were right."""
        share = self._shares.get(kind)
        if share is None:
            share = self._general.of(kind) if self._general else self.PRIOR
        return share

    def each(self, kinds: Iterable[Hashable]) -> Iterator[float]:
        """Of several kinds, of which the same often follow one another."""
        last, share = object(), 0.0
        for kind in kinds:
            if kind is not last:
                last, share = kind, self.of(kind)
            yield share

    def note(self, kind: Hashable, right: bool) -> None:
        """A drafted token of this kind was right or not."""
        share, pace = self.of(kind), self.PACE
        if self._general:
            self._general.note(kind, right)
        else:
            self._seen[kind] = seen = self._seen.get(kind, 1) + 1
            pace = max(pace / 4, 1 / seen)
        self._shares[kind] = share + pace * (right - share)
