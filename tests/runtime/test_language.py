"""Sessions, streaming and batches on a real bundle, through the engine that this environment has."""

from __future__ import annotations

import gc
import json
import weakref
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import edge_sdk
import scan
from edge_sdk import LanguageModel
from edge_sdk.errors import BackendError, BundleError, ConfigError, PromptError

HELD_OUT = scan.simple_split()[1]


@pytest.fixture(scope="module")
def model(scan_bundle: Path) -> LanguageModel:
    return edge_sdk.load(scan_bundle)


def test_answers_held_out_commands(model: LanguageModel) -> None:
    pairs = HELD_OUT[:400]
    answers = model.generate_batch([command for command, _ in pairs], max_new_tokens=64)
    right = sum(answer == actions for answer, (_, actions) in zip(answers, pairs))
    assert right / len(pairs) >= 0.98


def test_streaming_one_by_one_and_in_a_batch_agree(model: LanguageModel) -> None:
    commands = [command for command, _ in HELD_OUT[:12]]
    for command, answer in zip(commands, model.generate_batch(commands)):
        with model.session() as session:
            tokens = list(session.stream(command))
        completion = model.generate(command)
        assert "".join(token.text for token in tokens) == answer == completion.text
        assert tuple(token.token_id for token in tokens) == completion.token_ids
        assert [token.index for token in tokens] == list(range(len(tokens)))
        assert completion.finish_reason == "stop"
        assert completion.time_to_first_token_ms > 0


def test_messages_and_bytes_are_prompts_too(model: LanguageModel) -> None:
    expected = model.generate("jump left").text
    assert model.generate(b"jump left").text == expected
    assert model.generate([{"role": "user", "content": "jump left"}]).text == expected


def test_a_session_counts_its_context(model: LanguageModel) -> None:
    with model.session() as session:
        completion = session.generate("walk twice")
        assert session.position == completion.prompt_tokens + len(completion.token_ids)


def test_a_closed_session_says_so(model: LanguageModel) -> None:
    with model.session() as session:
        session.generate("walk")
    with pytest.raises(ConfigError, match="found closed"):
        session.generate("walk")


def test_a_long_prompt_is_fed_in_blocks(model: LanguageModel, monkeypatch: pytest.MonkeyPatch) -> None:
    command = "walk around left twice after jump opposite right thrice"
    expected = model.generate(command).text
    for block in (1, 2, 5):
        monkeypatch.setattr(model.engine, "prefill_block", block)
        assert model.generate(command).text == expected
        assert model.generate_batch([command, command]) == [expected] * 2


def test_a_later_answer_that_fills_the_context_is_marked_as_cut(model: LanguageModel) -> None:
    command = "walk around left thrice"
    room, length = 3, len(model.codec.encode_prompt(command))
    with model.session() as session:
        session.read("walk " * (model.config.max_length - room - length))
        completion = session.generate(command)
    assert completion.prompt_tokens == length + 1  # the last one that was read waited for what comes after it
    assert len(completion.token_ids) == room
    assert completion.finish_reason == "length"


def test_a_budget_cuts_the_answer_and_says_so(model: LanguageModel) -> None:
    completion = model.generate("walk around left thrice", max_new_tokens=5)
    assert len(completion.token_ids) == 5
    assert completion.finish_reason == "length"
    with pytest.raises(ConfigError, match="at least 1"):
        model.generate("walk", max_new_tokens=0)


@pytest.mark.parametrize("prompt", ["", "  \n", b"", b"\xff\xfe walk", "\udcff", 7])
def test_an_empty_or_non_utf8_prompt_is_refused(model: LanguageModel, prompt: object) -> None:
    with pytest.raises(PromptError, match="expected"):
        model.generate(prompt)  # type: ignore[arg-type]


def test_a_prompt_longer_than_the_context_is_refused(model: LanguageModel) -> None:
    limit = model.config.max_length
    with pytest.raises(PromptError, match=f"the context holds {limit}"):
        model.generate("walk " * limit)
    with model.session() as session, pytest.raises(PromptError):
        session.stream("walk " * limit)


def test_the_context_may_be_filled_to_its_end(model: LanguageModel) -> None:
    template = len(model.codec.encode_prompt("walk")) - 1
    words = " ".join(["walk"] * (model.config.max_length - template - 1))
    completion = model.generate(words)
    assert completion.prompt_tokens == model.config.max_length - 1
    assert len(completion.token_ids) <= 1


@settings(max_examples=30, deadline=None)
@given(text=st.text(min_size=1, max_size=60))
def test_any_text_is_answered_or_refused(model: LanguageModel, text: str) -> None:
    if text.strip():
        assert len(model.generate(text, max_new_tokens=3).token_ids) <= 3
    else:
        with pytest.raises(PromptError, match="some text"):
            model.generate(text, max_new_tokens=3)


@settings(max_examples=30, deadline=None)
@given(ids=st.lists(st.integers(0, 23), min_size=1, max_size=40))
def test_streamed_pieces_make_the_decoded_text(model: LanguageModel, ids: list[int]) -> None:
    stream = model.codec.stream()
    assert "".join(stream.step(token) for token in ids) == model.codec.decode(ids)


def test_loading_says_what_is_wrong(scan_bundle: Path, tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=r"manifest\.json"):
        edge_sdk.load(tmp_path / "nowhere")
    with pytest.raises(BackendError, match="auto or cpu"):
        edge_sdk.load(scan_bundle, device="tpu")


def test_a_template_that_reaches_out_is_refused(scan_bundle: Path, tmp_path: Path) -> None:
    for name in ("tokenizer.json", "chat_template.jinja"):
        (tmp_path / name).write_bytes((scan_bundle / name).read_bytes())
    (tmp_path / "chat_template.jinja").write_text("{{ messages.__class__.__mro__ }}")
    with pytest.raises(PromptError, match="unsafe"):
        edge_sdk.text.TextCodec(tmp_path).encode_prompt("walk")


def test_public_names_are_there() -> None:
    assert all(hasattr(edge_sdk, name) for name in edge_sdk.__all__)
    assert json.loads(json.dumps(edge_sdk.__version__)).count(".") == 2


def test_a_sessions_states_are_freed_as_it_ends(model: LanguageModel) -> None:
    session = model.session()
    session.generate("walk left", max_new_tokens=2)
    states = weakref.ref(session._states)
    gc.disable()
    try:
        del session
        assert states() is None
    finally:
        gc.enable()
