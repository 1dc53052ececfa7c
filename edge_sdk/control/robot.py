"""What the control loop asks of a robot."""

from __future__ import annotations

from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from edge_sdk.errors import EdgeError

FloatArray = NDArray[np.float32]

TIME_KEY = "time_ns"
"""The key of an observation that says when it was taken, on ``time.monotonic_ns()``'s clock: an int64 scalar."""


class ClosedError(EdgeError):
    """There are no more observations, because whoever owns the robot has closed it: an end, not a failure."""


class Robot(Protocol):
    """A robot, real or simulated; ``observe`` and ``act`` are called from two threads, ``stop`` from any.

    An exception of ``observe`` or ``act`` ends the loop in ``stop``; ClosedError of ``observe`` does so without a
    traceback in the log.
    """

    def observe(self) -> dict[str, np.ndarray]:
        """The newest observation, by the names of the policy's schema, in physical units.

        Vectors are (size,) float32, images (height, width, channels) uint8. Where the robot knows when the
        observation was taken, ``time_ns`` (:data:`TIME_KEY`) says so; otherwise the loop takes the time of this call.
        The arrays do not change afterwards.
        """
        ...

    def act(self, action: FloatArray) -> None:
        """Sends one action of shape (action_dim,), in physical units; returns at once. The array is not kept."""
        ...

    def stop(self) -> None:
        """Into the safe state; may be called often and from any thread."""
        ...
