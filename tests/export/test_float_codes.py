"""Codes and scales of FP8 and NVFP4 weights, against ml_dtypes: what was quantised once comes back the same."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from edge_export import float_codes

E4M3, E2M1, BFLOAT16 = ml_dtypes.float8_e4m3fn, ml_dtypes.float4_e2m1fn, ml_dtypes.bfloat16


def bfloat16(values: np.ndarray) -> np.ndarray:
    return values.astype(BFLOAT16).astype(np.float32)


def quantized_to_fp8(weight: np.ndarray, largest: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """As Model Optimizer does: E4M3 (out, in) and their scale, of a largest value () or of those of rows (out, 1)."""
    scale = np.float32(largest) / np.float32(448)
    return (weight / scale).astype(E4M3), scale


def quantized_to_nvfp4(weight: np.ndarray, largest: np.float32) -> tuple[np.ndarray, np.ndarray, np.float32]:
    """As Model Optimizer does (its NVFP4QTensor): E2M1 (out, in / 16, 16), E4M3 (out, in / 16) and a float32 scale."""
    tensor_scale = np.float32(largest) / np.float32(6 * 448)
    blocks = weight.reshape(len(weight), -1, 16)
    scales = np.abs(blocks).max(-1) / (np.float32(6) * tensor_scale)
    scales = np.clip(np.where(scales == 0, 1, scales), 2**-9, 448).astype(E4M3)
    return (blocks / (scales.astype(np.float32) * tensor_scale)[..., None]).astype(E2M1), scales, tensor_scale


@st.composite
def weights(draw: st.DrawFn) -> np.ndarray:
    """(out, in) in bfloat16's numbers; outputs and blocks differ in size, some are zero, some hold an outlier."""
    random = np.random.default_rng(draw(st.integers(0, 2**32)))
    out, blocks = draw(st.integers(1, 12)), draw(st.integers(1, 6))
    spread = draw(st.sampled_from([0.0, 0.5, 3.0]))
    sizes = np.exp(random.normal(0, spread, (out, blocks, 1))) * 10.0 ** draw(st.integers(-4, 1))
    weight = random.standard_normal((out, blocks, 16)) * sizes
    weight[random.random((out, blocks)) < draw(st.sampled_from([0.0, 0.2]))] = 0
    if draw(st.booleans()):
        weight.flat[random.integers(weight.size)] *= 50
    return bfloat16(weight.reshape(out, -1))


shared = st.sampled_from([1.0, 1.0625, 1.33, 1.9, 2.0, 5.5])
"""How much larger the largest value is of all weights that share a scale."""


