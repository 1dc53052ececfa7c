"""FP8 and NVFP4 of a weight: its codes and scales, those that a checkpoint had wherever its values still tell them.

A weight that was dequantised on import (prequantized.py) is a code times a scale, rounded to bfloat16. Its largest
value is the largest code times that scale, so the scale follows from it, and every code from the scale: bfloat16's
rounding is finer than half a step of either format. Other weights are rounded to the nearest code.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Literal

import ml_dtypes
import numpy as np

Format = Literal["fp8", "nvfp4"]

E4M3 = np.dtype(ml_dtypes.float8_e4m3fn)
E4M3_MAX, E4M3_LEAST = 448.0, 2.0**-9

E4M3_VALUES = np.arange(256, dtype=np.uint8).view(E4M3).astype(np.float32)
"""By code."""

E2M1_VALUES = np.arange(16, dtype=np.uint8).view(ml_dtypes.float4_e2m1fn).astype(np.float32)
"""By code."""

E2M1_MAX = 6.0

BLOCK = 16
"""Inputs of an output that share an E4M3 scale in NVFP4."""

SHARED_PEAKS = (416.0, 384.0, 352.0, 320.0, 288.0, 256.0, 240.0)
"""What a weight's largest E4M3 number may be, up to powers of two, where it shares its scale with one whose is 448."""

TOPS = (6.0, 4.0)
"""What a block's largest E2M1 number may be: with the second, large values have smaller steps (arXiv 2512.02010)."""

ROUNDING = 2.0**-7
"""Relative: what rounding to bfloat16 makes of a value and, in its scale, of the largest one, each half of it."""

PIECE = 1 << 20
"""Values that are looked at at once: memory does not grow with the weight."""

SAMPLE = 1 << 16
"""Values, about, on which scales are compared."""


