"""The MoE CUDA kernels: routing, few tokens and many, every format and activation."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from cuda import HALVES, SCHEDULES, assert_as_good_as_plain, module, runner, set_schedule
from edge_plugins import OPERATORS
from edge_plugins.moe.op import ACTIVATIONS, make_case
from edge_plugins.operator import Array, Case
from matrix import expected_of
from test_operators import assert_agree

MOE = OPERATORS["MoE"]
LARGE = 500
"""Tokens above which a case runs under one schedule only."""

PRODUCTS = [
    make_case(f"{activation}-{weights}-{tokens}", (1, tokens), 5, top_k=2, weights=weights, activation=activation)
    for activation in ACTIVATIONS
    for weights in ("int4", "int8", "bfloat16")
    for tokens in (32, 33)
]
"""The largest case of few slots and the smallest of many."""

TILES = [
    make_case("full-tiles", (1, 400), 3, top_k=1, weights="int4", width=96, intermediate=160),
    make_case("slices", (1, 3), 4, top_k=2, weights="int4", width=1056, intermediate=64),
    make_case("blocks", (1, 40), 4, top_k=2, weights="int8", width=256, intermediate=192, block_size=64),
    make_case("odd-gates", (1, 40), 4, top_k=2, weights="bfloat16", intermediate=48, activation="silu_gated"),
    make_case("float16", (1, 40), 4, top_k=2, weights="float16"),
]


def cases(*more: Case) -> list[Any]:
    return [pytest.param(case, id=case.name) for case in (*MOE.make_cases(), *more)]


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("case", cases())
def test_float32_agrees_with_the_reference(case: Case, schedule: int) -> None:
    if schedule != 0 and case.inputs["x"].shape[1] > LARGE:
        pytest.skip("too large for the model of a GPU")
    found = runner(schedule=schedule)(MOE, case)(case.inputs)
    assert_agree(MOE, case, found, expected_of(MOE, case))


@pytest.mark.parametrize("type", HALVES)
@pytest.mark.parametrize("case", [case for case in cases(*PRODUCTS, *TILES) if case.values[0].inputs["x"].size])
def test_halves_are_as_good_as_the_plain_products(case: Case, type: str) -> None:
    assert_as_good_as_plain(MOE, case, type, ["x"])


@pytest.mark.parametrize("schedule", SCHEDULES[1:])
@pytest.mark.parametrize("case", [pytest.param(case, id=case.name) for case in (*PRODUCTS, *TILES)])
def test_the_order_of_threads_changes_nothing(case: Case, schedule: int) -> None:
    (first,) = runner("float16")(MOE, case)(case.inputs)
    (found,) = runner("float16", schedule)(MOE, case)(case.inputs)
    np.testing.assert_array_equal(found, first)


def route(logits: Array, bias: Array, **attributes: Any) -> Array:
    """The shares (tokens, experts) that each token's experts get: expert e answers x = 1 with a one in place e."""
    tokens, experts = logits.shape
    settings = {"top_k": 1, "n_group": 1, "topk_group": 1, "norm_topk_prob": 0, "routed_scaling_factor": 1.0}
    (found,) = (
        module()
        .moe(
            x=np.eye(1, experts, dtype=np.float32).repeat(tokens, 0)[None],
            router_logits=logits[None],
            correction_bias=bias,
            up_weight=np.eye(experts, 1, dtype=np.float32)[None].repeat(experts, 0),
            down_weight=np.eye(experts, dtype=np.float32)[:, None, :],
            **settings | attributes,
        )
        .run()
    )
    return np.asarray(found)


def expected_routes(logits: Array, bias: Array, **attributes: Any) -> Array:
    """The same by the float64 reference."""
    tokens, experts = logits.shape
    settings = {"top_k": 1, "n_group": 1, "topk_group": 1, "norm_topk_prob": 0, "routed_scaling_factor": 1.0}
    return MOE.reference(
        x=np.eye(1, experts).repeat(tokens, 0),
        router_logits=logits,
        correction_bias=bias,
        up_weight=np.eye(experts, 1)[None].repeat(experts, 0),
        down_weight=np.eye(experts)[:, None, :],
        activation="relu2",
        **settings | attributes,
    )[0]


