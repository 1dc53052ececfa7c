"""Engines that run a bundle's graph; each is one module, imported only when it is chosen."""

from __future__ import annotations

from typing import Literal, Protocol

import numpy as np

from edge_sdk.bundle import Bundle
from edge_sdk.errors import BackendError, PromptError, explain

FIRST_CAPACITY = 256
"""Positions that attention caches have room for at first."""

Wanted = Literal["last", "all", "none"]
"""Which of a block's positions the logits are wanted of; what is not wanted is not computed."""


class States:
    """What a model remembers of its rows: made by an engine, which owns the memory and advances it in place."""

    def __init__(self, batch: int, capacity: int) -> None:
        self.past_length = np.zeros(batch, dtype=np.int64)
        """Positions that each row (batch) holds."""
        self.capacity = capacity
        """Positions that the caches have room for."""

    def copy(self) -> States:
        """Another memory with the same content, to go on from here twice."""
        raise NotImplementedError


class Engine(Protocol):
    """Runs the graph. States stay where the engine keeps them; only tokens go in and logits come out."""

    name: str
    prefill_block: int
    """Tokens to feed at once."""

    def empty_states(self, batch: int) -> States:
        """The states before the first token."""

    def step(self, input_ids: np.ndarray, states: States, logits: Wanted = "last") -> np.ndarray:
        """Feeds tokens (batch, length) int64 and advances the states, which must be this engine's own.

        Returns logits (batch, kept, vocab) float32, with kept = 1, length or 0 as wanted. The next step may
        overwrite them. Raises PromptError when the context has no room for the tokens.
        """


def capacity_for(positions: int, current: int, limit: int) -> int:
    """A cache's capacity (positions) that holds ``positions``: the current one doubled as often as that takes.

    Raises PromptError when more than ``limit``, the context's size, would be needed.
    """
    if positions > limit:
        raise PromptError(
            explain("The context", expected=f"at most {limit} tokens", found=positions, todo="Open a new session.")
        )
    while current < positions:
        current *= 2
    return min(current, limit)


def choose_engine(bundle: Bundle, *, device: str = "auto", threads: int | None = None) -> Engine:
    """The engine for a device: ``auto`` or ``cpu``. Raises BackendError when there is none."""
    if device not in ("auto", "cpu"):
        raise BackendError(explain("device", expected="auto or cpu", found=device, todo="Choose one of these."))
    from edge_sdk.backends.ort import OrtEngine

    return OrtEngine(bundle, threads=threads)
