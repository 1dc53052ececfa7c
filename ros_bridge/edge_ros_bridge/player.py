"""Plays motions tick by tick: one thread adds them, another takes one velocity per tick."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterable, Iterator

from edge_ros_bridge.motion import Velocity

POLL_S = 0.05
"""How soon a waiting ``add`` notices that it is cancelled."""


class MotionPlayer:
    """One motion that plays and at most one that waits behind it, so that answers cannot run ahead of the robot."""

    def __init__(self) -> None:
        self._waiting: queue.Queue[list[Velocity]] = queue.Queue(maxsize=1)
        self._current: Iterator[Velocity] = iter(())
        self._moving = False

    def add(self, motion: Iterable[Velocity], cancelled: threading.Event) -> None:
        """Hands over a motion; waits while another one waits already, unless ``cancelled`` is set meanwhile."""
        while not cancelled.is_set():
            try:
                self._waiting.put(list(motion), timeout=POLL_S)
                return
            except queue.Full:
                continue

    def tick(self) -> Velocity | None:
        """The velocity to send in this tick; None while nothing plays. Never waits."""
        velocity = next(self._current, None)
        if velocity is None:
            try:
                self._current = iter(self._waiting.get_nowait())
            except queue.Empty:
                return None
            velocity = next(self._current, None)
        self._moving = velocity is not None and not velocity.is_stop
        return velocity

    def stop(self) -> bool:
        """Drops everything. True when the robot was moving, so that a zero must be sent now."""
        was_moving, self._moving = self._moving, False
        self._current = iter(())
        while not self._waiting.empty():
            self._waiting.get_nowait()
        return was_moving
