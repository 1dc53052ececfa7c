"""Recordings hold every bit, open in other readers, survive being cut off, and say what is damaged or missing."""

from __future__ import annotations

import base64
import io
import itertools
import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import jsonschema
import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from mcap.reader import make_reader
from mcap.records import Channel, Chunk, Message, Metadata
from mcap.stream_reader import StreamReader, breakup_chunk
from mcap.writer import Writer

import recorded
from edge_sdk.control import recording, recording_format
from edge_sdk.control.observers import InferenceRecord, TickRecord
from edge_sdk.control.recording import Recorder
from edge_sdk.control.recording_format import SCHEMA_NAMES, schema_of
from edge_sdk.control.recording_reader import DATA_END, Recording
from edge_sdk.errors import RecordingError
from recorded import CONFIG, RecurrentPolicy, record, run, tell

Record = InferenceRecord | TickRecord

TIMES = st.integers(0, 2**62)
BITS = hnp.arrays(np.uint32, hnp.array_shapes(max_dims=2, min_side=0, max_side=4)).map(
    lambda bits: bits.view(np.float32)
)
"""float32 of any bits: NaNs with payloads, infinities, subnormal numbers, negative zeros."""
IMAGES = hnp.arrays(np.uint8, hnp.array_shapes(min_dims=3, max_dims=3, max_side=5))
OTHERS = hnp.arrays(
    st.sampled_from(
        [np.dtype(name) for name in ("bool", "int8", "uint16", "int64", ">i4", ">f4", "float16", "float64")]
    ),
    hnp.array_shapes(min_dims=0, max_dims=3, max_side=3),
)
NAMES = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=8)
INFERENCES = st.builds(
    InferenceRecord,
    inference=st.integers(0, 2**31),
    begins_episode=st.booleans(),
    first_tick=TIMES,
    observation_ns=TIMES,
    started_ns=TIMES,
    observed_ns=TIMES,
    done_ns=TIMES,
    observation=st.dictionaries(NAMES, BITS | IMAGES | OTHERS, max_size=4),
    committed=st.none() | BITS,
    chunk=BITS,
)
TICKS = st.builds(
    TickRecord,
    tick=TIMES,
    planned_ns=TIMES,
    woken_ns=TIMES,
    done_ns=TIMES,
    timing=st.sampled_from(["on_time", "late", "missed"]),
    skipped=TIMES,
    stage=st.sampled_from(["policy", "hold", "decay", "stop", "estop"]),
    action=st.none() | BITS,
    wanted=st.none() | BITS,
    violations=TIMES,
    observation_ns=st.none() | TIMES,
    inference=st.none() | TIMES,
)


def plain(value: object) -> object:
    """A record in what compares by every bit."""
    if isinstance(value, np.ndarray):
        return value.dtype.name, value.shape, value.astype(value.dtype.newbyteorder("<")).tobytes()
    if isinstance(value, dict):
        return {name: plain(part) for name, part in value.items()}
    if isinstance(value, msgspec.Struct):
        return type(value), plain(msgspec.structs.asdict(value))
    return value


def is_among(found: list[Record], records: list[Record]) -> bool:
    """Whether all that was found was recorded, in this order."""
    rest = iter([plain(one) for one in records])
    return all(plain(one) in rest for one in found)


@pytest.fixture(scope="module")
def records() -> list[Record]:
    return list(run(RecurrentPolicy(), 8))


