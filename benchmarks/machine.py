"""What a benchmark says about the machine that it runs on."""

from __future__ import annotations

import platform
import threading
import time
from pathlib import Path

import numpy as np

BUFFER_BYTES = 512 << 20
"""What each thread reads: many times the size of any cache."""


def processor() -> str:
    """The processor's name and the number of its cores that this process may use."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    return f"{names[0]}, {len(names)} cores" if names else platform.machine()


def busy(seconds: float) -> float:
    """Share of all cores' time that was used, by whatever runs, while this process slept for so long."""

    def ticks() -> tuple[int, int]:
        user, nice, system, idle, waiting, *others = map(
            int, Path("/proc/stat").read_text().split("\n")[0].split()[1:9]
        )
        return user + nice + system + sum(others), idle + waiting

    used, idle = ticks()
    time.sleep(seconds)
    used, idle = (after - before for after, before in zip(ticks(), (used, idle)))
    return used / max(1, used + idle)


def read_bandwidth(threads: int) -> float:
    """Bytes per second that so many threads read from memory: each finds a buffer's largest value; best of 5."""
    # of numpy's reductions the fastest here: or over int64, max over float32 and over bytes reach half to four fifths;
    # np.full and not np.zeros, whose pages would all be the one page of zeros
    buffers = [np.full(BUFFER_BYTES // 4, 1, dtype=np.int32) for _ in range(threads)]
    seconds = []
    for _ in range(5):
        readers = [threading.Thread(target=np.maximum.reduce, args=(buffer,)) for buffer in buffers]
        started = time.perf_counter()
        for reader in readers:
            reader.start()
        for reader in readers:
            reader.join()
        seconds.append(time.perf_counter() - started)
    return threads * BUFFER_BYTES / min(seconds)
