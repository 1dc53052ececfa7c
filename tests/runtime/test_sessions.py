"""Sessions over several turns: what is read again, forks, and answers that are cut off or fail."""

from __future__ import annotations

import asyncio
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import edge_sdk
from edge_sdk import Completion, LanguageModel, Options
from edge_sdk.backends import States
from edge_sdk.errors import BackendError, ConfigError, PromptError
from edge_sdk.session import Session

COMMANDS = ("walk around left thrice", "jump twice and run", "look opposite right after walk", "turn left")


@pytest.fixture
def model(chat_model: LanguageModel) -> LanguageModel:
    return chat_model


@pytest.fixture
def fed(model: LanguageModel, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The tokens that the engine was given, in order."""
    tokens: list[int] = []
    step = model.engine.step

    def watch(input_ids: np.ndarray, states: States, logits: Any = "last") -> np.ndarray:
        tokens.extend(input_ids.ravel().tolist())
        return step(input_ids, states, logits)

    monkeypatch.setattr(model.engine, "step", watch)
    return tokens


def anew(model: LanguageModel, session: Session, count: int) -> list[int]:
    """What the model answers to a session's whole conversation, read at once by the engine alone."""
    states, ids, answer = model.engine.empty_states(1), list(session.everything), []
    for _ in range(count):
        token = int(model.engine.next_tokens(np.array([ids]), states)[0])
        if token in model.config.eos_token_ids:
            break
        answer.append(token)
        ids = [token]
    return answer


def test_a_later_turn_reads_only_what_is_new(model: LanguageModel, fed: list[int]) -> None:
    with model.session() as session:
        for command in COMMANDS:
            before = len(fed)
            completion = session.generate(command)
            assert len(fed) - before == completion.prompt_tokens + len(completion.token_ids)
        assert session.position == len(fed)
        text = "<s> " + " ".join(
            f"{message['content']} =>" if message["role"] == "user" else message["content"]
            for message in session.messages
        )
        assert model.codec.encode(text) == session.everything


def test_a_later_answer_is_that_to_the_whole_conversation(model: LanguageModel) -> None:
    with model.session() as session:
        for command in COMMANDS:
            stream = session.stream(command, max_new_tokens=12)
            expected = anew(model, session, 12)
            assert list(stream.result().token_ids) == expected


def test_a_conversation_that_the_template_takes_back_is_read_anew(scan_bundle: Path) -> None:
    model = edge_sdk.load(scan_bundle, threads=1)
    with model.session() as session:
        session.generate("walk twice")
        assert session.generate("jump").text == model.generate("jump").text
        assert session.position < model.generate("walk twice").prompt_tokens * 2


def test_text_may_be_read_without_the_template(model: LanguageModel) -> None:
    with model.session() as session, model.session() as other:
        session.read("<s> turn left")
        session.read(" =>")
        answer = session.generate().token_ids
        assert answer == other.generate("turn left").token_ids
        with pytest.raises(PromptError, match="none, and nothing was read"):
            session.stream()


def test_a_fork_goes_its_own_way(model: LanguageModel) -> None:
    with model.session() as session:
        session.generate(COMMANDS[0])
        fork = session.fork()
        mine, theirs = session.generate(COMMANDS[1]), fork.generate(COMMANDS[2])
        assert [len(session.messages), len(fork.messages)] == [4, 4]
        with model.session() as check:
            check.generate(COMMANDS[0])
            assert check.generate(COMMANDS[2]).token_ids == theirs.token_ids
        with model.session() as check:
            check.generate(COMMANDS[0])
            assert check.generate(COMMANDS[1]).token_ids == mine.token_ids


def test_alternatives_are_drawn_from_one_reading(model: LanguageModel, fed: list[int]) -> None:
    options = Options(temperature=15.0, seed=5, max_new_tokens=6)
    answers = model.alternatives("jump twice", 4, options)
    length = len(model.codec.encode_prompt("jump twice"))
    assert len(fed) < length + 4 * 7
    assert len({answer.token_ids for answer in answers}) > 1
    expected = model.generate("jump twice", options.but(seed=7))
    assert answers[2].token_ids == expected.token_ids


def test_cancelling_from_another_thread_ends_within_a_step(model: LanguageModel) -> None:
    with model.session() as session:
        stream = session.stream(COMMANDS[0])
        first = next(stream)
        thread = threading.Thread(target=stream.cancel)
        thread.start()
        thread.join()
        assert list(stream) == []
        assert stream.finish_reason == "cancelled"
        assert session.messages[-1]["content"] == first.text
        assert stream.result().token_ids == (first.token_id,)


def test_reading_that_is_cut_off_is_finished_later(model: LanguageModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model.engine, "prefill_block", 2)
    expected = model.generate(COMMANDS[2])
    with model.session() as session:
        stream = session.stream(COMMANDS[2])
        steps = 0
        step = model.engine.step

        def cancel_at_the_second(*arguments: Any, **named: Any) -> np.ndarray:
            nonlocal steps
            steps += 1
            if steps == 2:
                stream.cancel()
            return step(*arguments, **named)

        monkeypatch.setattr(model.engine, "step", cancel_at_the_second)
        assert stream.result().token_ids == ()
        assert (session.position, stream.finish_reason) == (4, "cancelled")
        monkeypatch.setattr(model.engine, "step", step)
        assert session.generate().token_ids == expected.token_ids


def test_a_deadline_keeps_what_was_made(model: LanguageModel, monkeypatch: pytest.MonkeyPatch) -> None:
    step = model.engine.step

    def slow(*arguments: Any, **named: Any) -> np.ndarray:
        time.sleep(0.05)
        return step(*arguments, **named)

    whole = model.generate(COMMANDS[0]).token_ids
    monkeypatch.setattr(model.engine, "step", slow)
    completion = model.generate(COMMANDS[0], deadline_ms=220)
    assert completion.finish_reason == "deadline"
    assert 1 <= len(completion.token_ids) <= 5  # the last step may begin just before the deadline
    assert completion.token_ids == whole[: len(completion.token_ids)]
    late = model.generate(COMMANDS[0], deadline_ms=0)
    assert (late.text, late.finish_reason, late.time_to_first_token_ms) == ("", "deadline", 0.0)


def test_a_stop_text_ends_the_answer(model: LanguageModel) -> None:
    whole = model.generate(COMMANDS[1]).text
    assert whole == "I_JUMP I_JUMP I_RUN"
    with model.session() as session:
        stream = session.stream(COMMANDS[1], stop=["JUMP I_RUN", "nothing"])
        tokens = list(stream)
        assert "".join(token.text for token in tokens) == "I_JUMP I_"
        assert stream.finish_reason == "stop"
        assert [token.index for token in tokens] == list(range(3))
        assert session.messages[-1]["content"] == whole  # what the model said and remembers


def test_an_abandoned_answer_does_not_disturb_the_next_turn(model: LanguageModel) -> None:
    with model.session() as session:
        stream = session.stream(COMMANDS[0])
        said = [next(stream).text for _ in range(3)]
        completion = session.generate(COMMANDS[3])
        assert list(stream) == []
        assert [message["content"] for message in session.messages[:2]] == [COMMANDS[0], "".join(said)]
        with model.session() as check:
            check.read(f"<s> {COMMANDS[0]} => {''.join(said)} {COMMANDS[3]} =>")
            assert check.generate().token_ids == completion.token_ids


def test_an_answer_may_be_awaited(model: LanguageModel) -> None:
    async def ask() -> list[str]:
        with model.session() as session:
            return [token.text async for token in session.stream("jump twice")]

    async def together() -> list[Completion]:
        with model.session() as one, model.session() as other:
            return await asyncio.gather(one.stream("jump twice"), other.stream(COMMANDS[0]))

    assert "".join(asyncio.run(ask())) == model.generate("jump twice").text
    first, second = asyncio.run(together())
    assert first.text == model.generate("jump twice").text
    assert second.token_ids == model.generate(COMMANDS[0]).token_ids


@pytest.mark.parametrize("whole", [False, True], ids=["in pieces", "whole"])
def test_a_cancelled_task_cancels_the_answer(
    model: LanguageModel, monkeypatch: pytest.MonkeyPatch, whole: bool
) -> None:
    session, step, may_end = model.session(), model.engine.step, threading.Event()
    stepping = threading.Event()

    def held_up(*arguments: Any, **named: Any) -> np.ndarray:
        stepping.set()
        assert may_end.wait(30)
        return step(*arguments, **named)

    monkeypatch.setattr(model.engine, "step", held_up)
    stream = session.stream(COMMANDS[0])

    async def ask() -> None:
        if whole:
            await stream
        async for _ in stream:
            pass

    async def interrupt() -> None:
        task = asyncio.create_task(ask())
        assert await asyncio.to_thread(stepping.wait, 30)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        may_end.set()

    asyncio.run(interrupt())  # which waits for the thread that steps
    assert list(stream) == []
    assert stream.finish_reason == "cancelled"


def test_an_engine_that_fails_takes_only_its_session_along(
    model: LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    step = model.engine.step
    with model.session() as other:
        other.generate("walk")
        session = model.session()
        stream = session.stream(COMMANDS[0])
        next(stream)
        monkeypatch.setattr(model.engine, "step", lambda *arguments: 1 / 0)
        with pytest.raises(BackendError, match="division by zero"):
            next(stream)
        monkeypatch.setattr(model.engine, "step", step)
        with pytest.raises(ConfigError, match="found closed"):
            session.generate("walk")
        assert other.generate("jump").token_ids


def test_a_shorter_context_may_be_asked_for(model: LanguageModel) -> None:
    with model.session(max_context=12) as session:
        completion = session.generate(COMMANDS[0])
        assert completion.finish_reason == "length"
        assert len(session.everything) == 12
        with pytest.raises(PromptError, match="at most 11 tokens"):
            session.stream("jump")


@pytest.mark.parametrize("ids", [[3, 24], [-1], [1 << 70]])
def test_token_ids_that_the_model_lacks_are_refused(model: LanguageModel, ids: list[int]) -> None:
    with model.session() as session:
        with pytest.raises(PromptError, match="expected 0 to 23"):
            session.read(ids)
        assert session.generate("jump").token_ids
