"""The operator matrix: every operator, case and way of running it, against the float64 reference."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_plugins import OPERATORS, Operator
from edge_plugins.cached_attention import op as cached_attention
from edge_plugins.mamba2_mixer import op as mamba2_mixer
from edge_plugins.operator import Array, Case
from matrix import BFLOAT16, FLOAT32, RUNNERS, Outputs, Run, as_model, expected_of, output_dtype, why_not

CASES = [
    pytest.param(operator, case, id=f"{operator.name}-{case.name}")
    for operator in OPERATORS.values()
    for case in operator.make_cases()
]


def assert_close(found: Array, expected: Array, tolerance: float) -> None:
    """Equal shapes, NaN and infinities; of the rest no error above ``tolerance`` times the largest magnitude."""
    assert found.shape == expected.shape
    found, finite = found.astype(np.float64), np.isfinite(expected)
    np.testing.assert_array_equal(found[~finite], expected[~finite])
    if finite.any():
        scale = max(1.0, float(np.abs(expected[finite]).max()))
        assert np.abs(found - expected)[finite].max() <= tolerance * scale


def assert_agree(operator: Operator, case: Case, found: Outputs, expected: Outputs) -> None:
    names = operator.outputs_of(case.variant)
    assert len(found) == len(expected) == len(names)
    for name, got, want in zip(names, found, expected):
        dtype = output_dtype(case, name)
        assert got.dtype == (FLOAT32 if dtype == BFLOAT16 else dtype)
        spoilt = [] if case.poisoned_row is None else [case.poisoned_row]
        got_rows, want_rows = (np.delete(array, spoilt, axis=0) for array in (got, want))
        assert_close(got_rows, want_rows.astype(np.float64), case.tolerances.get(name, operator.tolerance))


@pytest.mark.parametrize("runner", RUNNERS)
@pytest.mark.parametrize(("operator", "case"), CASES)
def test_agrees_with_the_float64_reference(operator: Operator, case: Case, runner: str) -> None:
    if reason := why_not(runner, case):
        pytest.skip(reason)
    found = RUNNERS[runner](operator, case)(case.inputs)
    assert_agree(operator, case, found, expected_of(operator, case))


@pytest.mark.parametrize(("operator", "case"), CASES)
def test_the_models_are_valid(operator: Operator, case: Case) -> None:
    for sized in (False, True):
        onnx.checker.check_model(as_model(operator, case, sized=sized), full_check=True)


@pytest.mark.parametrize("operator", OPERATORS.values(), ids=OPERATORS)
def test_every_attribute_is_read_by_a_body(operator: Operator) -> None:
    used = {name for variant in operator.bodies for name in operator.function(variant).attribute}
    assert used == set(operator.attributes)


@pytest.mark.parametrize(("operator", "case"), CASES)
def test_a_cases_variant_follows_from_its_node(operator: Operator, case: Case) -> None:
    assert operator.variant_of(case.attributes, len(case.inputs)) == case.variant
    assert set(case.inputs) == set(operator.inputs_of(case.variant))


LENGTH = 40
SPLIT_CASES = {
    "Mamba2Mixer": mamba2_mixer.make_case("split", batch=2, length=LENGTH),
    "Mamba2Mixer-groups": mamba2_mixer.make_case(
        "split-groups", length=LENGTH, heads=8, groups=8, head_dim=8, state=64
    ),
    **{
        f"CachedAttention-{cache}-window-{window}": cached_attention.make_case(
            f"split-{cache}-{window}", past_length=(0, 7), length=LENGTH, window=window, cache=cache
        )
        for cache, window in (("float32", 0), ("float16", 0), ("int8", 0), ("float16", 13))
    },
}
"""Cases of ``LENGTH`` positions; the name starts with the operator's."""


def in_parts(run: Run, operator: Operator, case: Case, lengths: Sequence[int]) -> Outputs:
    """The case's positions fed in several calls, each with the states that the last one returned."""
    inputs, pieces, start = dict(case.inputs), [], 0
    along_length = {"proj", "query", "key", "value"} & set(inputs)
    for length in lengths:
        part = {name: case.inputs[name][:, start : start + length] for name in along_length}
        y, *present = run(inputs | part)
        pieces.append(y)
        for name, state in zip(operator.outputs_of(case.variant)[1:], present):
            inputs[name.replace("present_", "past_", 1)] = state
        if "past_length" in inputs:
            inputs["past_length"] = inputs["past_length"] + length
        start += length
    assert start == LENGTH
    return (np.concatenate(pieces, axis=1), *present)


@lru_cache
def prepared(name: str, runner: str) -> tuple[Operator, Case, Run, Outputs]:
    operator, case = OPERATORS[name.partition("-")[0]], SPLIT_CASES[name]
    return operator, case, RUNNERS[runner](operator, case), expected_of(operator, case)


@pytest.mark.parametrize("runner", RUNNERS)
@pytest.mark.parametrize("name", SPLIT_CASES)
def test_single_steps_agree_with_the_reference(name: str, runner: str) -> None:
    operator, case, run, expected = prepared(name, runner)
    assert_agree(operator, case, in_parts(run, operator, case, [1] * LENGTH), expected)


@pytest.mark.parametrize("runner", RUNNERS)
@pytest.mark.parametrize("name", SPLIT_CASES)
@settings(max_examples=10, deadline=None)
@given(cuts=st.sets(st.integers(1, LENGTH - 1)))
def test_any_split_agrees_with_the_reference(name: str, runner: str, cuts: set[int]) -> None:
    operator, case, run, expected = prepared(name, runner)
    edges = [0, *sorted(cuts), LENGTH]
    lengths = [end - start for start, end in itertools.pairwise(edges)]
    assert_agree(operator, case, in_parts(run, operator, case, lengths), expected)
