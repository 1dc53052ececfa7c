"""The model's own head for drafting tokens, on ONNX Runtime (docs/speculation.md)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from edge_sdk.backends import Wanted
from edge_sdk.backends.ort import OrtStates
from edge_sdk.backends.ort_bindings import Bindings
from edge_sdk.errors import MemoryLimitError
from edge_sdk.speculation import DRAFT

if TYPE_CHECKING:
    from edge_sdk.backends.ort_speculation import SpeculativeEngine

HEAD_BLOCK = 512
"""Positions that may wait for the head."""

LONGEST_KEPT = 32
"""Tokens of the longest call whose bindings are kept."""


class HeadCall:
    """Bindings of the head to one States for inputs of one shape: nothing is allocated when it is repeated."""

    def __init__(self, head: DraftHead, batch: int, length: int, kept: int) -> None:
        sizes = {"batch": batch, "length": length, "kept": kept}
        fed = {spec.name: np.empty(spec.sized(**sizes), spec.dtype) for spec in head.spec.inputs[:2]}
        made = {spec.name: np.empty(spec.sized(**sizes), spec.dtype) for spec in head.spec.outputs[:2]}
        self.fed_hidden, self.fed_ids = fed.values()
        self.logits, self.hidden = made.values()
        self.bindings = Bindings(head, fed | {"logit_positions": np.arange(length - kept, length)}, made)


class HeadStates(OrtStates):
    """The head's own caches."""

    def _make(self, content: Sequence[np.ndarray]) -> None:
        super()._make(content)
        self.calls: dict[tuple[int, int], HeadCall] = {}
        """The bindings of short calls."""


class DraftHead:
    """The model's head that drafts tokens (MtpSpec): from hidden states and the tokens after them to the next ones."""

    def __init__(self, engine: SpeculativeEngine) -> None:
        self.engine, self.spec = engine, engine.bundle.manifest.graphs[DRAFT]
        self.session, self.host = engine.open(DRAFT), engine.host
        self.past_specs = [spec for spec in self.spec.inputs if spec.name.startswith("past_key_values.")]
        self.present_specs = self.spec.outputs[2:]

    def empty_states(self, batch: int) -> HeadStates:
        """The head's own caches, zeros. Their past_length may be set back: positions behind it do not count."""
        return HeadStates(self.engine, self.past_specs, batch, self.engine.first_capacity)

    def step(
        self, hidden_states: np.ndarray, input_ids: np.ndarray, states: HeadStates, logits: Wanted = "last"
    ) -> tuple[np.ndarray, np.ndarray]:
        """Feeds positions with hidden_states (batch, length, hidden) and the tokens after them (batch, length) int64.

        Returns the logits (batch, kept, vocab) of the tokens after those, and the hidden states (batch, kept, hidden)
        that go with these to draft on.
        """
        call = self.run(hidden_states, input_ids, states, {"last": 1, "all": input_ids.shape[1], "none": 0}[logits])
        return call.logits.copy(), call.hidden.copy()

    def run(self, hidden_states: np.ndarray, input_ids: np.ndarray, states: HeadStates, kept: int) -> HeadCall:
        """:meth:`step` for the last ``kept`` positions; what it made stands in the call until the next one."""
        batch, length = input_ids.shape
        states.make_room(states.past_length + length)
        call = states.calls.get((length, kept)) or HeadCall(self, batch, length, kept)
        if length <= LONGEST_KEPT:
            states.calls[length, kept] = call
        call.fed_hidden[...], call.fed_ids[...] = hidden_states, input_ids
        call.bindings.run(states, states.written)
        states.advance(length)
        return call


class HeadContext:
    """What the head knows of one row: the positions that the model was fed, which it reads when it is to draft.

    The head has no position embedding, so a context that begins late or has gaps makes its drafts worse and not wrong.
    """

    def __init__(self, head: DraftHead) -> None:
        self._head, self._states = head, head.empty_states(1)
        self.typical = False
        """Whether the last draft took what drafts take: no bindings were made, and no more was read than the positions
        that a trial of such a draft leaves."""
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
                self._head.run(hidden[:, :-1], last[None], self._states, 0)
            except MemoryLimitError:  # the model was fed, and goes on without drafts
                return
            self._hidden = [hidden[:, -1:]]

    def restart(self) -> None:
        """What the model is fed next is another row."""
        self.interrupt()
        self._states.past_length[:] = 0

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
        call = self._head.run(hidden, after[None], self._states, 1)
        self.typical = len(after) <= count + 1 and not call.bindings.fresh
        held, drafted = self._states.past_length.copy(), [int(call.logits[0, -1].argmax())]
        while len(drafted) < count:
            call = self._head.run(call.hidden, np.array([drafted[-1:]]), self._states, 1)
            self.typical = self.typical and not call.bindings.fresh
            drafted.append(int(call.logits[0, -1].argmax()))
        self._states.past_length[:] = held
        return drafted

    def _take(self) -> tuple[np.ndarray, np.ndarray]:
        """What waits: hidden states (1, length, hidden) and tokens (length or one less) int64."""
        taken = np.concatenate(self._hidden, axis=1), np.array(self._after, dtype=np.int64)
        self._hidden, self._after = [], []
        return taken
