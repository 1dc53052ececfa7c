"""An operator's test case as the node that a TensorRT plugin is given, with weights and attributes as it takes them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from edge_plugins import DOMAIN, OPERATORS, Operator
from edge_plugins.operator import Array, Case, dtype_of

ACTIVATIONS = {"proj", "query", "key", "value", "x"}
"""Inputs in the engine's precision; outputs called y are too."""

BITS = {"int8": 8, "int4": 4}


@dataclass(frozen=True)
class Node:
    """A node of one case: arrays by the names of its inputs in order, integer weights as int32 words."""

    operator: Operator
    inputs: Mapping[str, Array]
    attributes: Mapping[str, int | float | str]
    outputs: tuple[str, ...]

    @property
    def constants(self) -> set[str]:
        """Inputs that are constants of the graph."""
        return {name for name in self.inputs if name in self.operator.weights}

    @property
    def output_dtypes(self) -> dict[str, np.dtype[Any]]:
        """NumPy's types by the names of the outputs: y has that of the first input, a state that of the past one."""
        first = next(iter(self.inputs))
        sources = {name: name.replace("present", "past") if name != "y" else first for name in self.outputs}
        return {name: self.inputs[source].dtype for name, source in sources.items()}


def node_of(operator: Operator, case: Case, precision: str = "float32") -> Node:
    """The node, its activations and float weights in a precision."""
    inputs, attributes = {}, dict(case.attributes)
    for name in operator.inputs_of(case.variant):
        array = case.inputs[name]
        if name in ACTIVATIONS or (name.endswith("_weight") and operator.name == "MoE"):
            array = array if array.dtype.name in BITS else array.astype(dtype_of(precision))
        if name in operator.weights and operator.name in ("MoE", "QLinear") and name.endswith("weight"):
            attributes["weight_bits"] = BITS.get(array.dtype.name, 0)
            attributes.setdefault("block_size", 0)
        inputs[name] = words(array) if array.dtype.name in BITS and name in operator.weights else array
    if operator.name == "CachedAttention":
        attributes["cache_bits"] = 8 if case.variant == "int8" else 0
    return Node(operator, inputs, attributes, operator.outputs_of(case.variant))


def words(array: Array) -> Array:
    """int8 or int4 weights (..., out) as int32 (..., out / 4 or out / 8) of the bytes that ONNX stores."""
    values = array.astype(np.int8)
    if array.dtype.name == "int4":
        values = (values[..., 0::2] & 15) | (values[..., 1::2] << 4)
    return np.ascontiguousarray(values).view(np.int32)


def fits(case: Case) -> bool:
    """Whether integer weights fill whole words, and whether there are any tokens: a profile begins at one."""
    packed = [array for name, array in case.inputs.items() if name.endswith("weight") and array.dtype.name in BITS]
    whole = all(array.shape[-1] * BITS[array.dtype.name] % 32 == 0 for array in packed)
    return whole and all(array.size > 0 for array in case.inputs.values())


CASES = [
    (operator, case) for operator in OPERATORS.values() for case in operator.make_cases() if case.poisoned_row is None
]
"""Every case without NaN."""

__all__ = ["CASES", "DOMAIN", "Node", "fits", "node_of", "words"]
