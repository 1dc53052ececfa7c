"""What robots at the end of a line share: the errors of a port that vanishes, the wait before it is opened again."""

from __future__ import annotations

import termios
from threading import Event

import numpy as np

from edge_sdk.control.robot import FloatArray
from edge_sdk.errors import explain

LINE_ERRORS = (OSError, termios.error)
"""What pyserial raises when a port vanishes; its own exceptions are OSErrors."""

FIRST_WAIT_S, LONGEST_WAIT_S = 0.05, 1.0


class Backoff:
    """Waits twice as long after each failure, up to a second."""

    def __init__(self) -> None:
        self._wait_s = FIRST_WAIT_S

    def wait(self, closing: Event) -> None:
        """Waits, unless ``closing`` is set meanwhile."""
        closing.wait(self._wait_s)
        self._wait_s = min(2 * self._wait_s, LONGEST_WAIT_S)

    def reset(self) -> None:
        """Something went well: the next wait is a short one."""
        self._wait_s = FIRST_WAIT_S


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
