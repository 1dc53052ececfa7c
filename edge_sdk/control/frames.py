"""The frames between a robot's computer and its microcontroller: COBS, sequence numbers, CRC-32 (docs/serial.md).

``firmware/edge_frames.h`` is the other end; a test holds the two and the documentation against each other.
"""

from __future__ import annotations

import hashlib
import json
import zlib
from enum import IntEnum
from struct import Struct
from typing import Any, Union

import msgspec
import numpy as np
from cobs import cobs

from edge_sdk.errors import ConfigError, explain

PROTOCOL_VERSION = 1
MAX_PAYLOAD = 512
HEADER = Struct("<BBHII")
"""version, type, length of the payload, session, sequence."""
CRC = Struct("<I")
MAX_BODY = HEADER.size + MAX_PAYLOAD + CRC.size
MAX_ENCODED = MAX_BODY + (MAX_BODY + 253) // 254
"""Bytes between two delimiters."""
SEQUENCE_WINDOW = 1024
"""So many frames in a row may be lost before a link must be made anew."""
MAX_TTL_MS = 1000
"""A command that would be valid for longer is refused."""


class Result(IntEnum):
    """What became of a frame; the names and numbers of ``edge_result``."""

    ACCEPTED = 1
    TOO_LONG = 2
    BAD_COBS = 3
    TOO_SHORT = 4
    BAD_CRC = 5
    BAD_VERSION = 6
    BAD_LENGTH = 7
    BAD_TYPE = 8
    BAD_PAYLOAD = 9
    BAD_SESSION = 10
    DUPLICATE = 11
    OLD = 12
    AHEAD = 13
    EXPIRED = 14
    BAD_VALUE = 15
    DIRECTION = 16
    LATCHED = 17
    REFUSED = 18


class State(IntEnum):
    """What a robot says of itself."""

    WAITING = 0
    STOPPED = 1
    RUNNING = 2
    EMERGENCY = 3


class FaultCode(IntEnum):
    """Why a firmware refuses a hello."""

    SCHEMA = 1
    DIMENSION = 2
    TIMEOUT = 3


class Hello(msgspec.Struct, frozen=True):
    """Host to robot: a new session."""

    schema_hash: int
    timeout_ms: int
    """After so long without a valid frame each end takes the link for lost; the robot may make it shorter."""
    action_dim: int
    observation_dim: int


class Welcome(msgspec.Struct, frozen=True):
    """Robot to host: the answer to a hello."""

    schema_hash: int
    timeout_ms: int
    robot_ms: int
    """The robot's clock: milliseconds, 32 bits, wrapping."""
    state: int


class Heartbeat(msgspec.Struct, frozen=True):
    """Robot to host: alive, where there is nothing else to say."""

    robot_ms: int
    state: int


class Command(msgspec.Struct, frozen=True, eq=False):
    """Host to robot: what the actuators shall do until ``expires_ms`` of the robot's clock."""

    expires_ms: int
    values: np.ndarray
    """(action_dim,) float32, in the schema's units."""


class Observation(msgspec.Struct, frozen=True, eq=False):
    """Robot to host: what the sensors said at ``robot_ms``."""

    robot_ms: int
    state: int
    values: np.ndarray
    """(observation_dim,) float32, in the schema's units."""


class Stop(msgspec.Struct, frozen=True):
    """Host to robot: into the safe state, until the next command."""


class Estop(msgspec.Struct, frozen=True):
    """Host to robot: into the safe state, until the firmware is started anew."""


class Fault(msgspec.Struct, frozen=True):
    """Robot to host: the hello was refused."""

    code: int
    schema_hash: int
    """The robot's."""


class Alive(msgspec.Struct, frozen=True):
    """Host to robot: alive, where there is nothing else to say. A shorted line returns no robot's heartbeat."""


Message = Union[Hello, Welcome, Heartbeat, Command, Observation, Stop, Estop, Fault, Alive]

TYPES: dict[int, tuple[type[Any], Struct]] = {
    1: (Hello, Struct("<QHHH")),
    2: (Welcome, Struct("<QHIB")),
    3: (Heartbeat, Struct("<IB")),
    4: (Command, Struct("<I")),
    5: (Observation, Struct("<IB")),
    6: (Stop, Struct("<")),
    7: (Estop, Struct("<")),
    8: (Fault, Struct("<HQ")),
    9: (Alive, Struct("<")),
}
"""By their number on the wire; float32 values, where a message has some, follow the fixed part."""
_NUMBERS = {message: number for number, (message, _) in TYPES.items()}
_WITH_VALUES = (Command, Observation)


class Frame(msgspec.Struct, frozen=True):
    """A message and where in which conversation it stands."""

    session: int
    sequence: int
    message: Message


