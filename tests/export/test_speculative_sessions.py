"""Sessions that draft say what they say without drafts, whatever is asked of them."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Hashable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import edge_sdk
from edge_export.families import nemotron_h
from edge_export.pack import Storage
from edge_export.torch_model import HybridLM
from edge_sdk import Bundle, LanguageModel, Options, Token
from edge_sdk.backends.ort import OrtEngine
from edge_sdk.backends.ort_speculation import SpeculativeEngine
from edge_sdk.errors import BackendError, ConfigError
from edge_sdk.grammar import Grammar
from edge_sdk.pace import Acceptance, StepTimes
from edge_sdk.prefix_cache import PrefixCache
from edge_sdk.scheduler import Scheduler
from edge_sdk.speculation import Speculation
from edge_sdk.speculator import PATIENCE
from exported import TinyBundle, bundle_of
from tiny import BASE

STORAGE = Storage(cache_dtype="float32", speculation=True)
OF_SCANS = ("mamba_num_heads", "mamba_head_dim", "n_groups", "ssm_state_size")
ATTENTION_ONLY = {name: value for name, value in BASE.items() if name not in OF_SCANS}
ATTENTION_ONLY |= {"layers_block_type": ["full_attention", "mlp", "full_attention"]}
WORDS = 24
"""Of the tokenizer; the tiny models' vocabularies are larger."""
ENDS = (23,)
"""In place of the models' own end token, which random weights say at once."""


FEW = {5: 20.0, 6: 20.0, 7: 20.0}
"""A bias to few words, so that they repeat: what random weights say by themselves hardly does."""


class Eager(StepTimes):
    """Times by which every draft is worth it."""

    plain = 1.0  # type: ignore[assignment]

    def verify(self, length: int) -> float:
        return 1.0

    def of(self, kind: str) -> float:
        return 0.0


class Moody(Eager):
    """Times by which every draft is worth it, or none."""

    trial_s = 100.0

    def verify(self, length: int) -> float:
        return self.trial_s


class Hopeful(Acceptance):
    """Each session begins with trust in every drafter, whatever others saw."""

    def of(self, kind: Hashable) -> float:
        return 0.9


@pytest.fixture(scope="module")
def attention_bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """A model without scans, exported without speculation."""
    model = HybridLM(nemotron_h.parse_config(ATTENTION_ONLY))
    model.reset_parameters(0)
    return bundle_of(model.eval(), Storage(cache_dtype="float32"), tmp_path_factory.mktemp("attention"))


@pytest.fixture(scope="module")
def bundle(tiny_bundle: TinyBundle) -> Bundle:
    """One with scans, attention, experts and a drafting head."""
    return tiny_bundle("drafting-head", STORAGE)


def model_of(bundle: Bundle, engine: OrtEngine, steps: Scheduler | None = None, **more: Any) -> LanguageModel:
    """A model that says more than its end token."""
    model = LanguageModel(bundle, engine, None, steps, **more)
    model._acceptance = Hopeful()
    model.config = msgspec.structs.replace(model.config, eos_token_ids=ENDS)
    return model


def drafting(bundle: Bundle, speculation: Speculation, **more: Any) -> LanguageModel:
    """A model that drafts wherever it can."""
    head = speculation != "lookup"
    engine = SpeculativeEngine(bundle, threads=1, exact=True, head=head, follows=head, **more)
    engine.times = Eager()
    return model_of(bundle, engine, speculation=speculation)


class Pair:
    """The same model without drafts and with them."""

    def __init__(self, bundle: Bundle, speculation: Speculation, **more: Any) -> None:
        self.speculation = speculation
        self.plain = model_of(bundle, OrtEngine(bundle, threads=1, exact=True, **more))
        self.drafting = drafting(bundle, speculation, **more)


@pytest.fixture(scope="module", params=["lookup", "head", "auto", "auto-bodies", "lookup-attention"], ids=str)
def pair(request: pytest.FixtureRequest, bundle: Bundle, attention_bundle: Bundle) -> Pair:
    speculation, _, which = request.param.partition("-")
    more = {"kernels": "none"} if which == "bodies" else {}
    return Pair(attention_bundle if which == "attention" else bundle, speculation, **more)


def same(found: list[Token], expected: list[Token]) -> None:
    """Equal tokens and texts; log-probabilities are sums in another order."""
    assert [(token.index, token.token_id, token.text) for token in found] == [
        (token.index, token.token_id, token.text) for token in expected
    ]
    for mine, theirs in zip(found, expected):
        assert (mine.logprob is None) == (theirs.logprob is None)
        assert mine.logprob is None or mine.logprob == pytest.approx(theirs.logprob, abs=1e-3)
        assert [p for _, p in mine.alternatives] == pytest.approx([p for _, p in theirs.alternatives], abs=1e-3)


