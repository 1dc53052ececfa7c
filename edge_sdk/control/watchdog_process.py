"""The watchdog's process: sleeps until the loop is silent or dead, and then stops the robot.

It is started ahead of need by :class:`edge_sdk.control.watchdog.Watchdog`, with its stopper imported and called, so
that nothing is imported or opened at the moment of need.
"""

from __future__ import annotations

import ctypes
import gc
import importlib
import json
import mmap
import select
import signal
import socket
import sys
import time
from collections.abc import Callable
from typing import Any, Literal

from edge_sdk.control.realtime import RealtimeSettings, apply_realtime

CHECKS = 4
"""How often in each timeout the process shows that it lives."""

RETRY_S, LONGEST_RETRY_S, PATIENCE_S = 0.01, 1.0, 60.0
"""After a stopper that failed: the first pause, the longest, and when to give up."""

CLOSE, ERROR, READY = b"C", b"E", b"R"
"""How messages begin: the loop's, that it ends in order; the process's, that it cannot start, or that it watches."""

Ending = Literal["closed", "died", "silent"]


class Times(ctypes.Structure):
    """What the two processes share: times of the monotonic clock in nanoseconds, 0 for never.

    Each is written by one side only, as one aligned store of 8 bytes, so that neither side sees half of one.
    """

    _fields_ = (
        ("beat_ns", ctypes.c_int64),  # by the loop: its last sign of life; 0 while it is disarmed
        ("watched_ns", ctypes.c_int64),  # by the process: its own last sign of life
        ("tripped_ns", ctypes.c_int64),  # by the process: when it found the loop silent, which is final
        ("stopped_ns", ctypes.c_int64),  # by the process: when the stopper had returned
    )
    beat_ns: int
    watched_ns: int
    tripped_ns: int
    stopped_ns: int

    @classmethod
    def shared(cls, descriptor: int) -> Times:
        """In the memory behind a descriptor, which may then be closed."""
        return cls.from_buffer(mmap.mmap(descriptor, ctypes.sizeof(cls)))


def load_stopper(entry: str, arguments: dict[str, Any]) -> Callable[[], object]:
    """Calls ``module:function`` with the arguments; what it returns will stop the robot."""
    module, _, name = entry.partition(":")
    stop = getattr(importlib.import_module(module), name)(**arguments)
    if not callable(stop):
        raise TypeError(f"{entry} returned {type(stop).__name__}, not a function that stops the robot")
    return stop  # type: ignore[no-any-return]


def watch(times: Times, connection: socket.socket, timeout_ns: int) -> Ending:
    """Returns when the loop was silent for so long, when its end of the connection closed, or when it said so."""
    poll = select.poll()
    poll.register(connection, select.POLLIN)
    while True:
        now = times.watched_ns = time.monotonic_ns()
        beat = times.beat_ns
        left = beat + timeout_ns - now if beat else timeout_ns
        if left <= 0:
            return "silent"
        if poll.poll(min(left, timeout_ns / CHECKS) / 1e6):
            return "closed" if _received(connection) == CLOSE else "died"


def _received(connection: socket.socket) -> bytes:
    try:
        return connection.recv(1)
    except ConnectionResetError:
        return b""


def stop_robot(stop: Callable[[], object]) -> bool:
    """Calls the stopper until it returns without an exception; False where it never did."""
    pause, give_up = RETRY_S, time.monotonic() + PATIENCE_S
    while True:
        try:
            stop()
        except Exception as error:  # whatever the stopper's code raises: the robot must still be stopped
            _say(f"the stopper failed: {type(error).__name__}: {error}")
        else:
            return True
        if time.monotonic() > give_up:
            return False
        time.sleep(pause)
        pause = min(2 * pause, LONGEST_RETRY_S)


def _say(text: str) -> None:
    try:
        print(f"edge-sdk watchdog: {text}", file=sys.stderr, flush=True)
    except OSError:  # nobody reads any more: the one who started us may be dead
        return


def main(setup: dict[str, Any]) -> int:
    """Watches, as :class:`~edge_sdk.control.watchdog.Watchdog` describes it; returns the exit status."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # meant for the loop, after whose end this process ends by itself
    times = Times.shared(setup["memory"])
    connection = socket.socket(fileno=setup["connection"])
    timeout_ns = setup["timeout_ns"]
    try:
        stop = load_stopper(setup["entry"], setup["arguments"])
        realtime = apply_realtime(RealtimeSettings(**setup["realtime"]))
    except Exception as error:  # code and values that are not ours; the one who started us raises it
        connection.send(ERROR + f"{type(error).__name__}: {error}".encode())
        return 1
    gc.disable()
    gc.freeze()
    times.watched_ns = time.monotonic_ns()
    connection.send(READY + realtime.encode())
    ending = watch(times, connection, timeout_ns)
    if ending == "closed":
        return 0
    times.tripped_ns = time.monotonic_ns()
    silent_ms = (times.tripped_ns - times.beat_ns) / 1e6
    if not stop_robot(stop):
        _say("gave up: THE ROBOT MAY STILL MOVE")
        return 1
    times.stopped_ns = time.monotonic_ns()
    if ending == "silent":
        _say(f"stopped the robot: no sign of life for {silent_ms:.1f} ms")
        _received(connection)  # stay until the loop ends, so that it reads why and not that its watchdog is gone
    else:
        _say("stopped the robot: the loop's process died, or left by an error")
    return 0


if __name__ == "__main__":
    sys.exit(main(json.loads(sys.argv[1])))
