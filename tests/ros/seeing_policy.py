"""Policies of the tests that only hand on what they observed, so that a command tells which messages it comes from.

Runs in the node's process, by the parameter ``policy_entry``.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from edge_sdk.control.policy import ActionDim, ActionSpec, ObservationSpec, PolicyConfig
from edge_sdk.control.robot import FloatArray

PICTURES = ("front", "small", "jpeg")
NUMBERS = ("gyro", "place", "joints")
SHAPES = {"front": (48, 64, 3), "small": (24, 32, 3), "jpeg": (48, 64, 3)}


class HandOn:
    """Of each entry of the observation one number: a picture's mean, else the first."""

    def __init__(self, names: tuple[str, ...]) -> None:
        observations = tuple(
            ObservationSpec(name=name, shape=SHAPES[name], kind="image")
            if name in PICTURES
            else ObservationSpec(name=name, shape=(1,))
            for name in names
        )
        action = ActionSpec(dims=tuple(ActionDim(name=name, unit="1") for name in names), rate_hz=20.0)
        self.config = PolicyConfig(observations=observations, action=action, chunk_length=2, budget_ms=500.0)

    def reset(self) -> None:
        """There is no state."""

    def infer(self, observation: Mapping[str, np.ndarray], committed: FloatArray | None) -> FloatArray:
        """(2, entries)"""
        numbers = [float(observation[spec.name].mean()) for spec in self.config.observations]
        return np.tile(np.array(numbers, dtype=np.float32), (2, 1))

    def snapshot(self) -> None:
        """There is no state."""

    def restore(self, snapshot: None) -> None:
        """There is no state."""


def make(names: str) -> HandOn:
    """Of the entries that the parameter ``policy`` names."""
    return HandOn(tuple(names.split(",")))
