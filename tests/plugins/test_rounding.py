"""Products that are allowed to round their activations: what they round to, and how much that may cost."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from edge_plugins import OPERATORS
from edge_plugins.moe import op as moe
from edge_plugins.operator import Array, Case
from matrix import BFLOAT16, INT4, expected_of, instruction_sets, on_module

QLINEAR, MOE = OPERATORS["QLinear"], OPERATORS["MoE"]
TILE_ROWS = 32
"""Rows from which AMX multiplies bfloat16 tiles."""
NEAR_TIES = 2e-3
"""The kernels find the nearest integer in float32: near a tie they may take the other one, a step of 1/127."""

pytestmark = pytest.mark.skipif(not instruction_sets(), reason="no native kernels are installed")


def cases(operator: Any, kind: str) -> list[Any]:
    chosen = [case for case in operator.make_cases() if kind in case.name and case.poisoned_row is None]
    return [pytest.param(case, id=case.name) for case in chosen if case.inputs["x"].size]


def to_int8_blocks(x: Array, block_size: int) -> Array:
    """x as int8 with a scale per block, in float64: what llama.cpp's Q8_0 keeps of activations."""
    blocks = x.astype(np.float64).reshape(*x.shape[:-1], -1, block_size)
    scales = np.abs(blocks).max(-1, keepdims=True) / 127
    return (np.round(blocks / np.where(scales == 0, 1, scales)) * scales).reshape(x.shape)


def largest_error(found: Array, expected: Array) -> float:
    return float(np.abs(found - expected).max() / np.abs(expected).max())


@pytest.mark.parametrize("isa", [isa for isa in instruction_sets() if not isa.startswith("amx")])
@pytest.mark.parametrize("case", cases(QLINEAR, "int"))
def test_activations_are_rounded_to_int8_by_the_weights_blocks(case: Case, isa: str) -> None:
    rounded = to_int8_blocks(case.inputs["x"], int(case.attributes["block_size"]))
    (expected,) = QLINEAR.reference(**{**case.inputs, "x": rounded}, **case.attributes)
    (found,) = on_module(isa, exact=False)(QLINEAR, case)(case.inputs)
    assert largest_error(found, expected) < NEAR_TIES
    assert np.median(np.abs(found - expected)) < 2e-6 * np.abs(expected).max()


@pytest.mark.parametrize("isa", instruction_sets())
@pytest.mark.parametrize("case", cases(QLINEAR, "bfloat16"))
def test_bfloat16_weights_round_activations_to_bfloat16_at_most(case: Case, isa: str) -> None:
    plain = QLINEAR.reference(**{**case.inputs, "x": case.inputs["x"].astype(BFLOAT16)}, **case.attributes)[0]
    (exact,), (found,) = expected_of(QLINEAR, case), on_module(isa, exact=False)(QLINEAR, case)(case.inputs)
    assert largest_error(found, exact) <= 2 * largest_error(plain, exact)


@pytest.mark.parametrize("isa", [isa for isa in instruction_sets() if not isa.startswith("amx")])
@pytest.mark.parametrize("case", cases(MOE, "int"))
def test_experts_round_what_enters_either_product(case: Case, isa: str, monkeypatch: pytest.MonkeyPatch) -> None:
    block_size = int(case.attributes["block_size"])
    activate = moe.activate
    monkeypatch.setattr(moe, "activate", lambda risen, name: to_int8_blocks(activate(risen, name), block_size))
    (expected,) = MOE.reference(**{**case.inputs, "x": to_int8_blocks(case.inputs["x"], block_size)}, **case.attributes)
    (found,) = on_module(isa, exact=False)(MOE, case)(case.inputs)
    assert largest_error(found, expected) < NEAR_TIES


@pytest.mark.parametrize("isa", instruction_sets())
@pytest.mark.parametrize("bits", [4, 8])
def test_a_token_does_not_see_how_many_others_there_are(isa: str, bits: int) -> None:
    rng = np.random.default_rng(bits)
    weight = rng.integers(-8, 8, (320, 200)).astype(INT4 if bits == 4 else np.int8)
    scales = rng.uniform(0.01, 0.1, (10, 200)).astype(np.float32)
    x = rng.standard_normal((1, TILE_ROWS - 1, 320), dtype=np.float32)
    case = Case("rows", {"x": x, "weight": weight, "scales": scales}, {"block_size": 32})
    run = on_module(isa, exact=False)(QLINEAR, case)
    (together,) = run(case.inputs)
    for rows in (1, 2, 3, 4, 5, 8):
        (some,) = run({**case.inputs, "x": x[:, :rows]})
        np.testing.assert_array_equal(some, together[:, :rows])
