"""Servos on one half-duplex bus as a robot: a thread owns the bus, writes the newest goal and reads every position."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from threading import Condition, Event, Thread
from typing import Any, NamedTuple

import msgspec
import numpy as np

from edge_sdk.backoff import Backoff
from edge_sdk.control.line import FIRST_WAIT_S, LINE_ERRORS, LONGEST_WAIT_S, checked_action
from edge_sdk.errors import ConfigError, LinkError, explain

TICKS_PER_TURN = 4096
"""Of every Dynamixel X and Feetech STS servo."""
WRITE_TIMEOUT_S = 0.1
BUS_ERRORS = (LinkError, *LINE_ERRORS)
"""What ends the work with an open bus."""


class Servo(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One joint. Raises ConfigError for limits that contain nothing."""

    id: int
    lower_rad: float
    upper_rad: float
    zero_ticks: int = 2048
    """What the servo reads where the joint is at 0 rad."""
    reversed: bool = False

    def __post_init__(self) -> None:
        if not (0 <= self.id <= 252 and -math.inf < self.lower_rad < self.upper_rad < math.inf):
            raise ConfigError(
                explain(
                    "A servo",
                    expected="an id of 0 to 252 and finite limits, the lower one below the upper one",
                    found=self,
                    todo="Correct its line.",
                )
            )

    def ticks(self, angle_rad: float) -> int:
        """The servo's goal for an angle, which is clipped to the limits."""
        turned = min(max(angle_rad, self.lower_rad), self.upper_rad) * TICKS_PER_TURN / math.tau
        return self.zero_ticks + round(-turned if self.reversed else turned)

    def angle_rad(self, ticks: int) -> float:
        """The joint's angle where the servo reads ``ticks``."""
        turned = (ticks - self.zero_ticks) * math.tau / TICKS_PER_TURN
        return -turned if self.reversed else turned


class ServoConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The servos of a bus, in the order of the action. Raises ConfigError for a value that makes no sense."""

    port: str
    servos: tuple[Servo, ...]
    baud_rate: int = 1_000_000
    rate_hz: float = 100.0
    """How often goals are written and positions are read."""
    watchdog_ms: int = 200
    """Without answers for so long the torque is taken off; Dynamixel servos stop by themselves. 20 to 2540."""

    def __post_init__(self) -> None:
        ids = [servo.id for servo in self.servos]
        if not ids or len(set(ids)) != len(ids) or not self._watchdog_fits():
            raise ConfigError(
                explain(
                    "The servos of a bus",
                    expected="at least one, different ids, a watchdog of 20 to 2540 ms and of two periods or more",
                    found=self,
                    todo="Give each servo an id of its own with its vendor's tool.",
                )
            )

    def _watchdog_fits(self) -> bool:
        return self.rate_hz > 0 and max(20, 2000 / self.rate_hz) <= self.watchdog_ms <= 2540


class Register(NamedTuple):
    """A place in a servo's control table."""

    address: int
    size: int


class ControlTable(NamedTuple):
    """What a vendor's servos have where, and how they write negative positions."""

    torque: Register
    goal: Register
    position: Register
    to_wire: Callable[[int], int]
    from_wire: Callable[[int], int]
    watchdog: Register | None = None
    """In units of 20 ms; 0 clears it."""


class Sdk(NamedTuple):
    """What the vendors' SDKs have in common."""

    port: Any
    """A ``PortHandler``."""
    sync_read: Callable[[Register], Any]
    """A ``GroupSyncRead``."""
    sync_write: Callable[[Register], Any]
    """A ``GroupSyncWrite``."""
    describe: Callable[[int], str]
    """``getTxRxResult``."""


