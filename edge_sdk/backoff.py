"""Waiting before something that failed is tried again."""

from __future__ import annotations

from threading import Event


class Backoff:
    """Waits twice as long after each failure, from ``first_s`` up to ``longest_s``."""

    def __init__(self, first_s: float, longest_s: float) -> None:
        self._first_s, self._longest_s, self._next_s = first_s, longest_s, first_s

    def wait(self, ending: Event) -> bool:
        """Waits; whether ``ending`` was set meanwhile, which ends the wait."""
        ended = ending.wait(self._next_s)
        self._next_s = min(2 * self._next_s, self._longest_s)
        return ended

    def reset(self) -> None:
        """Something went well: the next wait is a short one."""
        self._next_s = self._first_s
