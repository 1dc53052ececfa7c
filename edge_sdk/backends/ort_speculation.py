"""Speculative decoding's graphs on ONNX Runtime, on the CPU: tokens drafted, verified at once, and taken back.

docs/speculation.md tells how the calls follow each other; the loop itself belongs to who generates.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from edge_sdk.backends import States, Wanted
from edge_sdk.backends.host_memory import zeros
from edge_sdk.backends.ort import OrtEngine, OrtStates
from edge_sdk.bundle import Bundle
from edge_sdk.errors import BackendError, explain
from edge_sdk.model import Mamba2Spec
from edge_sdk.speculation import DRAFT, ROLLBACK, without_caches


class SpeculativeStates(OrtStates):
    """States that are still there after drafted tokens were verified, which writes into another set of buffers.

    Both sets hold the same caches where kernels write these in place: a token that is taken back leaves a position
    there that does not count. ``verified``: how many positions of each row wait to be accepted.
    """

    verified = 0

    def _further_sets(self, first: list[np.ndarray]) -> list[list[Any]]:
        if not self.engine.native:
            return super()._further_sets(first)
        scans = iter(zeros(without_caches(self.specs), batch=len(self.past_length)))
        return [[kept if "capacity" in spec.shape else next(scans) for spec, kept in zip(self.specs, first)]]

    def advance(self, length: int) -> None:
        """As OrtStates; what was verified and not accepted is forgotten."""
        super().advance(length)
        self.verified = 0


class SpeculativeEngine(OrtEngine):
    """An OrtEngine whose states can be put back to any position of the last block."""

    states_type = SpeculativeStates

    def __init__(
        self, bundle: Bundle, *, threads: int | None = None, exact: bool = False, kernels: str = "auto"
    ) -> None:
        """As OrtEngine. Raises BackendError where the bundle was exported without speculation."""
        if not bundle.manifest.model.speculation:
            raise BackendError(
                explain(
                    str(bundle.path),
                    expected="a bundle for speculative decoding",
                    found="none",
                    todo="Export it with `edge-export onnx --speculation`.",
                )
            )
        super().__init__(bundle, threads=threads, exact=exact, kernels=kernels)
        self.has_rows = False  # the second set of buffers is in the way
        self.extra_outputs = self.config.speculation_specs()
        graphs = bundle.manifest.graphs
        self._rollback = self.open(ROLLBACK) if ROLLBACK in graphs else None
        self.head = DraftHead(self) if DRAFT in graphs else None
        """The model's own head for drafting, if it has one."""

    def hidden_states(self, states: States) -> np.ndarray:
        """Of all positions (batch, length, hidden) of the last call, for the head; the next call overwrites them."""
        assert isinstance(states, SpeculativeStates)
        assert states.call is not None
        return states.call.extras["hidden_states"]

    def verify(self, input_ids: np.ndarray, states: States) -> np.ndarray:
        """Feeds tokens (batch, length) int64 on trial and returns the logits (batch, length, vocab) of all of them.

        The states advance when :meth:`accept` is told how many to keep; otherwise it is as if none had been fed.
        """
        assert isinstance(states, SpeculativeStates)
        call = self._run(input_ids, states, input_ids.shape[1])
        states.verified = input_ids.shape[1]
        return call.logits

    def accept(self, states: States, counts: np.ndarray) -> None:
        """Advances each row over the first ``counts`` (batch) of the tokens that were verified, at least one each."""
        assert isinstance(states, SpeculativeStates)
        if not ((counts >= 1) & (counts <= states.verified)).all():
            raise ValueError(explain("counts", expected=f"1 to {states.verified}", found=counts, todo="Verify first."))
        for row in np.flatnonzero(counts < states.verified):
            self._scan_again(states, int(row), int(counts[row]))
        states.advance(0)
        states.past_length += counts

    def _scan_again(self, states: SpeculativeStates, row: int, count: int) -> None:
        """Writes a row's states after ``count`` verified positions over those after all of them."""
        if self._rollback is None:
            return
        assert states.call is not None
        one = slice(row, row + 1)
        inputs = {
            f"mixer.{layer}.projected": states.call.extras[f"mixer.{layer}.projected"][one, :count]
            for layer, spec in enumerate(self.config.layers)
            if isinstance(spec, Mamba2Spec)
        }
        outputs = {}
        for past, present, before, after in zip(
            self.config.past_specs(),
            self.config.present_specs(),
            states.sets[states.turn],
            states.sets[1 - states.turn],
        ):
            if "capacity" not in past.shape:
                inputs[past.name], outputs[present.name] = before[one], after[one]
        _run_bound(self._rollback, self.host, inputs, outputs)


class DraftHead:
    """The model's head that drafts tokens (MtpSpec): from hidden states and the tokens after them to the next ones."""

    def __init__(self, engine: SpeculativeEngine) -> None:
        self.engine, self.spec = engine, engine.bundle.manifest.graphs[DRAFT]
        self.session = engine.open(DRAFT)
        self.past_specs = [spec for spec in self.spec.inputs if spec.name.startswith("past_key_values.")]

    def empty_states(self, batch: int) -> OrtStates:
        """The head's own caches, zeros. Their past_length may be set back: positions behind it do not count."""
        return OrtStates(self.engine, self.past_specs, batch, self.engine.first_capacity)

    def step(
        self, hidden_states: np.ndarray, input_ids: np.ndarray, states: OrtStates, logits: Wanted = "last"
    ) -> tuple[np.ndarray, np.ndarray]:
        """Feeds positions with hidden_states (batch, length, hidden) and the tokens after them (batch, length) int64.

        Returns the logits (batch, kept, vocab) of the tokens after those, and the hidden states (batch, kept, hidden)
        that go with these to draft on.
        """
        batch, length = input_ids.shape
        states.reserve(int(states.past_length.max()) + length)
        states.back(states.past_length + length)
        kept = {"last": 1, "all": length, "none": 0}[logits]
        fed = (hidden_states, input_ids, states.past_length, np.arange(length - kept, length))
        found = [np.empty(spec.sized(batch=batch, kept=kept), np.float32) for spec in self.spec.outputs[:2]]
        read, written = states.sets[states.turn], states.sets[(states.turn + 1) % len(states.sets)]
        names = [[spec.name for spec in specs] for specs in (self.spec.inputs, self.spec.outputs)]
        _run_bound(
            self.session, self.engine.host, dict(zip(names[0], [*fed, *read])), dict(zip(names[1], [*found, *written]))
        )
        states.advance(length)
        return found[0], found[1]


def _run_bound(session: Any, host: Any, inputs: Mapping[str, np.ndarray], outputs: Mapping[str, np.ndarray]) -> None:
    """Runs a session from arrays into arrays, which must be contiguous."""
    binding = session.io_binding()
    shared = {name: host.share(np.ascontiguousarray(array)) for name, array in inputs.items()}
    for name, value in shared.items():
        binding.bind_ortvalue_input(name, value)
    for name, array in outputs.items():
        binding.bind_ortvalue_output(name, host.share(array))
    session.run_with_iobinding(binding)
