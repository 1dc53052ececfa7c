"""Drafts verified and taken back: states and answers are those of single tokens, whatever was accepted."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable
from typing import Any

import msgspec
import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_export.pack import Storage
from edge_sdk import Bundle
from edge_sdk.backends.ort import OrtEngine
from edge_sdk.backends.ort_speculation import SpeculativeEngine, SpeculativeStates
from edge_sdk.bundle import MANIFEST
from edge_sdk.errors import BackendError, BundleError
from exported import TinyBundle

PLAIN = Storage(cache_dtype="float32", speculation=True)
STORAGES = {
    "float32": ("drafting-head", PLAIN),
    "dense": ("dense-drafting-head", PLAIN),
    "float16-states-int8-caches": (
        "dense-drafting-head",
        Storage(cache_dtype="int8", state_dtype="float16", speculation=True),
    ),
}
TOLERANCES = {"float32": 1e-4, "float16": 4e-3, "int8": 2e-2}
"""Of states and logits, relative to the largest; a stored number may be rounded to its neighbour."""

DRAFTED = 5
PROMPT = 6


@dataclasses.dataclass
class Case:
    engine: SpeculativeEngine
    tolerance: float


@pytest.fixture(scope="module", params=itertools.product(STORAGES, ("auto", "none")), ids="-".join)
def case(request: pytest.FixtureRequest, tiny_bundle: TinyBundle) -> Case:
    name, kernels = request.param
    variant, storage = STORAGES[name]
    engine = SpeculativeEngine(tiny_bundle(variant, storage), threads=1, exact=True, kernels=kernels)
    assert engine.native == (kernels == "auto"), "build the native kernels first"
    return Case(engine, max(TOLERANCES[dtype] for dtype in (storage.cache_dtype, storage.state_dtype)))


def states_of(states: SpeculativeStates, row: int) -> list[np.ndarray]:
    """A row's states in float32, of caches what counts."""
    held = states.past_length[row]
    found = []
    for spec, array in zip(states.specs, states.sets[states.turn]):
        kept = array[row, :, :held] if "capacity" in spec.shape else array[row]
        found.append(kept.astype(np.float32))
    return found


def assert_close(found: np.ndarray, expected: np.ndarray, tolerance: float) -> None:
    assert found.shape == expected.shape
    assert np.abs(found - expected).max() <= tolerance * np.abs(expected).max()


def stepped(engine: SpeculativeEngine, ids: np.ndarray) -> SpeculativeStates:
    """The states after tokens (1, length), the prompt at once and the others one by one."""
    states = engine.empty_states(1)
    engine.step(ids[:, :PROMPT], states)
    for position in range(PROMPT, ids.shape[1]):
        engine.step(ids[:, position : position + 1], states)
    return states


rounds = st.lists(st.lists(st.integers(1, DRAFTED + 1), min_size=2, max_size=2), min_size=1, max_size=3)


@settings(max_examples=12, deadline=None)
@given(rounds=rounds, seed=st.integers(0, 2**16))
def test_whatever_is_accepted_the_states_are_those_of_single_steps(
    case: Case, rounds: list[list[int]], seed: int
) -> None:
    """Two rows, of which some rounds accept different numbers of tokens."""
    rng, engine = np.random.default_rng(seed), case.engine
    prompt = rng.integers(0, 48, (2, PROMPT))
    states, kept = engine.empty_states(2), [list(row) for row in prompt]
    engine.step(prompt, states)
    for counts in rounds:
        block = rng.integers(0, 48, (2, DRAFTED + 1))
        logits = engine.verify(block, states).copy()
        engine.accept(states, np.array(counts))
        for row, count in enumerate(counts):
            kept[row] += list(block[row, :count])
    for row, tokens in enumerate(kept):
        assert states.past_length[row] == len(tokens)
        one = stepped(engine, np.array([tokens]))
        for found, expected in zip(states_of(states, row), states_of(one, 0)):
            assert_close(found, expected, case.tolerance)
        last = engine.step(np.array([tokens[-1:]]), stepped(engine, np.array([tokens[:-1]])))
        assert_close(logits[row, rounds[-1][row] - 1], last[0, 0], case.tolerance)


def test_without_acceptance_nothing_was_fed(case: Case) -> None:
    rng, engine = np.random.default_rng(0), case.engine
    prompt, wrong, right = (rng.integers(0, 48, (1, length)) for length in (PROMPT, DRAFTED, 1))
    states, other = engine.empty_states(1), engine.empty_states(1)
    engine.step(prompt, states)
    engine.step(prompt, other)
    engine.verify(wrong, states)
    np.testing.assert_array_equal(engine.step(right, states), engine.step(right, other))
    for found, expected in zip(states_of(states, 0), states_of(other, 0)):
        np.testing.assert_array_equal(found, expected)


