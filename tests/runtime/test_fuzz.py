"""Whatever comes from outside is used or refused with a typed error: files, manifests, messages, bytes on a socket."""

from __future__ import annotations

import copy
import json
import shutil
import socket
import zlib
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import edge_sdk
import tokenizers_for_tests as kinds
from bundles import HERMES, changed
from edge_sdk import Bundle, LanguageModel
from edge_sdk.bundle import MANIFEST
from edge_sdk.errors import BundleError, PromptError, StateError
from edge_sdk.state_file import ALIGNMENT, CHECKSUM_BYTES, MAGIC
from edge_sdk.text import TextCodec, TextStream
from servers import Server, serving

SHARED = {"deadline": None, "suppress_health_check": list(HealthCheck)}

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)


@pytest.fixture(scope="module")
def model(chat_bundle: Path) -> LanguageModel:
    return edge_sdk.load(chat_bundle, threads=1, prefix_cache_bytes=0)


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The paths to everything in a JSON document."""
    if path:
        yield path
    items: Any = ()
    if isinstance(value, dict):
        items = value.items()
    elif isinstance(value, list):
        items = enumerate(value)
    for key, inner in items:
        yield from places(inner, (*path, key))


def with_change(document: Any, path: tuple[Any, ...], change: Any) -> Any:
    """The document with something else at a path, or nothing (``...``)."""
    changed_one = copy.deepcopy(document)
    place = changed_one
    for key in path[:-1]:
        place = place[key]
    if change is ...:
        del place[path[-1]]
    else:
        place[path[-1]] = change
    return changed_one


@pytest.fixture(scope="module")
def manifest_copy(chat_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Path(shutil.copytree(chat_bundle, tmp_path_factory.mktemp("fuzz") / "bundle"))


@settings(max_examples=250, **SHARED)
@given(data=st.data())
def test_any_change_of_a_manifest_is_refused_or_means_something(manifest_copy: Path, data: st.DataObject) -> None:
    path = manifest_copy / MANIFEST
    whole = path.read_bytes()
    document = json.loads(whole)
    place = data.draw(st.sampled_from(sorted(places(document), key=repr)))
    value = data.draw(st.just(...) | st.integers(-3, 1 << 70) | JSON)
    try:
        path.write_text(json.dumps(with_change(document, place, value)))
        with suppress(BundleError):
            Bundle.open(manifest_copy, verify_hashes=False)
    finally:
        path.write_bytes(whole)


@settings(max_examples=60, **SHARED)
@given(data=st.data())
def test_any_cut_of_any_file_is_refused(manifest_copy: Path, data: st.DataObject) -> None:
    path = data.draw(st.sampled_from(sorted(file for file in manifest_copy.iterdir() if file.is_file())))
    whole = path.read_bytes()
    try:
        path.write_bytes(whole[: data.draw(st.integers(0, len(whole) - 1 - whole.endswith(b"\n")))])
        with pytest.raises(BundleError):
            Bundle.open(manifest_copy, verify_hashes=False)
    finally:
        path.write_bytes(whole)


def sealed(header: bytes, rest: bytes, claimed: int | None = None) -> bytes:
    """A state file whose checksum is right, whatever it says."""
    size = len(header) if claimed is None else claimed
    body = MAGIC + size.to_bytes(8, "little") + bytes(ALIGNMENT - 16) + header + bytes(-len(header) % ALIGNMENT) + rest
    return body + zlib.crc32(body).to_bytes(CHECKSUM_BYTES, "little")


@settings(max_examples=250, **SHARED)
@given(data=st.data())
def test_a_state_that_somebody_else_wrote_is_refused_or_goes_on(
    model: LanguageModel, tmp_path: Path, data: st.DataObject
) -> None:
    path = tmp_path / "a.state"
    with model.session() as session:
        session.read("<s> jump")
        session.append("twice =>")
        session.save(path)
    whole = path.read_bytes()
    size = int.from_bytes(whole[8:16], "little")
    start = ALIGNMENT + -(-size // ALIGNMENT) * ALIGNMENT
    header, rest = json.loads(whole[ALIGNMENT : ALIGNMENT + size]), bytearray(whole[start:-CHECKSUM_BYTES])
    place = data.draw(st.sampled_from(sorted(places(header), key=repr)))
    header = with_change(header, place, data.draw(st.integers(-3, 300) | st.integers(-(1 << 70), 1 << 70) | JSON))
    if data.draw(st.booleans()):
        ids = np.array(data.draw(st.lists(st.integers(-(1 << 31), (1 << 31) - 1), min_size=1, max_size=2)), np.int32)
        rest[: ids.nbytes] = ids.tobytes()
    del rest[data.draw(st.just(len(rest)) | st.integers(0, len(rest))) :]
    claimed = data.draw(st.none() | st.integers(0, (1 << 64) - 1))
    path.write_bytes(sealed(msgspec.json.encode(header), bytes(rest), claimed))
    try:
        restored = model.restore(path)
    except StateError:
        return
    with restored:
        try:
            restored.generate("walk", max_new_tokens=2)
        except PromptError:
            assert restored.everything == restored.everything[: restored.max_context]


@settings(max_examples=150, **SHARED)
@given(content=st.binary(max_size=300), named=st.booleans())
def test_any_bytes_as_a_state_are_refused(model: LanguageModel, tmp_path: Path, content: bytes, named: bool) -> None:
    path = tmp_path / "a.state"
    path.write_bytes(MAGIC + content if named else content)
    with pytest.raises(StateError, match="expected"):
        model.restore(path)


@pytest.fixture(scope="module")
def codecs(scan_bundle: Path, chat_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> list[TextCodec]:
    tools = changed(scan_bundle, tmp_path_factory.mktemp("tools") / "bundle", HERMES)
    return [TextCodec(folder) for folder in (scan_bundle, chat_bundle, tools)]


TEXT = st.text(st.characters(codec=None, exclude_categories=()), max_size=12)  # halves of surrogate pairs among them
MESSAGE = st.dictionaries(
    st.sampled_from(["role", "content", "tool_calls", "name"]) | TEXT,
    TEXT | JSON | st.sampled_from(["user", "system", "assistant", "tool"]),
    max_size=4,
)


@settings(max_examples=300, **SHARED)
@given(which=st.integers(0, 2), messages=st.lists(MESSAGE | JSON, max_size=4), extra=st.dictionaries(TEXT, JSON))
def test_any_messages_are_rendered_or_refused(
    codecs: list[TextCodec], which: int, messages: list[Any], extra: dict[str, Any]
) -> None:
    try:
        text = codecs[which].render(messages, extra)
    except PromptError:
        return
    assert codecs[which].encode(text) is not None


@settings(max_examples=100, **SHARED)
@given(prompt=st.lists(MESSAGE | JSON, max_size=3) | TEXT | st.binary(max_size=20) | JSON)
def test_any_prompt_is_read_or_refused(model: LanguageModel, prompt: Any) -> None:
    with model.session() as session:
        try:
            session.prepare(prompt)
        except PromptError:
            assert session.position == 0


@settings(max_examples=200, **SHARED)
@given(text=st.text(st.characters(codec="utf-8", exclude_characters="<"), max_size=40))  # special tokens are no text
def test_tokens_that_split_characters_give_whole_ones(text: str) -> None:
    """A vocabulary of bytes: every character beyond ASCII comes in pieces."""
    tokenizer = kinds.byte_level(vocabulary=260)
    stream = TextStream(tokenizer, {})
    pieces = [stream.step(token_id) for token_id in tokenizer.encode(text).ids]
    assert "".join(pieces) == text
    assert not any("\ufffd" in piece for piece in pieces if "\ufffd" not in text)


@settings(max_examples=200, **SHARED)
@given(ids=st.lists(st.integers(0, 259), max_size=30), kind=st.sampled_from(["byte_level", "sentencepiece"]))
def test_any_tokens_stream_as_they_are_decoded(ids: list[int], kind: str) -> None:
    tokenizer = getattr(kinds, kind)()
    stream = TextStream(tokenizer, {})
    said, whole = "".join(stream.step(token_id) for token_id in ids), tokenizer.decode(ids, skip_special_tokens=True)
    assert whole.startswith(said)
    assert len(whole) - len(said) <= 4 or whole[len(said) :].startswith("\ufffd")  # bytes whose character is not whole


@pytest.fixture(scope="module")
def server(scan_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with serving(scan_bundle, tmp_path_factory.mktemp("fuzz") / "log", "--at-once", 2) as started:
        yield started


REQUEST = (
    b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n"
)


@settings(max_examples=80, **SHARED)
@given(data=st.data())
def test_any_bytes_on_a_socket_leave_the_server_as_it_was(server: Server, data: st.DataObject) -> None:
    content = json.dumps({"model": server.name, "messages": [{"role": "user", "content": "walk"}]}).encode()
    whole = REQUEST % len(content) + content
    start, stop = sorted(data.draw(st.tuples(st.integers(0, len(whole)), st.integers(0, len(whole)))))
    sent = whole[:start] + data.draw(st.binary(max_size=40)) + whole[stop:]
    with socket.create_connection(("127.0.0.1", server.port), timeout=10) as connection:
        connection.sendall(sent)
        connection.shutdown(socket.SHUT_WR)
        answer = connection.recv(1 << 16)
    assert answer == b"" or answer.startswith(b"HTTP/1.1 ")
    assert not answer.startswith(b"HTTP/1.1 500")


def test_after_all_that_the_server_still_answers(server: Server) -> None:
    for name in ("edge_requests_running", "edge_requests_waiting"):
        server.wait_for(name, 0)
    messages: list[Any] = [{"role": "user", "content": "walk"}]
    answer = server.client().chat.completions.create(model=server.name, messages=messages, temperature=0)
    assert answer.choices[0].message.content == "I_WALK"
    assert "Traceback" not in server.log.read_text()
