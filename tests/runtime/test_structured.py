"""Constrained answers parse: whatever the model prefers, within any budget, and cut at any token."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from decimal import Decimal, InvalidOperation
from functools import lru_cache, partial
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, reject, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

import tokenizers_for_tests as kinds
from edge_sdk.errors import ConfigError
from edge_sdk.token_bytes import token_bytes

pytest.importorskip("llguidance")
jsonschema = pytest.importorskip("jsonschema")

from edge_sdk.structured import Constraint, Grammar, GrammarCompiler  # noqa: E402

Model = Callable[[int], np.ndarray]
KINDS = {"byte level": kinds.byte_level, "sentencepiece": kinds.sentencepiece, "unigram": kinds.unigram}
PATIENT = settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))


@lru_cache
def compiler(kind: str = "byte level") -> GrammarCompiler:
    return GrammarCompiler(KINDS[kind](), kinds.ENDS)


def generate(constraint: Constraint, budget: int, model: Model) -> Iterator[int]:
    """What the runtime does: mask, draw, choose, accept."""
    ends = constraint._compiler.end_token_ids
    for step in range(budget):
        if constraint.finished:
            return
        logits = model(step)
        constraint.apply(logits)
        token = constraint.choose(int(logits.argmax()), budget - step)
        constraint.accept(token)
        if token in ends:
            return
        yield token


def random_model(seed: int, size: int) -> Model:
    dice = np.random.default_rng(seed)
    return lambda step: dice.standard_normal(size).astype(np.float32)


def stubborn_model(seed: int, size: int) -> Model:
    """Always prefers the same tokens in the same order: it repeats itself for ever if it may."""
    preference = np.random.default_rng(seed).standard_normal(size).astype(np.float32)
    return lambda step: preference.copy()


def check_every_way(grammar: Grammar, seed: int, check: Callable[[str], None], kind: str = "byte level") -> None:
    """Several budgets from the least that is taken, two models, and every cut of every answer."""
    start = compiler(kind).compile(grammar)
    tokenizer, size = KINDS[kind](), len(compiler(kind).vocabulary.tokens)
    if start.needed:
        with pytest.raises(ConfigError, match=f"at least {start.needed}"):
            start.check_budget(start.needed - 1)
    for budget in {*range(start.needed, start.needed + 4), start.needed + 12, start.needed + 40}:
        for make in (random_model, stubborn_model):
            constraint, ids = start.copy(), list[int]()
            start.check_budget(budget)
            check(tokenizer.decode(constraint.closing()))
            for token in generate(constraint, budget, make(seed, size)):
                ids.append(token)
                closing = constraint.closing()
                assert len(ids) + len(closing) <= budget
                check(tokenizer.decode(ids + closing))
            assert not constraint.closing()
            check(tokenizer.decode(ids))


def parse(text: str) -> Any:
    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    return json.loads(text, parse_constant=refuse, parse_float=number)


def number(text: str) -> Decimal | float:
    """As it is written; one that is too large for Decimal is infinite."""
    try:
        return Decimal(text)
    except InvalidOperation:
        return float(text)


def validator_of(schema: Any) -> Any:
    """Holds numbers to their limits as they are written: an answer may have more digits than a float."""
    return jsonschema.Draft202012Validator(parse(json.dumps(schema)))


def strings() -> st.SearchStrategy[dict[str, Any]]:
    patterns = st.sampled_from([r"^[a-z]{2,5}$", r"^\d{3}-\d{2}$", r"^(on|off)$", "^[A-C]+x?$", "b+"])
    return st.one_of(
        st.just({"type": "string"}),
        st.integers(0, 9).map(lambda length: {"type": "string", "minLength": length, "maxLength": length + 3}),
        patterns.map(lambda pattern: {"type": "string", "pattern": pattern}),
        st.sampled_from(["date", "ipv4", "uuid", "email"]).map(lambda name: {"type": "string", "format": name}),
        st.lists(st.text(max_size=6), min_size=1, max_size=4, unique=True).map(lambda values: {"enum": values}),
    )


def numbers() -> st.SearchStrategy[dict[str, Any]]:
    bounds = st.tuples(st.integers(-300, 300), st.integers(0, 300))
    return st.one_of(
        st.sampled_from([{"type": "integer"}, {"type": "number"}, {"type": "integer", "multipleOf": 7}]),
        bounds.map(lambda b: {"type": "integer", "minimum": b[0], "maximum": b[0] + b[1]}),
        bounds.map(lambda b: {"type": "number", "exclusiveMinimum": b[0] / 8, "maximum": b[0] / 8 + 1 + b[1]}),
    )


def containers(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    def an_object(parts: tuple[dict[str, Any], set[str], Any]) -> dict[str, Any]:
        properties, required, others = parts
        names = [name for name in properties if name in required]
        return {"type": "object", "properties": properties, "required": names, "additionalProperties": others}

    names = st.sampled_from(["name", "speed_m_s", "x", 'quo"ted', "ünïcode", ""])
    sizes = st.tuples(inner, st.integers(0, 3), st.integers(0, 3))
    return st.one_of(
        sizes.map(lambda s: {"type": "array", "items": s[0], "minItems": s[1], "maxItems": s[1] + s[2]}),
        st.lists(inner, min_size=1, max_size=3).map(lambda items: {"anyOf": items}),
        st.tuples(st.dictionaries(names, inner, max_size=4), st.sets(names), st.booleans()).map(an_object),
        st.lists(inner, min_size=1, max_size=3).map(
            lambda items: {"type": "array", "prefixItems": items, "items": False, "minItems": len(items)}
        ),
    )


leaves = st.one_of(strings(), numbers(), st.sampled_from([{"type": "boolean"}, {"type": "null"}, {"const": [1, {}]}]))
schemas = st.recursive(leaves, containers, max_leaves=6)


@PATIENT
@given(schema=schemas, seed=st.integers(0, 2**32))
def test_an_answer_by_a_schema_validates(schema: dict[str, Any], seed: int) -> None:
    validator = validator_of(schema)
    check_every_way(Grammar.json_schema(schema), seed, lambda text: validator.validate(parse(text)))


TREE = {
    "$defs": {
        "node": {
            "type": "object",
            "properties": {"next": {"anyOf": [{"$ref": "#/$defs/node"}, {"type": "null"}]}, "value": {"minimum": 0.07}},
            "required": ["next", "value"],
            "additionalProperties": False,
        }
    },
    "$ref": "#/$defs/node",
}


@pytest.mark.parametrize(
    "schema",
    [
        TREE,
        True,
        {"type": "object"},
        {"type": "number", "exclusiveMinimum": 0.0701, "exclusiveMaximum": 0.0703},
        {"type": "string", "minLength": 70},
        {"type": "array", "items": {"type": "string", "format": "email"}, "minItems": 6, "maxItems": 6},
        {"allOf": [{"required": ["a"]}, {"properties": {"a": {"type": "string", "format": "date-time"}}}]},
    ],
)
def test_schemas_whose_closing_must_be_searched(schema: Any) -> None:
    validator = validator_of(schema)
    for seed in range(3):
        check_every_way(Grammar.json_schema(schema), seed, lambda text: validator.validate(parse(text)))


def regexes() -> st.SearchStrategy[str]:
    literals = st.text('ab01 ./-é"{}[]()|*+?^$\\<>\n', min_size=1, max_size=4).map(re.escape)
    atoms = st.one_of(literals, st.sampled_from(["[a-f]", "[^a-z]", ".", "[0-9]", "[\u0430-\u044f]", r"\d"]))
    return st.recursive(
        atoms,
        lambda inner: st.one_of(
            st.lists(inner, min_size=2, max_size=3).map("".join),
            st.lists(inner, min_size=2, max_size=3).map(lambda parts: f"(?:{'|'.join(parts)})"),
            st.tuples(inner, st.sampled_from(["*", "+", "?", "{2}", "{1,3}", "{3,}"])).map(
                lambda p: f"(?:{p[0]}){p[1]}"
            ),
        ),
        max_leaves=5,
    )


@PATIENT
@given(pattern=regexes(), seed=st.integers(0, 2**32))
def test_an_answer_by_a_regex_matches_it(pattern: str, seed: int) -> None:
    try:
        compiler().compile(Grammar.regex(pattern))
    except ConfigError:  # no closing found, as where nothing tells the end from the middle: (0|[^a-z])*00
        reject()
    check_every_way(Grammar.regex(pattern), seed, partial(matches, pattern))


@PATIENT
@given(options=st.lists(st.text(min_size=1, max_size=12), min_size=1, max_size=6), seed=st.integers(0, 2**32))
def test_a_choice_is_one_of_its_options(options: list[str], seed: int) -> None:
    def check(text: str) -> None:
        assert text in options

    check_every_way(Grammar.choice(options), seed, check)


@pytest.mark.parametrize("seed", range(3))
def test_a_context_free_grammar(seed: int) -> None:
    def check(text: str) -> None:
        assert re.fullmatch("a*cb*", text)
        assert text.count("a") == text.count("b")

    check_every_way(Grammar.lark('start: "a" start "b" | "c"'), seed, check)


def matches(pattern: str, text: str) -> None:
    assert re.fullmatch(pattern, text), (pattern, text)


@pytest.mark.parametrize("kind", ["sentencepiece", "unigram"])
def test_tokenizers_that_do_not_write_the_first_space(kind: str) -> None:
    for seed in range(3):
        for pattern in ("go( on)*", " go( on)*"):
            check_every_way(Grammar.regex(pattern), seed, partial(matches, pattern), kind)
        check_every_way(Grammar.json_schema({"type": "array", "items": {"type": "string"}}), seed, parse, kind)


def test_the_demos_words_follow_a_regex_and_cannot_write_json() -> None:
    tokenizer = kinds.scan()
    words = GrammarCompiler(tokenizer, (2,))
    grammar = Grammar.regex("I_TURN_LEFT( I_(WALK|RUN)){2,}")
    for seed in range(10):
        ids = list(generate(words.compile(grammar), 6, random_model(seed, 24)))
        assert re.fullmatch("I_TURN_LEFT( I_(WALK|RUN)){2,5}", tokenizer.decode(ids))
    with pytest.raises(ConfigError, match="vocabulary can write"):
        words.compile(Grammar.json_object())


def test_a_tokenizer_whose_decoder_rewrites_the_text_is_refused() -> None:
    with pytest.raises(ConfigError, match="decodes token by token"):
        GrammarCompiler(kinds.word_piece(), (1,))


@settings(max_examples=200, deadline=None)
@given(kind=st.sampled_from([*KINDS, "scan"]), data=st.data())
def test_tokens_bytes_are_what_the_tokenizer_decodes(kind: str, data: st.DataObject) -> None:
    tokenizer = KINDS[kind]() if kind in KINDS else kinds.scan()
    table = tables(tokenizer, kind)
    ids = data.draw(st.lists(st.integers(0, tokenizer.get_vocab_size() - 1), max_size=12))
    if "\ufffd" not in table.text(ids):
        assert tokenizer.decode(ids) == table.text(ids)


@lru_cache
def tables(tokenizer: Tokenizer, kind: str) -> Any:
    return token_bytes(tokenizer)


def test_only_end_tokens_follow_a_finished_answer_and_none_an_unfinished_one() -> None:
    constraint = compiler().compile(Grammar.choice(["a", "ab"]))
    byte = {compiler().vocabulary.tokens[token]: token for token in range(len(compiler().vocabulary.tokens))}
    assert not constraint.allowed()[list(kinds.ENDS)].any()
    constraint.accept(byte[b"a"])
    assert sorted(np.flatnonzero(constraint.allowed())) == sorted([*kinds.ENDS, byte[b"b"]])
    assert not constraint.finished
    assert constraint.choose(byte[b"b"], remaining=0) in kinds.ENDS
    fork = constraint.copy()
    fork.accept(kinds.ENDS[1])
    assert fork.finished
    constraint.accept(byte[b"b"])
    assert constraint.finished
    assert sorted(np.flatnonzero(constraint.allowed())) == sorted(kinds.ENDS)
    with pytest.raises(ConfigError, match="allows"):
        constraint.accept(byte[b"b"])


def test_a_token_that_is_not_allowed_is_replaced() -> None:
    constraint = compiler().compile(Grammar.choice(["ab"]))
    for token in (*kinds.ENDS, *(t for t, text in enumerate(compiler().vocabulary.tokens) if text == b"x")):
        assert [constraint.choose(token, 9)] == constraint.closing()[:1]


def test_llguidance_is_imported_when_a_grammar_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    code = "import sys, edge_sdk.structured, edge_sdk.tool_grammar; print('llguidance' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"
    monkeypatch.setitem(sys.modules, "llguidance", None)
    with pytest.raises(ConfigError, match=r"edge-sdk\[structured\]"):
        Grammar.regex("a")


def test_masked_logits_are_those_allowed_even_where_the_model_has_more() -> None:
    constraint = compiler().compile(Grammar.json_object())
    allowed = constraint.allowed()
    logits = np.zeros(len(allowed) + 61, dtype=np.float32)
    constraint.apply(logits)
    assert np.array_equal(logits[: len(allowed)] == 0, allowed)
    assert np.isneginf(logits[len(allowed) :]).all()
    shorter = np.zeros(len(allowed) - 5, dtype=np.float32)
    constraint.apply(shorter)
    assert np.array_equal(shorter == 0, allowed[:-5])


def test_special_tokens_are_no_text() -> None:
    constraint = compiler().compile(Grammar.json_schema({"type": "string"}))
    constraint.accept(next(token for token, text in enumerate(compiler().vocabulary.tokens) if text == b'"'))
    assert not constraint.allowed()[list(compiler().vocabulary.specials.values())].any()


def test_a_copy_goes_its_own_way() -> None:
    start = compiler().compile(Grammar.json_schema({"type": "array", "items": {"type": "integer"}}))
    first = list(generate(start, 12, random_model(0, 2100)))
    again = compiler().compile(Grammar.json_schema({"type": "array", "items": {"type": "integer"}}))
    for token in first[:3]:
        again.accept(token)
    fork = again.copy()
    for token in first[3:]:
        again.accept(token)
    assert not again.closing()
    assert parse(kinds.byte_level().decode(first[:3] + fork.closing())) is not None


def test_a_grammar_too_deep_for_the_parser_is_still_closed() -> None:
    byte = {compiler().vocabulary.tokens[token]: token for token in range(len(compiler().vocabulary.tokens))}
    preference = np.full(2100, -1, dtype=np.float32)
    preference[byte[b"a"]] = 1
    constraint = compiler().compile(Grammar.lark('start: "a" start "b" | "c"'))
    text = kinds.byte_level().decode(list(generate(constraint, 301, lambda step: preference.copy())))
    assert text.count("a") == text.count("b") >= 100
    assert set(text) == {"a", "b", "c"}


def test_where_the_parser_gives_up_the_closing_is_written() -> None:
    schema = {"type": "object", "properties": {"a": {"type": "string"}}, "required": ["a"]}
    constraint, model = compiler().compile(Grammar.json_schema(schema)), random_model(1, 2100)
    ids = [token for _, token in zip(range(4), generate(constraint, 90, model))]
    constraint._matcher.consume_token(kinds.ENDS[0])
    assert constraint._matcher.is_error()
    assert not constraint.finished
    ids += generate(constraint, 80, model)
    assert constraint.finished
    jsonschema.validate(parse(kinds.byte_level().decode(ids)), schema)


@pytest.mark.parametrize(
    ("make", "named"),
    [
        (lambda: Grammar.json_schema({"type": "string", "not": {}}), "not"),
        (lambda: Grammar.json_schema({"type": "strin"}), "strin"),
        (lambda: Grammar.json_schema("[1]"), "list"),
        (lambda: Grammar.json_schema("{"), "JSON"),
        (lambda: Grammar.json_schema(False), "allows nothing"),
        (lambda: Grammar.json_schema({"type": "string", "format": "no-such"}), "no-such"),
        (lambda: Grammar.regex("(a"), "unclosed group"),
        (lambda: Grammar.regex("(?=a)b"), "look-around"),
        (lambda: Grammar.lark("start: somewhere"), "somewhere"),
        (lambda: Grammar.choice([]), "none empty"),
        (lambda: Grammar.choice(["a", ""]), "none empty"),
    ],
)
def test_what_is_refused_is_named(make: Callable[[], Grammar], named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        make()


@pytest.mark.parametrize("source", ['start: "a" more\nmore: "b" more', "start: /[^\\x00-\\u{10FFFF}]/"])
def test_a_grammar_without_a_finite_answer_is_refused(source: str) -> None:
    with pytest.raises(ConfigError, match="grammar"):
        compiler().compile(Grammar.lark(source))


def test_end_tokens_must_be_tokens() -> None:
    for ends in ((), (10**6,)):
        with pytest.raises(ConfigError, match="eos_token_ids"):
            GrammarCompiler(kinds.byte_level(), ends)
