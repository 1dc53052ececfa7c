"""A policy whose commands tell which observation they come from: for measuring, not for driving."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from edge_sdk.control.policy import ActionDim, ActionSpec, ObservationSpec, PolicyConfig
from edge_sdk.control.robot import FloatArray

ACTION = ActionSpec(dims=(ActionDim(name="linear.x", unit="m/s"),), rate_hz=25.0)
OBSERVATIONS = {
    "odometry": ObservationSpec(name="odometry", shape=(1,)),
    "image": ObservationSpec(name="image", shape=(480, 640, 3), kind="image"),
}


class CountingPolicy:
    """Commands the number that it observes; an image says it by its first pixel, red first, in base 256."""

    def __init__(self, observed: ObservationSpec) -> None:
        self.config = PolicyConfig(observations=(observed,), action=ACTION, chunk_length=2, budget_ms=150.0)

    def reset(self) -> None:
        """There is no state."""

    def infer(self, observation: Mapping[str, np.ndarray], committed: FloatArray | None) -> FloatArray:
        """(chunk_length, 1)"""
        (array,) = (observation[spec.name] for spec in self.config.observations)
        number = array[0] if array.ndim == 1 else array[0, 0] @ (65536, 256, 1)
        return np.full((self.config.chunk_length, 1), number, dtype=np.float32)

    def snapshot(self) -> None:
        """There is no state."""

    def restore(self, snapshot: None) -> None:
        """There is no state."""


def make(observed: str) -> CountingPolicy:
    """For the parameter ``policy_entry``, with ``policy`` one of OBSERVATIONS."""
    return CountingPolicy(OBSERVATIONS[observed])
