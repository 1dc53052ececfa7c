"""What a recording holds: MCAP topics in JSON, each with the JSON Schema by which Foxglove shows it.

    /observation        what an inference saw, less its images
    /image/NAME         one image of that observation, foxglove.RawImage
    /chunk              what the inference made of it, and the committed actions that it was given
    /action             what was sent to the robot
    /tick               when, and why: timing, stage, limits

An array is there twice: ``data`` holds its bytes, which survive exactly, NaNs and negative zeros included; ``values``
are for eyes and plots. Message sequence numbers count what was to be recorded, so that a gap is what was dropped.
Format: https://mcap.dev/spec; image schema: https://docs.foxglove.dev/docs/visualization/message-schemas/raw-image.
"""

from __future__ import annotations

import importlib.util
import math
import types
import typing
from typing import Any

import msgspec
import numpy as np

from edge_sdk.control.observers import InferenceRecord, Stage, TickRecord, Timing
from edge_sdk.control.policy import PolicyConfig
from edge_sdk.errors import RecordingError, explain

FORMAT_VERSION = 1
HEADER, END = "edge_sdk.recording", "edge_sdk.recording.end"
"""Names of the metadata records at the beginning and, where it was reached, the end."""
IMAGE = "/image/"

IMAGE_ENCODINGS = {1: "mono8", 3: "rgb8", 4: "rgba8"}
"""By channels; an array of uint8 with another number of them is recorded as a plain array."""

DTYPES = ("bool", *(f"{kind}{bits}" for kind in ("int", "uint") for bits in (8, 16, 32, 64)))
DTYPES = (*DTYPES, "float16", "float32", "float64")


class Header(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a recording was made with."""

    bundle: str
    """Names what computed, as ``Bundle.model_id`` does; empty for a policy that is of no bundle."""
    policy: PolicyConfig
    rate_hz: float
    """Of the loop."""
    versions: dict[str, str]
    clock_offset_ns: int
    """Unix time less ``time.monotonic_ns()`` when the recording began: what MCAP's times are ahead of all others."""
    instruction: str = ""
    """What the policy was told to do, in words."""
    seed: int = 0
    """Of the policy's noise."""
    format_version: int = FORMAT_VERSION


class ArrayMessage(msgspec.Struct, frozen=True):
    """An array; ``data`` is little-endian and in C order."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    data: bytes
    values: tuple[float | None, ...] = ()
    """Not read; null where not finite."""


class ObservationMessage(msgspec.Struct, frozen=True, kw_only=True):
    """/observation"""

    inference: int
    time_ns: int
    arrays: tuple[ArrayMessage, ...]
    images: tuple[str, ...]
    """Names of those that came before it, on topics of their own."""


class ChunkMessage(msgspec.Struct, frozen=True, kw_only=True):
    """/chunk; see InferenceRecord."""

    inference: int
    begins_episode: bool
    first_tick: int
    observation_ns: int
    started_ns: int
    observed_ns: int
    done_ns: int
    committed: ArrayMessage | None
    chunk: ArrayMessage


class ActionMessage(msgspec.Struct, frozen=True, kw_only=True):
    """/action"""

    tick: int
    action: ArrayMessage


class TickMessage(msgspec.Struct, frozen=True, kw_only=True):
    """/tick; see TickRecord."""

    tick: int
    planned_ns: int
    woken_ns: int
    done_ns: int
    timing: Timing
    skipped: int
    stage: Stage
    acted: bool
    """Whether an action came before it, on its topic."""
    wanted: ArrayMessage | None
    violations: int
    observation_ns: int | None
    inference: int | None


class TimeMessage(msgspec.Struct, frozen=True):
    """Foxglove's time."""

    sec: int
    nsec: int


class ImageMessage(msgspec.Struct, frozen=True, kw_only=True):
    """foxglove.RawImage"""

    timestamp: TimeMessage
    frame_id: str
    width: int
    height: int
    encoding: str
    step: int
    """Bytes of a row."""
    data: bytes


Message = ObservationMessage | ChunkMessage | ActionMessage | TickMessage | ImageMessage

TYPES: dict[str, type[Message]] = {
    "/observation": ObservationMessage,
    "/chunk": ChunkMessage,
    "/action": ActionMessage,
    "/tick": TickMessage,
}
SCHEMA_NAMES = {kind: f"edge_sdk.{kind.__name__.removesuffix('Message')}" for kind in TYPES.values()}
SCHEMA_NAMES[ImageMessage] = "foxglove.RawImage"


def require_mcap() -> None:
    """Raises RecordingError where the package that writes and reads MCAP is missing."""
    if importlib.util.find_spec("mcap") is None:
        todo = "pip install 'edge-sdk[control]'"
        raise RecordingError(explain("Recordings", expected="the package mcap", found="none", todo=todo))


def schema_of(kind: Any) -> dict[str, Any]:
    """The JSON Schema of a message, in the part of the language that Foxglove reads: no references, no alternatives.

    What may be null is therefore said to be what it is otherwise.
    """
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        return schema_of(next(part for part in arguments if part is not type(None)))
    if origin is tuple:
        return {"type": "array", "items": schema_of(arguments[0])}
    if origin is typing.Literal:
        return {"type": "string", "enum": list(arguments)}
    if kind is bytes:
        return {"type": "string", "contentEncoding": "base64"}
    if isinstance(kind, type) and issubclass(kind, msgspec.Struct):
        fields = typing.get_type_hints(kind)
        schema = {"type": "object", "properties": {name: schema_of(part) for name, part in fields.items()}}
        return schema if kind is not TimeMessage else {**schema, "title": "time"}
    return {"type": {int: "integer", float: "number", str: "string", bool: "boolean"}[kind]}


def encode_array(name: str, array: np.ndarray) -> ArrayMessage:
    """Raises RecordingError for a dtype that is not a plain number's."""
    dtype = array.dtype.name
    if dtype not in DTYPES:
        raise RecordingError(explain(f"{name!r} to record", expected="numbers", found=dtype, todo="Convert it."))
    ordered = np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("<"))
    values = ordered.view(np.uint8) if dtype == "bool" else ordered
    return ArrayMessage(name, dtype, array.shape, ordered.tobytes(), tuple(values.ravel().tolist()))


