"""Reads a recording back into the records of the loop, as far as the file goes, and notices what is damaged."""

from __future__ import annotations

import os
import struct
import zlib
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any, BinaryIO, NoReturn, cast

import msgspec
import numpy as np

from edge_sdk.control.observers import InferenceRecord, TickRecord
from edge_sdk.control.recording_format import (
    END,
    FORMAT_VERSION,
    HEADER,
    IMAGE,
    TYPES,
    ActionMessage,
    ChunkMessage,
    Header,
    ImageMessage,
    Message,
    ObservationMessage,
    TickMessage,
    decode_array,
    decode_image,
    require_mcap,
)
from edge_sdk.errors import ConfigError, RecordingError, explain

MAGIC = b"\x89MCAP0\r\n"
CRC_BYTES = 4
DATA_END = b"\x0f" + CRC_BYTES.to_bytes(8, "little")
"""How the record before the summary begins: opcode and length; a checksum is its content."""


class Recording:
    """A file that a Recorder made, read from its beginning by iteration, which holds one record in memory at a time.

    ``lost`` is final when the iteration has ended. Opening and iterating raise RecordingError, which names the file,
    where it is damaged: a flipped bit anywhere in a complete file, and in a truncated one at least anywhere in a
    message. What a cut-off file lacks at its end is no damage.
    """

    def __init__(self, path: str | Path) -> None:
        require_mcap()
        from mcap.records import Metadata

        self.path = Path(path)
        self.lost: Counter[str] = Counter()
        """Records of which others that follow show that they were dropped: ``ticks`` and ``inferences``."""
        try:
            with self.path.open("rb") as file:
                self.truncated = not _ends_with_magic(file)
                """Whether the file was never completed: its recorder was killed, or the file was cut."""
                metadata = next((record for record in self._records(file) if isinstance(record, Metadata)), None)
        except OSError as error:
            self._refuse("a recording", error.strerror or error)
        if metadata is None or metadata.name != HEADER:
            self._refuse("a recording of Edge SDK", "no header of one")
        self.header = self._header(metadata.metadata)

    def _header(self, texts: Mapping[str, str]) -> Header:
        try:
            values = {name: msgspec.json.decode(text) for name, text in texts.items()}
            if values.get("format_version") != FORMAT_VERSION:
                self._refuse(f"format_version {FORMAT_VERSION}", values.get("format_version"))
            return msgspec.convert(values, Header)
        except (msgspec.DecodeError, ConfigError) as error:
            self._refuse("a header", error)

    def __iter__(self) -> Iterator[TickRecord | InferenceRecord]:
        from mcap.records import Channel, Metadata
        from mcap.records import Message as Mcap

        joiner = _Joiner()
        with self.path.open("rb") as file:
            topics: dict[int, str] = {}
            for record in self._records(file):
                joined = None
                try:
                    if isinstance(record, Channel):
                        topics[record.id] = record.topic
                    elif isinstance(record, Metadata) and record.name == END:
                        joiner.end(msgspec.json.decode(record.metadata.get("seen", ""), type=dict[str, int]))
                    elif isinstance(record, Mcap):
                        joined = joiner.join(topics.get(record.channel_id, ""), record.data, record.sequence)
                except (msgspec.DecodeError, RecordingError) as error:
                    self._refuse("messages of Edge SDK", error)
                if joined is not None:
                    yield joined
        self.lost = joiner.lost

    def _records(self, file: BinaryIO) -> Iterator[Any]:
        """MCAP's records, those of chunks included."""
        from mcap.exceptions import EndOfFile, McapError, RecordLengthLimitExceeded
        from mcap.records import DataEnd
        from mcap.stream_reader import StreamReader
        from zstandard import ZstdError

        size = os.fstat(file.fileno()).st_size
        exact = cast(IO[bytes], ExactReader(file))  # of which the reader uses read() only
        record, has_data_end = None, False
        try:
            for record in StreamReader(exact, validate_crcs=True, record_size_limit=size).records:
                has_data_end |= isinstance(record, DataEnd)
                yield record
            if not has_data_end or not _end_is_whole(file, size, record):
                self._refuse("a complete file", "one that is damaged behind its data")
        except (EndOfFile, RecordLengthLimitExceeded):
            if not self.truncated:
                self._refuse("a complete file", "a record that goes beyond its end")
        # what the reader lets through of a damaged length, text or checksum
        except (McapError, ZstdError, ValueError, struct.error, MemoryError, OverflowError) as error:
            self._refuse("an undamaged MCAP file", f"{type(error).__name__}: {error}")

    def _refuse(self, expected: str, found: object) -> NoReturn:
        todo = "Use another copy of the recording, or what `mcap recover` makes of it."
        raise RecordingError(explain(str(self.path), expected=expected, found=found, todo=todo))


