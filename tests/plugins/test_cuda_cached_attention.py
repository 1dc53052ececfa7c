"""edge::CachedAttention's CUDA kernels: results, the cache, splits of keys, and what is refused."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from cuda import HALVES, ROUNDING, SCHEDULES, as_float32, module, rounded, runner
from edge_plugins import OPERATORS
from edge_plugins.cached_attention.op import make_case
from edge_plugins.operator import Array, Case
from matrix import on_torch
from test_operators import LENGTH, SPLIT_CASES, assert_agree, expected_of, in_parts

ATTENTION = OPERATORS["CachedAttention"]
ACTIVATIONS = ("query", "key", "value")
CASES = {case.name: case for case in ATTENTION.make_cases()}
SLOW = {"long"}
"""Run once per kernel only."""

TENSOR_CASES = {
    case.name: case
    for case in (
        make_case("step-64", past_length=(300, 0, 77), length=1, head_dim=64, cache="float16"),
        make_case("step-80", past_length=(129,), length=2, head_dim=80, cache="int8"),
        make_case("step-128", past_length=(700, 64), length=1, head_dim=128, group_heads=16, cache="float16"),
        make_case("step-192", past_length=(40,), length=1, head_dim=192, group_heads=5, cache="int8"),
        make_case("step-256", past_length=(90,), length=3, head_dim=256, group_heads=8, cache="float16"),
        make_case("block-80", past_length=(3, 70), length=40, head_dim=80, cache="float16"),
        make_case("block-128", past_length=(0, 33), length=20, head_dim=128, group_heads=5, cache="float16"),
        make_case("block-128-int8", past_length=(65,), length=35, head_dim=128, kv_heads=1, cache="int8"),
        make_case("block-256", past_length=(5,), length=70, head_dim=256, kv_heads=1, group_heads=1, cache="float16"),
        make_case(
            "block-256-int8", past_length=(17,), length=12, head_dim=256, kv_heads=1, group_heads=6, cache="int8"
        ),
        make_case("block-window", past_length=(200, 3), length=30, head_dim=96, window=50, cache="float16"),
        make_case("block-split", past_length=(600, 150), length=9, head_dim=64, kv_heads=1, cache="float16"),
        make_case("block-split-window", past_length=(600,), length=9, kv_heads=1, window=400, cache="int8"),
        make_case("step-window", past_length=(500, 3), length=1, head_dim=64, window=300, cache="int8"),
    )
}
"""What the operator's own cases leave out of the tensor cores' ways of dividing work."""

ODD_CASES = {
    case.name: case
    for case in (
        make_case("odd-7", past_length=(40, 3), length=5, head_dim=7, cache="float16"),
        make_case("odd-33", past_length=(200,), length=1, head_dim=33, cache="int8"),
        make_case("odd-72", past_length=(10,), length=20, head_dim=72, cache="float16"),
        make_case("odd-100", past_length=(300,), length=2, head_dim=100, group_heads=1),
        make_case("odd-250", past_length=(20,), length=3, head_dim=250, kv_heads=1, cache="int8"),
        make_case("even-256", past_length=(150,), length=1, head_dim=256),
    )
}
"""Head sizes that tensor cores do not take."""


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("name", [*CASES, *ODD_CASES])
def test_float32_agrees_with_the_reference(name: str, schedule: int) -> None:
    if name in SLOW and schedule != 0:
        pytest.skip("long")
    case = {**CASES, **ODD_CASES}[name]
    assert_agree(
        ATTENTION, case, runner("float32", schedule)(ATTENTION, case)(case.inputs), expected_of(ATTENTION, case)
    )


def assert_as_good_as_plain(case: Case, type: str, schedule: int) -> None:
    """y's error at most twice that of torch in this type, which rounds y alone, and 1/8 of a rounding for the weights;
    the cache as the reference has it."""
    narrow = rounded(case, ACTIVATIONS, type)
    exact = as_float32(narrow, ACTIVATIONS)
    same = replace(case, inputs=exact)
    expected = expected_of(ATTENTION, same)
    found = runner(type, schedule)(ATTENTION, same)(exact)
    assert_agree(ATTENTION, same, (expected[0].astype(np.float32), *found[1:]), expected)
    kept = np.arange(len(expected[0])) != (-1 if case.poisoned_row is None else case.poisoned_row)
    y, want = found[0][kept], expected[0][kept]
    if not y.size:
        return
    plain = 0.0 if case.kernel_only else error(on_torch(ATTENTION, case)(narrow)[0][kept], want)
    assert error(y, want) <= 2 * plain + ROUNDING[type] / 8 * max(1.0, float(np.abs(want).max()))


def error(found: Array, expected: Array) -> float:
    return float(np.abs(found - expected).max())


@pytest.mark.parametrize("type", HALVES)
@pytest.mark.parametrize("name", [*CASES, *TENSOR_CASES, *ODD_CASES])
def test_narrow_types_are_as_good_as_plain_computation(name: str, type: str) -> None:
    if name in SLOW and type != "float16":
        pytest.skip("long")
    assert_as_good_as_plain({**CASES, **TENSOR_CASES, **ODD_CASES}[name], type, schedule=0)


@pytest.mark.parametrize("schedule", SCHEDULES[1:])
@pytest.mark.parametrize("name", TENSOR_CASES)
def test_tensor_cores_do_not_depend_on_the_order_of_threads(name: str, schedule: int) -> None:
    case = TENSOR_CASES[name]
    expected = runner("float16", 0)(ATTENTION, case)(case.inputs)
    for found, want in zip(runner("float16", schedule)(ATTENTION, case)(case.inputs), expected):
        np.testing.assert_array_equal(found, want)


@pytest.mark.parametrize("type", ["float32", "float16"])
@pytest.mark.parametrize("name", ["uneven-steps", "float16-block", "int8-block", "long-past-int8", "row-int8-with-nan"])
def test_in_place_is_the_same(name: str, type: str) -> None:
    case = CASES[name]
    expected = runner(type)(ATTENTION, case)(case.inputs)
    for found, want in zip(runner(type, inplace=True)(ATTENTION, case)(case.inputs), expected):
        np.testing.assert_array_equal(found, want)


@pytest.mark.parametrize("type", ["float32", "float16"])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_spoilt_int8_row_shows(type: str, value: float) -> None:
    """Integers cannot hold NaN or infinity, so the row's scale must."""
    case = make_case("spoilt", past_length=(4,), length=1, cache="int8")
    inputs = {name: array.copy() for name, array in case.inputs.items()}
    inputs["value"][..., 3] = value
    y, *_ = runner(type)(ATTENTION, case)(inputs)
    assert np.isnan(y.reshape(2, 4, 16)[0]).all()


