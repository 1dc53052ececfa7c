"""Bags as rosbag2 has them, MCAP files with their metadata, written through the package rosbags. No ROS in it.

What is written is on the disk within FLUSH_S. Of a bag whose writer was killed the file has no index yet and the folder
no metadata.yaml: ``python -m edge_ros_bridge.bag FOLDER NEW`` makes a whole bag of it.
"""

from __future__ import annotations

import argparse
import os
import queue
import sys
import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Final, NamedTuple, cast

from edge_sdk.control.recording_reader import ExactReader
from edge_sdk.errors import EdgeError, explain
from edge_sdk.files import sync
from edge_sdk.queues import until_closed

if TYPE_CHECKING:
    from rosbags.interfaces import Connection, Qos
    from rosbags.rosbag2 import Writer
    from rosbags.typesys.store import Typestore

VERSION: Final = 8
"""Of metadata.yaml: from 9 on QoS is in words, which Humble does not read."""

CAPACITY_BYTES = 64 << 20
"""Of messages that wait for the disk."""

FLUSH_S = 1.0
"""How much of a recording ``kill -9`` or a power cut may cost."""


class BagError(EdgeError):
    """A bag cannot be made, written or read."""


def require_rosbags() -> None:
    """Raises BagError where the packages that write and repair bags are missing."""
    missing = [name for name in ("rosbags", "mcap") if find_spec(name) is None]
    if missing:
        todo = "pip install 'rosbags>=0.11.9,<0.12' 'mcap>=1.6,<2'"
        found = f"no {' and no '.join(missing)}"
        raise BagError(explain("Bags", expected="the packages rosbags and mcap", found=found, todo=todo))


def new_writer(folder: Path) -> Writer:
    """A writer of a bag, which is not open yet. Raises BagError where there is something already."""
    require_rosbags()
    from rosbags.rosbag2 import StoragePlugin, Writer, WriterError

    try:
        return Writer(folder, version=VERSION, storage_plugin=StoragePlugin.MCAP)
    except WriterError as error:
        raise BagError(explain(str(folder), expected="a new folder", found=error, todo="Choose another.")) from None


class _Topic(NamedTuple):
    name: str
    kind: str
    types: Typestore
    qos: Sequence[Qos]


class _Message(NamedTuple):
    topic: str
    time_ns: int
    data: bytes


class Bag:
    """A bag that is written by a thread of its own, so that who adds messages never waits for a disk."""

    def __init__(self, folder: Path, capacity_bytes: int = CAPACITY_BYTES) -> None:
        """Makes the folder. Raises BagError where it exists or cannot be made."""
        self.folder = folder
        self._writer = new_writer(folder)
        try:
            self._writer.open()
            sync(folder.parent)
        except OSError as error:
            todo = "Correct the parameter folder."
            raise BagError(explain(str(folder), expected="to make it", found=error.strerror, todo=todo)) from None
        self._connections: dict[str, Connection] = {}
        self._queue: queue.SimpleQueue[_Topic | _Message | None] = queue.SimpleQueue()
        self._capacity_bytes, self._waiting_bytes = capacity_bytes, 0
        self._lock = threading.Lock()
        self.written, self.dropped = Counter[str](), Counter[str]()
        """Messages by topic; dropped are those that found too much waiting, or came after an error."""
        self.error = ""
        """Why nothing more is written; empty while all is well."""
        self._thread = threading.Thread(target=self._work, name="bag", daemon=True)
        self._thread.start()

    def add_topic(self, name: str, kind: str, types: Typestore, qos: Sequence[Qos]) -> None:
        """Before its first message. ``kind``: ``package/msg/Name``; ``qos``: what its publishers offer."""
        self._queue.put(_Topic(name, kind, types, qos))

    def write(self, topic: str, time_ns: int, data: bytes) -> None:
        """Queues one message in CDR; ``time_ns`` is when it was received."""
        with self._lock:
            if not self.error and self._waiting_bytes + len(data) <= self._capacity_bytes:
                self._waiting_bytes += len(data)
                self._queue.put(_Message(topic, time_ns, data))
            else:
                self.dropped[topic] += 1

    def close(self) -> None:
        """Writes what waits, the index and metadata.yaml; :attr:`error` says where that failed."""
        self._queue.put(None)
        self._thread.join()

    def _work(self) -> None:
        try:
            self._write_until_closed()
            self._writer.close()
            for path in (*self.folder.iterdir(), self.folder):
                sync(path)
        except Exception as error:  # a full disk: what was flushed before it can be repaired
            with self._lock:
                self.error = f"{self.folder}: the recording ended: {error}"
            with suppress(OSError):
                self._writer.abort()

    def _write_until_closed(self) -> None:
        items: Iterator[_Topic | _Message] = until_closed(self._queue, self._flush, FLUSH_S)
        for item in items:
            if isinstance(item, _Topic):
                self._connections[item.name] = self._writer.add_connection(
                    item.name, item.kind, typestore=item.types, offered_qos_profiles=item.qos
                )
                continue
            self._writer.write(self._connections[item.topic], item.time_ns, item.data)
            with self._lock:
                self._waiting_bytes -= len(item.data)
                self.written[item.topic] += 1

    def _flush(self) -> None:
        """Onto the disk. The writer of rosbags keeps up to 1 MiB back and has no call for this."""
        storage: Any = self._writer.storage
        if storage.chunk.msgs:
            storage.close_chunk()
        storage.bio.flush()
        os.fdatasync(storage.bio.fileno())


def repair(folder: Path, new: Path) -> int:
    """Makes a whole bag of one whose writer was killed; returns how many messages it holds.

    What lies behind the last whole record is left out. Raises BagError where there is no MCAP file, or ``new`` exists.
    """
    writer = new_writer(new)
    from mcap.exceptions import McapError
    from mcap.records import Channel, Message, Schema
    from mcap.stream_reader import StreamReader
    from rosbags.rosbag2.metadata import parse_qos
    from rosbags.typesys import Stores, get_types_from_msg, get_typestore

    paths = sorted(folder.glob("*.mcap"))
    if not paths:
        raise BagError(explain(str(folder), expected="a file *.mcap", found="none", todo="Name a bag's folder."))
    schemas: dict[int, Schema] = {}
    connections: dict[int, Connection] = {}
    with writer, paths[0].open("rb") as file:
        records = iter(StreamReader(cast(IO[bytes], ExactReader(file))).records)
        while True:
            try:
                record = next(records)
            except (McapError, StopIteration):  # where it was cut off
                break
            if isinstance(record, Schema):
                schemas[record.id] = record
            elif isinstance(record, Channel) and record.id not in connections:
                schema, types = schemas[record.schema_id], get_typestore(Stores.EMPTY)
                types.register(get_types_from_msg(schema.data.decode(), schema.name))
                qos = parse_qos(record.metadata.get("offered_qos_profiles", ""))
                connections[record.id] = writer.add_connection(
                    record.topic, schema.name, typestore=types, offered_qos_profiles=qos
                )
            elif isinstance(record, Message):
                writer.write(connections[record.channel_id], record.log_time, record.data)
    return sum(writer.counts.values())


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=repair.__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("new", type=Path)
    options = parser.parse_args()
    try:
        print(f"{options.new}: {repair(options.folder, options.new)} messages")
    except EdgeError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
