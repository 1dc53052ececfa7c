"""A policy whose commands tell which observation they come from: for measuring, not for driving."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from edge_sdk.control.policy import ActionDim, ActionSpec, ObservationSpec, PolicyConfig
from edge_sdk.control.robot import FloatArray

CONFIG = PolicyConfig(
    observations=(ObservationSpec(name="odometry", shape=(1,)),),
    action=ActionSpec(dims=(ActionDim(name="linear.x", unit="m/s"),), rate_hz=25.0),
    chunk_length=2,
    budget_ms=150.0,
)


class CountingPolicy:
    """Commands the number that it observes."""

    config = CONFIG

    def reset(self) -> None:
        """There is no state."""

    def infer(self, observation: Mapping[str, np.ndarray], committed: FloatArray | None) -> FloatArray:
        """(chunk_length, 1)"""
        return np.full((self.config.chunk_length, 1), observation["odometry"][0], dtype=np.float32)

    def snapshot(self) -> None:
        """There is no state."""

    def restore(self, snapshot: None) -> None:
        """There is no state."""


def make(path: str) -> CountingPolicy:
    """For the parameter ``policy_entry``; the path is not used."""
    del path
    return CountingPolicy()
