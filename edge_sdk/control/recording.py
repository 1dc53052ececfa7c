"""Records a run of the control loop as MCAP, which Foxglove opens and :mod:`edge_sdk.control.replay` replays.

The loop's threads only put a record into a queue; a thread of the recorder's own turns it to JSON, compresses it and
writes it. A disk that is slow or full costs records, which are counted, and never holds up or ends the loop.
"""

from __future__ import annotations

import logging
import os
import platform
import queue
import threading
import time
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import BinaryIO

import msgspec
import numpy as np

import edge_sdk
from edge_sdk.control.observers import InferenceRecord, TickRecord
from edge_sdk.control.policy import PolicyConfig
from edge_sdk.control.recording_format import (
    END,
    HEADER,
    IMAGE,
    SCHEMA_NAMES,
    Header,
    Message,
    encode_image,
    inference_messages,
    require_mcap,
    schema_of,
    tick_messages,
)
from edge_sdk.errors import RecordingError, explain
from edge_sdk.files import sync
from edge_sdk.queues import until_closed

LOG = logging.getLogger("edge_sdk")

CAPACITY_BYTES = 64 << 20
RECORD_BYTES = 1024
"""What a record takes in the queue besides its arrays, about."""

FLUSH_S = 1.0
"""How much of a recording ``kill -9`` or a power cut may cost."""

Record = TickRecord | InferenceRecord
NAMES = {TickRecord: "ticks", InferenceRecord: "inferences"}


class RecordingReport(msgspec.Struct, frozen=True, kw_only=True):
    """What became of a recording; ticks and inferences by name."""

    written: dict[str, int]
    dropped: dict[str, int]
    """Those that found the queue full, or came after an error or, within the last flush, before it."""
    bytes: int
    error: str
    """Why nothing more could be written; empty where all went well."""


class Recorder:
    """An observer of the loop that writes what it sees to ``path``, which must not exist yet.

    The file is complete after :meth:`close`; before that it can be read up to the last flush, about once a second. Its
    memory is bounded by ``capacity_bytes`` of waiting records. Needs the extra ``control``. Raises RecordingError where
    the file cannot be made.
    """

    def __init__(
        self,
        path: str | Path,
        policy: PolicyConfig,
        *,
        bundle: str = "",
        rate_hz: float | None = None,
        instruction: str = "",
        seed: int = 0,
        capacity_bytes: int = CAPACITY_BYTES,
    ) -> None:
        self.path = Path(path)
        require_mcap()
        header = Header(
            bundle=bundle,
            policy=policy,
            rate_hz=policy.action.rate_hz if rate_hz is None else rate_hz,
            versions={"edge_sdk": edge_sdk.__version__, "numpy": np.__version__, "python": platform.python_version()},
            clock_offset_ns=time.time_ns() - time.monotonic_ns(),
            instruction=instruction,
            seed=seed,
        )
        try:
            self._file: BinaryIO = self.path.open("xb")
            sync(self.path.parent)
        except OSError as error:
            todo = "Choose another path; a recording never replaces a file."
            raise RecordingError(
                explain(str(self.path), expected="to make a new file", found=error.strerror, todo=todo)
            ) from error
        self._topics = _Topics(self._file, header)
        self._queue: queue.SimpleQueue[tuple[Record, int, int] | None] = queue.SimpleQueue()
        self._capacity_bytes, self._queued_bytes = capacity_bytes, 0
        self._lock, self._closed, self._complained, self._error = threading.Lock(), False, False, ""
        self._seen, self._written, self._on_disk = Counter[str](), Counter[str](), Counter[str]()
        self._thread = threading.Thread(target=self._work, name="edge-recorder", daemon=True)
        self._thread.start()

    def tick(self, record: TickRecord) -> None:
        """Queues it; from one thread at a time."""
        self._put(record, (record.action, record.wanted))

    def inference(self, record: InferenceRecord) -> None:
        """Queues it; from one thread at a time. The arrays must not change afterwards."""
        self._put(record, (record.chunk, record.committed, *record.observation.values()))

    def _put(self, record: Record, arrays: Iterable[np.ndarray | None]) -> None:
        size = RECORD_BYTES + sum(array.nbytes for array in arrays if array is not None)
        with self._lock:
            name = NAMES[type(record)]
            sequence = self._seen[name]
            self._seen[name] += 1
            if not self._error and not self._closed and self._queued_bytes + size <= self._capacity_bytes:
                self._queued_bytes += size
                self._queue.put((record, sequence, size))
                return
            complain, self._complained = not self._complained, True
        if complain:
            LOG.warning("%s: %s", self.path, self._error or "writing is too slow, and records are dropped")

    @property
    def waiting(self) -> int:
        """Bytes of the records that are not written yet."""
        return self._queued_bytes

    @property
    def error(self) -> str:
        """Why the recording has ended before its time; empty while it goes on."""
        return self._error

    def close(self) -> RecordingReport:
        """Writes what waits, completes the file, and says what became of it."""
        with self._lock:
            first, self._closed = not self._closed, True
        if first:
            self._queue.put(None)
        self._thread.join()
        dropped = self._seen - self._written
        if first and (dropped or self._error):
            LOG.warning("%s: dropped %s. %s", self.path, dict(dropped), self._error)
        return RecordingReport(
            written=dict(self._written), dropped=dict(dropped), bytes=self.path.stat().st_size, error=self._error
        )

    def __enter__(self) -> Recorder:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _work(self) -> None:
        try:
            with self._file:
                self._write_until_closed()
        except (
            Exception
        ) as error:  # a full disk, an array that is none of numbers: the loop goes on without a recording
            with self._lock:
                self._error, self._written = f"The recording ended: {error}", self._on_disk
            LOG.error("%s: %s", self.path, self._error)

    def _write_until_closed(self) -> None:
        for record, sequence, size in until_closed(self._queue, self._flush, FLUSH_S):
            self._topics.write(record, sequence)
            with self._lock:
                self._queued_bytes -= size
                self._written[NAMES[type(record)]] += 1
        self._topics.finish(seen=self._seen, written=self._written)

    def _flush(self) -> None:
        self._topics.flush()
        self._on_disk = self._written.copy()


