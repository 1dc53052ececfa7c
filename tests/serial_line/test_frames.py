"""The wire protocol: both ends agree on every byte, and ten million damaged commands move no motor."""

from __future__ import annotations

import json
import random
import re
import struct
import subprocess
import zlib
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from cobs import cobs
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edge_sdk.control import frames
from edge_sdk.control.frames import (
    TYPES,
    Alive,
    Command,
    Estop,
    Fault,
    FaultCode,
    Field,
    Frame,
    FrameDecoder,
    Heartbeat,
    Hello,
    Message,
    Observation,
    Result,
    State,
    Stop,
    Welcome,
    WireSchema,
    decode,
    encode,
)
from edge_sdk.errors import ConfigError
from places import ROOT
from serial_faults import Faults

FUZZ = Path(__file__).with_name("frames_fuzz.c")
SANITIZE = ("-O1", "-fsanitize=address,undefined", "-fno-sanitize-recover=all")
DOCUMENT = (ROOT / "docs" / "serial.md").read_text(encoding="utf-8")

U8, U16, U32, U64 = (st.integers(0, 2**bits - 1) for bits in (8, 16, 32, 64))
VALUES = st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), max_size=126).map(
    lambda values: np.array(values, np.float32)
)
MESSAGES: st.SearchStrategy[Message] = st.one_of(
    st.builds(Hello, U64, U16, U16, U16),
    st.builds(Welcome, U64, U16, U32, U8),
    st.builds(Heartbeat, U32, U8),
    st.builds(Command, U32, VALUES),
    st.builds(Observation, U32, U8, VALUES),
    st.builds(Stop),
    st.builds(Estop),
    st.builds(Fault, U16, U64),
    st.builds(Alive),
)
WIRES = st.builds(
    lambda message, session, sequence: encode(message, session=session, sequence=sequence), MESSAGES, U32, U32
)
OFTEN = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def payload_of(message: Message) -> bytes:
    """The bytes between header and CRC, put together without the encoder."""
    fixed = next(form for kind, form in TYPES.values() if kind is type(message))
    *numbers, last = [*msgspec.structs.astuple(message), None]
    if isinstance(message, (Command, Observation)):
        *numbers, last = numbers
    return fixed.pack(*numbers) + (b"" if last is None else last.tobytes())


@pytest.mark.parametrize("flags", [("-O2",), ("-O2", "-DEDGE_CRC_BITWISE"), SANITIZE], ids=["", "bitwise", "sanitized"])
def test_no_corrupted_command_is_acted_upon(compiled: Callable[..., Path], flags: tuple[str, ...]) -> None:
    count = 10_000_000 if flags == ("-O2",) else 100_000
    said = subprocess.run([compiled(FUZZ, *flags), "corrupt", str(count), "2026"], capture_output=True, check=True)
    seen = json.loads(said.stdout)
    results = {Result(number).name: times for number, times in enumerate(seen["results"]) if number}
    print(seen["damaged"], results)
    assert seen["damaged"] == count
    assert seen["wrong"] == 0
    assert seen["acted"] == seen["taken"] == seen["good"] > count / 20
    assert results["ACCEPTED"] == seen["good"] + 1  # and the hello
    assert results["DUPLICATE"] == results["OLD"] == seen["good"]
    assert min(results["BAD_CRC"], results["BAD_COBS"], results["TOO_SHORT"]) > 0.001 * count


def test_pythons_decoder_lets_none_of_them_through() -> None:
    dice, results = random.Random(3), Counter[str]()
    noise = Faults(flip=0.01, lose=0.01, double=0.01, swap=0.01, insert=0.01, repeat=0.002)
    decoder, sent = FrameDecoder(), set()
    wires = []
    for sequence in range(20_000):
        values = np.frombuffer(dice.randbytes(24), np.uint32).astype(np.float32)
        wires.append(encode(Command(sequence, values), session=9, sequence=sequence))
        sent.add((sequence, values.tobytes()))
    damaged = noise.damage(b"".join(wires), b"".join(wires[:100]), dice)
    for at in range(0, len(damaged), 1000):
        for frame in decoder.push(damaged[at : at + 1000]):
            results[frame.name if isinstance(frame, Result) else "ACCEPTED"] += 1
            if isinstance(frame, Frame):
                assert isinstance(frame.message, Command)
                assert (frame.sequence, frame.message.values.tobytes()) in sent
    assert results["BAD_CRC"] > 3000
    assert results["BAD_COBS"] > 3000
    assert results["ACCEPTED"] > 1000


def test_motors_stop_at_the_heartbeat_timeout_or_the_commands_end_to_the_millisecond(
    compiled: Callable[..., Path],
) -> None:
    said = subprocess.run([compiled(FUZZ, *SANITIZE), "watchdog"], capture_output=True, text=True, check=True).stdout
    lines = [tuple(map(int, line.split())) for line in said.splitlines()]
    assert len(lines) == 8
    for limit_ms, stopped_ms, state in lines:
        assert stopped_ms == limit_ms
        assert state == (State.WAITING if limit_ms == 100 else State.STOPPED)


