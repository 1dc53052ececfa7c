"""Speculative decoding's graphs on ONNX Runtime, on the CPU: tokens drafted, verified at once, and taken back.

docs/speculation.md tells how the calls follow each other; the loop is edge_sdk/speculator.py.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Sequence
from typing import Any

import numpy as np

from edge_sdk.backends import FIRST_CAPACITY, RowStates, Snapshot, States, Wanted
from edge_sdk.backends.host_memory import zeros
from edge_sdk.backends.ort import Call, OrtEngine, OrtStates
from edge_sdk.backends.ort_head import LONGEST_KEPT, DraftHead, HeadContext
from edge_sdk.bundle import Bundle
from edge_sdk.errors import BackendError, explain
from edge_sdk.pace import HEAD, ROLLBACK_RUN, StepTimes
from edge_sdk.speculation import DRAFT, ROLLBACK, rollback_spec, verifiable, without_caches
from edge_sdk.tensor_spec import TensorSpec

RELEASED_KEPT = 4
"""States of ended sessions whose memory and bindings the next ones take over."""


class Trial(Call):
    """A call whose states may be taken back to any of its positions."""

    def __init__(
        self, engine: OrtEngine, batch: int, length: int, kept: int, extras: Sequence[TensorSpec] = ()
    ) -> None:
        """As Call."""
        super().__init__(engine, batch, length, kept, extras)
        self.rollbacks: dict[tuple[int, int, int], tuple[Any, list[Any]]] = {}
        """Bindings that take back, by turn, row and count; and what they must keep alive."""


class SpeculativeStates(OrtStates):
    """States that are still there after drafted tokens were verified, which writes into another set of buffers.

    Both sets hold the same caches where kernels write these in place: a token that is taken back leaves a position
    there that does not count. ``verified``: how many positions of each row wait to be accepted.
    """

    engine: SpeculativeEngine
    verified = 0

    def __init__(
        self,
        engine: SpeculativeEngine,
        specs: Sequence[TensorSpec],
        batch: int,
        capacity: int,
        content: Sequence[np.ndarray] = (),
        past_length: np.ndarray | int = 0,
    ) -> None:
        """As OrtStates."""
        super().__init__(engine, specs, batch, capacity, content, past_length)
        head = engine.head if engine.follows and batch == 1 else None
        self.context = None if head is None else HeadContext(head)
        """What the head knows of these positions, if the engine is to draft with it."""

    def refill(self, content: Sequence[np.ndarray], length: int) -> None:
        """Makes these another session's states; the bindings are still good."""
        self.fill(content, length)
        self.verified = 0
        if self.context is not None:
            self.context.restart()

    def _make(self, content: Sequence[np.ndarray]) -> None:
        super()._make(content)
        self.calls: dict[tuple[int, int, bool], Trial] = {}
        """The bindings of short steps, and whether they are trials."""

    def _further_sets(self, first: list[np.ndarray]) -> list[list[Any]]:
        if not self.engine.native:
            return super()._further_sets(first)
        scans = iter(zeros(without_caches(self.specs), self.engine.budget, batch=len(self.past_length)))
        return [[kept if "capacity" in spec.shape else next(scans) for spec, kept in zip(self.specs, first)]]

    @property
    def written(self) -> int:
        """The set that a plain step writes; kernels do that in place."""
        return self.turn if self.engine.native else 1 - self.turn

    def call_for(self, length: int, kept: int, trial: bool = False) -> Trial:
        """As OrtStates; ``trial``: with what taking back needs."""
        call = self.calls.get((length, kept, trial))
        if call is None:
            call = Trial(self.engine, len(self.past_length), length, kept, self.engine.extras(trial))
            if length <= LONGEST_KEPT:
                self.calls[length, kept, trial] = call
        self.call = call
        return call

    def advance(self, length: int) -> None:
        """As OrtStates; what was verified and not accepted is forgotten."""
        super().advance(length)
        self.verified = 0

    def take(self, source: RowStates) -> None:
        """As OrtStates; what the source was fed, the head has not seen."""
        super().take(source)
        if self.context is not None:
            self.context.interrupt()