@pytest.fixture(scope="module")
def many_chunks(records: list[Record], tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A recording of several MCAP chunks."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(recording, "FLUSH_S", 0.01)
        path = tmp_path_factory.mktemp("recording") / "run.mcap"
        with Recorder(path, CONFIG) as recorder:
            for one in records:
                tell(recorder, (one,))
                time.sleep(0.02)
    return path.read_bytes()


def ends(content: bytes) -> tuple[int, list[tuple[int, int]]]:
    """Where the header ends, and where each chunk does: (offset, records up to there)."""
    stream, topics = StreamReader(io.BytesIO(content), emit_chunks=True), dict[int, str]()
    header_end, chunk_ends, count = 0, list[tuple[int, int]](), 0
    for part in stream.records:
        if isinstance(part, Metadata) and not header_end:
            header_end = stream._stream.count
        elif isinstance(part, Chunk):
            inner = breakup_chunk(part)
            topics |= {one.id: one.topic for one in inner if isinstance(one, Channel)}
            count += sum(isinstance(one, Message) and topics[one.channel_id] in ("/tick", "/chunk") for one in inner)
            chunk_ends.append((stream._stream.count, count))
    assert len(chunk_ends) > 1
    return header_end, chunk_ends


def wait_until_written(recorder: Recorder) -> None:
    deadline = time.monotonic() + 20
    while recorder.waiting:
        assert time.monotonic() < deadline
        time.sleep(0.001)


@settings(max_examples=40, deadline=None)
@given(st.lists(INFERENCES | TICKS, max_size=6))
def test_every_bit_survives(tmp_path_factory: pytest.TempPathFactory, records: list[Record]) -> None:
    path = record(tmp_path_factory.mktemp("recording") / "run.mcap", *records)
    found = Recording(path)
    assert [plain(one) for one in found] == [plain(one) for one in records]
    assert (found.truncated, +found.lost) == (False, {})


def test_another_reader_finds_topics_schemas_and_what_it_was_made_with(records: list[Record], tmp_path: Path) -> None:
    path = record(tmp_path / "run.mcap", *records)
    with path.open("rb") as file:
        reader = make_reader(file, validate_crcs=True)
        messages = list(reader.iter_messages())
        summary = reader.get_summary()
        (header, end) = sorted(reader.iter_metadata(), key=lambda metadata: metadata.name)
    assert summary is not None
    counts = {summary.channels[key].topic: count for key, count in summary.statistics.channel_message_counts.items()}
    assert counts == {"/observation": 8, "/image/camera": 8, "/chunk": 8, "/action": 8, "/tick": 8}
    for schema, channel, message in messages:
        assert (schema.encoding, channel.message_encoding) == ("jsonschema", "json")
        jsonschema.validate(drop_nulls(json.loads(message.data)), json.loads(schema.data))
    schemas = {channel.topic: schema.name for schema, channel, _ in messages}
    assert schemas["/image/camera"] == "foxglove.RawImage"
    assert schemas["/tick"] == "edge_sdk.Tick"
    image = next(json.loads(message.data) for _, channel, message in messages if channel.topic == "/image/camera")
    assert (image["width"], image["height"], image["step"], image["encoding"]) == (6, 4, 18, "rgb8")
    first = records[0]
    assert isinstance(first, InferenceRecord)
    assert base64.b64decode(image["data"]) == first.observation["camera"].tobytes()
    chunk = next(json.loads(message.data) for _, channel, message in messages if channel.topic == "/chunk")
    np.testing.assert_array_equal(np.float32(chunk["chunk"]["values"]).reshape(5, 2), first.chunk)
    assert json.loads(header.metadata["bundle"]) == "abc"
    assert msgspec.json.decode(header.metadata["policy"], type=type(CONFIG)) == CONFIG
    assert json.loads(end.metadata["written"]) == {"inferences": 8, "ticks": 8}


def drop_nulls(value: Any) -> Any:
    """What may be null is described as what it is otherwise."""
    if isinstance(value, dict):
        return {name: drop_nulls(part) for name, part in value.items() if part is not None}
    return [drop_nulls(part) for part in value] if isinstance(value, list) else value


@pytest.mark.parametrize("kind", SCHEMA_NAMES)
def test_schemas_use_what_foxglove_reads(kind: type) -> None:
    def check(schema: dict[str, Any]) -> None:
        assert schema["type"] in ("object", "array", "string", "number", "integer", "boolean")
        assert not {"$ref", "anyOf", "oneOf", "allOf", "additionalProperties"} & set(schema)
        if schema["type"] == "object":
            for part in schema["properties"].values():
                check(part)
        elif schema["type"] == "array":
            check(schema["items"])

    check(schema_of(kind))


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_a_file_that_was_cut_anywhere_gives_what_came_before(
    many_chunks: bytes, records: list[Record], tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    path = tmp_path_factory.mktemp("cut") / "run.mcap"
    cut = data.draw(st.integers(0, len(many_chunks) - 1))
    path.write_bytes(many_chunks[:cut])
    header_end, chunk_ends = ends(many_chunks)
    if cut < header_end:
        with pytest.raises(
            RecordingError, match=re.escape(f"{path}: expected a recording of Edge SDK, found no header")
        ):
            Recording(path)
        return
    found = Recording(path)
    left = list(found)
    assert found.truncated
    assert [plain(one) for one in left] == [plain(one) for one in records[: len(left)]]
    assert +found.lost == {}
    assert len(left) == max((count for end, count in chunk_ends if end <= cut), default=0)


def test_a_file_that_was_cut_just_before_its_end_lacks_nothing(
    many_chunks: bytes, records: list[Record], tmp_path: Path
) -> None:
    (tmp_path / "run.mcap").write_bytes(many_chunks[:-1])
    found = Recording(tmp_path / "run.mcap")
    assert [plain(one) for one in found] == [plain(one) for one in records]
    assert found.truncated


@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_a_flipped_bit_anywhere_is_noticed(
    many_chunks: bytes, records: list[Record], tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    place, bit = data.draw(st.integers(0, len(many_chunks) - 1)), data.draw(st.integers(0, 7))
    damaged = bytearray(many_chunks)
    damaged[place] ^= 1 << bit
    path = tmp_path_factory.mktemp("flipped") / "run.mcap"
    path.write_bytes(damaged)
    found: list[Record] = []
    with pytest.raises(RecordingError, match=r"expected .*, found") as raised:
        found.extend(Recording(path))
    assert str(path) in str(raised.value)
    cut = data.draw(st.integers(0, len(damaged)))  # and in a file that was cut, nothing wrong is ever read
    path.write_bytes(damaged[:cut])
    try:
        found = list(Recording(path))
    except RecordingError:
        return
    assert is_among(found, records)


def test_flipped_bits_in_what_no_chunk_holds_are_noticed(many_chunks: bytes, tmp_path: Path) -> None:
    header_end, chunk_ends = ends(many_chunks)
    path = tmp_path / "run.mcap"
    behind = chunk_ends[-1][0]
    data_end = many_chunks.index(DATA_END, behind)
    some = [(place, place % 8) for place in (*range(0, header_end, 3), *range(behind, behind + 300))]
    for place, bit in (*some, *itertools.product(range(data_end, data_end + len(DATA_END)), range(8))):
        damaged = bytearray(many_chunks)
        damaged[place] ^= 1 << bit
        path.write_bytes(damaged)
        with pytest.raises(RecordingError):
            list(Recording(path))


def test_a_killed_recorder_leaves_what_was_flushed(tmp_path: Path) -> None:
    with program(tmp_path / "run.mcap", 0) as recording_process:
        assert recording_process.stdout is not None
        flushed = int(recording_process.stdout.readline())
        recording_process.kill()
    found = Recording(tmp_path / "run.mcap")
    assert len(list(found)) >= min(flushed, 200) > 0
    assert found.truncated


def test_a_full_disk_costs_records_and_not_the_run(tmp_path: Path) -> None:
    with program(tmp_path / "run.mcap", 200_000) as recording_process:
        said, _ = recording_process.communicate(timeout=60)
    written, dropped, *error = said.split(maxsplit=2)
    assert int(dropped) > 0
    assert "File too large" in error[0]
    found = Recording(tmp_path / "run.mcap")
    ticks = [one for one in found if isinstance(one, TickRecord)]
    assert 0 < int(written) <= len(ticks)
    assert found.truncated


def program(path: Path, limit_bytes: int) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, recorded.__file__, path, str(limit_bytes)],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
    )


def test_what_does_not_fit_the_queue_is_dropped_counted_and_said(
    records: list[Record], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    big = msgspec.structs.replace(records[2], observation={"camera": np.zeros((50, 50, 3), np.uint8)})
    last = msgspec.structs.replace(records[-2], chunk=np.zeros((5000, 1), np.float32))
    with Recorder(tmp_path / "run.mcap", CONFIG, capacity_bytes=7000) as recorder:
        for one in (records[0], big, big, records[4], records[1], last):
            tell(recorder, (one,))
            wait_until_written(recorder)
    report = recorder.close()
    assert report.written == {"inferences": 2, "ticks": 1}
    assert report.dropped == {"inferences": 3}
    assert "records are dropped" in caplog.text
    assert "dropped {'inferences': 3}" in caplog.text
    found = Recording(report_path := tmp_path / "run.mcap")
    assert report.bytes == report_path.stat().st_size
    assert len(list(found)) == 3
    assert +found.lost == {"inferences": 3}


def test_what_cannot_be_recorded_ends_the_recording_and_nothing_else(records: list[Record], tmp_path: Path) -> None:
    wrong = msgspec.structs.replace(records[0], observation={"note": np.array(["left"])})
    with Recorder(tmp_path / "run.mcap", CONFIG) as recorder:
        tell(recorder, (wrong, records[2]))
    recorder.tick(records[1])  # after the end
    report = recorder.close()
    assert "'note' to record: expected numbers, found str" in report.error
    assert report.dropped == {"inferences": 2, "ticks": 1}


def test_a_recording_never_replaces_a_file(tmp_path: Path) -> None:
    (tmp_path / "run.mcap").write_text("precious")
    with pytest.raises(RecordingError, match=r"run\.mcap: expected to make a new file, found File exists"):
        Recorder(tmp_path / "run.mcap", CONFIG)
    with pytest.raises(RecordingError, match="No such file or directory"):
        Recorder(tmp_path / "nowhere" / "run.mcap", CONFIG)
    assert (tmp_path / "run.mcap").read_text() == "precious"


OTHER_FILES = [
    ("", "no header"),
    ("not MCAP at all", "InvalidMagic"),
    ("metadata of another", "no header"),
    ("version 2", "format_version 1, found 2"),
    ("no policy", "missing required field `policy`"),
]


@pytest.mark.parametrize(("content", "found"), OTHER_FILES)
def test_what_is_no_recording_is_refused(content: str, found: str, tmp_path: Path) -> None:
    path = tmp_path / "other.mcap"
    metadata = {
        "metadata of another": ("camera", {"format_version": "1"}),
        "version 2": (recording_format.HEADER, {"format_version": "2"}),
        "no policy": (recording_format.HEADER, {"format_version": "1", "bundle": '""'}),
    }
    if content not in metadata:
        path.write_text(content)
    else:
        writer = Writer(str(path))
        writer.start()
        writer.add_metadata(*metadata[content])
        writer.finish()
    with pytest.raises(RecordingError, match=found):
        list(Recording(path))


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(RecordingError, match="No such file"):
        Recording(tmp_path / "run.mcap")


def test_damaged_arrays_are_refused() -> None:
    array = recording_format.encode_array("x", np.ones((2, 3), np.float32))
    for damaged in (
        msgspec.structs.replace(array, shape=(2, 4)),
        msgspec.structs.replace(array, shape=(-2, -3)),
        msgspec.structs.replace(array, dtype="object"),
        msgspec.structs.replace(array, data=array.data[1:]),
    ):
        with pytest.raises(RecordingError, match="Recorded array 'x'"):
            recording_format.decode_array(damaged)
    image = recording_format.encode_image("x", np.ones((2, 3, 1), np.uint8), 5)
    for broken in (
        msgspec.structs.replace(image, encoding="jpeg"),
        msgspec.structs.replace(image, width=4),
    ):
        with pytest.raises(RecordingError, match="Recorded array 'x'"):
            recording_format.decode_image(broken)
