"""A robot behind a serial port: frames with sequence numbers, CRC-32 and heartbeat to a microcontroller."""

from __future__ import annotations

import time
from collections import Counter
from threading import Condition, Event, Thread
from typing import Any

import msgspec
import numpy as np
import serial

from edge_sdk.backoff import Backoff
from edge_sdk.control.frames import MAX_TTL_MS, FrameDecoder, Result, State, WireSchema
from edge_sdk.control.line import FIRST_WAIT_S, LINE_ERRORS, LONGEST_WAIT_S, checked_action
from edge_sdk.control.link import HostLink
from edge_sdk.errors import ConfigError, LinkError, explain

READ_BYTES = 2048
"""Half of what a Linux terminal holds: a read that is full has more behind it."""
FLOOD_PAUSE_S = 0.005
"""A peer that fills whole reads is read at 400 kB/s at most, more than 3 Mbit/s bring; its bytes wait in the kernel."""


class SerialConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How a robot is reached. Raises ConfigError for a value that makes no sense."""

    url: str
    """A device, best by its name in /dev/serial/by-id, which survives replugging; or any URL of pyserial."""
    schema: WireSchema
    baud_rate: int = 921_600
    heartbeat_timeout_ms: int = 100
    """Without a valid frame for so long the motors stop, and this end takes the link for lost."""
    ttl_ms: int = 100
    """How long a command moves the robot if no other follows: a few periods of the control loop."""
    reopen_ms: int = 5000
    """A port on which nothing came for so long is closed and opened again."""

    def __post_init__(self) -> None:
        limits = {
            "baud_rate": (1, None),
            "heartbeat_timeout_ms": (4, 65_535),
            "ttl_ms": (1, MAX_TTL_MS - 1),
            "reopen_ms": (self.heartbeat_timeout_ms, None),
        }
        for name, (low, high) in limits.items():
            value = getattr(self, name)
            if value < low or (high is not None and value > high):
                raise ConfigError(
                    explain(
                        f"{name} of a serial robot",
                        expected=f"at least {low}" + (f" and at most {high}" if high is not None else ""),
                        found=value,
                        todo="See docs/serial.md.",
                    )
                )


class Statistics(msgspec.Struct, frozen=True):
    """What happened on the line since the start."""

    results: dict[str, int]
    """Frames received, by what became of them: ``accepted``, or the reason."""
    events: dict[str, int]
    """``sent``, ``opened``, ``unplugged``, ``lost``, ``superseded``, ``write_timeout``, ``flood``."""


class SerialRobot:
    """A :class:`~edge_sdk.control.robot.Robot` behind a serial port. Nothing here waits for the line, except
    :meth:`wait_ready` and, for one heartbeat, :meth:`stop`.

    A thread reads, and opens the port whenever it is not there; another writes what :meth:`act` left, or else
    heartbeats. A command that could not be written before the next one is dropped. After a lost link the robot moves
    again at the next :meth:`act` after a new handshake, not before.
    """

    def __init__(self, config: SerialConfig) -> None:
        self.config = config
        self._port: Any = None
        self._wake = Condition()
        """Guards everything below."""
        self._link = self._new_link()
        self._pending: tuple[np.ndarray, int] | None = None
        self._wanted: str | None = None
        """``stop`` or ``estop``: sent in place of heartbeats."""
        self._results: Counter[str] = Counter()
        self._events: Counter[str] = Counter()
        self._last_error = "nothing was tried"
        self._broken = False
        self._stop_sent = Event()
        self._closing = Event()
        self._threads = [Thread(target=self._read, daemon=True), Thread(target=self._write, daemon=True)]
        for thread in self._threads:
            thread.start()

    def __enter__(self) -> SerialRobot:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # What a control loop calls

    def observe(self) -> dict[str, np.ndarray]:
        """The newest observation by the schema's names, each (size,), and ``time_ns``. Raises LinkError without one."""
        with self._wake:
            self._require_link()
            observation, taken_ns = self._link.observation, self._link.observed_ns
        if observation is None:
            raise LinkError("The robot has answered, but not yet sent an observation. Call wait_ready() first.")
        result, at = {}, 0
        for field in self.config.schema.observation:
            result[field.name] = observation.values[at : at + field.size].copy()
            at += field.size
        return {**result, "time_ns": np.array(taken_ns, np.int64)}

    def act(self, action: np.ndarray) -> None:
        """Leaves ``action`` (action_dim,) to be sent. Raises LinkError without a link, ValueError for wrong actions."""
        values = checked_action(action, self.config.schema.action_dim)
        with self._wake:
            self._require_link()
            if self._wanted == "estop" or self._link.state is State.EMERGENCY:
                raise LinkError("The robot is in emergency stop, which only starting its firmware anew ends.")
            self._events["superseded"] += self._pending is not None
            self._pending = values, self._link.expiry(self.config.ttl_ms, time.monotonic_ns())
            self._wanted = None
            self._wake.notify_all()

    def stop(self) -> None:
        """Stops the motors until the next :meth:`act`. Where the line is dead they stop by themselves."""
        self._halt("stop")

    def estop(self) -> None:
        """Stops the motors until the firmware is started anew."""
        self._halt("estop")

    def _halt(self, wanted: str) -> None:
        with self._wake:
            self._pending = None
            self._wanted = "estop" if self._wanted == "estop" else wanted
            self._stop_sent.clear()
            self._wake.notify_all()
            alive = self._port is not None
        if alive:
            self._stop_sent.wait(self.config.heartbeat_timeout_ms / 1000)

    # What its user calls

    def wait_ready(self, timeout_s: float = 10.0) -> None:
        """Waits for the handshake and an observation. Raises LinkError when there is none in time, saying why."""
        with self._wake:
            self._wake.wait_for(lambda: self._link.ready and self._link.observation is not None, timeout_s)
            self._require_link()

    def statistics(self) -> Statistics:
        """Counts since the start."""
        with self._wake:
            return Statistics(dict(self._results), dict(self._events))

    def close(self) -> None:
        """Stops the robot, ends the threads and closes the port."""
        if not self._closing.is_set():
            self.stop()
        self._closing.set()
        with self._wake:
            self._wake.notify_all()
        for thread in self._threads:
            thread.join()
        self._close_port()

    def _require_link(self) -> None:
        if self._link.ready and all(thread.is_alive() for thread in self._threads):
            return
        refused = self._link.explain_fault()
        raise LinkError(
            refused
            or explain(
                f"The robot at {self.config.url}",
                expected="an answer",
                found=f"{self._last_error}; frames: {dict(self._results) or 'none'}",
                todo="Check cable, power and baud rate; bad_version means that the firmware speaks another protocol.",
            )
        )

    # Reading

    def _new_link(self) -> HostLink:
        return HostLink(self.config.schema, self.config.heartbeat_timeout_ms, time.monotonic_ns())

    def _read(self) -> None:
        decoder, backoff, heard_ns = FrameDecoder(), Backoff(FIRST_WAIT_S, LONGEST_WAIT_S), 0
        while not self._closing.is_set():
            if self._port is None:
                if not self._open_port():
                    backoff.wait(self._closing)
                    continue
                decoder, heard_ns = FrameDecoder(), time.monotonic_ns()
                backoff.reset()
            try:
                received = self._port.read(max(1, min(self._port.in_waiting, READ_BYTES)))
            except LINE_ERRORS as error:
                self._unplugged(str(error))
                continue
            now_ns = time.monotonic_ns()
            if self._take(decoder, received, now_ns):
                heard_ns = now_ns
            if self._broken or now_ns - heard_ns > self.config.reopen_ms * 1_000_000:
                self._unplugged("the port was silent" if not self._broken else self._last_error)
            elif len(received) == READ_BYTES:
                with self._wake:
                    self._events["flood"] += 1
                self._closing.wait(FLOOD_PAUSE_S)

    def _take(self, decoder: FrameDecoder, received: bytes, now_ns: int) -> bool:
        """Handles what came; whether something valid was among it."""
        frames = decoder.push(received)
        heard = False
        with self._wake:
            for frame in frames:
                result = frame if isinstance(frame, Result) else self._link.receive(frame, now_ns)
                self._results[result.name.lower()] += 1
                heard |= result in (Result.ACCEPTED, Result.REFUSED)
            if self._link.lost(now_ns):
                self._events["lost"] += self._link.ready
                self._last_error = "no valid frame within the heartbeat timeout"
                self._restart()
            if heard:
                self._wake.notify_all()
        return heard

    def _restart(self) -> None:
        """A new session; nothing of the old one is sent any more."""
        fault = self._link.fault
        self._link = self._new_link()
        self._link.fault = fault
        self._pending = None  # its time was that of another session, perhaps of another start of the firmware

    def _open_port(self) -> bool:
        config = self.config
        period_s = config.heartbeat_timeout_ms / 4000
        try:
            port = serial.serial_for_url(
                config.url, config.baud_rate, timeout=period_s, write_timeout=period_s, exclusive=True
            )
        except (*LINE_ERRORS, ValueError) as error:
            with self._wake:
                self._last_error = str(error)
            return False
        with self._wake:
            self._broken = False
            self._port = port
            self._last_error = "the port is open, nothing came yet"
            self._events["opened"] += 1
            self._restart()
        return True

    def _unplugged(self, error: str) -> None:
        self._close_port()
        with self._wake:
            self._last_error = error
            self._events["unplugged"] += 1
            self._restart()

    def _close_port(self) -> None:
        with self._wake:
            port, self._port = self._port, None
        if port is not None:
            port.close()

    # Writing

    def _write(self) -> None:
        while not self._closing.is_set():
            with self._wake:
                period_s = self._link.timeout_ms / 4000  # the robot's, where it is shorter than ours
                self._wake.wait_for(self._urgent, period_s)
                port, frame, halts = self._port, self._next_frame(), self._wanted is not None
            if port is None:
                self._closing.wait(period_s)
            elif self._send(port, frame) and halts:
                self._stop_sent.set()

    def _urgent(self) -> bool:
        halt = self._wanted is not None and not self._stop_sent.is_set()
        return self._pending is not None or halt or self._closing.is_set()

    def _next_frame(self) -> bytes:
        link, pending = self._link, self._pending
        self._pending = None
        if self._wanted == "estop":
            return link.estop() if link.ready else link.estop() + link.hello()
        if not link.ready:
            return link.hello()
        if self._wanted == "stop":
            return link.stop()
        return link.alive() if pending is None else link.command(*pending)

    def _send(self, port: Any, frame: bytes) -> bool:
        try:
            port.write(frame)
        except serial.SerialTimeoutException:
            with self._wake:
                self._events["write_timeout"] += 1
            return False
        except (*LINE_ERRORS, TypeError) as error:
            # TypeError: pyserial's way to say that the other thread has just closed the port.
            with self._wake:
                if port is self._port:
                    self._last_error, self._broken = str(error), True
            return False
        with self._wake:
            self._events["sent"] += 1
        return True
