"""Who may use the engine next: one step at a time, or the steps of several sessions as one batch.

A step of one token reads every weight, whether for one row or for eight, so sessions that answer at the same time are
stepped together (continuous batching: Yu et al., Orca, OSDI 2022, section 4.1). Each session has states of its own;
while it answers beside others they lie in a row of a shared memory, whose first rows the engine runs over as they are.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from edge_sdk.backends import Engine, RowStates, Snapshot, States
from edge_sdk.errors import BusyError, MemoryLimitError, explain

Output = Literal["none", "token", "logits"]
"""What is wanted of a step: nothing, the likeliest next token, or the logits (vocab) float32."""

URGENT_BLOCK = 32
"""Tokens that others may feed at once while a session of higher priority is open, which would have to wait for them."""

GATHER_SHARE = 0.25
"""Of the last step's time: how long a batch waits for sessions that took part in the last one."""

LOOK_S = 0.02
"""How often somebody who waits for a place looks whether it still wants it."""


class Direct:
    """One engine and a lock: sessions take turns by step."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self._lock = threading.Lock()

    def empty_states(self) -> States:
        """The states of a new session."""
        return self.engine.empty_states(1)

    def load_states(self, snapshot: Snapshot) -> States:
        """A session's states with a snapshot's content."""
        return self.engine.load_states(snapshot)

    def join(self, priority: int) -> None:
        """A session of this priority opened."""

    def leave(self, priority: int) -> None:
        """One closed."""

    def block(self, priority: int) -> int:
        """Tokens that a session may feed at once."""
        return self.engine.prefill_block

    @contextmanager
    def place(self, priority: int, interrupted: Callable[[], object]) -> Iterator[None]:
        """A place among those who answer; there is always one."""
        yield

    def alone(self) -> bool:
        """Whether a session may take steps of its own, as trials are; it waits for its turn there too."""
        return True

    def at_home(self, states: States) -> States:
        """A session's states as the engine's own, for who has the engine to itself."""
        return states

    @contextmanager
    def exclusive(self) -> Iterator[None]:
        """While nobody else uses the engine."""
        with self._lock:
            yield

    def forget(self, states: States) -> None:
        """Notes that a session's states are of no use any more."""
        self.engine.release(states)

    def advance(self, token_ids: list[int], states: States, wanted: Output, priority: int = 0) -> Any:
        """Feeds one session's tokens and returns what is wanted after the last."""
        with self._lock:
            return run_step(self.engine, np.array([token_ids], dtype=np.int64), states, [wanted])[0]


def run_step(engine: Engine, ids: np.ndarray, states: States, wanted: list[Output]) -> list[Any]:
    """One step over ids (batch, length); of each row what is wanted of it."""
    if all(each == "token" for each in wanted):
        return [int(token) for token in engine.next_tokens(ids, states)]
    if all(each == "none" for each in wanted):
        engine.step(ids, states, "none")
        return [None] * len(wanted)
    logits = engine.step(ids, states, "last")[:, -1]
    return [int(row.argmax()) if each == "token" else row.copy() for each, row in zip(wanted, logits)]


class Seat(States):
    """A session's states: in memory of its own, or for the time being in a row of the shared one."""

    def __init__(self, scheduler: Scheduler, own: RowStates) -> None:
        self.scheduler, self.own = scheduler, own
        self.row: int | None = None

    def copy(self) -> Seat:
        """Another memory with the same content."""
        with self.scheduler.exclusive():
            self.scheduler.bring_home(self)
            return self.scheduler.seat(self.own.copy())

    def snapshot(self) -> Snapshot:
        """See :meth:`edge_sdk.backends.States.snapshot`."""
        with self.scheduler.exclusive():
            self.scheduler.bring_home(self)
            return self.own.snapshot()

    def view(self) -> Snapshot:
        """See :meth:`edge_sdk.backends.States.view`; nobody moves a session's states but its own next step."""
        with self.scheduler.exclusive():
            self.scheduler.bring_home(self)
            return self.own.view()


@dataclass(eq=False)
class _Request:
    seat: Seat
    token_ids: list[int]
    wanted: Output
    priority: int
    result: Any = None
    error: BaseException | None = None
    done: threading.Event = field(default_factory=threading.Event)