@given(MESSAGES, U32, U32)
def test_what_is_encoded_is_decoded(message: Message, session: int, sequence: int) -> None:
    wire = encode(message, session=session, sequence=sequence)
    assert wire[0] == wire[-1] == 0
    assert 0 not in wire[1:-1]
    frame = decode(wire[1:-1])
    assert isinstance(frame, Frame)
    assert (frame.session, frame.sequence, type(frame.message)) == (session, sequence, type(message))
    assert payload_of(frame.message) == payload_of(message)


@OFTEN
@given(MESSAGES, U32, U32)
def test_c_encodes_the_same_bytes(compiled: Callable[..., Path], message: Message, session: int, sequence: int) -> None:
    number = next(number for number, (kind, _) in TYPES.items() if kind is type(message))
    command = [compiled(FUZZ, *SANITIZE), "encode", str(number), str(session), str(sequence)]
    said = subprocess.run(command, input=payload_of(message), capture_output=True, check=True).stdout
    assert said == encode(message, session=session, sequence=sequence)


@st.composite
def streams(draw: st.DrawFn) -> bytes:
    """Frames, frames with new checksums over wrong headers, noise, and damage to all of it."""
    parts = draw(st.lists(st.one_of(WIRES, st.binary(max_size=600), forged()), max_size=8))
    stream = bytearray(b"".join(parts))
    for _ in range(draw(st.integers(0, 4)) if stream else 0):
        at = draw(st.integers(0, len(stream) - 1))
        stream[at : at + draw(st.integers(0, 2))] = draw(st.binary(max_size=2))
        if not stream:
            break
    return bytes(stream)


@st.composite
def forged(draw: st.DrawFn) -> bytes:
    """A frame whose CRC is right and whose header need not be."""
    payload = draw(st.binary(max_size=530))
    body = struct.pack(
        "<BBHII", draw(st.integers(0, 2)), draw(st.integers(0, 10)), draw(st.just(len(payload)) | U16), 1, 2
    )
    body += payload
    body += struct.pack("<I", zlib.crc32(body))
    return b"\0" + cobs.encode(body) + b"\0"


def python_decoder(stream: bytes, piece: int) -> list[str]:
    """A line for each frame, of a stream that comes in pieces of so many bytes."""
    decoder = FrameDecoder()
    lines = []
    for at in range(0, len(stream), piece):
        for frame in decoder.push(stream[at : at + piece]):
            if isinstance(frame, Result):
                lines.append(str(frame.value))
                continue
            number = next(number for number, (kind, _) in TYPES.items() if kind is type(frame.message))
            lines.append(f"1 {number} {frame.session} {frame.sequence} {payload_of(frame.message).hex()}".rstrip())
    return lines


def c_decoder(compiled: Callable[..., Path], stream: bytes) -> list[str]:
    said = subprocess.run([compiled(FUZZ, *SANITIZE), "decode"], input=stream, capture_output=True, check=True).stdout
    return [line.rstrip() for line in said.decode().splitlines()]


@OFTEN
@given(streams(), st.integers(1, 200))
def test_both_decoders_say_the_same_of_any_bytes(compiled: Callable[..., Path], stream: bytes, piece: int) -> None:
    assert c_decoder(compiled, stream) == python_decoder(stream, piece)


@pytest.mark.parametrize("floats", [121, 122, 123])
def test_blocks_without_a_zero_are_the_same_in_c(compiled: Callable[..., Path], floats: int) -> None:
    """COBS has a rule of its own for runs of 254 bytes; with 122 values the frame ends where such a run does."""
    message = Command(0x01010101, np.full(floats, 0x01010101, np.uint32).view(np.float32))
    wires = [encode(message, session=0x01010101, sequence=0x01010101 + i) for i in range(4)]
    bodies = [cobs.decode(wire[1:-1]) for wire in wires]
    assert any(0 not in body for body in bodies)
    for i, wire in enumerate(wires):
        command = [compiled(FUZZ, *SANITIZE), "encode", "4", str(0x01010101), str(0x01010101 + i)]
        said = subprocess.run(command, input=payload_of(message), capture_output=True, check=True).stdout
        assert said == wire
    assert c_decoder(compiled, b"".join(wires)) == python_decoder(b"".join(wires), 100)


def test_a_payload_that_only_just_fits_between_two_zeros_is_too_long(compiled: Callable[..., Path]) -> None:
    body = struct.pack("<BBHII", 1, 5, 513, 1, 2) + bytes(513)
    wire = b"\0" + cobs.encode(body + struct.pack("<I", zlib.crc32(body))) + b"\0"
    assert len(wire) - 2 <= frames.MAX_ENCODED
    assert c_decoder(compiled, wire) == python_decoder(wire, 100) == [str(Result.BAD_LENGTH.value)]


