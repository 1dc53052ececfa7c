"""The operator matrix through the plugins: that a plugin hands its kernel the right tensors, sizes and workspace.

The plugins are driven through their interfaces, without TensorRT, and the kernels run on the model of a GPU.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
import pytest

from builds import build_host, import_module
from edge_plugins import OPERATORS, Operator
from edge_plugins.operator import Array, Case
from matrix import BFLOAT16, expected_of
from nodes import CASES, fits, node_of
from test_operators import assert_agree

LARGE = 500
"""Positions above which the model of a GPU is too slow."""

RUN = [
    pytest.param(operator, case, inplace, id=f"{operator.name}-{case.name}{'-in-place' * inplace}")
    for operator, case in CASES
    if fits(case) and next(iter(case.inputs.values())).shape[1] <= LARGE
    for inplace in (False, True)[: len(operator.outputs)]  # without states there is nothing to share
]
ROUNDING = {"float16": 2.0**-11, "bfloat16": 2.0**-8}
"""Largest relative error of rounding to the type."""


@lru_cache
def module() -> Any:
    return import_module("_trt_emulated", build_host("trt_module"))


def run(operator: Operator, case: Case, precision: str, *, inplace: bool) -> list[Array]:
    """The plugin's outputs; with ``inplace`` present states have the memory of the past ones."""
    node = node_of(operator, case, precision)
    places = list(node.inputs)
    shared = [places.index(name.replace("present", "past")) if inplace and name != "y" else -1 for name in node.outputs]
    return module().run(operator.name, list(node.inputs.values()), node.attributes, shared)


@pytest.mark.parametrize(("operator", "case", "inplace"), RUN)
def test_a_plugin_computes_what_the_operator_means(operator: Operator, case: Case, inplace: bool) -> None:
    found = run(operator, case, "float32", inplace=inplace)
    comparable = (array.astype(np.float32) if array.dtype == BFLOAT16 else array for array in found)
    assert_agree(operator, case, tuple(comparable), expected_of(operator, case))


@pytest.mark.parametrize("precision", ROUNDING)
@pytest.mark.parametrize("operator", OPERATORS.values(), ids=lambda operator: operator.name)
def test_it_does_in_half_precision(operator: Operator, precision: str) -> None:
    case = next(case for other, case in CASES if other is operator and fits(case))
    y, *_ = run(operator, case, precision, inplace=True)
    assert y.dtype.name == precision
    want = expected_of(operator, case)[0]
    np.testing.assert_allclose(y.astype(np.float64), want, atol=16 * ROUNDING[precision] * np.abs(want).max())
