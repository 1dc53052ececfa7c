"""``edge::QLinear``: x times a block-quantised int4 or int8 matrix."""

from __future__ import annotations

import numpy as np

from edge_plugins.operator import Array, Case, Operator

DOC = """y = x W, with W[i, o] = weight[i, o] * scales[i // block_size, o].

Inputs: x (..., in); weight (in, out) int4 or int8; scales (in / block_size, out). Output: y (..., out).
Quantisation is symmetric, as in ONNX's blocked DequantizeLinear (opset 21) along axis 0.
"""

BODY = """
    matrix = DequantizeLinear <axis = 0, block_size: int = @block_size> (weight, scales)
    y = MatMul (x, matrix)
"""


def dequantize(weight: Array, scales: Array, block_size: int) -> Array:
    """Integers (..., in, out) times the scale (..., in / block_size, out) of their block, in float64."""
    return weight.astype(np.float64) * np.repeat(scales.astype(np.float64), block_size, axis=-2)


def reference(*, x: Array, weight: Array, scales: Array, block_size: int) -> tuple[Array, ...]:
    """The product in float64."""
    return (x.astype(np.float64) @ dequantize(weight, scales, block_size),)


def make_cases() -> list[Case]:
    """Both integer widths, block sizes of 32 and 128, odd widths, one and several tokens, none at all."""
    cases = []
    shapes = [(4, (1, 1), 64, 48, 32), (4, (3, 5), 128, 33, 32), (8, (2, 7), 256, 24, 128), (4, (1, 0), 32, 8, 32)]
    for bits, lead, width, out, block_size in shapes:
        rng = np.random.default_rng(width + out)
        limit = 2 ** (bits - 1)
        inputs: dict[str, Array] = {
            "x": rng.standard_normal((*lead, width), dtype=np.float32),
            "weight": rng.integers(-limit, limit, (width, out)).astype(np.int8),
            "scales": rng.uniform(0.01, 0.1, (width // block_size, out)).astype(np.float32),
        }
        name = f"int{bits}-{'x'.join(map(str, lead))}x{width}x{out}-block{block_size}"
        cases.append(Case(name, inputs, {"block_size": block_size}))
    return cases


QLINEAR = Operator(
    name="QLinear",
    doc=DOC,
    inputs=("x", "weight", "scales"),
    outputs=("y",),
    attributes={"block_size": int},
    reference=reference,
    bodies={"": BODY},
    variant_of=lambda attributes: "",
    make_cases=make_cases,
)
