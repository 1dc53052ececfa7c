"""What a workstation and a board's agent say to each other: frames of MessagePack over a pipe, such as SSH's.

A frame is its length, four bytes with the highest first, and so many bytes of one message. The workstation asks, the
board answers; chunks are sent without waiting for the answers to those before.
"""

from __future__ import annotations

import struct
from typing import Final, Optional, Union

import msgspec

from edge_sdk.deploy.chunks import Offer
from edge_sdk.deploy.record import Record, Slot, SlotName
from edge_sdk.errors import DeployError, explain
from edge_sdk.figures import Figures

PROTOCOL: Final = 2
MAX_FRAME_BYTES = 64 << 20
"""The list of a bundle's chunks takes 35 bytes for each."""
HEADER = struct.Struct(">I")


class _Message(msgspec.Struct, frozen=True, tag=True, forbid_unknown_fields=True):
    """Any message; its class's name is sent with it."""


class Begin(_Message, frozen=True):
    """May this bundle be installed, and what is missing of it? Answered by Missing, Installed if it is active."""

    offer: Offer
    force: bool


class Chunk(_Message, frozen=True):
    """One that is missing. Answered by Received."""

    name: str
    index: int
    data: bytes


class Commit(_Message, frozen=True):
    """All chunks were sent. Answered by Progress, again and again, and by Installed."""


class AskStatus(_Message, frozen=True):
    """How is it? Answered by Status."""


class Rollback(_Message, frozen=True):
    """Back to the other slot. Answered by Status."""

    force: bool


class Configure(_Message, frozen=True):
    """Settings and trusted keys, the files' content; None leaves one as it is. Answered by Status."""

    settings: Optional[bytes]
    trusted_keys: Optional[bytes]


class InstallService(_Message, frozen=True):
    """A systemd unit that runs the active slot. Answered by Status."""

    arguments: tuple[str, ...]
    """Further ones of ``edge-sdk serve``."""


class Welcome(_Message, frozen=True):
    """The first thing that a board says."""

    protocol: int
    version: str
    """Of its Edge SDK."""


class Missing(_Message, frozen=True):
    """Chunks by file and number."""

    chunks: tuple[tuple[str, int], ...]


class Received(_Message, frozen=True):
    """A chunk was written."""


class Progress(_Message, frozen=True):
    """What the board is doing."""

    doing: str


class Installed(_Message, frozen=True):
    """The bundle is active."""

    name: SlotName
    slot: Slot
    already: bool


class Status(_Message, frozen=True):
    """How a board is."""

    version: str
    """Of its Edge SDK."""
    board: str
    """What machine it is."""
    record: Record
    free_bytes: int
    temperature_celsius: Optional[float]
    """The hottest zone's."""
    figures: tuple[Figures, ...]
    """Of the control loops and servers that run."""


class Refused(_Message, frozen=True):
    """Why not; nothing has changed and nothing more is answered."""

    reason: str
    busy: bool = False
    """Whether it is only that somebody else is at it."""


Question = Union[Begin, Chunk, Commit, AskStatus, Rollback, Configure, InstallService]
Answer = Union[Welcome, Missing, Received, Progress, Installed, Status, Refused]


def frame(message: Question | Answer) -> bytes:
    """As it is sent."""
    content = msgspec.msgpack.encode(message)
    return HEADER.pack(len(content)) + content


def frame_length(header: bytes) -> int:
    """How many bytes follow these four. Raises DeployError where it cannot be a frame."""
    (length,) = HEADER.unpack(header)
    if length > MAX_FRAME_BYTES:
        shown = header.decode("ascii", "backslashreplace")
        todo = "Something else writes there: a login script or banner? Is edge-sdk[deploy] installed on the board?"
        raise DeployError(explain("The board's answer", expected="a frame", found=repr(shown), todo=todo))
    return int(length)


def decode_question(content: bytes) -> Question:
    """Raises DeployError."""
    try:
        question: Question = msgspec.msgpack.decode(content, type=Question)
        return question
    except msgspec.DecodeError as error:
        raise _unknown(error) from None


def decode_answer(content: bytes) -> Answer:
    """Raises DeployError."""
    try:
        answer: Answer = msgspec.msgpack.decode(content, type=Answer)
        return answer
    except msgspec.DecodeError as error:
        raise _unknown(error) from None


def _unknown(error: Exception) -> DeployError:
    todo = "Bring both sides to the same version of Edge SDK."
    return DeployError(explain("A message", expected=f"one of protocol {PROTOCOL}", found=error, todo=todo))
