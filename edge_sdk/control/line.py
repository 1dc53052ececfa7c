"""What robots at the end of a line share: the errors of a port that vanishes, and the check of an action."""

from __future__ import annotations

import termios

import numpy as np

from edge_sdk.control.robot import FloatArray
from edge_sdk.errors import explain

LINE_ERRORS = (OSError, termios.error)
"""What pyserial raises when a port vanishes; its own exceptions are OSErrors."""

FIRST_WAIT_S, LONGEST_WAIT_S = 0.05, 1.0
"""Between attempts to open a port again."""


def checked_action(action: np.ndarray, size: int) -> FloatArray:
    """A copy of an action (size,) as float32. Raises ValueError for another shape, and for what is not finite."""
    values = np.array(action, np.float32)
    if values.shape != (size,) or not np.isfinite(values).all():
        raise ValueError(
            explain(
                "An action",
                expected=f"{size} finite numbers",
                found=f"shape {values.shape}: {values}",
                todo="Compare the policy's action schema with the robot's.",
            )
        )
    return values