class _Joiner:
    """Puts the messages of one record together again; those of which a part is missing are passed over."""

    def __init__(self) -> None:
        self.lost = Counter[str]()
        self._next = Counter[str]()
        self._images: dict[tuple[int, str], np.ndarray] = {}
        self._observation: tuple[int, ObservationMessage] | None = None
        self._action: tuple[int, ActionMessage] | None = None

    def join(self, topic: str, data: bytes, sequence: int) -> TickRecord | InferenceRecord | None:
        """A record, where the message is the last of its parts."""
        kind: type[Message] | None = ImageMessage if topic.startswith(IMAGE) else TYPES.get(topic)
        if kind is None:  # not ours
            return None
        message: Message = msgspec.json.decode(data, type=kind)
        if isinstance(message, ImageMessage):
            self._images[sequence, topic.removeprefix(IMAGE)] = decode_image(message)
        elif isinstance(message, ObservationMessage):
            self._observation = sequence, message
        elif isinstance(message, ActionMessage):
            self._action = sequence, message
        elif isinstance(message, TickMessage):
            return self._tick(message, sequence)
        else:
            return self._inference(message, sequence)
        return None

    def _tick(self, tick: TickMessage, sequence: int) -> TickRecord | None:
        acted, self._action = self._action, None
        if tick.acted and (acted is None or acted[0] != sequence):
            return None
        self._count("ticks", sequence)
        fields = msgspec.structs.asdict(tick)
        del fields["acted"]
        fields["action"] = decode_array(acted[1].action) if tick.acted and acted else None
        fields["wanted"] = None if tick.wanted is None else decode_array(tick.wanted)
        return TickRecord(**fields)

    def _inference(self, chunk: ChunkMessage, sequence: int) -> InferenceRecord | None:
        seen, images = self._observation, self._images
        self._observation, self._images = None, {}
        if seen is None or seen[0] != sequence or any((sequence, name) not in images for name in seen[1].images):
            return None
        self._count("inferences", sequence)
        fields = msgspec.structs.asdict(chunk)
        fields["observation"] = {array.name: decode_array(array) for array in seen[1].arrays} | {
            name: images[sequence, name] for name in seen[1].images
        }
        fields["committed"] = None if chunk.committed is None else decode_array(chunk.committed)
        fields["chunk"] = decode_array(chunk.chunk)
        return InferenceRecord(**fields)

    def end(self, seen: Mapping[str, int]) -> None:
        """Counts what was dropped last, by how many there were to be recorded."""
        for name, records in seen.items():
            self._count(name, records)

    def _count(self, name: str, sequence: int) -> None:
        if missing := sequence - self._next[name]:
            self.lost[name] += missing
        self._next[name] = sequence + 1


class ExactReader:
    """A file that never returns less than it is asked for: mcap's reader takes what it gets."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file

    def read(self, size: int) -> bytes:
        """Raises EndOfFile where the file ends before."""
        from mcap.exceptions import EndOfFile

        data = self._file.read(size) if size >= 0 else b""
        if len(data) != size:
            raise EndOfFile
        return data


def _ends_with_magic(file: BinaryIO) -> bool:
    size = os.fstat(file.fileno()).st_size
    file.seek(max(0, size - len(MAGIC)))
    tail = file.read()
    file.seek(0)
    return tail == MAGIC and size > len(MAGIC)


def _end_is_whole(file: BinaryIO, size: int, footer: Any) -> bool:
    """Whether what mcap's reader does not look at is right: the summary's checksum, the length of the record before."""
    start, end = footer.summary_start, size - len(MAGIC) - CRC_BYTES
    if not len(DATA_END) + CRC_BYTES <= start <= end:
        return False
    file.seek(start - len(DATA_END) - CRC_BYTES)
    data_end = file.read(len(DATA_END) + CRC_BYTES)
    return data_end.startswith(DATA_END) and zlib.crc32(file.read(end - start)) == footer.summary_crc
