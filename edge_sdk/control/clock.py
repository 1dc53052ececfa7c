"""The loop's time: the monotonic clock, or one that only a simulation moves."""

from __future__ import annotations

import threading
import time
from typing import Protocol


class Clock(Protocol):
    """What the loop does with time; every wait of it goes through here."""

    def now_ns(self) -> int:
        """As ``time.monotonic_ns()``."""
        ...

    def sleep_until_ns(self, deadline_ns: int) -> None:
        """Returns at the deadline or as soon after it as can be; at once where it has passed."""
        ...

    def wait(self, event: threading.Event) -> None:
        """Returns when the event is set."""
        ...

    def join(self, thread: threading.Thread, timeout_s: float) -> None:
        """Returns when the thread has ended, or after so long by the machine's clock."""
        ...


class MonotonicClock:
    """The machine's clock. The last ``spin_us`` of a sleep are spent looking at it, which costs a core but wakes
    earlier than the scheduler would.
    """

    def __init__(self, spin_us: float = 0.0) -> None:
        self._spin_ns = round(spin_us * 1e3)

    def now_ns(self) -> int:
        """``time.monotonic_ns()``."""
        return time.monotonic_ns()

    def sleep_until_ns(self, deadline_ns: int) -> None:
        """Sleeps (Python's own sleep is ``clock_nanosleep`` from 3.11 on), then spins."""
        while (left_ns := deadline_ns - time.monotonic_ns()) > self._spin_ns:
            time.sleep((left_ns - self._spin_ns) / 1e9)
        while time.monotonic_ns() < deadline_ns:
            pass

    def wait(self, event: threading.Event) -> None:
        """``event.wait()``."""
        event.wait()

    def join(self, thread: threading.Thread, timeout_s: float) -> None:
        """``thread.join(timeout_s)``."""
        thread.join(timeout_s)


class SimulatedClock:
    """Time that stands still while anybody works: it moves on only when all threads sleep or wait.

    A run on it takes as long as its computing, is the same each time, and still has delays: a policy that calls
    ``sleep_until_ns(now_ns() + 300_000_000)`` takes 300 ms of it. Threads run one at a time. ``threads`` are those that
    use it: two for a :class:`~edge_sdk.control.loop.ControlLoop`, its actuation and its inference.
    """

    def __init__(self, threads: int = 2) -> None:
        self._now_ns = 0
        self._expected = threads
        self._turn = threading.Condition()
        self._sleepers: dict[int, int] = {}
        """Thread -> when it wakes."""
        self._waiters: dict[int, threading.Event] = {}

    def now_ns(self) -> int:
        """Since it was made."""
        return self._now_ns

    def sleep_until_ns(self, deadline_ns: int) -> None:
        """Until all other threads have done what they have to do before."""
        me = threading.get_ident()
        with self._turn:
            self._sleepers[me] = max(deadline_ns, self._now_ns)
            self._turn.notify_all()
            self._turn.wait_for(lambda: self._next() == me)
            self._now_ns = self._sleepers.pop(me)

    def wait(self, event: threading.Event) -> None:
        """Until another thread has set the event and does not work any more."""
        me = threading.get_ident()
        with self._turn:
            self._waiters[me] = event
            self._turn.notify_all()
            self._turn.wait_for(lambda: self._next() == me)
            del self._waiters[me]

    def join(self, thread: threading.Thread, timeout_s: float) -> None:
        """The others go on without this thread until that one has ended."""
        with self._turn:
            self._expected -= 1
            self._turn.notify_all()
        thread.join(timeout_s)
        with self._turn:
            self._expected += 1

    def _next(self) -> int | None:
        """The thread whose turn it is; None while somebody works."""
        if len(self._sleepers) + len(self._waiters) < self._expected:
            return None
        for thread, event in self._waiters.items():
            if event.is_set():
                return thread
        return min(self._sleepers, key=self._sleepers.__getitem__, default=None)
