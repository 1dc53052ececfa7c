"""Drafts from earlier occurrences, and how many of them are worth verifying."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_sdk.drafting import CANDIDATES, LONGEST_MATCH, PromptLookup
from edge_sdk.errors import ConfigError
from edge_sdk.model import AttentionSpec, LayerSpec, Mamba2Spec, ModelConfig, ParallelSpec
from edge_sdk.pace import LENGTHS, ROLLBACK_RUN, STALE, WINDOW, Acceptance, StepTimes, gain
from edge_sdk.speculation import check, verifiable

tokens = st.lists(st.integers(0, 3), max_size=60)


def longest_match(ids: list[int]) -> tuple[int, int]:
    """Where the last tokens occurred before, by comparing everything: the end of that, and how many did."""
    best, found = (-1, 0), 0
    for end in range(len(ids) - 2, 0, -1):
        pairs = zip(reversed(ids[: end + 1]), reversed(ids))
        length = min(sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], pairs)), LONGEST_MATCH)
        if length >= 2 and found < CANDIDATES:
            found += 1
            best = (end, length) if length > best[1] else best
    return best


@given(parts=st.lists(tokens, max_size=5), count=st.integers(1, 16))
def test_what_followed_the_longest_match_is_drafted(parts: list[list[int]], count: int) -> None:
    lookup, ids = PromptLookup(), list(itertools.chain(*parts))
    for part in parts:
        lookup.extend(part)
    draft = lookup.draft(count)
    end, _ = longest_match(ids)
    assert len(lookup) == len(ids)
    assert len(draft.tokens) == len(draft.kinds) == (0 if end < 0 else count)
    copied = list(ids)
    for index, token in enumerate(draft.tokens):  # a copy may run into what it has written itself
        assert token == copied[end + 1 + index]
        copied.append(token)


def test_a_longer_match_is_another_kind() -> None:
    short, long = PromptLookup(), PromptLookup()
    short.extend([1, 2, 9, 1, 2])
    long.extend([*range(10), 30, *range(10)])
    assert short.draft(1).kinds != long.draft(1).kinds
    assert short.draft(8).kinds[-1] == long.draft(1).kinds[0]


def measured(plain: float, **others: float) -> StepTimes:
    """Times of plain steps, and of steps of so many tokens as ``v5`` says, each seen often."""
    times = StepTimes()
    for _ in range(WINDOW):
        for name, seconds in others.items():
            times.note(int(name[1:]) if name[0] == "v" else name, seconds)
        times.note(1, plain)
    return times


def test_nothing_is_verified_before_plain_steps_were_measured() -> None:
    times = StepTimes()
    assert gain(times, [1.0] * 16) == (0, 1.0)
    times.note(1, 1.0)
    assert gain(times, [1.0] * 16) == (0, 1.0)


def test_as_many_are_verified_as_pay() -> None:
    assert gain(measured(1.0), [1.0] * 16)[0] == LENGTHS[-1]  # not measured yet: worth a trial
    assert gain(measured(1.0), [1.0] * 3)[0] == 2
    assert gain(measured(1.0), [0.01] * 16) == (0, 1.0)
    slow = measured(1.0, v2=2.1, v3=3.1, v5=5.2, v9=9.5, v17=18.0)
    assert gain(slow, [1.0] * 16) == (0, 1.0)
    steep = measured(1.0, v2=1.1, v3=1.2, v5=1.4, v9=9.0, v17=18.0)
    assert gain(steep, [1.0] * 16) == (4, pytest.approx(5 / 1.4))


def test_taking_back_and_drafting_cost_too() -> None:
    rights = [0.5]
    assert gain(measured(1.0, v2=1.2), rights) == (1, pytest.approx(1.5 / 1.2))
    assert gain(measured(1.0, v2=1.2, **{ROLLBACK_RUN: 0.5}), rights) == (0, 1.0)
    assert gain(measured(1.0, v2=1.2), rights, draft_s=0.3) == (0, 1.0)


def test_a_single_slow_step_does_not_count() -> None:
    times = measured(1.0, v2=1.1)
    times.note(2, 100.0)
    times.note(1, 100.0)
    assert times.verify(2) == 1.1
    assert times.plain == 1.0


def test_times_that_are_long_ago_are_not_believed() -> None:
    times = measured(1.0, v2=2.1, v3=3.1, v5=5.2, v9=9.5, v17=18.0)
    for _ in range(STALE):
        times.note(1, 1.0)
    assert gain(times, [1.0] * 16)[0] == LENGTHS[-1]
    times.note(17, 18.0)
    assert gain(times, [1.0] * 16) == (0, 1.0)  # shorter ones are thought to be in proportion


@given(st.floats(1.0, 3.0), st.floats(1.0, 3.0), st.integers(4, 8))
def test_lengths_between_measured_ones_take_times_between_theirs(first: float, last: float, length: int) -> None:
    times = measured(1.0, v3=first, v9=last)
    assert min(first, last) - 1e-9 <= times.verify(length) <= max(first, last) + 1e-9


def test_a_session_begins_with_what_others_saw() -> None:
    general = Acceptance()
    first = Acceptance(general)
    for _ in range(200):
        first.note("a", True)
        first.note("b", False)
    assert first.of("a") > 0.95
    assert first.of("b") < 0.05
    second = Acceptance(general)
    assert second.of("a") > 0.9
    assert second.of("b") < 0.1
    assert second.of("c") == Acceptance.PRIOR
    for _ in range(30):
        second.note("a", False)
    assert second.of("a") < 0.2 < first.of("a")


MAMBA = Mamba2Spec(heads=2, head_dim=8, groups=1, state=8)
ATTENTION = AttentionSpec(heads=2, kv_heads=1, head_dim=8)
BESIDE = ParallelSpec(mamba=MAMBA, attention=ATTENTION)


def config(*layers: LayerSpec, speculation: bool = False) -> ModelConfig:
    return ModelConfig(family="nemotron_h", vocab_size=16, hidden=32, layers=layers, speculation=speculation)


def test_scans_must_have_been_exported_so_that_they_can_be_taken_back() -> None:
    assert verifiable(config(ATTENTION))
    assert verifiable(config(MAMBA, ATTENTION, speculation=True))
    assert not verifiable(config(MAMBA, ATTENTION))
    assert not verifiable(config(BESIDE, speculation=True))  # rollback.onnx has no scans beside attention


@pytest.mark.parametrize(
    ("model", "speculation", "kind", "message"),
    [
        (config(MAMBA), "lookup", "ort-cpu", "--speculation"),
        (config(MAMBA), "head", "ort-cpu", "--speculation"),
        (config(MAMBA, speculation=True), "head", "ort-cpu", "drafting head"),
        (config(ATTENTION), "lookup", "tensorrt", "the CPU's engine"),
        (config(ATTENTION), "medusa", "ort-cpu", "auto or off or lookup or head"),
    ],
)
def test_what_cannot_be_done_is_refused(model: ModelConfig, speculation: str, kind: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        check(model, speculation, kind)


def test_what_can_be_done_is_not() -> None:
    for kind in ("ort-cpu", "ort-cuda", "tensorrt"):
        check(config(MAMBA), "auto", kind)
        check(config(MAMBA), "off", kind)
    check(config(MAMBA, speculation=True), "lookup", "ort-cpu")
    check(config(ATTENTION), "lookup", "ort-cpu")
