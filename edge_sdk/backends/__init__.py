"""Engines that run a bundle's graph; each is one module, imported only when it is chosen."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np

from edge_sdk.bundle import Bundle
from edge_sdk.errors import BackendError, explain

States = Sequence[Any]
"""The engine's own handles of all states, in the order of ``ModelConfig.past_specs()``."""


class Engine(Protocol):
    """Runs the graph. States stay where the engine keeps them; only tokens go in and logits come out."""

    name: str

    def empty_states(self, batch: int) -> States:
        """The states before the first token."""

    def step(self, input_ids: np.ndarray, states: States) -> tuple[np.ndarray, States]:
        """Feeds tokens (batch, length); returns logits (batch, length, vocab) and the states after them."""


def choose_engine(bundle: Bundle, *, device: str = "auto", threads: int | None = None) -> Engine:
    """The engine for a device: ``auto`` or ``cpu``. Raises BackendError when there is none."""
    if device not in ("auto", "cpu"):
        raise BackendError(explain("device", expected="auto or cpu", found=device, todo="Choose one of these."))
    from edge_sdk.backends.ort import OrtEngine

    return OrtEngine(bundle, threads=threads)
