"""Queues that a thread writes to a disk from."""

from __future__ import annotations

import queue
import time
from collections.abc import Callable, Iterator
from typing import TypeVar

Item = TypeVar("Item")


def until_closed(items: queue.SimpleQueue[Item | None], flush: Callable[[], None], period_s: float) -> Iterator[Item]:
    """The items of a queue as they come, up to the first None; ``flush`` is called each period, items or none."""
    flush_at = time.monotonic() + period_s
    while True:
        left_s = flush_at - time.monotonic()
        if left_s <= 0:
            flush()
            flush_at = time.monotonic() + period_s
            continue
        try:
            item = items.get(timeout=left_s)
        except queue.Empty:
            continue
        if item is None:
            return
        yield item
