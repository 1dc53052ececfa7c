"""A watchdog in a process of its own, which stops the robot when the control loop is silent or dead.

Two things tell it. Silence: the loop writes the time into shared memory, which costs no system call and wakes nobody;
the watchdog sleeps until that time is too old. Death: the kernel closes the dead loop's end of a socket, also after
``kill -9``, and the watchdog wakes at once. A child that the loop forked may hold that end open; then silence tells.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import select
import signal
import socket
import subprocess
import sys
import time
from types import TracebackType
from typing import Any

import msgspec
import numpy as np

from edge_sdk.control.observers import InferenceRecord, TickRecord
from edge_sdk.control.realtime import RealtimeReport, RealtimeSettings
from edge_sdk.control.robot import FloatArray, Robot
from edge_sdk.control.watchdog_process import CHECKS, CLOSE, ERROR, READY, Times
from edge_sdk.errors import ConfigError, WatchdogError, explain

MESSAGE_BYTES = 1 << 16


class Stopper(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How another process stops the robot: by name, so that nothing needs to be pickled.

    Raises ConfigError where ``entry`` is not of the form ``module:function``.
    """

    entry: str
    """``module:function``. It is called with ``arguments`` when the watchdog starts, opens what it needs, and returns a
    function without arguments that stops the robot and may be called often."""
    arguments: dict[str, Any] = {}
    """By name; of types that JSON has."""
    descriptors: tuple[int, ...] = ()
    """Files of the loop that the watchdog inherits, under the same numbers: a serial port, for instance."""

    def __post_init__(self) -> None:
        module, colon, function = self.entry.partition(":")
        if not (module and colon and function):
            text = explain(
                "A stopper's entry", expected="module:function", found=repr(self.entry), todo="Name the function."
            )
            raise ConfigError(text)


class Watchdog:
    """Starts the process and tells it that the loop lives: an observer of the loop, with a beat in every tick.

    It is armed by the first beat. What it decided is final: every later beat raises, and a guarded robot does not act.
    Left by an exception, the ``with`` block stops the robot through the watchdog; left in order, it does not. Raises
    ConfigError for a timeout that is not above 0, and WatchdogError where the stopper cannot be made.
    """

    def __init__(
        self,
        stopper: Stopper,
        timeout_ms: float,
        *,
        realtime: RealtimeSettings | None = None,
        start_timeout_s: float = 30.0,
    ) -> None:
        if not timeout_ms > 0:
            raise ConfigError(explain("timeout_ms", expected="more than 0", found=timeout_ms, todo="Correct it."))
        self._timeout_ns = int(timeout_ms * 1e6)
        memory = os.memfd_create("edge-sdk-watchdog")  # has no name that a killed loop could leave behind
        try:
            os.ftruncate(memory, ctypes.sizeof(Times))
            self._times = Times.shared(memory)
            self._process, self._connection = self._start(stopper, memory, realtime or RealtimeSettings())
        finally:
            os.close(memory)
        self.realtime = self._wait_until_ready(stopper, start_timeout_s)
        """What the watchdog's own process was granted of the real-time settings."""
        self._poll = select.poll()
        self._poll.register(self._connection, select.POLLIN)

    def _start(
        self, stopper: Stopper, memory: int, realtime: RealtimeSettings
    ) -> tuple[subprocess.Popen[bytes], socket.socket]:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        setup = {
            "memory": memory,
            "connection": theirs.fileno(),
            "timeout_ns": self._timeout_ns,
            "entry": stopper.entry,
            "arguments": stopper.arguments,
            "realtime": realtime,
        }
        with theirs:
            process = subprocess.Popen(
                [sys.executable, "-m", "edge_sdk.control.watchdog_process", msgspec.json.encode(setup)],
                pass_fds=(memory, theirs.fileno(), *stopper.descriptors),
                start_new_session=True,  # Ctrl-C and Ctrl-Z at the loop's terminal are not meant for it
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
            )
        return process, ours

    def _wait_until_ready(self, stopper: Stopper, timeout_s: float) -> RealtimeReport:
        self._connection.settimeout(timeout_s)
        try:
            answer = self._connection.recv(MESSAGE_BYTES)
        except TimeoutError:
            self._process.kill()
            answer = ERROR + f"no answer for {timeout_s} s".encode()
        if answer[:1] == READY:
            return RealtimeReport.decode(answer[1:])
        self._connection.close()
        try:
            self._process.wait(timeout=1.0)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        found = answer[1:].decode(errors="replace") or f"exit status {self._process.returncode}"
        raise WatchdogError(
            explain(
                f"The stopper {stopper.entry}",
                expected="a function that stops the robot",
                found=found,
                todo="Correct the entry or its arguments.",
            )
        )

    @property
    def process_id(self) -> int:
        """Of the watchdog's process."""
        return self._process.pid

    def tick(self, record: TickRecord) -> None:
        """A beat."""
        self.beat()

    def inference(self, record: InferenceRecord) -> None:
        """Nothing: that the policy computes does not show that the robot is driven."""

    def guard(self, robot: Robot) -> Robot:
        """The robot, which no longer acts when the watchdog has stopped it: its ``act`` raises WatchdogError.

        A loop that was held up and goes on would otherwise send one more action before its next beat.
        """
        return _GuardedRobot(robot, self)

    def beat(self) -> None:
        """Says that the loop lives.

        Raises WatchdogError when the watchdog has stopped the robot, and when it is dead or hangs itself: in both cases
        the loop must stop the robot and end.
        """
        now = self._times.beat_ns = time.monotonic_ns()
        self.check()
        silent_ns = now - self._times.watched_ns
        if silent_ns > CHECKS * self._timeout_ns or self._poll.poll(0):
            raise WatchdogError(
                explain(
                    "The watchdog's process",
                    expected="it to watch",
                    found=f"it dead, or without a sign of life for {silent_ns / 1e6:.0f} ms",
                    todo="Find what ended or kept it; start the loop again.",
                )
            )

    def check(self) -> None:
        """Raises WatchdogError when the watchdog has stopped the robot."""
        if self._times.tripped_ns:
            raise WatchdogError(
                explain(
                    "The control loop",
                    expected=f"a sign of life every {self._timeout_ns / 1e6:g} ms",
                    found="none; the watchdog has stopped the robot",
                    todo="Find what kept the loop, or allow it a longer timeout_ms, and start it again.",
                )
            )

    def disarm(self) -> None:
        """Allows silence until the next beat, as between two episodes; call it when the robot stands still."""
        self._times.beat_ns = 0

    def close(self, *, stop: bool = False, timeout_s: float = 2.0) -> None:
        """Ends the process, which stops the robot first if asked to, or if it was about to."""
        if self._connection.fileno() < 0:
            return
        if not stop:
            with contextlib.suppress(BrokenPipeError):  # it died before
                self._connection.send(CLOSE)
        self._connection.close()
        try:
            self._process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            if not stop and not self._times.tripped_ns:  # it hangs, and there is nothing to stop
                self._process.send_signal(signal.SIGKILL)
                self._process.wait()

    def __enter__(self) -> Watchdog:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close(stop=error is not None)


class _GuardedRobot:
    """A robot that acts only while its watchdog has not stopped it."""

    def __init__(self, robot: Robot, watchdog: Watchdog) -> None:
        self._robot, self._watchdog = robot, watchdog

    def observe(self) -> dict[str, np.ndarray]:
        return self._robot.observe()

    def act(self, action: FloatArray) -> None:
        self._watchdog.check()
        self._robot.act(action)

    def stop(self) -> None:
        self._robot.stop()
