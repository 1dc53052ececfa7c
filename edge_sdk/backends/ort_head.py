"""The model's own head for drafting tokens, on ONNX Runtime (docs/speculation.md)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from edge_sdk.backends import Wanted
from edge_sdk.backends.ort import OrtStates
from edge_sdk.errors import MemoryLimitError
from edge_sdk.speculation import DRAFT

if TYPE_CHECKING:
    from edge_sdk.backends.ort_speculation import SpeculativeEngine

HEAD_BLOCK = 512
"""Positions that may wait for the head."""


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
        states.make_room(states.past_length + length)
        kept = {"last": 1, "all": length, "none": 0}[logits]
        fed = (hidden_states, input_ids, states.past_length, np.arange(length - kept, length))
        found = [np.empty(spec.sized(batch=batch, kept=kept), np.float32) for spec in self.spec.outputs[:2]]
        read, written = states.sets[states.turn], states.sets[states.written]
        names = [[spec.name for spec in specs] for specs in (self.spec.inputs, self.spec.outputs)]
        _run_bound(
            self.session, self.engine.host, dict(zip(names[0], [*fed, *read])), dict(zip(names[1], [*found, *written]))
        )
        states.advance(length)
        return found[0], found[1]


class HeadContext:
    """What the head knows of one row: the positions that the model was fed, which it reads when it is to draft.

    The head has no position embedding, so a context that begins late or has gaps makes its drafts worse and not wrong.
    """

    def __init__(self, head: DraftHead) -> None:
        self._head, self._states = head, head.empty_states(1)
        self._hidden: list[np.ndarray] = []
        """Hidden states (1, length, hidden) of positions that the head was not fed yet."""
        self._after: list[int] = []
        """The tokens after these positions, but for the last one's."""

    def note(self, input_ids: np.ndarray, hidden_states: np.ndarray) -> None:
        """The model was fed tokens (1, length) and made hidden states (1, length, hidden) of them."""
        ids = input_ids[0].tolist()
        self._after += ids if self._hidden else ids[1:]
        self._hidden.append(hidden_states.copy())
        if len(self._after) >= HEAD_BLOCK:
            hidden, last = self._take()
            try:
                self._head.step(hidden[:, :-1], last[None], self._states, "none")
            except MemoryLimitError:  # the model was fed, and goes on without drafts
                return
            self._hidden = [hidden[:, -1:]]

    def empty(self) -> HeadContext:
        """One of another row."""
        return HeadContext(self._head)

    def interrupt(self) -> None:
        """The model was fed tokens that this does not hear of."""
        self._hidden, self._after = [], []

    def draft(self, token: int, count: int) -> list[int]:
        """Tokens after one that the model is to be fed next; none where the head knows nothing of what is before it."""
        room = self._head.engine.max_length - int(self._states.past_length[0]) - len(self._after) - 1
        count = min(count, room)
        if not self._hidden or count < 1:
            return []
        self._after.append(token)
        hidden, after = self._take()
        try:
            self._states.make_room(self._states.past_length + len(after) + count - 1)
        except MemoryLimitError:  # the model can do without
            return []
        logits, hidden = self._head.step(hidden, after[None], self._states)
        held, drafted = self._states.past_length.copy(), [int(logits[0, -1].argmax())]
        while len(drafted) < count:
            logits, hidden = self._head.step(hidden, np.array([drafted[-1:]]), self._states)
            drafted.append(int(logits[0, -1].argmax()))
        self._states.past_length[:] = held
        return drafted

    def _take(self) -> tuple[np.ndarray, np.ndarray]:
        """What waits: hidden states (1, length, hidden) and tokens (length or one less) int64."""
        taken = np.concatenate(self._hidden, axis=1), np.array(self._after, dtype=np.int64)
        self._hidden, self._after = [], []
        return taken


def _run_bound(session: Any, host: Any, inputs: Mapping[str, np.ndarray], outputs: Mapping[str, np.ndarray]) -> None:
    """Runs a session from arrays into arrays, which must be contiguous."""
    binding = session.io_binding()
    shared = {name: host.share(np.ascontiguousarray(array)) for name, array in inputs.items()}
    for name, value in shared.items():
        binding.bind_ortvalue_input(name, value)
    for name, array in outputs.items():
        binding.bind_ortvalue_output(name, host.share(array))
    session.run_with_iobinding(binding)