prompts = st.lists(st.integers(3, WORDS - 1), min_size=1, max_size=12)
options = st.builds(
    Options,
    max_new_tokens=st.integers(1, 40),
    temperature=st.sampled_from([0.0, 0.0, 0.7, 1.5]),
    seed=st.integers(0, 2**16),
    top_k=st.sampled_from([0, 5]),
    repetition_penalty=st.sampled_from([1.0, 1.0, 1.3]),
    presence_penalty=st.sampled_from([0.0, 0.5]),
    logprobs=st.sampled_from([None, 0, 2]),
    stop=st.sampled_from([(), ("I_WALK I_WALK",), ("I_RUN", "I_JUMP I_LOOK")]),
    logit_bias=st.one_of(st.just(FEW), st.dictionaries(st.integers(0, WORDS - 1), st.floats(-3, 3), max_size=2)),
)
turns = st.lists(st.tuples(prompts, options, st.integers(1, 12)), min_size=1, max_size=3)


def converse(model: LanguageModel, asked: list[tuple[list[int], Options, int]], folder: Path) -> list[Any]:
    """What is answered, turn by turn: the first part, then by a fork, by the session, and by what was saved of it."""
    said: list[Any] = []
    session = model.session()
    for prompt, chosen, patience in asked:
        session.append(prompt)
        stream = session.stream(None, chosen)
        first = list(itertools.islice(stream, patience))
        fork = session.fork()
        session.save(folder / "state")
        rest = list(stream)
        said += [first, rest, stream.finish_reason, list(session.everything), session.position]
        greedy = chosen.but(seed=1)
        for other in (fork, model.restore(folder / "state")):
            with other:
                other.append(prompt[:1])
                said.append(list(other.stream(None, greedy)))
    session.close()
    return said


@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(asked=turns)
def test_answers_forks_and_saved_sessions_are_the_same(
    pair: Pair, asked: list[tuple[list[int], Options, int]], tmp_path: Path
) -> None:
    found, expected = (converse(model, asked, tmp_path) for model in (pair.drafting, pair.plain))
    for mine, theirs in zip(found, expected, strict=True):
        if theirs and isinstance(theirs, list) and isinstance(theirs[0], Token):
            same(mine, theirs)
        else:
            assert mine == theirs


def test_drafts_are_really_verified_some_right_and_some_not(pair: Pair) -> None:
    rng, drafted, accepted = np.random.default_rng(0), 0, 0
    for _ in range(6):
        with pair.drafting.session() as session:
            session.append(rng.integers(3, WORDS, 8).tolist())
            session.generate(max_new_tokens=60, temperature=0.7, seed=1, logit_bias=FEW)
            counts = session.speculation
            assert counts.trials <= counts.drafted
            drafted, accepted = drafted + counts.drafted, accepted + counts.accepted
    assert accepted < drafted
    assert accepted > 0 or pair.speculation == "head"  # random weights, too: it knows nothing of the model


FORCING = Grammar.lark('start: "I_WALK I_RUN I_JUMP" (" I_LOOK" | " I_RUN I_RUN I_TURN_LEFT I_RUN"){2,6}')


@pytest.mark.parametrize("room", [8, 9, 15, 40])
def test_constrained_answers_are_the_same_and_what_is_forced_is_drafted(pair: Pair, room: int) -> None:
    rng, accepted = np.random.default_rng(room), 0
    for temperature in (0.0, 2.0, 0.0, 2.0):
        prompt, answers = rng.integers(3, WORDS, 6).tolist(), []
        for model in (pair.drafting, pair.plain):
            with model.session() as session:
                session.append(prompt)
                stream = session.stream(
                    None, grammar=FORCING, max_new_tokens=room, temperature=temperature, seed=7, logprobs=1
                )
                answers.append(list(stream))
                accepted += session.speculation.accepted
        same(*answers)
    assert accepted > 0 or pair.speculation == "head"  # whose drafts, random, promise more than the few forced ones


def test_a_cancelled_answer_goes_on_where_it_was(pair: Pair) -> None:
    answers = []
    for model in (pair.drafting, pair.plain):
        with model.session() as session:
            session.append([5, 6, 7, 5, 6, 7, 5, 6])
            parts = []
            for patience in (1, 4, 2, 7):
                stream = session.stream(None, max_new_tokens=30, temperature=0.5, seed=patience)
                parts += [token.token_id for token in itertools.islice(stream, patience)]
                stream.cancel()
                assert list(stream) == []
            late = session.stream(None, deadline_ms=0).result()
            answers.append((parts, late.finish_reason, session.everything))
    assert answers[0] == answers[1]