class ServoBus:
    """An open bus. Every method raises one of BUS_ERRORS where the bus does not do as it should."""

    def __init__(self, config: ServoConfig, table: ControlTable, sdk: Sdk) -> None:
        self._table, self._sdk = table, sdk
        self._ids = [servo.id for servo in config.servos]
        self._watchdog_steps = config.watchdog_ms // 20
        self._sent_s = time.monotonic()
        self.holding = False
        """Whether the torque is on."""
        if not sdk.port.setBaudRate(config.baud_rate):
            raise LinkError(f"The vendor's SDK does not offer {config.baud_rate} baud. Choose another baud_rate.")
        sdk.port.ser.write_timeout = WRITE_TIMEOUT_S
        self._positions = sdk.sync_read(table.position)
        for servo_id in self._ids:
            self._positions.addParam(servo_id)

    def close(self) -> None:
        """Closes the port."""
        self._sdk.port.closePort()

    def positions(self) -> list[int]:
        """Ticks of every servo."""
        address, size = self._table.position
        self._do("reading positions", self._positions.txRxPacket)
        if not self._positions.last_result:
            raise LinkError("The servos' positions: a servo's answer was missing or damaged. Check cables and ids.")
        return [self._table.from_wire(self._positions.getData(servo, address, size)) for servo in self._ids]

    def set_goals(self, ticks: Sequence[int]) -> None:
        """A goal for every servo. Raises LinkError where their watchdogs may have stopped them meanwhile."""
        silent_s = time.monotonic() - self._sent_s
        if self._table.watchdog is not None and self.holding and silent_s >= self._watchdog_steps * 0.02:
            raise LinkError(
                explain(
                    "The bus was silent for longer than the watchdog waits",
                    expected=f"{self._watchdog_steps * 20} ms at most",
                    found=f"{silent_s * 1000:.0f} ms",
                    todo="The servos have stopped; act() again, or give them a longer watchdog_ms.",
                )
            )
        self._write(self._table.goal, [self._table.to_wire(goal) for goal in ticks])

    def hold(self) -> None:
        """Torque on, where the servos stand: an old goal in their memory must not move them."""
        self.holding = False
        if self._table.watchdog is not None:
            self._write(self._table.watchdog, [0] * len(self._ids))
        standing = self.positions()
        self.set_goals(standing)
        self._write(self._table.torque, [1] * len(self._ids))
        self.set_goals(standing)
        if self._table.watchdog is not None:
            self._write(self._table.watchdog, [self._watchdog_steps] * len(self._ids))
        self.holding = True

    def release(self) -> None:
        """Torque off."""
        self.holding = False
        self._write(self._table.torque, [0] * len(self._ids))

    def _write(self, register: Register, values: Sequence[int]) -> None:
        group = self._sdk.sync_write(register)
        for servo, value in zip(self._ids, values):
            group.addParam(servo, list(value.to_bytes(register.size, "little")))
        self._do("writing", group.txPacket)

    def _do(self, what: str, transaction: Callable[[], int]) -> None:
        began_s = time.monotonic()  # the servos' watchdogs begin later: they are never believed to wait longer
        if (result := transaction()) == 0:
            self._sent_s = began_s
        else:
            raise LinkError(f"The servos, {what}: {self._sdk.describe(result)} Check cables, power, ids and baud rate.")