class SpeculativeEngine(OrtEngine):
    """An OrtEngine whose states can be put back to any position of the last block."""

    states_type = SpeculativeStates

    def __init__(
        self,
        bundle: Bundle,
        *,
        threads: int | None = None,
        exact: bool = False,
        kernels: str = "auto",
        head: bool = True,
        follows: bool = False,
    ) -> None:
        """As OrtEngine. Raises BackendError where the bundle was exported without speculation.

        ``head``: whether to open the model's drafting head, if it has one; ``follows``: whether states of one row keep
        what it needs to draft at any time (:attr:`SpeculativeStates.context`).
        """
        if not verifiable(bundle.manifest.model):
            raise BackendError(
                explain(
                    str(bundle.path),
                    expected="a bundle for speculative decoding",
                    found="none",
                    todo="Export it with `edge-export onnx --speculation`.",
                )
            )
        super().__init__(bundle, threads=threads, exact=exact, kernels=kernels)
        graphs = bundle.manifest.graphs
        self._rollback = self.open(ROLLBACK) if ROLLBACK in graphs else None
        self._rolled = rollback_spec(self.config)
        self._projected = self.config.projected_specs("kept")
        self.head = DraftHead(self) if head and DRAFT in graphs else None
        """The model's own head for drafting, if it has one."""
        hidden = [spec for spec in self.config.speculation_specs() if spec.name == "hidden_states"]
        self._hidden = hidden if self.head else []
        self._released: deque[SpeculativeStates] = deque(maxlen=RELEASED_KEPT)  # threads append and pop
        self._zeros = [np.zeros(spec.sized(batch=1, capacity=0), spec.dtype) for spec in self.past_specs]
        self.follows, self.has_head = follows, self.head is not None
        self.times: StepTimes = StepTimes()

    def extras(self, trial: bool) -> list[TensorSpec]:
        """Specs of what a step of SpeculativeStates returns besides: for the head, and where it is a trial."""
        return [*(self._projected if trial else ()), *self._hidden]

    def empty_rows(self, batch: int) -> OrtStates:
        """See :meth:`edge_sdk.backends.Engine.empty_rows`; these states cannot be put back."""
        return OrtStates(self, self.past_specs, batch, self.first_capacity)

    def release(self, states: States) -> None:
        """See :meth:`edge_sdk.backends.Engine.release`; grown caches are given back to the machine."""
        first = min(FIRST_CAPACITY, self.max_length)
        if isinstance(states, SpeculativeStates) and states.room == first and len(states.past_length) == 1:
            self._released.append(states)

    def empty_states(self, batch: int) -> OrtStates:
        """As OrtEngine."""
        again = self._again(self._zeros, 0) if batch == 1 else None
        return again or super().empty_states(batch)

    def load_states(self, snapshot: Snapshot) -> OrtStates:
        """See :meth:`edge_sdk.backends.Engine.load_states`."""
        fits = snapshot.length <= min(FIRST_CAPACITY, self.max_length)
        again = self._again(snapshot.arrays, snapshot.length) if fits else None
        return again or super().load_states(snapshot)

    def _again(self, content: Sequence[np.ndarray], length: int) -> SpeculativeStates | None:
        """Released states with another content, if there are any."""
        try:
            states = self._released.pop()
        except IndexError:
            return None
        states.refill(content, length)
        return states

    def step(self, input_ids: np.ndarray, states: States, logits: Wanted = "last") -> np.ndarray:
        """As OrtEngine."""
        assert isinstance(states, OrtStates)
        measured = input_ids.shape == (1, 1) and not self.times.passes()
        started = time.thread_time() if measured else 0.0
        found = super().step(input_ids, states, logits)
        if isinstance(states, SpeculativeStates) and states.context is not None:
            states.context.note(input_ids, self.hidden_states(states))
        if measured and states.call is not None:
            self.times.note_engine(1, started, typical=not states.call.fresh)
        return found

    def hidden_states(self, states: States) -> np.ndarray:
        """Of all positions (batch, length, hidden) of the last call, for the head; the next call overwrites them."""
        assert isinstance(states, SpeculativeStates)
        assert states.call is not None
        return states.call.extras["hidden_states"]

    def verify(self, input_ids: np.ndarray, states: States) -> np.ndarray:
        """See :meth:`edge_sdk.backends.Engine.verify`."""
        assert isinstance(states, SpeculativeStates)
        started, length = time.thread_time(), input_ids.shape[1]
        states.make_room(states.past_length + length)
        call = states.call_for(length, length, trial=True)
        call.run(input_ids, states, 1 - states.turn)
        states.verified = length
        self.times.note_engine(length, started, typical=not call.fresh)
        return call.logits

    def accept(self, states: States, counts: np.ndarray) -> None:
        """See :meth:`edge_sdk.backends.Engine.accept`."""
        assert isinstance(states, SpeculativeStates)
        kept = counts.tolist()  # of a single row, which Python looks at faster than numpy
        if min(kept) < 1 or max(kept) > states.verified:
            raise ValueError(explain("counts", expected=f"1 to {states.verified}", found=counts, todo="Verify first."))
        for row, count in enumerate(kept):
            if count < states.verified:
                self._scan_again(states, row, count)
        if states.context is not None and states.call is not None:
            (count,) = kept
            states.context.note(states.call.fed[:, :count], self.hidden_states(states)[:, :count])
        states.turn, states.verified = 1 - states.turn, 0
        states.past_length += counts

    def draft(self, token: int, states: States, count: int) -> list[int]:
        """See :meth:`edge_sdk.backends.Engine.draft`."""
        assert isinstance(states, SpeculativeStates)
        if states.context is None:
            return []
        started = time.thread_time()
        drafted = states.context.draft(token, count)
        self.times.note_engine(HEAD, started, len(drafted), bool(drafted) and states.context.typical)
        return drafted

    def _scan_again(self, states: SpeculativeStates, row: int, count: int) -> None:
        """Writes a row's states after ``count`` verified positions over those after all of them."""
        if self._rollback is None:
            return
        call, key = states.call, (states.turn, row, count)
        assert isinstance(call, Trial)
        if key not in call.rollbacks:
            call.rollbacks[key] = self._bind_rollback(call, states, row, count)
        started = time.thread_time()
        self._rollback.run_with_iobinding(call.rollbacks[key][0])
        self.times.note_engine(ROLLBACK_RUN, started)

    def _bind_rollback(self, call: Trial, states: SpeculativeStates, row: int, count: int) -> tuple[Any, list[Any]]:
        """A binding over a trial's buffers, and what it must keep alive."""
        assert self._rollback is not None
        rows, share = slice(row, row + 1), self.host.share
        if len(states.past_length) == 1:
            before, after = states.values(states.turn), states.values(1 - states.turn)
        else:
            before, after = (
                [share(part[rows]) for part in states.sets[turn]] for turn in (states.turn, 1 - states.turn)
            )
        projected = [share(call.extras[spec.name][rows, :count]) for spec in self._projected]
        fed, made = [*projected, *self._scans(before)], self._scans(after)
        binding = self._rollback.io_binding()
        for spec, value in zip(self._rolled.inputs, fed):
            binding.bind_ortvalue_input(spec.name, value)
        for spec, value in zip(self._rolled.outputs, made):
            binding.bind_ortvalue_output(spec.name, value)
        return binding, [*fed, *made]

    def _scans(self, states: Sequence[Any]) -> list[Any]:
        """Of all states those that scans have."""
        return [state for spec, state in zip(self.past_specs, states) if "capacity" not in spec.shape]
