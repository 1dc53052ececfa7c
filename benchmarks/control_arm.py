"""The arm of the control benchmarks: what is observed, what is commanded, and a robot that costs no time."""

from __future__ import annotations

import numpy as np

from edge_sdk.control.policy import ActionDim, ActionSpec, ObservationSpec, PolicyConfig
from edge_sdk.control.robot import FloatArray

OBSERVATION, ACTION = 17, 7
"""Sizes of an arm's observation and action."""

CHUNK = 50
"""Actions that a policy's bundle makes at once."""


def actions(rate_hz: float) -> ActionSpec:
    """Every joint with all limits, which are not reached."""
    dims = tuple(
        ActionDim(
            name=f"joint{index}",
            unit="rad",
            lower=-3.0,
            upper=3.0,
            max_speed=1e3,
            max_acceleration=1e6,
            max_jerk=1e9,
            rest=None,
        )
        for index in range(ACTION)
    )
    return ActionSpec(dims=dims, rate_hz=rate_hz)


def policy_schema(head: str, rate_hz: float = 200.0) -> PolicyConfig:
    """Of the policies with bundles."""
    return PolicyConfig(
        observations=(ObservationSpec(name="state", shape=(OBSERVATION,)),),
        action=actions(rate_hz),
        chunk_length=CHUNK,
        budget_ms=100.0,
        head=head,  # type: ignore[arg-type]  # a Literal, by a command's argument
    )


class Nothing:
    """A robot that costs no time."""

    def __init__(self) -> None:
        self._state = np.zeros(OBSERVATION, dtype=np.float32)

    def observe(self) -> dict[str, np.ndarray]:
        """Always the same."""
        return {"state": self._state}

    def act(self, action: FloatArray) -> None:
        """Goes nowhere."""

    def stop(self) -> None:
        """Stands already."""
