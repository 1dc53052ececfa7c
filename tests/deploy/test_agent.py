"""The board's agent: whatever comes in is answered, refused, or waited for no longer."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edge_sdk import Bundle
from edge_sdk.deploy.agent import Agent, questions
from edge_sdk.deploy.chunks import offer, read_chunk
from edge_sdk.deploy.protocol import (
    HEADER,
    MAX_FRAME_BYTES,
    Answer,
    AskStatus,
    Begin,
    Chunk,
    Commit,
    Installed,
    Missing,
    Refused,
    Rollback,
    Status,
    Welcome,
    decode_answer,
    decode_question,
    frame,
)
from edge_sdk.deploy.store import Store
from edge_sdk.errors import DeployError, EdgeError
from small_bundles import install, runs, small_bundle, tree

PACKED_INTEGERS = st.integers(-(2**63), 2**64 - 1)
"""All that MessagePack can say."""


def talk(store: Path, content: bytes, *more: str) -> list[Answer]:
    """All that an agent answers to what comes in."""
    command = [sys.executable, "-m", "edge_sdk.deploy.agent", str(store), *more]
    said = subprocess.run(command, input=content, capture_output=True, check=False, timeout=60).stdout
    answers = []
    while said:
        (length,) = HEADER.unpack(said[: HEADER.size])
        answers.append(decode_answer(said[HEADER.size : HEADER.size + length]))
        said = said[HEADER.size + length :]
    return answers


def test_an_agent_says_who_it_is_and_answers(tmp_path: Path) -> None:
    welcome, status, refused = talk(tmp_path / "store", frame(AskStatus()) + frame(Rollback(force=False)))
    assert isinstance(welcome, Welcome)
    assert isinstance(status, Status)
    assert status.record.active is None
    assert isinstance(refused, Refused)
    assert "The other slot: expected a bundle" in refused.reason


@pytest.mark.parametrize("content", [b"GET / HTTP/1.1\r\n\r\n", HEADER.pack(MAX_FRAME_BYTES + 1), frame(Commit())])
def test_what_makes_no_sense_is_refused(tmp_path: Path, content: bytes) -> None:
    assert isinstance(talk(tmp_path / "store", content)[-1], Refused)


def test_a_frame_that_is_cut_off_ends_the_agent(tmp_path: Path) -> None:
    assert len(talk(tmp_path / "store", frame(AskStatus())[:-1])) == 1


def test_silence_ends_it(tmp_path: Path) -> None:
    reading, writing = os.pipe()
    started = time.monotonic()
    assert list(questions(reading, 0.3)) == []
    assert time.monotonic() - started >= 0.3
    threading.Timer(0.1, os.write, (writing, frame(AskStatus()))).start()
    assert list(questions(reading, 0.5)) == [AskStatus()]
    os.close(reading)
    os.close(writing)


@settings(max_examples=200, deadline=None)
@given(content=st.binary(max_size=60))
def test_any_bytes_are_a_question_or_refused(content: bytes) -> None:
    with suppress(DeployError):
        assert decode_question(content) is not None


@pytest.fixture(scope="module")
def board(tmp_path_factory: pytest.TempPathFactory) -> tuple[Store, Bundle, Bundle]:
    folder = tmp_path_factory.mktemp("agent")
    store, one = Store(folder / "store"), small_bundle(folder / "one", "1")
    install(store, one)
    return store, one, small_bundle(folder / "two", "2")


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_an_offer_with_any_value_replaced_is_refused_or_waits_for_its_chunks(
    board: tuple[Store, Bundle, Bundle], data: st.DataObject
) -> None:
    store, _, two = board
    before = {name: content for name, content in tree(store.folder).items() if not name.startswith("incoming")}
    question: Any = msgspec.to_builtins(Begin(offer(two), force=False), builtin_types=(bytes,))
    values = st.recursive(
        st.none() | st.booleans() | PACKED_INTEGERS | st.binary(max_size=40) | st.text(max_size=10),
        lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=9), inner, max_size=2),
        max_leaves=4,
    )
    place: Any = question
    for key in data.draw(st.sampled_from([["offer"], ["offer", "chunks"], ["offer", "chunks", "model.onnx"], []])):
        place = place[key]
    key = data.draw(st.sampled_from(list(place) if isinstance(place, dict) else list(range(len(place)))))
    if isinstance(place, tuple):
        question["offer"]["chunks"]["model.onnx"] = [data.draw(values)]
    else:
        place[key] = data.draw(values)
    said: list[Answer] = []
    agent = Agent(store, said.append)
    try:
        agent.answer(decode_question(msgspec.msgpack.encode(question)))
        assert isinstance(said[-1], (Missing, Installed))
    except EdgeError:
        pass  # a refusal
    finally:
        agent.close()
    assert {name: store.folder.joinpath(name).read_bytes() for name in before} == before
    assert runs(store) == "1"


def test_chunks_and_commits_come_after_an_offer(board: tuple[Store, Bundle, Bundle]) -> None:
    store, one, two = board
    said: list[Answer] = []
    agent = Agent(store, said.append)
    agent.answer(Chunk("model.onnx", 0, b""))
    assert isinstance(said[-1], Refused)
    agent.answer(Begin(offer(one), force=False))
    assert isinstance(said[-1], Installed)
    assert said[-1].already
    agent.close()
    agent = Agent(store, said.append)
    agent.answer(Begin(offer(two), force=False))
    assert isinstance(said[-1], Missing)
    for name, index in said[-1].chunks:
        agent.answer(Chunk(name, index, read_chunk(two.file(name), index)))
    agent.answer(Commit())
    assert isinstance(said[-1], Installed)
    agent.close()
    assert runs(store) == "2"
