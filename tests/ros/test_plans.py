"""What a model says becomes a plan, or is refused: nothing else than declared steps, within their limits."""

from __future__ import annotations

import json
import math
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

from edge_ros_bridge.plans import (
    Order,
    PlanError,
    Progress,
    Rules,
    Step,
    StepKind,
    read_order,
    read_progress,
)
from edge_sdk.errors import ConfigError

GO = StepKind(name="go", motion="forward", low=-0.5, high=2.0, timeout_s=10.0)
LEFT = StepKind(name="left", motion="turn", low=math.pi / 2, high=math.pi / 2, timeout_s=5.0)
REST = StepKind(name="rest", motion="wait", low=0.0, high=3.0, timeout_s=4.0)
JSON = Rules(kinds=(GO, LEFT, REST), form="json", max_steps=4)
WORDS = Rules(kinds=(LEFT,), form="words", max_steps=3)

SCHEMA = Draft202012Validator(JSON.schema())
"""Another reader of JSON schemas."""

names = st.sampled_from(["go", "left", "rest", "fly", "", "Go"])
amounts = st.one_of(st.integers(-3, 5), st.floats(-1, 4), st.booleans(), st.none(), st.just("1"))
steps = st.fixed_dictionaries({"name": names}, optional={"amount": amounts, "speed": st.integers(0, 1)})
good = st.one_of(
    st.just({"name": "left"}), st.fixed_dictionaries({"name": st.just("go"), "amount": st.floats(-0.6, 2.1)})
)
plans = st.fixed_dictionaries({"steps": st.lists(st.one_of(good, steps), max_size=5)}, optional={"why": st.just("so")})


def test_words_are_the_names_of_steps() -> None:
    assert WORDS.steps(" left\nleft ") == (LEFT.step(None),) * 2
    assert LEFT.step(None) == Step(name="left", motion="turn", amount=math.pi / 2, timeout_s=5.0)


def test_json_has_amounts_where_there_is_a_choice() -> None:
    said = '{"steps": [{"name": "go", "amount": 1}, {"name": "left"}, {"name": "rest", "amount": 0.5}]}'
    assert [(step.motion, step.amount) for step in JSON.steps(said)] == [
        ("forward", 1.0),
        ("turn", math.pi / 2),
        ("wait", 0.5),
    ]


@pytest.mark.parametrize(
    ("rules", "answer", "message"),
    [
        (WORDS, "", "expected steps, found none. The model refuses"),
        (WORDS, "left right left", "expected only the steps left, found right"),
        (WORDS, "Left", "found Left"),
        (WORDS, "left left left left", "at most 3 steps, found 4"),
        (WORDS, " ".join(f"step{index}" for index in range(3)), "found step0, step1, step2"),
        (JSON, "left", "JSON of the plan's schema"),
        (JSON, '{"steps": []}', "The model refuses"),
        (JSON, '{"steps": [{"name": "go"}]}', "go: amount: expected -0.5 to 2 m, found None"),
        (JSON, '{"steps": [{"name": "go", "amount": 2.01}]}', "found 2.01"),
        (JSON, '{"steps": [{"name": "go", "amount": NaN}]}', "JSON of the plan's schema"),
        (JSON, '{"steps": [{"name": "go", "amount": 1e999}]}', "JSON of the plan's schema"),
        (JSON, '{"steps": [{"name": "left", "amount": 1.0}]}', "left: amount: expected 1.5708 to 1.5708 rad"),
        (JSON, '{"steps": [{"name": "go", "amount": true}]}', "JSON of the plan's schema"),
        (JSON, '{"steps": [{"name": "go", "amount": 1}]} and more', "JSON of the plan's schema"),
    ],
)
def test_what_is_no_plan_is_refused(rules: Rules, answer: str, message: str) -> None:
    with pytest.raises(PlanError, match=message.replace(".", r"\.")):
        rules.steps(answer)


@given(plans)
def test_what_the_schema_allows_is_a_plan_and_nothing_else(plan: dict[str, Any]) -> None:
    """But that a null is the same as nothing, and that a fixed amount may be said too."""
    allowed = SCHEMA.is_valid(plan)
    try:
        found = JSON.steps(json.dumps(plan))
    except PlanError:
        assert not allowed or not plan["steps"]
        return
    assert 0 < len(found) <= 4
    assert all(abs(step.amount) <= 2 or step.motion == "wait" for step in found)
    bare = [{"name": step.name} | ({} if step.name == "left" else {"amount": step.amount}) for step in found]
    assert SCHEMA.is_valid({"steps": bare})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kinds": ()}, "at least one name"),
        ({"kinds": (LEFT, LEFT)}, "each once"),
        ({"kinds": (msgspec.structs.replace(LEFT, name="turn left"),)}, "without spaces"),
        ({"kinds": (GO,)}, "low and high to be equal, found go"),
        ({"form": "prose"}, "words or json"),
    ],
)
def test_rules_that_make_no_sense_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        msgspec.structs.replace(WORDS, **change)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"motion": "fly"}, "one of forward, turn"),
        ({"motion": ""}, "found none"),
        ({"low": 2.5}, "high: expected at least 2.5"),
        ({"high": math.inf}, "expected a number, found inf"),
        ({"motion": "wait", "low": -1.0}, "at least 0 s"),
        ({"timeout_s": 0.0}, "timeout_s: expected more than 0"),
        ({"timeout_s": math.nan}, "timeout_s"),
    ],
)
def test_kinds_of_steps_that_make_no_sense_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        msgspec.structs.replace(GO, **change)


def test_a_model_is_told_the_steps_and_their_limits() -> None:
    told = JSON.told()
    assert '{"name": "go", "amount": ...}: forward, -0.5 to 2 m' in told
    assert '{"name": "left"}: turn 1.5708 rad' in told
    assert "at most 4" in told


def test_orders_and_progress_come_back_as_they_were_sent() -> None:
    order = Order(plan="a1", index=2, step=GO.step(1.5), lease_s=0.5)
    assert read_order(order.json()) == order
    assert order.id == "a1/2"
    assert read_order("") is None
    progress = Progress(state="failed", order="a1/2", reason="so")
    assert read_progress(progress.json()) == progress


@pytest.mark.parametrize(
    "change",
    [
        {"lease_s": 0},
        {"lease_s": 61},
        {"index": 1.5},
        {"step": {"name": "go", "motion": "fly", "amount": 1, "timeout_s": 1}},
        {"step": {"name": "go", "motion": "wait", "amount": -1, "timeout_s": 1}},
        {"step": {"name": "go", "motion": "forward", "amount": 1, "timeout_s": 0}},
        {"more": 1},
    ],
)
def test_an_order_that_is_not_whole_is_refused(change: dict[str, Any]) -> None:
    order = json.loads(Order(plan="a1", index=2, step=GO.step(1.5), lease_s=0.5).json())
    with pytest.raises(PlanError, match="An order: expected its JSON"):
        read_order(json.dumps(order | change))


@given(st.text())
def test_any_text_is_an_order_or_refused(text: str) -> None:
    try:
        order = read_order(text)
    except PlanError:
        return
    assert order is None
    assert text == ""