class Scheduler:
    """Steps several sessions together; the one with the highest priority never waits for more than one step."""

    def __init__(self, engine: Engine, slots: int, waiting: int) -> None:
        """``slots``: sessions that may answer at the same time; ``waiting``: how many more may wait for that."""
        self.engine, self.slots, self.waiting = engine, slots, waiting
        shared = engine.empty_rows(slots)
        assert isinstance(shared, RowStates)
        self._shared: RowStates = shared
        self._rows: list[Seat | None] = [None] * slots
        self._lock = threading.RLock()
        """Held during a step, and by who touches the states."""
        self._news = threading.Condition()
        """Guards what follows."""
        self._requests: list[_Request] = []
        self._open: list[int] = []
        """Priorities of all sessions."""
        self._places: list[int] = []
        """Priorities of those who answer."""
        self._queue: list[tuple[int, object]] = []
        """Priorities of those who wait for a place, in their order."""
        self._expected: set[Seat] = set()
        """Who took part in the last batch and is likely to come back."""
        self._step_s = 0.0
        threading.Thread(target=self._run, name="edge-scheduler", daemon=True).start()

    def empty_states(self) -> States:
        """The states of a new session."""
        return self.seat(self.engine.empty_states(1))

    def load_states(self, snapshot: Snapshot) -> States:
        """A session's states with a snapshot's content."""
        return self.seat(self.engine.load_states(snapshot))

    def seat(self, states: States) -> Seat:
        """A session's states, from the engine's."""
        assert isinstance(states, RowStates)
        return Seat(self, states)

    def join(self, priority: int) -> None:
        """A session of this priority opened."""
        with self._news:
            self._open.append(priority)

    def leave(self, priority: int) -> None:
        """One closed."""
        with self._news:
            self._open.remove(priority)

    def block(self, priority: int) -> int:
        """Tokens that a session may feed at once."""
        with self._news:
            urgent = any(other > priority for other in self._open)
        return min(URGENT_BLOCK, self.engine.prefill_block) if urgent else self.engine.prefill_block

    def alone(self) -> bool:
        """Whether nobody else answers or wants a step: only then may a session take steps of its own."""
        with self._news:
            return len(self._places) <= 1 and not self._requests

    def at_home(self, states: States) -> States:
        """A session's states, from the shared memory or not, as the engine's own; the caller holds the lock."""
        assert isinstance(states, Seat)
        self.bring_home(states)
        return states.own

    @contextmanager
    def exclusive(self) -> Iterator[None]:
        """While no step runs."""
        with self._lock:
            yield

    @contextmanager
    def place(self, priority: int, interrupted: Callable[[], object]) -> Iterator[None]:
        """A place among those who answer; waits for one, unless interrupted. Raises BusyError if too many wait."""
        mine = (priority, object())
        with self._news:
            if len(self._queue) >= self.waiting and len(self._places) >= self.slots:
                raise BusyError(
                    explain(
                        "The model",
                        expected=f"fewer than {self.slots} answers at a time and {self.waiting} waiting",
                        found="all places taken",
                        todo="Try again later, or load it with more slots.",
                    )
                )
            self._queue.append(mine)
            try:
                while not self._may_enter(mine) and not interrupted():
                    self._news.wait(LOOK_S)
            finally:  # also where Ctrl-C ends the waiting
                self._queue.remove(mine)
            self._places.append(priority)
        try:
            yield
        finally:
            with self._news:
                self._places.remove(priority)
                self._news.notify_all()

    def _may_enter(self, mine: tuple[int, object]) -> bool:
        first = max(self._queue, key=lambda other: other[0])
        return len(self._places) < self.slots and first is mine

    def advance(self, token_ids: list[int], states: States, wanted: Output, priority: int = 0) -> Any:
        """Feeds one session's tokens and returns what is wanted after the last, however many steps others make."""
        assert isinstance(states, Seat)
        request = _Request(states, token_ids, wanted, priority)
        with self._news:
            self._requests.append(request)
            self._news.notify_all()
        request.done.wait()
        if request.error is not None:
            raise request.error
        return request.result

    def forget(self, states: States) -> None:
        """Takes a session's states out of the shared memory, where they are of no use any more."""
        assert isinstance(states, Seat)
        with self._news:
            self._expected.discard(states)
        with self._lock:
            if states.row is not None:
                self._rows[states.row], states.row = None, None
            self.engine.release(states.own)

    def bring_home(self, seat: Seat) -> None:
        """Moves a seat's states from the shared memory to its own; the caller holds the lock."""
        if seat.row is not None:
            seat.own.take(self._shared.rows(seat.row, seat.row + 1))
            self._rows[seat.row], seat.row = None, None

    def _run(self) -> None:
        while True:
            self._answer(self._next_batch())  # nothing here refers to a batch while the next one is waited for

    def _answer(self, batch: list[_Request]) -> None:
        started = time.monotonic()
        self._try(batch)
        self._step_s = time.monotonic() - started
        with self._news:
            self._expected = {request.seat for request in batch if len(request.token_ids) == 1}
        for request in batch:
            request.done.set()

    def _next_batch(self) -> list[_Request]:
        """Single tokens together, or one session's block of a prompt; the highest priority, and the oldest, first."""
        with self._news:
            while not self._requests:
                self._news.wait()
            self._gather()
            urgent = max(request.priority for request in self._requests)
            candidates = [request for request in self._requests if request.priority == urgent]
            singles = [request for request in candidates if len(request.token_ids) == 1][: self.slots]
            batch = singles if singles and len(candidates[0].token_ids) == 1 else candidates[:1]
            self._requests = [request for request in self._requests if request not in batch]
            return batch

    def _gather(self) -> None:
        """Waits a moment for those who took part in the last batch: their next tokens can go along."""
        until = time.monotonic() + GATHER_SHARE * self._step_s
        while self._expected - {request.seat for request in self._requests}:
            left = until - time.monotonic()
            if left <= 0:
                return
            self._news.wait(left)

    def _try(self, batch: list[_Request]) -> None:
        """Makes a step, or notes why there was none."""
        try:
            with self._lock:
                self._step(batch)
        except MemoryLimitError as error:  # nothing was fed; alone, those who need no more room can go on
            if len(batch) == 1:
                batch[0].error = error
            else:
                for request in batch:
                    self._try([request])
        except BaseException as error:
            for request in batch:
                request.error = error

    def _step(self, batch: list[_Request]) -> None:
        """One step of the engine for the requests of a batch; the lock is held."""
        if len(batch) > 1:
            self._seat_together([request.seat for request in batch])
            batch.sort(key=lambda request: request.seat.row or 0)
            states = self._shared.rows(0, len(batch))
        else:
            states = self._alone(batch[0])
        ids = np.array([request.token_ids for request in batch], dtype=np.int64)
        for request, result in zip(batch, run_step(self.engine, ids, states, [request.wanted for request in batch])):
            request.result = result

    def _alone(self, request: _Request) -> RowStates:
        """One seat's states where they are; at home if the shared memory has no room, which all rows would pay for."""
        positions = int(self._states_of(request.seat).past_length[0]) + len(request.token_ids)
        if positions > self._shared.capacity:
            self.bring_home(request.seat)
        return self._states_of(request.seat)

    def _seat_together(self, seats: list[Seat]) -> None:
        """Brings these seats, in any order, into the first rows of the shared memory, which has room for one step."""
        lengths = [int(self._states_of(seat).past_length[0]) for seat in seats]
        self._shared.reserve(max(lengths) + 1)
        for row in range(len(seats)):
            there = self._rows[row]
            if there is not None and there not in seats:
                self.bring_home(there)
        for seat in seats:
            if seat.row is not None and seat.row >= len(seats):
                self.bring_home(seat)
        for seat in seats:
            if seat.row is None:
                row = self._rows.index(None)
                self._shared.rows(row, row + 1).take(seat.own)
                self._rows[row], seat.row = seat, row

    def _states_of(self, seat: Seat) -> RowStates:
        return seat.own if seat.row is None else self._shared.rows(seat.row, seat.row + 1)