def test_the_context_may_be_filled_to_its_end(pair: Pair) -> None:
    for context in (20, pair.plain.engine.max_length):
        answers = []
        for model in (pair.drafting, pair.plain):
            with model.session(max_context=context) as session:
                session.append([5, 6, 7, 5, 6, 7, 5, 6] * (context // 8 - 1))
                answers.append(session.generate(max_new_tokens=600, logit_bias={ENDS[0]: -1e4}))
                assert len(session.everything) == context
        assert answers[0].token_ids == answers[1].token_ids


def test_a_remembered_prompt_is_the_same_beginning(pair: Pair) -> None:
    prompt, answers = [5, 6, 7, 8] * 30, []
    for model in (pair.drafting, pair.plain):
        model.prefixes = PrefixCache(1 << 24, interval=64, least=8)
        try:
            for _ in range(3):
                with model.session() as session:
                    session.append([*prompt, 9])
                    answers.append(session.generate(max_new_tokens=20))
            assert answers[-1].cached_tokens >= 64
        finally:
            model.prefixes = None
    assert len({answer.token_ids for answer in answers}) == 1


@pytest.mark.parametrize("speculation", ["lookup", "auto"])
def test_sessions_that_are_stepped_together_say_the_same(bundle: Bundle, speculation: Speculation) -> None:
    """They draft while they are alone and do not while others answer, and their states move between the two."""
    model = drafting(bundle, speculation)
    if not model.engine.has_rows:
        pytest.skip("needs the native kernels")
    assert isinstance(model.engine, OrtEngine)
    shared = model_of(bundle, model.engine, Scheduler(model.engine, 3, 100), speculation=speculation)
    plain = model_of(bundle, OrtEngine(bundle, threads=1, exact=True))
    rng = np.random.default_rng(0)
    asked = [(rng.integers(3, WORDS, 8).tolist(), int(length)) for length in rng.integers(1, 60, 24)]

    def ask(model: LanguageModel, prompt: list[int], length: int) -> tuple[tuple[int, ...], int]:
        with model.session() as session:
            said: tuple[int, ...] = ()
            for part in (prompt, prompt[:3]):
                session.append(part)
                said += session.generate(max_new_tokens=length).token_ids
            return said, session.speculation.trials

    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda each: ask(shared, *each), asked))
    found += [ask(shared, *each) for each in asked[:4]]
    assert [said for said, _ in found] == [ask(plain, *each)[0] for each in [*asked, *asked[:4]]]
    assert sum(trials for _, trials in found[-4:]) > 0


def test_where_no_draft_is_worth_it_it_is_seldom_looked_for(bundle: Bundle) -> None:
    model = drafting(bundle, "auto")
    times = model.engine.times = Moody()
    with model.session() as session:
        session.generate("a b c", max_new_tokens=100, logit_bias=FEW)
        assert session.speculation.trials == 0
        assert 2 * PATIENCE < times.in_vain < 50
    times.trial_s = 1.0
    with model.session() as session:
        session.generate("a b c", max_new_tokens=40, logit_bias=FEW)
        assert session.speculation.trials > 2


def test_what_was_said_before_is_drafted_in_another_session(bundle: Bundle) -> None:
    model, said = drafting(bundle, "lookup"), []
    for _ in range(2):
        with model.session() as session:
            answer = session.generate("a b c", max_new_tokens=40, temperature=1.0, seed=3)
            said.append((answer.token_ids, session.speculation))
    assert said[0][0] == said[1][0]
    assert said[0][1].accepted < 10
    assert said[1][1].accepted > 30
    assert said[1][1].trials < 6


@pytest.mark.parametrize("part", ["verify", "accept"])
def test_a_failed_trial_takes_only_its_own_session_along(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch, part: str
) -> None:
    model = drafting(bundle, "lookup")
    prompt = [5, 6, 7, 5, 6, 7, 5, 6]
    with model.session() as session, model.session() as other:
        other.append(prompt)
        session.append(prompt)
        with monkeypatch.context() as patch:
            patch.setattr(model.engine, part, lambda *arguments: 1 / 0)
            with pytest.raises(BackendError, match="division by zero"):
                session.generate(max_new_tokens=60, logit_bias={5: 1e4})
        with pytest.raises(ConfigError, match="found closed"):
            session.generate()
        expected = Pair(bundle, "lookup").plain.session()
        expected.append(prompt)
        assert other.generate(max_new_tokens=20).token_ids == expected.generate(max_new_tokens=20).token_ids


def test_loading_says_what_is_not_possible(bundle: Bundle, attention_bundle: Bundle, tiny_bundle: TinyBundle) -> None:
    without = tiny_bundle("drafting-head", Storage(cache_dtype="float32"))

    def load(bundle: Bundle, speculation: Speculation) -> Any:
        return edge_sdk.load(bundle.path, device="cpu", threads=1, speculation=speculation)

    for speculation in ("lookup", "head"):
        with pytest.raises(ConfigError, match="--speculation"):
            load(without, speculation)
    with pytest.raises(ConfigError, match="drafting head"):
        load(attention_bundle, "head")
    kinds: dict[tuple[str, str], Callable[[], Bundle]] = {
        ("auto", "plain"): lambda: without,
        ("off", "plain"): lambda: bundle,
        ("auto", "drafting"): lambda: bundle,
        ("head", "drafting"): lambda: bundle,
        ("lookup", "drafting"): lambda: attention_bundle,
    }
    for (speculation, kind), found in kinds.items():
        model = load(found(), speculation)  # type: ignore[arg-type]
        assert (model.speculator() is not None) == (kind == "drafting")
        assert isinstance(model.engine, SpeculativeEngine) == (kind == "drafting")
