"""What is remembered of earlier prompts saves reading, outlasts the process, and changes no answer."""

from __future__ import annotations

import threading
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import edge_sdk
from edge_sdk import Bundle, LanguageModel
from edge_sdk.backends import Snapshot
from edge_sdk.prefix_cache import WRITES, DiskStore, PrefixCache

COMMANDS = ("walk around left thrice", "jump twice and run", "look opposite right after walk", "turn left")


@pytest.fixture
def model(chat_model: LanguageModel) -> LanguageModel:
    return chat_model


@pytest.fixture
def remembering(chat_bundle: Path) -> LanguageModel:
    loaded = edge_sdk.load(chat_bundle, threads=1)
    loaded.prefixes = PrefixCache(1 << 20, interval=16, least=2)
    return loaded


MANUAL = [{"role": "system", "content": " ".join(f"{COMMANDS[0]} {COMMANDS[1]}" for _ in range(3))}]


def ask(model: LanguageModel, command: str) -> edge_sdk.Completion:
    with model.session() as session:
        return session.generate([*MANUAL, {"role": "user", "content": command}], max_new_tokens=8)  # type: ignore[list-item]


def test_a_manual_is_read_once(model: LanguageModel, remembering: LanguageModel) -> None:
    manual = len(model.codec.encode("<s> " + MANUAL[0]["content"]))
    answers = [ask(remembering, command) for command in (*COMMANDS, *COMMANDS)]
    assert [answer.token_ids for answer in answers] == [ask(model, command).token_ids for command in (*COMMANDS,) * 2]
    assert answers[0].cached_tokens == 0
    assert answers[1].cached_tokens == manual // 16 * 16  # a regular snapshot; where they part is known from now on
    assert answers[2].cached_tokens >= manual
    # a prompt that came before: all but its last token
    again = ask(remembering, COMMANDS[0])
    assert again.cached_tokens == again.prompt_tokens - 1


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    prompts=st.lists(st.lists(st.sampled_from(["walk", "left", "jump"]), min_size=1, max_size=30), max_size=6),
    limit=st.integers(0, 1 << 17),
    interval=st.integers(1, 20),
)
def test_remembering_changes_no_answer(
    model: LanguageModel, remembering: LanguageModel, prompts: list[list[str]], limit: int, interval: int
) -> None:
    remembering.prefixes = PrefixCache(limit, interval=interval, least=1)
    for words in prompts:
        prompt = " ".join(words)
        found, expected = (each.generate(prompt, max_new_tokens=4) for each in (remembering, model))
        assert found.token_ids == expected.token_ids
        assert remembering.prefixes.nbytes <= limit


def test_what_is_remembered_outlasts_the_process(chat_bundle: Path, tmp_path: Path) -> None:
    def load() -> LanguageModel:
        loaded = edge_sdk.load(chat_bundle, threads=1, prefix_cache_folder=tmp_path)
        assert loaded.prefixes is not None
        loaded.prefixes.interval, loaded.prefixes.least = 16, 2
        return loaded

    first = load()
    expected = ask(first, COMMANDS[0])
    first.prefixes.close()  # type: ignore[union-attr]
    second = load()
    found = ask(second, COMMANDS[0])
    assert found.token_ids == expected.token_ids
    assert found.cached_tokens > 0
    for path in tmp_path.rglob("*.state"):
        path.write_bytes(path.read_bytes()[:-1])
    third = load()
    damaged = ask(third, COMMANDS[0])
    third.prefixes.close()  # type: ignore[union-attr]
    assert (damaged.token_ids, damaged.cached_tokens) == (expected.token_ids, 0)
    assert list(tmp_path.rglob("*.state")) != []  # written anew


def test_stray_files_in_the_folder_are_left_alone(chat_bundle: Path, tmp_path: Path) -> None:
    folder = tmp_path / Bundle.open(chat_bundle).model_id[:16]
    folder.mkdir()
    names = ["notes.state", "zz-12.state", "0123-5.state", ".half.state.0123abcd.tmp"]
    for name in names:
        (folder / name).write_text("?")
    model = edge_sdk.load(chat_bundle, threads=1, prefix_cache_folder=tmp_path)
    assert model.prefixes is not None
    assert len(model.prefixes) == 0
    assert sorted(path.name for path in folder.iterdir()) == sorted(names[:3])  # nobody writes the last one any more


def test_a_slow_disk_does_not_make_snapshots_pile_up(tmp_path: Path) -> None:
    written, go_on = list[Path](), threading.Event()

    def write(path: Path, *_: object) -> None:
        go_on.wait(10)
        written.append(path)

    cache = PrefixCache(1 << 20, disk=DiskStore(tmp_path, 1 << 20, write=write, read=lambda path: ([], snapshot)))
    snapshot = Snapshot(1, (np.zeros(8, np.float32),))
    for token in range(3 * WRITES):
        cache.add([token], snapshot)
    go_on.set()
    cache.close()
    assert len(written) == WRITES
    assert len(cache) == 3 * WRITES  # those in memory are all there