class ServoRobot:
    """A :class:`~edge_sdk.control.robot.Robot` of servos: the action (servos,) and ``position`` (servos,) in rad.

    A goal beyond a servo's limits is clipped to them. :meth:`stop` takes the torque off, and so does a failure; the
    next :meth:`act` brings it back. What each vendor's servos do when the bus falls silent: docs/serial.md.

    Args:
        config: the servos.
        open_bus: opens the bus; called again after each failure.
    """

    def __init__(self, config: ServoConfig, open_bus: Callable[[], ServoBus]) -> None:
        self.config = config
        self._open_bus = open_bus
        self._wake = Condition()
        """Guards everything below."""
        self._goal: list[int] | None = None
        self._released = True
        self._position: tuple[np.ndarray, int] | None = None
        self._last_error = "nothing was tried"
        self.failures = 0
        """How often the bus was given up, and opened anew."""
        self.unanswered = 0
        """How often an answer was missing or damaged without that."""
        self._torque_is_off = Event()
        self._closing = Event()
        self._thread = Thread(target=self._run, daemon=True)
        self._thread.start()

    def __enter__(self) -> ServoRobot:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def observe(self) -> dict[str, np.ndarray]:
        """``position`` (servos,) in rad and ``time_ns``. Raises LinkError while the servos do not answer."""
        with self._wake:
            position, taken_ns = self._require_position()
        return {"position": position.copy(), "time_ns": np.array(taken_ns, np.int64)}

    def act(self, action: np.ndarray) -> None:
        """Leaves the angles (servos,) in rad for the bus. Raises LinkError as :meth:`observe`, ValueError as named."""
        angles = checked_action(action, len(self.config.servos))
        with self._wake:
            self._require_position()
            self._goal = [servo.ticks(float(angle)) for servo, angle in zip(self.config.servos, angles)]
            self._released = False

    def stop(self) -> None:
        """Takes the torque off, until the next :meth:`act`. Waits for it a few periods at most."""
        with self._wake:
            self._goal, self._released = None, True
            self._torque_is_off.clear()
            self._wake.notify_all()
        self._torque_is_off.wait(2 * WRITE_TIMEOUT_S)

    def wait_ready(self, timeout_s: float = 5.0) -> None:
        """Waits until the servos have answered. Raises LinkError when they do not."""
        with self._wake:
            self._wake.wait_for(lambda: self._position is not None, timeout_s)
            self._require_position()

    def close(self) -> None:
        """Takes the torque off and closes the port."""
        self.stop()
        self._closing.set()
        with self._wake:
            self._wake.notify_all()
        self._thread.join()

    def _require_position(self) -> tuple[np.ndarray, int]:
        if self._position is None or not self._thread.is_alive():
            raise LinkError(
                explain(
                    f"The servos at {self.config.port}",
                    expected="an answer",
                    found=self._last_error,
                    todo="Check cables, power, ids and baud rate.",
                )
            )
        return self._position

    def _run(self) -> None:
        backoff = Backoff(FIRST_WAIT_S, LONGEST_WAIT_S)
        while not self._closing.is_set():
            try:
                bus = self._open_bus()
            except BUS_ERRORS as error:
                self._failed(error)
            else:
                try:
                    self._cycle(bus)
                except BUS_ERRORS as error:
                    if self._position is not None:
                        backoff.reset()
                    self._failed(error)
                finally:
                    bus.close()
            backoff.wait(self._closing)

    def _failed(self, error: Exception) -> None:
        with self._wake:
            self._last_error, self._position, self._goal = str(error), None, None
            self._released = True
            self.failures += 1

    def _cycle(self, bus: ServoBus) -> None:
        """Steps at the configured rate until closing, or until no step has gone well for the watchdog's time."""
        next_s = well_s = time.monotonic()
        self._torque_is_off.clear()  # what the servos do is unknown
        while True:
            try:
                if not self._step(bus):
                    return
                well_s = time.monotonic()
            except LinkError:
                if time.monotonic() - well_s > self.config.watchdog_ms / 1000:
                    raise
                self.unanswered += 1
            next_s = max(next_s + 1 / self.config.rate_hz, time.monotonic())
            with self._wake:
                self._wake.wait_for(self._halting, next_s - time.monotonic())

    def _step(self, bus: ServoBus) -> bool:
        """One goal and one observation; False when closing."""
        with self._wake:
            goal, closing = self._goal, self._closing.is_set()
            release = self._released and not self._torque_is_off.is_set()
        if release:
            bus.release()
            self._torque_is_off.set()
        if closing:
            return False
        if goal is not None:
            if not bus.holding:
                bus.hold()
            bus.set_goals(goal)
        angles = [servo.angle_rad(ticks) for servo, ticks in zip(self.config.servos, bus.positions())]
        with self._wake:
            self._position = np.array(angles, np.float32), time.monotonic_ns()
            self._wake.notify_all()
        return True

    def _halting(self) -> bool:
        return self._closing.is_set() or (self._released and not self._torque_is_off.is_set())
