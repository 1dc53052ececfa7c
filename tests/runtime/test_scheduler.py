"""Several sessions on one engine: their steps run together, answers stay what they are alone, the urgent go first."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import edge_sdk
import scan
from edge_sdk import LanguageModel
from edge_sdk.backends import States
from edge_sdk.errors import BackendError, BusyError
from edge_sdk.scheduler import URGENT_BLOCK, Scheduler

COMMANDS = [command for command, _ in scan.simple_split()[1][:60]]


@pytest.fixture(scope="module")
def alone(chat_bundle: Path) -> dict[str, tuple[int, ...]]:
    """What each command is answered when nobody else asks."""
    model = edge_sdk.load(chat_bundle, threads=1)
    return {command: model.generate(command).token_ids for command in COMMANDS}


class Watched:
    """A model with slots, and the shapes of the steps that its engine makes."""

    def __init__(self, bundle: Path, slots: int, waiting: int = 100, pause_s: float = 0.0) -> None:
        self.model = edge_sdk.load(bundle, threads=1, slots=slots, waiting=waiting, prefix_cache_bytes=0)
        if not isinstance(self.model.steps, Scheduler):
            pytest.skip("needs the native kernels")
        self.shapes: list[tuple[int, int]] = []
        self.before: Callable[[], object] = lambda: time.sleep(pause_s)
        self._step = self.model.engine.step
        self.model.engine.step = self._watch  # type: ignore[method-assign]

    def _watch(self, input_ids: np.ndarray, states: States, logits: Any = "last") -> np.ndarray:
        self.shapes.append((input_ids.shape[0], input_ids.shape[1]))
        self.before()
        return self._step(input_ids, states, logits)


def ask_all(model: LanguageModel, commands: list[str], clients: int) -> list[tuple[int, ...]]:
    with ThreadPoolExecutor(clients) as pool:
        return [answer.token_ids for answer in pool.map(model.generate, commands)]


@pytest.mark.parametrize("slots", [2, 3, 8])
def test_answers_are_what_they_are_alone(chat_bundle: Path, alone: dict[str, tuple[int, ...]], slots: int) -> None:
    watched = Watched(chat_bundle, slots, pause_s=0.001)
    assert ask_all(watched.model, COMMANDS, 8) == [alone[command] for command in COMMANDS]
    assert max(rows for rows, _ in watched.shapes) == slots


def test_a_row_does_not_depend_on_the_others(chat_bundle: Path) -> None:
    engine = edge_sdk.load(chat_bundle, threads=1, prefix_cache_bytes=0).engine
    if not engine.has_rows:
        pytest.skip("needs the native kernels")
    ids = np.random.default_rng(0).integers(3, 24, (8, 20))
    for rows in (2, 3, 8):
        together, alone = engine.empty_states(rows), [engine.empty_states(1) for _ in range(rows)]
        for column in ids[:rows].T:
            logits = engine.step(column[:, None], together).copy()
            for row, states in enumerate(alone):
                assert (engine.step(column[row : row + 1, None], states)[0] == logits[row]).all()  # to the last bit


def test_a_conversation_goes_on_wherever_its_states_lie(chat_bundle: Path) -> None:
    direct = edge_sdk.load(chat_bundle, threads=1)
    watched = Watched(chat_bundle, 4, pause_s=0.001)

    def converse(model: LanguageModel, first: int) -> list[Any]:
        with model.session() as session:
            said = [session.generate(COMMANDS[first + turn], max_new_tokens=15).token_ids for turn in range(4)]
            fork = session.fork()
            said += [each.generate("jump twice", max_new_tokens=5).token_ids for each in (fork, session)]
            fork.close()
            return said

    with ThreadPoolExecutor(6) as pool:
        found = list(pool.map(lambda first: converse(watched.model, first), range(12)))
    assert found == [converse(direct, first) for first in range(12)]


@settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(st.integers(0, 59), st.integers(0, 20)), min_size=4, max_size=24))
def test_cancelled_answers_leave_the_others_alone(
    chat_bundle: Path, alone: dict[str, tuple[int, ...]], asked: list[tuple[int, int]]
) -> None:
    watched = Watched(chat_bundle, 3, pause_s=0.0005)

    def ask(which: int, patience: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
        with watched.model.session() as session:
            stream = session.stream(COMMANDS[which])
            tokens = [token.token_id for _, token in zip(range(patience), stream)]
            return tuple(tokens), alone[COMMANDS[which]][:patience]

    with ThreadPoolExecutor(8) as pool:
        for found, expected in pool.map(lambda item: ask(*item), asked):
            assert found == expected
    assert watched.model.generate(COMMANDS[0]).token_ids == alone[COMMANDS[0]]
    assert watched.model.steps._places == []  # type: ignore[union-attr]


def test_too_many_are_refused_at_once(chat_bundle: Path) -> None:
    watched = Watched(chat_bundle, 2, waiting=1)
    held = [watched.model.session().stream(COMMANDS[index]) for index in range(2)]
    for stream in held:
        next(stream)
    third = threading.Thread(target=watched.model.generate, args=(COMMANDS[2],), kwargs={"max_new_tokens": 1})
    third.start()
    while len(watched.model.steps._queue) < 1:  # type: ignore[union-attr]
        time.sleep(0.001)
    with pytest.raises(BusyError, match="fewer than 2 answers at a time and 1 waiting"):
        watched.model.generate(COMMANDS[3])
    held[0].close()
    third.join(10)
    assert not third.is_alive()


def test_who_waits_may_give_up(chat_bundle: Path) -> None:
    watched = Watched(chat_bundle, 2)
    held = [watched.model.session().stream(COMMANDS[index]) for index in range(2)]
    for stream in held:
        next(stream)
    completion = watched.model.generate(COMMANDS[2], deadline_ms=50)
    assert (completion.finish_reason, completion.token_ids) == ("deadline", ())


def test_the_urgent_wait_for_one_step_at_most(chat_bundle: Path) -> None:
    watched = Watched(chat_bundle, 5, pause_s=0.002)
    stop = threading.Event()

    def chat(first: int) -> None:
        while not stop.is_set():
            watched.model.generate(COMMANDS[first])

    def read() -> None:
        while not stop.is_set():
            with watched.model.session() as session:
                session.read("walk " * 120)

    threads = [threading.Thread(target=work, args=arguments) for work, arguments in ((chat, (0,)), *3 * ((read, ()),))]
    for thread in threads:
        thread.start()
    try:
        with watched.model.session(priority=1) as control:
            stream = control.stream("walk around left thrice")
            waited = []
            next(stream)
            for _ in range(20):
                before = len(watched.shapes)
                next(stream)
                waited.append(len(watched.shapes) - before)
            # the step that runs already, and its own; a busy machine may hold this thread up before it asks
            assert sorted(waited)[14] <= 2, waited
    finally:
        stop.set()
        for thread in threads:
            thread.join()


def test_others_read_in_short_blocks_while_an_urgent_session_is_open(chat_bundle: Path) -> None:
    watched = Watched(chat_bundle, 2)

    def longest_block() -> int:
        watched.shapes.clear()
        with watched.model.session() as session:
            session.read("walk " * 120)
        return max(length for _, length in watched.shapes)

    assert longest_block() > URGENT_BLOCK
    with watched.model.session(priority=1):
        assert longest_block() == URGENT_BLOCK
    assert longest_block() > URGENT_BLOCK


def test_a_place_is_given_to_the_urgent_and_then_in_the_order_of_coming(chat_bundle: Path) -> None:
    watched = Watched(chat_bundle, 2)
    held = [watched.model.session().stream(COMMANDS[index]) for index in range(2)]
    for stream in held:
        next(stream)
    entered: list[str] = []

    def ask(name: str, priority: int) -> None:
        with watched.model.session(priority=priority) as session:
            for _ in session.stream(COMMANDS[2], max_new_tokens=1):
                entered.append(name)

    threads = []
    for name, priority in (("first", 0), ("second", 0), ("urgent", 1)):
        threads.append(threading.Thread(target=ask, args=(name, priority)))
        threads[-1].start()
        while len(watched.model.steps._queue) < len(threads):  # type: ignore[union-attr]
            time.sleep(0.001)
    held[0].close()  # one place for three
    for thread in threads:
        thread.join(30)
    assert entered == ["urgent", "first", "second"]


def test_a_failed_step_takes_only_its_own_batch_along(chat_bundle: Path, alone: dict[str, tuple[int, ...]]) -> None:
    watched = Watched(chat_bundle, 2)
    waiting = watched.model.session()
    waiting.prepare(COMMANDS[0])
    watched.before = lambda: 1 / 0
    with pytest.raises(BackendError, match="division by zero"):
        watched.model.generate(COMMANDS[1])
    watched.before = lambda: None
    assert waiting.generate().token_ids == alone[COMMANDS[0]]


def test_an_engine_without_rows_takes_turns(
    scan_bundle: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edge_sdk.backends.ort.native_library", lambda: None)
    model = edge_sdk.load(scan_bundle, threads=1, slots=4)
    assert "take turns by step" in caplog.text
    assert len(set(ask_all(model, COMMANDS[:1] * 6, 3))) == 1