@pytest.mark.parametrize(
    ("experts", "attributes"),
    [
        (512, {"top_k": 32, "norm_topk_prob": 1, "routed_scaling_factor": 2.5}),
        (512, {"top_k": 22, "n_group": 8, "topk_group": 3}),
        (72, {"top_k": 10, "scoring": "softmax"}),
        (33, {"top_k": 5, "n_group": 3, "topk_group": 2, "scoring": "softmax", "norm_topk_prob": 1}),
        (256, {"top_k": 8, "n_group": 64, "topk_group": 40}),
        (128, {"top_k": 6}),
        (33, {"top_k": 5, "n_group": 3, "topk_group": 2}),
        (32, {"top_k": 32}),
        (1, {"top_k": 1}),
    ],
)
@pytest.mark.parametrize("tokens", [2, 70])
def test_routing_agrees_with_the_reference(experts: int, attributes: dict[str, Any], tokens: int) -> None:
    if experts * tokens > 128 * 70:
        tokens = 5  # its weights alone take long to check
    rng = np.random.default_rng(experts)
    logits, bias = rng.standard_normal((tokens, experts), np.float32), rng.uniform(-0.3, 0.3, experts)
    bias = bias.astype(np.float32)
    np.testing.assert_allclose(
        route(logits, bias, **attributes), expected_routes(logits, bias, **attributes), rtol=1e-5, atol=1e-7
    )


def test_ties_go_to_the_lower_index() -> None:
    logits, bias = np.zeros((3, 64), np.float32), np.zeros(64, np.float32)
    logits[1, ::2] = -0.0
    bias[40:] = -0.0
    for attributes in ({"top_k": 7}, {"top_k": 7, "n_group": 8, "topk_group": 3}):
        found = route(logits, bias, **attributes)
        np.testing.assert_array_equal(found > 0, np.arange(64)[None].repeat(3, 0) < 7)


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("tokens", [4, 40])
def test_strange_logits_stay_in_their_token(value: float, tokens: int, schedule: int) -> None:
    rng = np.random.default_rng(0)
    bias = rng.uniform(-0.3, 0.3, 24).astype(np.float32)
    attributes = {"top_k": 5, "n_group": 4, "topk_group": 2}
    logits = rng.standard_normal((tokens, 24), np.float32)
    set_schedule(schedule)
    sane = route(logits, bias, **attributes)
    logits[2] = value
    logits[3, ::5] = value
    found = route(logits, bias, **attributes)
    others = [0, 1, *range(4, tokens)]
    np.testing.assert_array_equal(found[others], sane[others])
    set_schedule(0)


def test_numbers_rank_above_nan() -> None:
    logits, bias = np.full((1, 16), -3, np.float32), np.zeros(16, np.float32)
    logits[0, [0, 3, 4]] = np.nan
    found = route(logits, bias, top_k=4)
    np.testing.assert_array_equal(np.flatnonzero(found > 0), [1, 2, 5, 6])


@pytest.mark.parametrize("weights", ["int4", "bfloat16"])
def test_a_token_does_not_see_the_others(weights: str) -> None:
    case = make_case(f"others-{weights}", (1, 8), 6, top_k=3, weights=weights)
    run = runner("bfloat16")(MOE, case)
    (together,) = run(case.inputs)
    for tokens in (1, 5):
        some = {name: case.inputs[name][:, :tokens] for name in ("x", "router_logits")}
        np.testing.assert_array_equal(run({**case.inputs, **some})[0], together[:, :tokens])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"top_k": 33}, "top_k is not 1 to 32"),
        ({"top_k": 0}, "top_k is not 1 to 32"),
        ({"n_group": 5}, "n_group does not divide"),
        ({"topk_group": 2}, "topk_group is not 1 to n_group"),
        ({"n_group": 16, "topk_group": 1, "top_k": 5}, "top_k exceeds"),
        ({"up_weight": np.zeros((64, 32, 64), np.int8)}, "contradict each other"),
        ({"block_size": 16, "up_scales": np.ones((64, 2, 32)), "down_scales": np.ones((64, 2, 32))}, "block size"),
        ({"activation": "tanh"}, "activation: expected relu2"),
        ({"scoring": "tanh"}, "scoring: expected sigmoid"),
    ],
)
def test_what_cannot_be_done_is_refused(change: dict[str, Any], message: str) -> None:
    scales = np.ones((64, 1, 64 if "up_weight" in change else 32), np.float32)
    arguments: dict[str, Any] = {
        "x": np.zeros((1, 2, 32), np.float32),
        "router_logits": np.zeros((1, 2, 64), np.float32),
        "correction_bias": np.zeros(64, np.float32),
        "up_weight": np.zeros((64, 32, 32), np.int8),
        "down_weight": np.zeros((64, 32, 32), np.int8),
        "up_scales": scales,
        "down_scales": np.ones((64, 1, 32), np.float32),
        "block_size": 32,
        "top_k": 2,
        "n_group": 1,
        "topk_group": 1,
        "norm_topk_prob": 1,
        "routed_scaling_factor": 1.0,
    }
    with pytest.raises(ValueError, match=message):
        module().moe(**arguments | change).run()


def test_more_experts_than_a_warp_has_room_for_are_refused() -> None:
    with pytest.raises(ValueError, match="1 to 512"):
        route(np.zeros((1, 513), np.float32), np.zeros(513, np.float32))