def decode_array(message: ArrayMessage) -> np.ndarray:
    """A fresh array. Raises RecordingError where dtype, shape and bytes do not fit."""
    if message.dtype not in DTYPES or min(message.shape, default=0) < 0:
        _refuse(message.name, "a shape and a dtype of numbers", f"{message.dtype} {message.shape}")
    dtype = np.dtype(message.dtype)
    elements = math.prod(message.shape)
    if len(message.data) != elements * dtype.itemsize:
        _refuse(message.name, f"{elements} elements of {message.dtype}", f"{len(message.data)} bytes")
    array: np.ndarray = np.frombuffer(message.data, dtype=dtype.newbyteorder("<")).astype(dtype).reshape(message.shape)
    return array


def is_image(array: np.ndarray) -> bool:
    """Whether Foxglove can show it: uint8 of shape (height, width, channels), with a known number of channels."""
    return array.dtype.name == "uint8" and array.ndim == 3 and array.shape[2] in IMAGE_ENCODINGS


def encode_image(name: str, image: np.ndarray, unix_ns: int) -> ImageMessage:
    """``image``: (height, width, channels) uint8."""
    height, width, channels = image.shape
    return ImageMessage(
        timestamp=TimeMessage(*divmod(unix_ns, 10**9)),
        frame_id=name,
        width=width,
        height=height,
        encoding=IMAGE_ENCODINGS[channels],
        step=width * channels,
        data=image.tobytes(),
    )


def decode_image(message: ImageMessage) -> np.ndarray:
    """(height, width, channels) uint8, fresh. Raises RecordingError where sizes and bytes do not fit."""
    channels = {encoding: channels for channels, encoding in IMAGE_ENCODINGS.items()}.get(message.encoding, 0)
    shape = (message.height, message.width, channels)
    if channels == 0 or len(message.data) != message.height * message.width * channels:
        _refuse(message.frame_id, f"an image of {shape}", f"{message.encoding}, {len(message.data)} bytes")
    image: np.ndarray = np.frombuffer(message.data, dtype=np.uint8).reshape(shape).copy()
    return image


def tick_messages(record: TickRecord) -> tuple[ActionMessage | None, TickMessage]:
    """As the two topics have it."""
    fields = msgspec.structs.asdict(record)
    action, wanted = (_encode_or_none(name, fields.pop(name)) for name in ("action", "wanted"))
    sent = None if action is None else ActionMessage(tick=record.tick, action=action)
    return sent, TickMessage(**fields, acted=sent is not None, wanted=wanted)


def inference_messages(record: InferenceRecord) -> tuple[ObservationMessage, ChunkMessage]:
    """As the two topics have it; the images are named only."""
    fields = msgspec.structs.asdict(record)
    observation = fields.pop("observation")
    images = tuple(name for name, array in observation.items() if is_image(array))
    arrays = tuple(encode_array(name, array) for name, array in observation.items() if name not in images)
    committed = _encode_or_none("committed", fields.pop("committed"))
    chunk = encode_array("chunk", fields.pop("chunk"))
    return (
        ObservationMessage(inference=record.inference, time_ns=record.observation_ns, arrays=arrays, images=images),
        ChunkMessage(**fields, committed=committed, chunk=chunk),
    )


def _encode_or_none(name: str, array: np.ndarray | None) -> ArrayMessage | None:
    return None if array is None else encode_array(name, array)


def _refuse(what: str, expected: str, found: str) -> typing.NoReturn:
    raise RecordingError(
        explain(f"Recorded array {what!r}", expected=expected, found=found, todo="The recording is damaged.")
    )