def test_more_than_was_verified_cannot_be_accepted(case: Case) -> None:
    states = case.engine.empty_states(1)
    case.engine.verify(np.zeros((1, 3), np.int64), states)
    for count in (0, 4):
        with pytest.raises(ValueError, match="expected 1 to 3"):
            case.engine.accept(states, np.array([count]))
    case.engine.accept(states, np.array([3]))
    with pytest.raises(ValueError, match="Verify first"):
        case.engine.accept(states, np.array([1]))


def test_a_copy_and_grown_caches_go_on_alike(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(case.engine, "first_capacity", 8)
    rng, engine = np.random.default_rng(0), case.engine
    ids, block, then = (rng.integers(0, 48, (1, length)) for length in (PROMPT, 4, 1))
    states = engine.empty_states(1)
    engine.step(ids, states)
    copied = states.copy()
    for mine in (states, copied):
        engine.verify(block, mine)
        engine.accept(mine, np.array([2]))
    assert states.capacity == copied.capacity == 16
    np.testing.assert_array_equal(engine.step(then, states).copy(), engine.step(then, copied))


Draft = Callable[[np.ndarray, np.ndarray, int], list[int]]
"""From hidden states (1, length, hidden) and the tokens after them (1, length) to that many drafted tokens."""


def speculate(engine: SpeculativeEngine, prompt: np.ndarray, draft: Draft, count: int) -> tuple[list[int], list[int]]:
    """The greedy answer to prompt (1, length) by drafting and verifying, and how many tokens each round accepted."""
    states, accepted = engine.empty_states(1), []
    answer = [int(engine.step(prompt, states)[0, -1].argmax())]
    hidden, known = engine.hidden_states(states).copy(), np.append(prompt[:, 1:], [answer], axis=1)
    while len(answer) < count:
        drafted = draft(hidden, known, DRAFTED)
        likeliest = engine.verify(np.array([[answer[-1], *drafted]]), states)[0].argmax(-1)
        right = [*(a == b for a, b in zip(drafted, likeliest)), False].index(False) + 1
        engine.accept(states, np.array([right]))
        accepted.append(right)
        hidden, known = engine.hidden_states(states)[:, :right].copy(), likeliest[None, :right]
        answer += likeliest[:right].tolist()
    return answer[:count], accepted


def greedy(engine: OrtEngine, prompt: np.ndarray, count: int) -> list[int]:
    states = engine.empty_states(1)
    answer = [int(engine.step(prompt, states)[0, -1].argmax())]
    while len(answer) < count:
        answer.append(int(engine.step(np.array([answer[-1:]]), states)[0, -1].argmax()))
    return answer


@settings(max_examples=8, deadline=None)
@given(wrong=st.lists(st.booleans(), min_size=40, max_size=40), seed=st.integers(0, 2**16))
def test_a_drafter_that_errs_anywhere_does_not_change_the_answer(case: Case, wrong: list[bool], seed: int) -> None:
    prompt = np.random.default_rng(seed).integers(0, 48, (1, PROMPT))
    expected = greedy(case.engine, prompt, 40)
    known = [0]

    def draft(hidden: np.ndarray, tokens: np.ndarray, count: int) -> list[int]:
        known[0] += 1 if known[0] == 0 else tokens.shape[1]
        drafted = [*expected[known[0] : known[0] + count], *[0] * count][:count]
        return [token ^ int(wrong[(known[0] + at) % 40]) for at, token in enumerate(drafted)]

    answer, accepted = speculate(case.engine, prompt, draft, 40)
    assert answer == expected
    assert sum(accepted) >= 39


def test_drafting_with_the_models_own_head_gives_the_greedy_answer(case: Case) -> None:
    """And the head's caches, set back after every round, are those of one pass over all that was accepted."""
    engine, head = case.engine, case.engine.head
    assert head is not None
    own, fed = head.empty_states(1), []

    def draft(hidden: np.ndarray, tokens: np.ndarray, count: int) -> list[int]:
        fed.append((hidden, tokens))
        logits, hidden = head.step(hidden, tokens, own)
        held, drafted = own.past_length.copy(), [int(logits[0, -1].argmax())]
        while len(drafted) < count:
            logits, hidden = head.step(hidden, np.array([drafted[-1:]]), own)
            drafted.append(int(logits[0, -1].argmax()))
        own.past_length[:] = held
        return drafted

    prompt = np.random.default_rng(3).integers(0, 48, (1, PROMPT))
    answer, accepted = speculate(engine, prompt, draft, 30)
    assert answer == greedy(engine, prompt, 30)
    whole, (hidden, tokens) = head.empty_states(1), (np.concatenate(parts, axis=1) for parts in zip(*fed))
    head.step(hidden, tokens, whole)
    assert whole.past_length == own.past_length == PROMPT + sum(accepted[:-1])
    for spec, found, expected in zip(whole.specs, own.sets[own.turn], whole.sets[whole.turn]):
        held = int(own.past_length[0])
        assert_close(found[:, :, :held].astype(np.float32), expected[:, :, :held].astype(np.float32), case.tolerance)
        assert "capacity" in spec.shape


def initializers(path: Any) -> dict[str, dict[str, str]]:
    """Where each weight of a graph stands: file, offset and length."""
    graph = onnx.load(str(path), load_external_data=False).graph
    return {
        tensor.name: {entry.key: entry.value for entry in tensor.external_data}
        for tensor in graph.initializer
        if tensor.external_data
    }


def test_the_graphs_share_the_bytes_of_their_weights(tiny_bundle: TinyBundle) -> None:
    bundle = tiny_bundle("drafting-head", Storage(weights="int4", cache_dtype="float32", speculation=True))
    model, draft, rollback = (initializers(bundle.file(f"{name}.onnx")) for name in ("model", "draft", "rollback"))
    assert rollback.items() <= model.items()
    assert len(rollback) == 6 * bundle.manifest.model.pattern.count("M")
    shared = model.keys() & draft.keys()
    assert {name.split(".")[1] for name in shared} == {"embeddings", "lm_head"}
    assert all(model[name] == draft[name] for name in shared)
    assert {name.split(".")[1] for name in draft.keys() - shared} == {"mtp"}
    places = [(int(place["offset"]), int(place["length"])) for place in (model | draft).values()]
    assert bundle.file("model.onnx.data").stat().st_size == max(offset + length for offset, length in places)
    assert len(set(places)) == len(model) + len(draft) - len(shared)


def test_the_kernels_pack_the_shared_weights_once(tiny_bundle: TinyBundle) -> None:
    storage = Storage(weights="int4", cache_dtype="float32", speculation=True)
    bundle = tiny_bundle("drafting-head", storage)
    packed = bundle.path / "engines" / "cpu-packed.bin"
    packed.unlink(missing_ok=True)
    engine = SpeculativeEngine(bundle, threads=1)
    assert engine.head is not None
    engine.step(np.zeros((1, 1), np.int64), engine.empty_states(1))
    content = packed.read_bytes()
    assert content.count(b"model.lm_head.weight.int8") == 1
    assert content.count(b"model.mtp.eh_proj.weight.packed_int4") == 1
    again = OrtEngine(bundle, threads=1)
    again.step(np.zeros((1, 1), np.int64), again.empty_states(1))
    assert packed.read_bytes() == content


def test_a_plain_engine_runs_the_bundle_too(tiny_bundle: TinyBundle) -> None:
    speculative, plain = (
        tiny_bundle("drafting-head", msgspec.structs.replace(PLAIN, speculation=wanted)) for wanted in (True, False)
    )
    assert plain.manifest.graphs == {}
    assert plain.manifest.model.mtp is None
    assert sorted(speculative.manifest.graphs) == ["draft.onnx", "rollback.onnx"]
    ids = np.random.default_rng(0).integers(0, 48, (1, 20))
    logits = []
    for bundle in (speculative, plain):
        engine = OrtEngine(bundle, exact=True)
        logits.append(engine.step(ids, engine.empty_states(1)).copy())
    np.testing.assert_allclose(logits[0], logits[1], atol=1e-5)
    with pytest.raises(BackendError, match="--speculation"):
        SpeculativeEngine(plain)


def test_a_manifest_that_leaves_a_graph_out_or_changes_it_is_refused(tiny_bundle: TinyBundle) -> None:
    bundle = tiny_bundle("drafting-head", PLAIN)
    path = bundle.path / MANIFEST
    content = path.read_bytes()
    manifest = msgspec.json.decode(content)
    try:
        for change in (lambda m: m["graphs"].pop("draft.onnx"), lambda m: m["graphs"]["draft.onnx"]["inputs"].pop()):
            altered = msgspec.json.decode(content)
            change(altered)
            path.write_bytes(msgspec.json.encode(altered))
            with pytest.raises(BundleError, match="follow from the model"):
                Bundle.open(bundle.path)
        del manifest["files"]["rollback.onnx"]
        path.write_bytes(msgspec.json.encode(manifest))
        with pytest.raises(BundleError, match=r"rollback\.onnx"):
            Bundle.open(bundle.path)
    finally:
        path.write_bytes(content)