@pytest.mark.parametrize("lengths", [[1] * LENGTH, [LENGTH], [3, 17, 1, 19]], ids=["steps", "block", "parts"])
@pytest.mark.parametrize("name", [name for name in SPLIT_CASES if name.startswith(ATTENTION.name)])
def test_any_split_agrees_with_the_reference(name: str, lengths: list[int]) -> None:
    case = SPLIT_CASES[name]
    found = in_parts(runner("float32")(ATTENTION, case), ATTENTION, case, lengths)
    assert_agree(ATTENTION, case, found, expected_of(ATTENTION, case))


@pytest.mark.parametrize("cache", ["float16", "int8"])
def test_prefill_equals_steps_on_tensor_cores(cache: str) -> None:
    case = make_case("steps", past_length=(0, 90), length=LENGTH, head_dim=64, cache=cache)
    exact = as_float32(rounded(case, ACTIVATIONS, "float16"), ACTIVATIONS)
    case = replace(case, inputs=exact)
    run = runner("float16")(ATTENTION, case)
    block, steps = run(exact), in_parts(run, ATTENTION, case, [1] * LENGTH)
    assert error(steps[0], block[0]) <= 4 * ROUNDING["float16"] * np.abs(block[0]).max()
    for found, want in zip(steps[1:], block[1:]):
        np.testing.assert_array_equal(found, want)


@pytest.mark.parametrize("type", ["float32", "float16"])
@pytest.mark.parametrize("length", [1, 20])
def test_a_row_is_the_same_in_any_company(type: str, length: int) -> None:
    case = make_case("company", past_length=(400, 3, 150), length=length, head_dim=64, cache="float16")
    together = runner(type)(ATTENTION, case)(case.inputs)
    for row in range(3):
        inputs = {name: array[row : row + 1] for name, array in case.inputs.items()}
        for found, want in zip(runner(type)(ATTENTION, case)(inputs), together):
            np.testing.assert_array_equal(found[0], want[row])


@pytest.mark.parametrize("type", ["float32", "float16"])
@pytest.mark.parametrize("past_length", [-1, -9, 30, 2**62, -(2**62)])
def test_what_does_not_fit_the_cache_is_not_stored(type: str, past_length: int) -> None:
    """A GPU raises no error: memory must stay whole, and so must the other rows."""
    case = make_case("surplus", past_length=(28, 28), length=3, spare=0, head_dim=16, cache="float16")
    inputs = {name: np.nan_to_num(array) for name, array in case.inputs.items()}
    right = runner(type)(ATTENTION, case)(inputs)
    wrong = {**inputs, "past_length": np.array([28, past_length])}
    y, *caches = runner(type)(ATTENTION, case)(wrong)
    np.testing.assert_array_equal(y[0], right[0][0])
    assert np.isfinite(y).all()
    for name, found, want in zip(("key", "value"), caches, right[1:]):
        np.testing.assert_array_equal(found[0], want[0])
        expected = inputs[f"past_{name}"][1].copy()
        new = inputs[name][1].reshape(3, 2, 16).transpose(1, 0, 2).astype(np.float16)
        for t in range(3):
            if 0 <= past_length + t < expected.shape[1]:
                expected[:, past_length + t] = new[:, t]
        np.testing.assert_array_equal(found[1], expected)


def test_the_workspace_grows_with_the_shapes() -> None:
    sizes = {"batch": (1, 3), "length": (1, 2, 16, 17, 300), "capacity": (1, 500, 5000, 100000)}
    for kv_heads, group, head_dim in itertools.product((1, 2, 8, 100), (1, 5, 16), (64, 80, 100, 256)):

        def bytes_of(batch: int, length: int, capacity: int) -> int:
            heads = {"heads": kv_heads * group, "kv_heads": kv_heads, "head_dim": head_dim}  # noqa: B023
            found = module().cached_attention_workspace(batch=batch, length=length, capacity=capacity, **heads)
            return int(found)

        for batch, length, capacity in itertools.product(*sizes.values()):
            most = bytes_of(batch, length, capacity)
            assert most <= batch * 4096 * (head_dim + 2) * 4 + 4
            for smaller in ((1, length, capacity), (batch, 1, capacity), (batch, length, 1)):
                assert bytes_of(*smaller) <= most


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"window": -1}, "window"),
        ({"head_dim": 257}, "head_dim"),
        ({"group_heads": 0}, "heads"),
    ],
)
def test_what_cannot_be_done_is_refused(change: dict[str, Any], message: str) -> None:
    case = make_case("wrong", **change)
    with pytest.raises(ValueError, match=message):
        runner()(ATTENTION, case)(case.inputs)
