"""A session bound once to the memory that it reads and writes, so that a step allocates and copies nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from edge_sdk.tensor_spec import TensorSpec

if TYPE_CHECKING:
    from edge_sdk.backends.ort import OrtStates
    from edge_sdk.backends.ort_device import HostBuffers


class Bound(Protocol):
    """What is bound: an engine, or a graph of its own beside it."""

    session: Any
    host: HostBuffers

    @property
    def past_specs(self) -> Sequence[TensorSpec]:
        """The states that it reads."""
        ...

    @property
    def present_specs(self) -> Sequence[TensorSpec]:
        """The states that it writes, in the same order."""
        ...


class Bindings:
    """Of a session to arrays, by their names in the graph, and to one States: its past_length and states."""

    def __init__(self, engine: Bound, inputs: Mapping[str, np.ndarray], outputs: Mapping[str, np.ndarray]) -> None:
        """The arrays besides those of the states; each run reads the inputs and overwrites the outputs."""
        self._engine, self._inputs, self._outputs = engine, inputs, outputs
        self.fresh = True
        """Whether the last run had to be bound first."""
        self._bound: dict[tuple[int, int], Any] = {}
        """By the sets of the states' buffers that are read and written."""
        self._alive: list[Any] = []
        """The OrtValues, which keep the arrays' memory from being freed."""

    def run(self, states: OrtStates, written: int) -> None:
        """One step of the session, from the states' current set of buffers into another or the same."""
        sets = (states.turn, written)
        self.fresh = sets not in self._bound
        if self.fresh:
            self._bound[sets] = self._bind(states, written)
        self._engine.session.run_with_iobinding(self._bound[sets])

    def _bind(self, states: OrtStates, written: int) -> Any:
        engine, share = self._engine, self._engine.host.share
        read = {name: share(array) for name, array in self._inputs.items()}
        read["past_length"] = share(states.past_length)
        read |= zip((spec.name for spec in engine.past_specs), states.values(states.turn))
        made = {name: share(array) for name, array in self._outputs.items()}
        made |= zip((spec.name for spec in engine.present_specs), states.values(written))
        self._alive += [*read.values(), *made.values()]
        binding = engine.session.io_binding()
        for name, value in read.items():
            binding.bind_ortvalue_input(name, value)
        for name, value in made.items():
            binding.bind_ortvalue_output(name, value)
        return binding
