"""Messages of several sources brought together by their time stamps: pure, no ROS in it."""

from __future__ import annotations

import threading
from bisect import bisect_right
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from edge_sdk.errors import ConfigError, explain

KEPT = 64
"""Messages that are remembered of each source: 0.3 s at 200 Hz."""


@dataclass(frozen=True)
class Match:
    """One message of every source."""

    values: Mapping[str, Any]
    stamps_ns: Mapping[str, int]

    @property
    def oldest_ns(self) -> int:
        """The stamp of the oldest of them: the match knows nothing newer of that source."""
        return min(self.stamps_ns.values())

    @property
    def newest_ns(self) -> int:
        """The stamp of the newest of them."""
        return max(self.stamps_ns.values())


class StampMatcher:
    """Finds the newest set of messages, one of each source, whose stamps are at most a tolerance apart.

    Of all such sets it is the one whose newest stamp is the greatest, and whose others are then the greatest that are
    not newer. Messages may come late and out of order within the last ``KEPT`` of a source; of two with the same stamp
    the later one counts. May be used by several threads.
    """

    def __init__(self, sources: Iterable[str], tolerance_ns: int) -> None:
        """``tolerance_ns``: 0 takes equal stamps only. Raises ConfigError for less, and for no sources."""
        self._stamps: dict[str, list[int]] = {name: [] for name in sources}
        self._values: dict[str, list[Any]] = {name: [] for name in self._stamps}
        self._tolerance_ns = tolerance_ns
        self._lock = threading.Lock()
        if tolerance_ns < 0 or not self._stamps:
            found = f"{tolerance_ns} ns and {len(self._stamps)} sources"
            expected = "a tolerance of at least 0 and at least one source"
            raise ConfigError(explain("Matching by stamps", expected=expected, found=found, todo="Correct it."))

    def add(self, source: str, stamp_ns: int, value: Any) -> None:
        """One message. Raises KeyError for an unknown source."""
        with self._lock:
            stamps, values = self._stamps[source], self._values[source]
            index = bisect_right(stamps, stamp_ns)
            if index and stamps[index - 1] == stamp_ns:
                values[index - 1] = value
                return
            stamps.insert(index, stamp_ns)
            values.insert(index, value)
            del stamps[:-KEPT], values[:-KEPT]

    def newest(self) -> Match | None:
        """The newest match; None where there is none."""
        with self._lock:
            for last_ns in sorted({stamp for stamps in self._stamps.values() for stamp in stamps}, reverse=True):
                found = {name: bisect_right(stamps, last_ns) - 1 for name, stamps in self._stamps.items()}
                if min(found.values()) < 0:
                    return None  # an earlier last_ns leaves that source as empty
                stamps_ns = {name: self._stamps[name][index] for name, index in found.items()}
                if last_ns - min(stamps_ns.values()) <= self._tolerance_ns:
                    return Match({name: self._values[name][index] for name, index in found.items()}, stamps_ns)
            return None

    def forget(self) -> None:
        """Drops everything, as when time has jumped back."""
        with self._lock:
            for kept in (*self._stamps.values(), *self._values.values()):
                kept.clear()
