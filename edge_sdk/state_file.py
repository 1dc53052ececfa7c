"""A session's or a policy's memory as a file: its states, a session's tokens and what was said, checked as a whole.

    "EDGESTA2"                      8 bytes
    length of the header            8 bytes, little endian
    header                          JSON: StateHeader
    token ids                       (positions) int32; none of a policy
    states                          as Snapshot has them
    CRC-32 of everything before     4 bytes, little endian

The header, the ids and each state begin at a multiple of 64 bytes. Sizes follow from the model and the positions. The
checksum finds what a disk or a copy has damaged; it is no signature (it takes a third of SHA-256's time).
"""

from __future__ import annotations

import math
import mmap
import os
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO, NoReturn

import msgspec
import numpy as np

from edge_sdk.backends import Snapshot, max_positions
from edge_sdk.errors import StateError, explain
from edge_sdk.files import new_file
from edge_sdk.model import ModelConfig

MAGIC = b"EDGESTA2"
ALIGNMENT, CHECKSUM_BYTES, PREFIX_BYTES = 64, 4, 16


class Conversation(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a session knows besides its states: see the fields of :class:`edge_sdk.session.Session`."""

    messages: list[dict[str, Any]] = []
    pending: list[int] = []
    text: str = ""
    preamble: str = ""
    template: dict[str, Any] = {}


class StateHeader(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What the file says about itself."""

    model_id: str
    """``Bundle.model_id`` of the model that it belongs to."""
    positions: int
    conversation: Conversation


def write_state(
    path: Path, model_id: str, token_ids: Sequence[int], snapshot: Snapshot, conversation: Conversation
) -> None:
    """Writes the file, whole or not at all. Raises OSError."""
    header = StateHeader(model_id=model_id, positions=snapshot.length, conversation=conversation)
    text = msgspec.json.encode(header)
    prefix = MAGIC + len(text).to_bytes(8, "little")
    arrays = [np.frombuffer(part, np.uint8) for part in (prefix, text)]
    arrays += [np.asarray(token_ids, dtype=np.int32), *snapshot.arrays]
    checksum = 0
    with new_file(path) as temporary, temporary.open("wb") as file:
        for array in arrays:
            for piece in (*_pieces(array), memoryview(bytes(-array.nbytes % ALIGNMENT))):
                file.write(piece)
                checksum = zlib.crc32(piece, checksum)
        file.write(checksum.to_bytes(CHECKSUM_BYTES, "little"))


def read_state(path: Path, model_id: str, model: ModelConfig) -> tuple[StateHeader, list[int], Snapshot]:
    """The header, the token ids and the states, which lie in the page cache: copied, they would be in memory twice.

    Raises StateError for a damaged file or one of another model.
    """
    try:
        with path.open("rb") as file:
            header, start = _read_header(path, file, model_id, model)
            shapes = [spec.sized(batch=1, capacity=header.positions) for spec in model.past_specs()]
            tokens = header.positions if model.policy is None else 0
            parts = [((tokens,), "int32"), *zip(shapes, (spec.dtype for spec in model.past_specs()))]
            sizes = [math.prod(shape) * np.dtype(dtype).itemsize for shape, dtype in parts]
            total, found = start + sum(map(_padded, sizes)), os.fstat(file.fileno()).st_size
            if found != total + CHECKSUM_BYTES:
                _refuse(path, f"{total + CHECKSUM_BYTES} bytes", found)
            content = np.frombuffer(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ), np.uint8)
    except OSError as error:
        _refuse(path, "a saved state", error.strerror)
    if zlib.crc32(content[:total].data) != int.from_bytes(content[total:].tobytes(), "little"):
        _refuse(path, "a whole file", "a truncated or altered one")
    arrays = []
    for (shape, dtype), size in zip(parts, sizes):
        arrays.append(content[start : start + size].view(dtype).reshape(shape))
        start += _padded(size)
    least = 0 if model.vision is None else np.iinfo(np.int32).min  # of images that were read, see edge_sdk.vision
    return header, _checked(path, arrays[0], least, model), Snapshot(header.positions, tuple(arrays[1:]))


def _read_header(path: Path, file: BinaryIO, model_id: str, model: ModelConfig) -> tuple[StateHeader, int]:
    """The header, which fits the model, and where the token ids begin."""
    begin = file.read(ALIGNMENT)
    size = int.from_bytes(begin[len(MAGIC) : PREFIX_BYTES], "little")
    if len(begin) < ALIGNMENT or not begin.startswith(MAGIC) or size > os.fstat(file.fileno()).st_size:
        _refuse(path, "a saved state", "something else")
    try:
        header = msgspec.json.decode(file.read(size), type=StateHeader)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        _refuse(path, "a state's header", error)
    if header.model_id != model_id:
        _refuse(path, f"a state of model {model_id[:16]}", f"one of {header.model_id[:16]}")
    limit = max_positions(model)
    most = np.iinfo(np.int64).max if limit is None else limit
    if not 0 <= header.positions <= most:
        _refuse(path, f"at most {most} positions", header.positions)
    _checked(path, header.conversation.pending, 0, model)
    return header, ALIGNMENT + _padded(size)


def _checked(path: Path, token_ids: Sequence[int] | np.ndarray, least: int, model: ModelConfig) -> list[int]:
    """Token ids from ``least`` to the last that the model has."""
    if len(token_ids) and not least <= np.min(token_ids) <= np.max(token_ids) < model.vocab_size:
        _refuse(path, f"token ids below {model.vocab_size}", "others")
    return list(map(int, token_ids)) if isinstance(token_ids, Sequence) else token_ids.tolist()


def _pieces(array: np.ndarray) -> Iterator[memoryview]:
    """An array's bytes in order, without a copy: a cache's used positions lie apart, head by head."""
    if not array.flags.c_contiguous:
        for part in array:
            yield from _pieces(part)
    elif array.size:  # an empty one has no bytes to look at
        yield array.data.cast("B")


def _padded(size: int) -> int:
    return -(-size // ALIGNMENT) * ALIGNMENT


def _refuse(path: Path, expected: object, found: object) -> NoReturn:
    raise StateError(explain(str(path), expected=expected, found=found, todo="Save the session again."))