def test_a_firmware_listens_only_to_a_host_for_its_robot(compiled: Callable[..., Path]) -> None:
    said = subprocess.run([compiled(FUZZ, *SANITIZE), "refuse"], capture_output=True, text=True, check=True).stdout
    schema, dimension = FaultCode.SCHEMA.value, FaultCode.DIMENSION.value
    own_frames = ["16 0"] * 3
    assert said.splitlines() == ["1 77 0", *own_frames, f"18 0 {schema}", f"18 0 {dimension}", f"18 0 {dimension}"]


def test_a_stream_without_an_end_takes_no_memory() -> None:
    decoder = FrameDecoder()
    for _ in range(100):
        assert decoder.push(b"\x55" * 10_000) == []
        assert len(decoder._begun) <= frames.MAX_ENCODED + 1
    wire = encode(Stop(), session=1, sequence=1)
    assert decoder.push(wire)[0] is Result.TOO_LONG
    assert isinstance(decoder.push(wire)[0], Frame)


@pytest.mark.parametrize("values", [[np.nan], [np.inf], [[1.0]], np.zeros(127)])
def test_values_that_no_robot_should_get_are_not_sent(values: Any) -> None:
    with pytest.raises(ValueError, match="expected a vector of at most 126 finite numbers"):
        encode(Command(0, np.array(values, np.float32)), session=1, sequence=1)


def test_a_schemas_hash_knows_order_units_and_size() -> None:
    a, b = Field("a", "rad"), Field("b", "rad")
    schemas = [
        WireSchema(action=(a, b), observation=(a,)),
        WireSchema(action=(b, a), observation=(a,)),
        WireSchema(action=(a, Field("b", "deg")), observation=(a,)),
        WireSchema(action=(a, b), observation=(Field("a", "rad", 2),)),
        WireSchema(action=(a,), observation=(b, a)),
    ]
    assert len({schema.hash for schema in schemas}) == len(schemas)
    assert schemas[0].hash == 0x1E8988DC72EF993E  # as compiled into firmwares: it must not change
    for wrong in ((a, a), (), (Field("a", "rad", 127),), (Field("a", "rad", 0), b)):
        with pytest.raises(ConfigError, match="different names with sizes of at least 1 and 126 together"):
            WireSchema(action=wrong, observation=(a,))


def test_document_python_and_c_describe_the_same_frames(compiled: Callable[..., Path]) -> None:
    said = json.loads(subprocess.run([compiled(FUZZ, "-O1"), "sizes"], capture_output=True, check=True).stdout)
    codes = {"u8": "B", "u16": "H", "u32": "I", "u64": "Q"}
    tables = re.findall(r"^\| `(\w+)` \| (\S+) \| (.*?) \|", DOCUMENT, flags=re.MULTILINE)
    header = [(name, kind) for name, kind, _ in tables if kind in codes and name != "crc"]
    assert "<" + "".join(codes[kind] for _, kind in header) == frames.HEADER.format
    assert [name for name, _ in header] == ["version", "type", "length", "session", "sequence"]
    documented = {int(number): (name, fields) for name, number, fields in tables if number.isdigit()}
    assert documented.keys() == TYPES.keys()
    for number, (name, fields) in documented.items():
        kind, fixed = TYPES[number]
        parts = re.findall(r"`(\w+)` (u\d+|f32\[\])", fields)
        plain = [(field, code) for field, code in parts if code != "f32[]"]
        assert kind.__name__.lower() == name
        assert "<" + "".join(codes[code] for _, code in plain) == fixed.format
        assert [field for field, _ in parts] == list(kind.__struct_fields__)
        assert said[f"EDGE_{name.upper()}"] == number
        assert said[f"EDGE_{name.upper()}_BYTES"] == fixed.size
    constants = ("PROTOCOL_VERSION", "MAX_PAYLOAD", "MAX_ENCODED", "SEQUENCE_WINDOW", "MAX_TTL_MS")
    assert all(said[f"EDGE_{name}"] == getattr(frames, name) for name in constants)
    assert (said["EDGE_HEADER_BYTES"], said["EDGE_CRC_BYTES"]) == (frames.HEADER.size, frames.CRC.size)
    assert all(said[f"EDGE_{one.name}"] == one for one in (*Result, *State))
    assert all(said[f"EDGE_FAULT_{code.name}"] == code for code in FaultCode)
    reasons = re.findall(r"^\| `(\w+)` \| [^|]*\|$", DOCUMENT, flags=re.MULTILINE)
    assert [result.name.lower() for result in Result][1:] == reasons
