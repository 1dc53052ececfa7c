"""The QLinear CUDA kernels: few tokens, many, every format, sizes that tensor cores do not take."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from cuda import HALVES, SCHEDULES, assert_as_good_as_plain, module, runner
from edge_plugins import OPERATORS
from edge_plugins.operator import Case
from edge_plugins.qlinear.op import make_case
from matrix import expected_of
from test_operators import assert_agree

QLINEAR = OPERATORS["QLinear"]
PRODUCTS = [
    make_case(kind, (tokens,), width, out, block)
    for kind, width, out, block in (
        ("int4", 320, 160, 32),
        ("int4", 768, 32, 96),
        ("int8", 320, 144, 64),
        ("int8", 512, 80, 256),
        ("bfloat16", 336, 136, 0),
    )
    for tokens in (1, 7, 8, 9, 70)
]
"""What tensor cores take, with less than a tile of columns left over: few tokens and many."""


def cases(*more: Case) -> list[Any]:
    return [pytest.param(case, id=case.name) for case in (*QLINEAR.make_cases(), *more)]


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("case", cases())
def test_float32_agrees_with_the_reference(case: Case, schedule: int) -> None:
    found = runner(schedule=schedule)(QLINEAR, case)(case.inputs)
    assert_agree(QLINEAR, case, found, expected_of(QLINEAR, case))


@pytest.mark.parametrize("type", HALVES)
@pytest.mark.parametrize("case", [case for case in cases(*PRODUCTS) if case.values[0].inputs["x"].size])
def test_halves_are_as_good_as_the_plain_product(case: Case, type: str) -> None:
    assert_as_good_as_plain(QLINEAR, case, type, ["x"])


@pytest.mark.parametrize("type", HALVES)
@pytest.mark.parametrize("tokens", [2, 20])
def test_a_long_sum_of_one_sign_loses_nothing_to_the_weights_bias(tokens: int, type: str) -> None:
    """As behind a squared ReLU: what biased int4 weights bring grows with the inputs' sum (weight_fragments.cuh)."""
    case = make_case("int4", (tokens,), 8192, 64, 32)
    positive = replace(case, inputs={**case.inputs, "x": np.square(case.inputs["x"])})
    assert_as_good_as_plain(QLINEAR, positive, type, ["x"])


@pytest.mark.parametrize("schedule", SCHEDULES[1:])
@pytest.mark.parametrize("case", [pytest.param(case, id=case.name) for case in PRODUCTS])
def test_the_order_of_threads_changes_nothing(case: Case, schedule: int) -> None:
    (first,) = runner("float16")(QLINEAR, case)(case.inputs)
    (found,) = runner("float16", schedule)(QLINEAR, case)(case.inputs)
    np.testing.assert_array_equal(found, first)


@pytest.mark.parametrize("kind", ["int4", "int8", "bfloat16"])
def test_a_token_does_not_see_how_many_others_there_are(kind: str) -> None:
    case = make_case(kind, (8,), 320, 64, 0 if kind == "bfloat16" else 32)
    run = runner("bfloat16")(QLINEAR, case)
    (together,) = run(case.inputs)
    for tokens in (1, 3):
        (some,) = run({**case.inputs, "x": case.inputs["x"][:tokens]})
        np.testing.assert_array_equal(some, together[:tokens])


@pytest.mark.parametrize("tokens", [3, 20])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_nan_and_infinity_stay_in_their_row(tokens: int, value: float) -> None:
    case = make_case("int4", (tokens,), 64, 64, 32)
    run = runner("float16")(QLINEAR, case)
    (sane,) = run(case.inputs)
    x = case.inputs["x"].copy()
    x[1, 5] = value
    (found,) = run({**case.inputs, "x": x})
    assert not np.isfinite(found[1]).any()
    np.testing.assert_array_equal(np.delete(found, 1, axis=0), np.delete(sane, 1, axis=0))


def test_all_integers_are_multiplied_exactly() -> None:
    """One row of ones picks out each weight: 16 values of int4, 256 of int8, in every place of a tile."""
    for kind, count in (("int4", 16), ("int8", 256)):
        weight = (np.arange(32 * 128).reshape(32, 128) % count - count // 2).astype(np.int8)
        scales, bits = np.ones((1, 128), np.float32), int(kind.removeprefix("int"))
        x = np.eye(32, dtype=np.float32)
        for type in HALVES:
            for tokens in (8, 32):
                found = (
                    module()
                    .qlinear(x=x[:tokens], weight=weight, scales=scales, block_size=32, bits=bits, type=type)
                    .run()
                )
                np.testing.assert_array_equal(found, weight[:tokens])


def test_the_workspace_grows_with_the_tokens() -> None:
    rng = np.random.default_rng(0)
    weight = rng.integers(-8, 8, (256, 64)).astype(np.int8)
    arguments = {"weight": weight, "scales": np.ones((8, 64), np.float32), "block_size": 32, "bits": 4}
    for type in ("float32", *HALVES):
        sizes = [module().qlinear_workspace(tokens=n, type=type, **arguments) for n in (0, 1, 2, 8, 9, 64, 1000)]
        assert sizes == sorted(sizes)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"block_size": 16}, "block size"),
        ({"block_size": 512, "scales": np.ones((1, 64), np.float32)}, "block size"),
        ({"scales": None}, "scales: expected with integers"),
        ({"type": "int8"}, "type: expected float32"),
    ],
)
def test_what_cannot_be_done_is_refused(change: dict[str, Any], message: str) -> None:
    arguments: dict[str, Any] = {
        "x": np.zeros((2, 512), np.float32),
        "weight": np.zeros((512, 64), np.int8),
        "scales": np.ones((512 // change.get("block_size", 32), 64), np.float32),
        "block_size": 32,
    }
    with pytest.raises(ValueError, match=message):
        module().qlinear(**arguments | change).run()