def pieces(matrix: np.ndarray) -> Iterator[np.ndarray]:
    """A weight (out, in) of any float type as float32, some outputs at a time."""
    rows = max(1, PIECE // matrix.shape[1])
    for start in range(0, len(matrix), rows):
        yield matrix[start : start + rows].astype(np.float32)


def is_kept(values: np.ndarray, stored: np.ndarray) -> bool:
    """Whether quantised values differ from the old ones by no more than those were rounded."""
    return bool(np.all(np.abs(stored - values) <= ROUNDING * np.abs(values)))


def is_lossless(matrix: np.ndarray, kind: Format) -> bool:
    """Whether the values of a weight (out, in) are numbers of a format, but for bfloat16's rounding."""
    if kind == "fp8":
        return all(kept for _, kept in fp8_pieces(matrix, fp8_scale(matrix)))
    blocks = matrix.shape[1] % BLOCK == 0
    return blocks and all(kept for *_, kept in nvfp4_pieces(matrix, nvfp4_tensor_scale(matrix)))


def fp8_scale(matrix: np.ndarray) -> np.ndarray:
    """The float32 scale of a weight (out, in): one of all () where that loses nothing, else each output's (out)."""
    largest = np.concatenate([np.abs(piece).max(axis=1) for piece in pieces(matrix)])
    scale = _best_scale(matrix, largest.max(), E4M3_MAX, _fp8_values)
    if all(kept for _, kept in fp8_pieces(matrix, np.asarray(scale))):
        return np.asarray(scale)
    return np.where(largest == 0, np.float32(1), largest / np.float32(E4M3_MAX))


def fp8_pieces(matrix: np.ndarray, scale: np.ndarray) -> Iterator[tuple[np.ndarray, bool]]:
    """The codes of a weight (out, in), some outputs at a time, each with whether it lost nothing; scale () or (out)."""
    done = 0
    for values in pieces(matrix):
        own = scale[done : done + len(values), None] if scale.ndim else scale
        done += len(values)
        codes = fp8_codes(values, own)
        yield codes, is_kept(values, E4M3_VALUES[codes] * own)


def _fp8_values(values: np.ndarray, scale: np.float32) -> np.ndarray:
    return E4M3_VALUES[fp8_codes(values, scale)] * scale


def _best_scale(
    matrix: np.ndarray, largest: np.float32, divisor: float, stored: Callable[[np.ndarray, np.float32], np.ndarray]
) -> np.float32:
    """The scale of a whole weight (out, in) under which ``stored(values, scale)`` is nearest to its values.

    It is a largest value over ``divisor``: this weight's own, or one in bfloat16 of another that shared the scale
    (q, k and v do), of which is known that it is larger by 448 over a smaller E4M3 number.
    """
    if largest == 0:
        return np.float32(1)
    near = (largest * np.float32(E4M3_MAX) / np.array(SHARED_PEAKS, np.float32)).astype(ml_dtypes.bfloat16)
    nearest = near.view(np.int16)[:, None] + np.array([-1, 0, 1], np.int16)  # and its neighbours, since it was rounded
    shared = nearest.view(ml_dtypes.bfloat16).astype(np.float32).ravel() / np.float32(divisor)
    own = largest / np.float32(divisor)
    sample = matrix[:: -(-matrix.size // SAMPLE)].astype(np.float32)

    def loss(scale: np.float32) -> tuple[bool, bool, float]:
        made = stored(sample, scale)
        kept = is_kept(sample, made)
        return not kept, kept and scale != own, float(np.square(made - sample).sum())

    return min((own, *shared), key=loss)


def fp8_codes(values: np.ndarray, scale: np.ndarray | np.float32) -> np.ndarray:
    """The E4M3 codes of values (out, in) as uint8; scale () or (out, 1) float32."""
    return (values / scale).astype(E4M3).view(np.uint8)


def nvfp4_tensor_scale(matrix: np.ndarray) -> np.float32:
    """The float32 scale of a whole weight (out, in)."""
    largest = max(np.abs(piece).max() for piece in pieces(matrix))

    def stored(values: np.ndarray, scale: np.float32) -> np.ndarray:
        return nvfp4_values(*nvfp4_codes(values, scale), scale)

    return _best_scale(matrix, largest, E2M1_MAX * E4M3_MAX, stored)


def nvfp4_pieces(matrix: np.ndarray, tensor_scale: np.float32) -> Iterator[tuple[np.ndarray, np.ndarray, bool]]:
    """The codes and scales of a weight (out, in), some outputs at a time, each with whether it lost nothing."""
    for values in pieces(matrix):
        codes, scales = nvfp4_codes(values, tensor_scale)
        yield codes, scales, is_kept(values, nvfp4_values(codes, scales, tensor_scale))


def nvfp4_codes(values: np.ndarray, tensor_scale: np.float32) -> tuple[np.ndarray, np.ndarray]:
    """The E2M1 codes (out, in) of values (out, in) and the E4M3 codes of the blocks' scales (out, in / 16), as uint8.

    Of both ways in TOPS each block takes the one with clearly less error, else the first.
    """
    blocks = values.reshape(len(values), -1, BLOCK)
    largest = np.abs(blocks).max(axis=-1)
    made = []
    for top in TOPS:
        scales = np.clip(largest / (np.float32(top) * tensor_scale), E4M3_LEAST, E4M3_MAX)
        scales = np.where(largest == 0, 1, scales).astype(E4M3).view(np.uint8)
        steps = (E4M3_VALUES[scales] * tensor_scale)[..., None]
        codes = e2m1_codes(blocks / steps)
        made.append((codes, scales, np.square(E2M1_VALUES[codes] * steps - blocks).sum(axis=-1)))
    (codes, scales, error), (other_codes, other_scales, other_error) = made
    better = other_error < 0.99 * error  # not by the rounding of this arithmetic alone: 6 x 6 is 4 x 9
    codes = np.where(better[..., None], other_codes, codes)
    return codes.reshape(values.shape), np.where(better, other_scales, scales)


def nvfp4_values(codes: np.ndarray, scales: np.ndarray, tensor_scale: np.float32) -> np.ndarray:
    """What :func:`nvfp4_codes` made stands for: (out, in) float32."""
    return E2M1_VALUES[codes] * np.repeat(E4M3_VALUES[scales] * tensor_scale, BLOCK, axis=-1)


def e2m1_codes(values: np.ndarray) -> np.ndarray:
    """The nearest E2M1 codes as uint8, of two as near the even one: ml_dtypes' own, which take four times as long."""
    size = np.abs(values)
    codes = np.signbit(values) * np.uint8(8)
    for bound, rounds_up in ((0.25, 0), (0.75, 1), (1.25, 0), (1.75, 1), (2.5, 0), (3.5, 1), (5.0, 0)):
        codes += size >= bound if rounds_up else size > bound
    return codes


def packed(codes: np.ndarray) -> np.ndarray:
    """E2M1 codes (out, in) as bytes (out, in / 2) with the first of two in the low half, as ONNX stores them."""
    return codes[..., ::2] | codes[..., 1::2] << 4