class _Topics:
    """The topics of one file."""

    def __init__(self, file: BinaryIO, header: Header) -> None:
        from mcap.writer import Writer

        self._file, self._offset_ns = file, header.clock_offset_ns
        self._writer = Writer(file, enable_data_crcs=True)
        self._schemas: dict[type[Message], int] = {}
        self._channels: dict[str, int] = {}
        self._encoder = msgspec.json.Encoder()
        self._writer.start(library=f"edge-sdk {edge_sdk.__version__}")
        self._metadata(HEADER, msgspec.structs.asdict(header))
        self.flush()

    def write(self, record: Record, sequence: int) -> None:
        """Raises OSError, and RecordingError for an array that holds other things than numbers."""
        if isinstance(record, TickRecord):
            action, tick = tick_messages(record)
            if action is not None:
                self._add("/action", action, record.done_ns, sequence)
            self._add("/tick", tick, record.done_ns, sequence)
            return
        observation, chunk = inference_messages(record)
        for name in observation.images:
            image = encode_image(name, record.observation[name], record.observation_ns + self._offset_ns)
            self._add(IMAGE + name, image, record.observation_ns, sequence)
        self._add("/observation", observation, record.observation_ns, sequence)
        self._add("/chunk", chunk, record.done_ns, sequence)

    def flush(self) -> None:
        """Onto the disk."""
        self._writer.flush()
        os.fdatasync(self._file.fileno())

    def finish(self, seen: Mapping[str, int], written: Mapping[str, int]) -> None:
        """Completes the file, and says in it how much of what was to be recorded it holds."""
        self._writer.flush()  # the metadata come behind all messages
        self._metadata(END, {"seen": seen, "written": written})
        self._writer.finish()
        self._file.flush()
        os.fsync(self._file.fileno())

    def _metadata(self, name: str, values: Mapping[str, object]) -> None:
        self._writer.add_metadata(name, {key: self._encoder.encode(value).decode() for key, value in values.items()})

    def _add(self, topic: str, message: Message, time_ns: int, sequence: int) -> None:
        unix_ns = time_ns + self._offset_ns
        data = self._encoder.encode(message)
        self._writer.add_message(self._channel(topic, type(message)), unix_ns, data, unix_ns, sequence)

    def _channel(self, topic: str, kind: type[Message]) -> int:
        if kind not in self._schemas:
            schema = self._encoder.encode(schema_of(kind))
            self._schemas[kind] = self._writer.register_schema(SCHEMA_NAMES[kind], "jsonschema", schema)
        if topic not in self._channels:
            self._channels[topic] = self._writer.register_channel(topic, "json", self._schemas[kind])
        return self._channels[topic]