def fp8_again(imported: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Codes (out, in), scale and values (out, in) of a weight."""
    scale = float_codes.fp8_scale(imported)
    values = imported.astype(np.float32)
    codes = float_codes.fp8_codes(values, scale[:, None] if scale.ndim else scale)
    return codes, scale, codes.view(E4M3).astype(np.float32) * (scale[:, None] if scale.ndim else scale)


def nvfp4_again(imported: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.float32, np.ndarray]:
    """Codes (out, in), scales (out, in / 16), scale and values (out, in) of a weight."""
    scale = float_codes.nvfp4_tensor_scale(imported)
    codes, scales = float_codes.nvfp4_codes(imported.astype(np.float32), scale)
    return codes, scales, scale, nvfp4_values(codes.view(E2M1), scales.view(E4M3), scale)


def nvfp4_values(codes: np.ndarray, scales: np.ndarray, scale: np.float32) -> np.ndarray:
    """E2M1 (out, in) and E4M3 (out, in / 16) as (out, in) float32, by ml_dtypes' casts."""
    return codes.astype(np.float32) * np.repeat(scales.astype(np.float32) * scale, 16, axis=1)


@given(weights(), shared)
def test_fp8_with_one_scale_comes_back(weight: np.ndarray, more: float) -> None:
    largest = bfloat16(np.abs(weight).max() * np.float32(more))
    assume(largest > 0)
    codes, scale = quantized_to_fp8(weight, largest)
    imported = (codes.astype(np.float32) * scale).astype(BFLOAT16)
    found_codes, found, values = fp8_again(imported)
    assert float_codes.is_kept(imported.astype(np.float32), values)
    if more == 1:  # else the codes may be those of another power of two
        assert found == scale
        np.testing.assert_array_equal(found_codes, codes.view(np.uint8))


@given(weights())
def test_fp8_with_a_scale_of_each_output_comes_back(weight: np.ndarray) -> None:
    largest = np.abs(weight).max(axis=1, keepdims=True)
    codes, scale = quantized_to_fp8(weight, np.where(largest == 0, 448, largest))
    imported = (codes.astype(np.float32) * scale).astype(BFLOAT16)
    found_codes, found, values = fp8_again(imported)
    assert float_codes.is_kept(imported.astype(np.float32), values)
    if found.ndim:  # else one scale keeps them all
        np.testing.assert_array_equal(found, scale[:, 0])
        np.testing.assert_array_equal(found_codes, codes.view(np.uint8))


@given(weights(), shared)
def test_nvfp4_comes_back(weight: np.ndarray, more: float) -> None:
    largest = bfloat16(np.abs(weight).max() * np.float32(more))
    assume(largest > 0)
    codes, scales, scale = quantized_to_nvfp4(weight, largest)
    codes = codes.reshape(weight.shape)
    imported = nvfp4_values(codes, scales, scale).astype(BFLOAT16)
    assume(np.any(imported))
    found_codes, found_scales, found, values = nvfp4_again(imported)
    assert float_codes.is_kept(imported.astype(np.float32), values)
    if more == 1:
        assert found == scale
        np.testing.assert_array_equal(found_codes, codes.view(np.uint8))
        filled = imported.astype(np.float32).reshape(*scales.shape, 16).any(axis=-1)  # zeros do not tell their scale
        np.testing.assert_array_equal(found_scales[filled], scales.view(np.uint8)[filled])


@given(weights())
def test_other_weights_are_rounded_to_the_nearest_number(weight: np.ndarray) -> None:
    _, scale, values = fp8_again(weight)
    steps = scale[:, None] if scale.ndim else scale
    assert np.all(np.abs(values - weight) <= np.maximum(2.0**-4 * np.abs(weight), 2.0**-10 * steps) * 1.0001)


@given(weights())
def test_nvfp4_is_no_worse_than_model_optimizers(weight: np.ndarray) -> None:
    assume(np.any(weight))
    codes, scales, scale = quantized_to_nvfp4(weight, np.abs(weight).max())
    theirs = nvfp4_values(codes.reshape(weight.shape), scales, scale)
    *_, ours = nvfp4_again(weight)
    error, limit = (np.square(values - weight, dtype=np.float64).sum() for values in (ours, theirs))
    assert error <= limit * 1.0001 or float_codes.is_kept(weight, ours)


def test_e2m1_rounds_as_ml_dtypes_does() -> None:
    exact = np.arange(-8, 8, 2**-5, dtype=np.float32)
    values = np.concatenate([exact, np.nextafter(exact, 9), np.nextafter(exact, -9), [-0.0]]).astype(np.float32)
    np.testing.assert_array_equal(float_codes.e2m1_codes(values), values.astype(E2M1).view(np.uint8))


def test_packed_codes_are_onnx_own() -> None:
    values = np.random.default_rng(0).normal(0, 3, (5, 32)).astype(np.float32)
    tensor = onnx.numpy_helper.from_array(values.astype(E2M1))
    assert tensor.data_type == onnx.TensorProto.FLOAT4E2M1
    assert float_codes.packed(float_codes.e2m1_codes(values)).tobytes() == tensor.raw_data


@pytest.mark.parametrize("again", [fp8_again, nvfp4_again])
def test_a_weight_is_read_in_pieces(monkeypatch: pytest.MonkeyPatch, again: Callable[[np.ndarray], Any]) -> None:
    weight = np.random.default_rng(0).normal(0, 0.02, (64, 48)).astype(np.float32)
    whole = again(weight)
    monkeypatch.setattr(float_codes, "PIECE", 5 * 48)
    assert [len(piece) for piece in float_codes.pieces(weight)] == [5] * 12 + [4]
    for one, other in zip(whole, again(weight)):
        np.testing.assert_array_equal(one, other)


def test_zeros_are_zeros() -> None:
    zeros = np.zeros((3, 32), BFLOAT16)
    assert not fp8_again(zeros)[-1].any()
    assert not nvfp4_again(zeros)[-1].any()
