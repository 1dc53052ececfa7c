"""A session's memory as a file: its states, its tokens and what was said, checked as a whole when read.

    "EDGESTA1"                      8 bytes
    length of the header            8 bytes, little endian
    header                          JSON: StateHeader
    token ids                       (positions) int32
    states                          as Snapshot has them
    sha256 of everything before     32 bytes

The header, the ids and each state begin at a multiple of 64 bytes. Sizes follow from the model and the positions.
"""

from __future__ import annotations

import hashlib
import math
import mmap
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, BinaryIO, NoReturn

import msgspec
import numpy as np

from edge_sdk.backends import Snapshot
from edge_sdk.errors import StateError, explain
from edge_sdk.files import new_file
from edge_sdk.model import ModelConfig

MAGIC = b"EDGESTA1"
ALIGNMENT, DIGEST_BYTES, PREFIX_BYTES = 64, 32, 16


class StateHeader(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What the file says about itself."""

    model_id: str
    """``Bundle.model_id`` of the model that it belongs to."""
    positions: int
    conversation: dict[str, Any]
    """What the session knows besides its states."""


def write_state(
    path: Path, model_id: str, token_ids: Sequence[int], snapshot: Snapshot, conversation: dict[str, Any]
) -> None:
    """Writes the file, whole or not at all. Raises OSError."""
    header = StateHeader(model_id=model_id, positions=snapshot.length, conversation=conversation)
    text = msgspec.json.encode(header)
    digest = hashlib.sha256()
    with new_file(path) as temporary, temporary.open("wb") as file:

        def put(part: bytes | memoryview) -> None:
            padding = bytes(-len(part) % ALIGNMENT)
            for piece in (part, padding):
                file.write(piece)
                digest.update(piece)

        put(MAGIC + len(text).to_bytes(8, "little") + bytes(ALIGNMENT - PREFIX_BYTES))
        put(text)
        for array in (np.asarray(token_ids, dtype=np.int32), *snapshot.arrays):
            if array.size:  # an empty one has no bytes to look at
                put(np.ascontiguousarray(array).data.cast("B"))
        file.write(digest.digest())


def read_header(path: Path) -> StateHeader:
    """What the file says about itself, unchecked. Raises StateError."""
    with _opened(path) as file:
        begin = file.read(ALIGNMENT)
        size = int.from_bytes(begin[8:PREFIX_BYTES], "little")
        if len(begin) < ALIGNMENT or not begin.startswith(MAGIC) or size > path.stat().st_size:
            _refuse(path, "a saved state", "something else")
        return _header(path, file.read(size))


def read_state(path: Path, model_id: str, model: ModelConfig) -> tuple[StateHeader, list[int], Snapshot]:
    """The header, the token ids and the states. Raises StateError for a damaged file or one of another model."""
    with _opened(path) as file:
        content = _mapped(file)
    body, digest = content[:-DIGEST_BYTES], content[-DIGEST_BYTES:]
    if body[: len(MAGIC)] != MAGIC:
        _refuse(path, "a saved state", "something else")
    if hashlib.sha256(body).digest() != digest:
        _refuse(path, "a whole file", "a truncated or altered one")
    size = int.from_bytes(body[8:PREFIX_BYTES], "little")
    header = _header(path, body[ALIGNMENT : ALIGNMENT + size])
    if header.model_id != model_id:
        _refuse(path, f"a state of model {model_id[:16]}", f"one of {header.model_id[:16]}")
    start = ALIGNMENT + _padded(size)
    token_ids = np.frombuffer(body, np.int32, header.positions, start)
    start += _padded(token_ids.nbytes)
    arrays = []
    for spec in model.past_specs():
        shape = spec.sized(batch=1, capacity=header.positions)
        array = np.frombuffer(body, spec.dtype, math.prod(shape), start).reshape(shape)
        arrays.append(array)
        start += _padded(array.nbytes)
    return header, token_ids.tolist(), Snapshot(header.positions, tuple(arrays))


def _opened(path: Path) -> Any:
    try:
        return path.open("rb")
    except OSError as error:
        _refuse(path, "a saved state", error.strerror)


def _mapped(file: BinaryIO) -> memoryview:
    """The content, in the page cache: read, that of a long context would take its size in memory beside the states."""
    if os.fstat(file.fileno()).st_size == 0:
        return memoryview(b"")  # no mapping can be
    return memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))


def _header(path: Path, text: bytes | memoryview) -> StateHeader:
    try:
        return msgspec.json.decode(text, type=StateHeader)
    except msgspec.DecodeError as error:
        _refuse(path, "a state's header", error)


def _padded(size: int) -> int:
    return -(-size // ALIGNMENT) * ALIGNMENT


def _refuse(path: Path, expected: str, found: object) -> NoReturn:
    raise StateError(explain(str(path), expected=expected, found=found, todo="Save the session again."))
