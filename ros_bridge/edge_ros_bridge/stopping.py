"""The emergency stop's latch: what sets it, and when it may be released. No ROS in it."""

from __future__ import annotations

import threading


class Latch:
    """Set by anybody, released only by who asks for it, and not while a button is still pressed."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._pressed = False
        self._latched = False

    @property
    def latched(self) -> bool:
        """Whether the robot must stand."""
        return self._latched

    def press(self, pressed: bool) -> bool:
        """What a button says, which may say it again and again; True where the robot must be stopped now."""
        with self._lock:
            self._pressed = pressed
            return self._set() if pressed else False

    def set(self) -> bool:
        """As a single press."""
        with self._lock:
            return self._set()

    def release(self) -> bool:
        """False where a button is still pressed."""
        with self._lock:
            if not self._pressed:
                self._latched = False
            return not self._latched

    def _set(self) -> bool:
        was, self._latched = self._latched, True
        return not was
