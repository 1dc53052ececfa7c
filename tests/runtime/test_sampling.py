"""Sampling: against plain definitions; transformers' own is compared in tests/export/test_sampling_reference.py."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_sdk import Options
from edge_sdk.errors import ConfigError
from edge_sdk.sampling import LIKELIEST_FIRST, Sampler, distribution, draw
from edge_sdk.stops import StopTexts

VOCAB = 50


def logits(seed: int, vocab: int = VOCAB) -> np.ndarray:
    return (np.random.default_rng(seed).standard_normal(vocab) * 3).astype(np.float32)


def frequencies(options: Options, values: np.ndarray, count: int = 4000) -> np.ndarray:
    sampler = Sampler(options, [], len(values))
    chosen = [sampler.choose(values).token_id for _ in range(count)]
    return np.bincount(chosen, minlength=len(values)) / count


def test_by_default_the_likeliest_token_is_taken() -> None:
    sampler = Sampler(Options(), [], VOCAB)
    assert sampler.takes_the_likeliest
    assert sampler.choose(logits(1)).token_id == logits(1).argmax()


@pytest.mark.parametrize(
    "changes",
    [
        {"temperature": 0.7},
        {"repetition_penalty": 1.1},
        {"presence_penalty": 0.1},
        {"frequency_penalty": -0.1},
        {"logit_bias": {3: 1.0}},
        {"logprobs": 0},
    ],
)
def test_an_engine_may_not_choose_by_itself_what_is_more_than_the_largest(changes: dict[str, object]) -> None:
    assert not Sampler(Options().but(**changes), [], VOCAB).takes_the_likeliest


def test_draws_follow_the_distribution() -> None:
    values = logits(2)
    expected = np.exp(values / 2) / np.exp(values / 2).sum()
    # a total variation of sqrt(vocab / draws) / 2 is what chance alone makes, about 0.06
    assert np.abs(frequencies(Options(temperature=2.0, seed=1), values) - expected).sum() / 2 < 0.1


def test_a_seed_repeats_a_draw() -> None:
    options = Options(temperature=1.0, seed=7)
    runs = [[Sampler(options, [], VOCAB).choose(logits(seed)).token_id for seed in range(20)] for _ in range(2)]
    assert runs[0] == runs[1]


def test_no_draw_leaves_the_nucleus_of_a_large_vocabulary() -> None:
    values = np.zeros(LIKELIEST_FIRST * 4, dtype=np.float32)
    values[:100] = 1.0
    ids, probabilities = distribution(values, Options(temperature=1.0, top_p=0.9))
    assert len(ids) > LIKELIEST_FIRST  # more than what is looked at first
    assert set(range(100)) <= set(ids.tolist())
    share = np.exp(values) / np.exp(values).sum()
    assert share[ids].sum() >= 0.9 > share[ids].sum() - share.min()
    assert probabilities.sum() == pytest.approx(1.0)


@given(st.lists(st.floats(0.0, 1.0), min_size=1, max_size=20), st.floats(0.0, 1.0))
def test_a_draw_never_falls_on_what_has_no_probability(weights: list[float], uniform: float) -> None:
    weights[0] += 0.1
    assert weights[draw(np.array(weights), min(uniform, math.nextafter(1.0, 0.0)))] > 0


def test_penalties_follow_their_definitions() -> None:
    values, context = logits(3), [4, 9]
    options = Options(repetition_penalty=1.5, presence_penalty=0.5, frequency_penalty=0.25, logit_bias={7: -2.0})
    sampler = Sampler(options, context, VOCAB)
    for token in (9, 11, 11):
        sampler.note(token)
    expected = values.copy()
    for token in (4, 9, 11):
        expected[token] = values[token] / 1.5 if values[token] > 0 else values[token] * 1.5
    expected[9] -= 0.5 + 0.25
    expected[11] -= 0.5 + 0.5
    expected[7] -= 2.0
    np.testing.assert_allclose(sampler._adjusted(values), expected, rtol=1e-6)
    assert (values == logits(3)).all()  # the engine's memory is left alone


@pytest.mark.parametrize("penalty", [1e-300, 1e-30, 1e30, 1e300])
@pytest.mark.parametrize("temperature", [0.0, 1e-3, 1.0])
def test_no_penalty_is_too_strange_to_choose(penalty: float, temperature: float) -> None:
    options = Options(repetition_penalty=penalty, temperature=temperature, min_p=1.0, seed=0)
    sampler = Sampler(options, [0, 1, 2], 4)
    token = sampler.choose(np.array([2.0, -2.0, 0.0, 1.0], dtype=np.float32)).token_id
    assert token == (0 if penalty < 1 else 3)


def test_only_allowed_tokens_are_chosen() -> None:
    values, allowed = logits(4), np.zeros(VOCAB, dtype=bool)
    allowed[[5, 6]] = True
    greedy = Sampler(Options(), [], VOCAB).choose(values, allowed).token_id
    assert greedy == (5 if values[5] > values[6] else 6)
    drawn = Sampler(Options(temperature=9.0, seed=1), [], VOCAB)
    assert {drawn.choose(values, allowed).token_id for _ in range(50)} == {5, 6}


def test_logprobs_are_the_models_own() -> None:
    values = logits(5)
    choice = Sampler(Options(temperature=0.1, seed=0, logprobs=3, logit_bias={1: 50.0}), [], VOCAB).choose(values)
    expected = values - np.log(np.exp(values.astype(np.float64)).sum())
    assert choice.token_id == 1
    assert choice.logprob == pytest.approx(expected[1], abs=1e-5)
    order = np.argsort(-values)[:3]
    assert [token for token, _ in choice.alternatives] == order.tolist()
    assert [value for _, value in choice.alternatives] == pytest.approx(expected[order], abs=1e-5)


@pytest.mark.parametrize(
    "wrong",
    [
        {"max_new_tokens": 0},
        {"temperature": -1.0},
        {"temperature": float("nan")},
        {"top_p": 0.0},
        {"top_p": 1.5},
        {"min_p": -0.1},
        {"top_k": -1},
        {"repetition_penalty": 0.0},
        {"deadline_ms": -5.0},
        {"logprobs": 1000},
        {"stop": [""]},
        {"stop": "not a list"},
        {"seed": -1},
        {"temprature": 1.0},
        {"top_k": "many"},
    ],
)
def test_options_that_make_no_sense_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        Options().but(**wrong)


def test_a_bias_outside_the_vocabulary_is_refused() -> None:
    with pytest.raises(ConfigError, match=f"ids below {VOCAB}, found 50"):
        Sampler(Options(logit_bias={50: 1.0}), [], VOCAB)


@settings(max_examples=300)
@given(
    text=st.text("ab", max_size=30),
    stops=st.lists(st.text("ab", min_size=1, max_size=4), max_size=3),
    cuts=st.lists(st.integers(0, 30), max_size=6),
)
def test_stop_texts_are_found_however_the_text_is_cut(text: str, stops: list[str], cuts: list[int]) -> None:
    edges = sorted({0, len(text), *(cut for cut in cuts if cut < len(text))})
    finder, shown = StopTexts(stops), ""
    for start, end in itertools.pairwise(edges):
        shown += finder.feed(text[start:end])
        if finder.found:
            break
    shown += finder.finish()
    ends = [(text.find(stop) + len(stop), text.find(stop)) for stop in stops if stop in text]
    assert shown == (text[: min(ends)[1]] if ends else text)


def test_nothing_is_held_back_longer_than_it_may_matter() -> None:
    finder = StopTexts(["</end>"])
    assert finder.feed("a < b") == "a < b"
    assert finder.feed(" </e") == " "
    assert finder.holds
    assert finder.feed("x") == "</ex"
    assert not finder.holds