class Field(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A named vector of an observation, or one actuator of an action."""

    name: str
    units: str
    size: int = 1


class WireSchema(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What the numbers on the wire are, in their order. Raises ConfigError for what does not fit into a frame."""

    action: tuple[Field, ...]
    observation: tuple[Field, ...]

    def __post_init__(self) -> None:
        for kind, fields in (("action", self.action), ("observation", self.observation)):
            names = [field.name for field in fields]
            room = (MAX_PAYLOAD - 8) // 4
            total = sum(field.size for field in fields)
            if len(set(names)) != len(names) or min((field.size for field in fields), default=0) < 1 or total > room:
                raise ConfigError(
                    explain(
                        f"The {kind} schema of a serial robot",
                        expected=f"different names with sizes of at least 1 and {room} together at most",
                        found=", ".join(f"{field.name}[{field.size}]" for field in fields) or "no field",
                        todo="Send fewer values, or divide the robot among several microcontrollers.",
                    )
                )

    @property
    def action_dim(self) -> int:
        """Float32 values in a command."""
        return sum(field.size for field in self.action)

    @property
    def observation_dim(self) -> int:
        """Float32 values in an observation."""
        return sum(field.size for field in self.observation)

    @property
    def hash(self) -> int:
        """64 bits that a firmware for another robot, or of another order of its joints, does not have."""
        names = [[[field.name, field.units, field.size] for field in part] for part in (self.action, self.observation)]
        digest = hashlib.sha256(json.dumps([PROTOCOL_VERSION, *names]).encode()).digest()
        return int.from_bytes(digest[:8], "big")


def encode(message: Message, *, session: int, sequence: int) -> bytes:
    """A frame as it goes over the wire, with a delimiter on both sides: what was cut off before it cannot harm it.

    Raises ValueError for more values than fit, and for values that are not finite.
    """
    number = _NUMBERS[type(message)]
    fixed = TYPES[number][1]
    if isinstance(message, _WITH_VALUES):
        *numbers, values = msgspec.structs.astuple(message)
        payload = fixed.pack(*numbers) + _packed(values)
    else:
        payload = fixed.pack(*msgspec.structs.astuple(message))
    body = HEADER.pack(PROTOCOL_VERSION, number, len(payload), session, sequence) + payload
    wire: bytes = b"\0" + cobs.encode(body + CRC.pack(zlib.crc32(body))) + b"\0"
    return wire


def _packed(values: np.ndarray) -> bytes:
    if values.ndim != 1 or values.size > (MAX_PAYLOAD - 8) // 4 or not np.isfinite(values).all():
        raise ValueError(
            explain(
                "The values of a frame",
                expected=f"a vector of at most {(MAX_PAYLOAD - 8) // 4} finite numbers",
                found=f"shape {values.shape}: {values}",
                todo="Check the policy's output, or what the sensors say.",
            )
        )
    return values.astype("<f4").tobytes()


def decode(encoded: bytes) -> Frame | Result:
    """What stood between two delimiters, or why it is none of ours. Checks in the order of ``edge_check``."""
    if len(encoded) > MAX_ENCODED:
        return Result.TOO_LONG
    try:
        return _frame(cobs.decode(encoded))
    except cobs.DecodeError:
        return Result.BAD_COBS


def _frame(body: bytes) -> Frame | Result:
    if len(body) < HEADER.size + CRC.size:
        return Result.TOO_SHORT
    if zlib.crc32(body[: -CRC.size]) != CRC.unpack_from(body, len(body) - CRC.size)[0]:
        return Result.BAD_CRC
    version, number, length, session, sequence = HEADER.unpack_from(body)
    if version != PROTOCOL_VERSION:
        return Result.BAD_VERSION
    payload = body[HEADER.size : -CRC.size]
    if length != len(payload) or length > MAX_PAYLOAD:
        return Result.BAD_LENGTH
    message = _message(number, payload)
    return message if isinstance(message, Result) else Frame(session, sequence, message)


def _message(number: int, payload: bytes) -> Message | Result:
    if number not in TYPES:
        return Result.BAD_TYPE
    message, fixed = TYPES[number]
    rest = len(payload) - fixed.size
    with_values = message in _WITH_VALUES
    if rest < 0 or (rest % 4 if with_values else rest):
        return Result.BAD_PAYLOAD
    numbers = fixed.unpack_from(payload)
    decoded: Message = (
        message(*numbers, np.frombuffer(payload, "<f4", offset=fixed.size)) if with_values else message(*numbers)
    )
    return decoded


class FrameDecoder:
    """Cuts a stream of bytes into frames, however it arrives; holds no more than one frame's bytes."""

    def __init__(self) -> None:
        self._begun = b""

    def push(self, received: bytes) -> list[Frame | Result]:
        """The frames that these bytes complete, and the reasons for those that were dropped."""
        *whole, rest = (self._begun + received).split(b"\0")
        # One byte beyond the limit is enough to know that it was exceeded.
        self._begun = rest[: MAX_ENCODED + 1]
        return [decode(part) for part in whole if part]
