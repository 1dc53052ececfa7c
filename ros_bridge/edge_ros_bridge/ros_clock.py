"""The control loop's time where a simulation makes it: the ROS clock."""

from __future__ import annotations

import threading
import time

from rclpy.clock import Clock as NodeClock

LOOK_S = 0.0005
"""How often the clock is looked at by who sleeps; it cannot be slept on, for a simulation may stop or jump back."""


class RosClock:
    """See :class:`edge_sdk.control.clock.Clock`."""

    def __init__(self, clock: NodeClock) -> None:
        self._clock = clock
        self._ended = threading.Event()

    def end(self) -> None:
        """Wakes up whoever sleeps, now and later: time may stand still when a run is to end."""
        self._ended.set()

    def now_ns(self) -> int:
        """The ROS time."""
        return int(self._clock.now().nanoseconds)

    def sleep_until_ns(self, deadline_ns: int) -> None:
        """Looks at the clock until then."""
        while self.now_ns() < deadline_ns and not self._ended.is_set():
            time.sleep(LOOK_S)

    def wait(self, event: threading.Event) -> None:
        """``event.wait()``."""
        event.wait()

    def join(self, thread: threading.Thread, timeout_s: float) -> None:
        """``thread.join(timeout_s)``, of the machine's time."""
        thread.join(timeout_s)
