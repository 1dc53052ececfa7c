"""The host's end of one session with a microcontroller: sequence numbers, the robot's clock, what is accepted."""

from __future__ import annotations

import secrets

import numpy as np

from edge_sdk.control.frames import (
    MAX_TTL_MS,
    PROTOCOL_VERSION,
    SEQUENCE_WINDOW,
    Alive,
    Command,
    Estop,
    Fault,
    FaultCode,
    Frame,
    Heartbeat,
    Hello,
    Message,
    Observation,
    Result,
    State,
    Stop,
    Welcome,
    WireSchema,
    encode,
)
from edge_sdk.errors import explain

SLOWEST_CLOCK = 0.98
"""A robot's clock may run so much slower than ours; internal RC oscillators are off by one percent."""
_WRAP = 1 << 32


class HostLink:
    """One session, from hello until one end hears nothing for the timeout. Not thread-safe.

    Args:
        schema: what the numbers mean; its hash goes into the hello.
        timeout_ms: after so long without a valid frame either end takes the link for lost.
        now_ns: ``time.monotonic_ns()``.
    """

    def __init__(self, schema: WireSchema, timeout_ms: int, now_ns: int) -> None:
        self.schema = schema
        self.timeout_ms = timeout_ms
        self.session = secrets.randbelow(_WRAP - 1) + 1
        """Frames of other sessions are dropped, and so what was on its way when the cable was pulled. Never 0."""
        self.ready = False
        """Whether the robot has welcomed us."""
        self.state = State.WAITING
        """What the robot last said of itself."""
        self.fault: Fault | None = None
        self.observation: Observation | None = None
        """The newest one."""
        self.observed_ns = 0
        """When the newest observation was taken, as far as can be known: at that time or before it arrived."""
        self._sent = 0
        self._received: int | None = None
        self._heard_ns = now_ns
        self._robot_ms = 0.0
        self._robot_ns = now_ns

    # What is sent

    def _frame(self, message: Message) -> bytes:
        self._sent = (self._sent + 1) % _WRAP
        return encode(message, session=self.session, sequence=self._sent)

    def hello(self) -> bytes:
        """Asks for this session; as often as needed."""
        schema = self.schema
        return self._frame(Hello(schema.hash, self.timeout_ms, schema.action_dim, schema.observation_dim))

    def alive(self) -> bytes:
        """A sign of life."""
        return self._frame(Alive())

    def command(self, values: np.ndarray, expires_ms: int) -> bytes:
        """``values`` (action_dim,) until ``expires_ms``, from :meth:`expiry`."""
        return self._frame(Command(expires_ms, values))

    def stop(self) -> bytes:
        """Into the safe state."""
        return self._frame(Stop())

    def estop(self) -> bytes:
        """Into the safe state, for good."""
        return self._frame(Estop())

    # What is received

    def receive(self, frame: Frame, now_ns: int) -> Result:
        """Takes a frame, or says why not."""
        message = frame.message
        if not isinstance(message, (Welcome, Heartbeat, Observation, Fault)):
            return Result.DIRECTION
        if frame.session != self.session:
            return Result.BAD_SESSION
        if isinstance(message, Welcome) and message.schema_hash != self.schema.hash:
            message = Fault(FaultCode.SCHEMA, message.schema_hash)
        if isinstance(message, Fault):
            self.fault = message
            return Result.REFUSED
        order = self._order(frame.sequence)
        return self._take(frame.sequence, message, now_ns) if order is Result.ACCEPTED else order

    def _order(self, sequence: int) -> Result:
        ahead = 1 if self._received is None else (sequence - self._received) % _WRAP
        if ahead == 0:
            return Result.DUPLICATE
        if ahead >= _WRAP // 2:
            return Result.OLD
        return Result.AHEAD if ahead > SEQUENCE_WINDOW else Result.ACCEPTED

    def _take(self, sequence: int, message: Welcome | Heartbeat | Observation, now_ns: int) -> Result:
        if isinstance(message, Observation) and message.values.size != self.schema.observation_dim:
            return Result.BAD_VALUE
        self._hear_clock(message.robot_ms, now_ns)
        self._received = sequence
        self._heard_ns = now_ns
        self.state = State(message.state) if message.state in list(State) else State.WAITING
        if isinstance(message, Welcome):
            self.timeout_ms = message.timeout_ms
            self.ready, self.fault = True, None
        elif isinstance(message, Observation):
            self.observation = message
            self.observed_ns = now_ns + int(self._ahead_ms(message.robot_ms, now_ns) * 1e6)
        return Result.ACCEPTED

    # Time

    def _hear_clock(self, robot_ms: int, now_ns: int) -> None:
        """Keeps the later of what the robot says and what it must have reached: both are lower bounds."""
        if self._received is None:
            self._robot_ms, self._robot_ns = float(robot_ms), now_ns
        ahead_ms = self._ahead_ms(robot_ms, now_ns)
        self._robot_ms, self._robot_ns = self.robot_ms(now_ns) + max(ahead_ms, 0.0), now_ns

    def _ahead_ms(self, robot_ms: int, now_ns: int) -> float:
        """``robot_ms`` less what we know that clock to have reached, across its wrapping."""
        return (robot_ms - self.robot_ms(now_ns) + _WRAP / 2) % _WRAP - _WRAP / 2

    def robot_ms(self, now_ns: int) -> float:
        """What the robot's clock shows by now at least, unwrapped: who relies on it is early, not late."""
        return self._robot_ms + SLOWEST_CLOCK * (now_ns - self._robot_ns) / 1e6

    def expiry(self, ttl_ms: int, now_ns: int) -> int:
        """The robot's time at which a command of now ends. ``ttl_ms``: 1 to MAX_TTL_MS."""
        return int(self.robot_ms(now_ns) + min(ttl_ms, MAX_TTL_MS - 1)) % _WRAP

    def lost(self, now_ns: int) -> bool:
        """Whether nothing valid came for the timeout."""
        return now_ns - self._heard_ns >= self.timeout_ms * 1_000_000

    def explain_fault(self) -> str | None:
        """Why the robot refused us, if it did."""
        if self.fault is None:
            return None
        code = FaultCode(self.fault.code).name.lower() if self.fault.code in list(FaultCode) else self.fault.code
        return explain(
            f"The firmware refused the connection ({code})",
            expected=f"schema {self.schema.hash:#018x}, protocol {PROTOCOL_VERSION}",
            found=f"schema {self.fault.schema_hash:#018x}",
            todo="Compile the firmware with this robot's schema hash, or open the port of the right robot.",
        )
