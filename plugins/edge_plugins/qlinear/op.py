"""``edge::QLinear``: x times a block-quantised int4 or int8 matrix, or one stored in bfloat16."""

from __future__ import annotations

import math

import numpy as np

from edge_plugins.operator import Array, Case, Operator, dtype_of, poison, random_of

DOC = """y = x W.

Inputs: x (..., in) float32; weight (in, out). Output: y (..., out) float32.

Variant "": weight is int4 or int8, W[i, o] = weight[i, o] * scales[i // block_size, o] with scales
(in / block_size, out) float32. Quantisation is symmetric, as in ONNX's blocked DequantizeLinear (opset 21) along
axis 0. Variant "bfloat16", which has neither scales nor block_size: weight is bfloat16, W its values.
"""

QUANTIZED = """
    matrix = DequantizeLinear <axis = 0, block_size: int = @block_size> (weight, scales)
    y = MatMul (x, matrix)
"""

BFLOAT16 = """
    matrix = Cast <to = 1> (weight)
    y = MatMul (x, matrix)
"""


def dequantize(weight: Array, scales: Array, block_size: int) -> Array:
    """Integers (..., in, out) times the scale (..., in / block_size, out) of their block, in float64."""
    return weight.astype(np.float64) * np.repeat(scales.astype(np.float64), block_size, axis=-2)


def reference(*, x: Array, weight: Array, scales: Array | None = None, block_size: int = 0) -> tuple[Array, ...]:
    """The product in float64."""
    matrix = weight.astype(np.float64) if scales is None else dequantize(weight, scales, block_size)
    return (x.astype(np.float64) @ matrix,)


def random_integers(rng: np.random.Generator, bits: int, shape: tuple[int, ...]) -> Array:
    """int4 or int8 values over their whole range."""
    limit = 2 ** (bits - 1)
    return rng.integers(-limit, limit, shape).astype(np.int8).astype(dtype_of(f"int{bits}"))


def make_case(kind: str, lead: tuple[int, ...], width: int, out: int, block_size: int = 0) -> Case:
    """A case of one ``kind``: int4, int8 or bfloat16; ``lead`` is the shape of x without its last axis."""
    name = f"{kind}-{'x'.join(map(str, lead))}x{width}x{out}" + (f"-block{block_size}" if block_size else "")
    rng = random_of(name)
    x = rng.standard_normal((*lead, width), dtype=np.float32)
    if kind == "bfloat16":
        weight = (rng.standard_normal((width, out)) * width**-0.5).astype(dtype_of(kind))
        return Case(name, {"x": x, "weight": weight}, {}, kind)
    inputs = {
        "x": x,
        "weight": random_integers(rng, int(kind.removeprefix("int")), (width, out)),
        "scales": rng.uniform(0.01, 0.1, (width // block_size, out)).astype(np.float32),
    }
    return Case(name, inputs, {"block_size": block_size})


def make_cases() -> list[Case]:
    """Every way of storing, usual and unusual block sizes, odd widths, one and many tokens, none at all."""
    cases = [
        make_case("int4", (1, 1), 64, 48, 32),
        make_case("int4", (3, 5), 128, 33, 32),
        make_case("int4", (1, 2), 320, 72, 64),
        make_case("int4", (1, 127), 256, 40, 128),
        make_case("int4", (1, 9), 288, 40, 96),
        make_case("int4", (1, 9), 512, 20, 256),
        make_case("int4", (1, 0), 32, 8, 32),
        make_case("int8", (1, 1), 96, 50, 32),
        make_case("int8", (2, 7), 256, 24, 128),
        make_case("int8", (1, 129), 192, 31, 64),
        make_case("int8", (1, 1000), 64, 17, 32),
        make_case("int8", (1, 9), 480, 40, 160),
        make_case("int8", (3, 0), 64, 8, 64),
        make_case("bfloat16", (1, 1), 80, 49),
        make_case("bfloat16", (3, 128), 72, 64),
        make_case("bfloat16", (2, 0), 16, 8),
    ]
    for kind, block_size in (("int4", 32), ("int8", 32), ("bfloat16", 0)):
        for value in (math.nan, math.inf):
            cases.append(poison(make_case(kind, (5,), 64, 24, block_size), 2, value, "x"))
    return cases


QLINEAR = Operator(
    name="QLinear",
    doc=DOC,
    inputs=("x", "weight"),
    outputs=("y",),
    attributes={"block_size": int},
    reference=reference,
    bodies={"": QUANTIZED, "bfloat16": BFLOAT16},
    variant_of=lambda attributes, inputs: "" if "block_size" in attributes else "bfloat16",
    variant_inputs={"": ("scales",)},
    weights=frozenset({"weight", "scales"}),
    make_cases=make_cases,
)
