"""Ways in which a watchdog's process stops a robot: entries for :class:`edge_sdk.control.watchdog.Stopper`."""

from __future__ import annotations

import os
import time
from collections.abc import Callable


def write_frame(descriptor: int, frame_hex: str, times: int = 3) -> Callable[[], None]:
    """Writes a frame that was made beforehand to an inherited descriptor, such as a serial port's.

    Several times in a row, for a line may lose one; the last bytes of the dead loop may be half a frame, so the frame
    should begin with its protocol's delimiter. Raises OSError where the descriptor is not open.
    """
    os.fstat(descriptor)
    frames = bytes.fromhex(frame_hex) * times

    def stop() -> None:
        rest = memoryview(frames)
        while rest:
            rest = rest[os.write(descriptor, rest) :]

    return stop


def write_file(path: str) -> Callable[[], None]:
    """Appends the monotonic time in nanoseconds to a file: for simulated robots, which end with their loop."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)

    def stop() -> None:
        os.write(descriptor, b"%d\n" % time.monotonic_ns())

    return stop
