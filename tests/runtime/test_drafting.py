"""Drafts from earlier occurrences, and how many of them are worth verifying."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_sdk.drafting import CANDIDATES, HISTORY, LONGEST_MATCH, REMEMBERED, History, PromptLookup
from edge_sdk.errors import ConfigError
from edge_sdk.model import AttentionSpec, LayerSpec, Mamba2Spec, ModelConfig, ParallelSpec
from edge_sdk.pace import AROUND, LENGTHS, ROLLBACK_RUN, SAMPLED, STALE, WINDOW, Acceptance, StepTimes, gain
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


def expected_next(ids: list[int]) -> int:
    """Where the token that is expected next stands, -1 for none, by going through all that was said."""
    place, match = -1, 0
    for end, token in enumerate(ids):
        right = place >= 0 and ids[place] == token
        found, length = longest_match(ids[: end + 1])
        if right and match >= 2:
            place, match = place + 1, match + 1
        elif found >= 0:
            place, match = found + 1, length
        elif place >= 0:
            place, match = place + 1, 0
    return place


@given(parts=st.lists(tokens, max_size=5), count=st.integers(1, 16))
def test_what_followed_the_place_that_is_repeated_is_drafted(parts: list[list[int]], count: int) -> None:
    lookup, ids = PromptLookup(), list(itertools.chain(*parts))
    for part in parts:
        lookup.extend(part)
    draft = lookup.draft(count)
    place = expected_next(ids)
    assert len(lookup) == len(ids)
    assert len(draft.tokens) == len(draft.kinds) == (0 if place < 0 else count)
    copied = list(ids)
    for index, token in enumerate(draft.tokens):  # a copy may run into what it has written itself
        assert token == copied[place + index]
        copied.append(token)


def test_a_longer_match_is_another_kind() -> None:
    short, long = PromptLookup(), PromptLookup()
    short.extend([1, 2, 9, 1, 2])
    long.extend([*range(10), 30, *range(10)])
    assert short.draft(1).kinds != long.draft(1).kinds
    assert short.draft(8).kinds[-1] == long.draft(1).kinds[0]


def test_a_form_goes_on_behind_values_that_differ() -> None:
    lookup = PromptLookup()
    lookup.extend([1, 2, 3, 71, 4, 5, 72, 6, *(0, 0), 1, 2, 3])
    assert lookup.draft(4).tokens == [71, 4, 5, 72]
    lookup.extend([81])  # which was never said before
    assert lookup.draft(4).tokens == [4, 5, 72, 6]
    lookup.extend([4])
    resumed = lookup.draft(2)
    lookup.extend([5])
    assert resumed.tokens == [5, 72]
    assert resumed.kinds[0] != lookup.draft(1).kinds[0]  # the same place, with more tokens that match


def test_what_was_foreseen_is_another_kind_than_what_was_not() -> None:
    lookup = PromptLookup()
    for value in (71, 72, 73):
        lookup.extend([1, 2, 3, value, 4, 5])
    lookup.extend([1, 2])
    fixed, value = lookup.draft(2).kinds  # copies of 3, which was right each time, and of 73, where 72 was expected
    lookup.extend([3])
    assert fixed[-1] is True
    assert value[-1] is False
    first = PromptLookup()
    first.extend([1, 2, 3, 1, 2])
    assert first.draft(1).kinds[0][-1] is None


def test_earlier_conversations_are_looked_up_behind_this_one() -> None:
    history = History()
    history.add([1, 2, 3, 4])
    first, second = history.lookup(), history.lookup()
    first.extend([1, 2])
    assert first.draft(2).tokens == [3, 4]
    earlier = first.draft(1).kinds[0]
    first.extend([7, 1, 2])
    assert first.draft(2).tokens == [7, 1]  # what this one said, though the other comes with a longer match
    assert first.draft(1).kinds[0] != earlier
    second.extend([9])
    assert not second.draft(4).tokens


def test_of_earlier_conversations_the_last_ends_are_known() -> None:
    history = History()
    for number in range(20):
        history.add(list(range(1000 * number, 1000 * number + REMEMBERED + 100)))
        assert len(history.lookup().tokens) <= HISTORY
    lookup = history.lookup()
    lookup.extend([19_100, 19_101])
    assert lookup.draft(1).tokens == [19_102]
    lookup = history.lookup()
    lookup.extend([19_000, 19_001])  # not of the end
    assert not lookup.draft(1).tokens


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
    slow = measured(1.0, v2=2.1, v3=3.1, v5=5.2, v8=8.5, v16=17.0)
    assert gain(slow, [1.0] * 16) == (0, 1.0)
    steep = measured(1.0, v2=1.1, v3=1.2, v5=1.4, v8=9.0, v16=18.0)
    assert gain(steep, [1.0] * 16) == (4, pytest.approx(5 / 1.4))


def test_taking_back_and_drafting_cost_too() -> None:
    rights = [0.5]
    assert gain(measured(1.0, v2=1.2), rights) == (1, pytest.approx(1.5 / 1.2))
    assert gain(measured(1.0, v2=1.2, **{ROLLBACK_RUN: 0.5}), rights) == (0, 1.0)
    assert gain(measured(1.0, v2=1.2), rights, draft_s=0.3) == (0, 1.0)
    assert gain(measured(1.0, v2=1.2, **{AROUND: 0.3}), rights) == (0, 1.0)


def test_of_the_plain_steps_a_share_is_measured_and_all_are_counted() -> None:
    times = StepTimes()
    measured_steps = 0
    for _ in range(80):
        if not times.passes():
            measured_steps += 1
            times.note(1, 1.0)
    assert times.steps == 80
    assert 80 / SAMPLED <= measured_steps <= 80 / SAMPLED + WINDOW


def test_a_single_slow_step_does_not_count() -> None:
    times = measured(1.0, v2=1.1)
    times.note(2, 100.0)
    times.note(1, 100.0)
    assert times.verify(2) == 1.1
    assert times.plain == 1.0


def test_times_that_are_long_ago_are_not_believed() -> None:
    times = measured(1.0, v2=2.1, v3=3.1, v5=5.2, v8=8.5, v16=17.0)
    for _ in range(STALE):
        times.note(1, 1.0)
    assert gain(times, [1.0] * 16)[0] == LENGTHS[-1]
    times.note(16, 17.0)
    assert gain(times, [1.0] * 16) == (0, 1.0)  # shorter ones are thought to be in proportion


@given(st.floats(1.0, 3.0), st.floats(1.0, 3.0), st.integers(4, 7))
def test_lengths_between_measured_ones_take_times_between_theirs(first: float, last: float, length: int) -> None:
    times = measured(1.0, v3=first, v8=last)
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


def test_the_first_drafts_of_a_kind_say_most() -> None:
    general = Acceptance()
    for _ in range(3):
        Acceptance(general).note("a", True)
    assert general.of("a") == pytest.approx((Acceptance.PRIOR + 3) / 4)
    for _ in range(1000):
        general.note("a", True)
    general.note("a", False)
    assert general.of("a") > 0.97


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
