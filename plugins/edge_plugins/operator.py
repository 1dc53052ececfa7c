"""What an operator folder declares: schema, float64 reference, ONNX function bodies and test cases."""

from __future__ import annotations

import re
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import onnx

DOMAIN = "edge"
OPSET_VERSION = 1
STANDARD_OPSET = 21
"""Opset of the function bodies: the newest that TensorRT 10.3 (JetPack 6) parses."""

Array = np.ndarray[Any, np.dtype[Any]]


@dataclass(frozen=True)
class Case:
    """One test case: named inputs and attributes. An input's dtype is that of the graph's tensor.

    int4 and bfloat16 arrays are those of ``ml_dtypes``.
    """

    name: str
    inputs: Mapping[str, Array]
    attributes: Mapping[str, int | float | str]
    variant: str = ""
    tolerances: Mapping[str, float] = field(default_factory=dict)
    """Of the outputs whose tolerance is not the operator's, such as states that are stored rounded."""
    kernel_only: bool = False
    """The function bodies cannot do it, so only native kernels are held to it."""
    poisoned_row: int | None = None
    """Index along the first axis of inputs that hold NaN or infinity there; the other rows must not notice."""


@dataclass(frozen=True)
class Operator:
    """An operator of domain ``edge``.

    ``bodies`` maps a variant to its function body in ONNX's text syntax. A model may hold one variant of an
    operator: ONNX Runtime 1.23 and onnx's reference evaluator take functions of one name for the same one,
    whatever their ``overload`` says (docs/decisions/0002).
    """

    name: str
    doc: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: Mapping[str, type]
    reference: Callable[..., tuple[Array, ...]]
    """Float64 NumPy: (**inputs, **attributes) -> outputs. The plain recurrence, not the fast algorithm."""
    bodies: Mapping[str, str]
    variant_of: Callable[[Mapping[str, Any], int], str]
    """The variant that a node with these attributes and this many inputs is."""
    make_cases: Callable[[], list[Case]]
    weights: frozenset[str]
    """Inputs that are constants of the graph."""
    tolerance: float = 2e-5
    """Largest float32 error allowed, relative to the largest magnitude of the output."""
    variant_inputs: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Inputs that a variant has in addition."""
    variant_outputs: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Outputs that a variant has in addition."""
    selectors: frozenset[str] = frozenset()
    """Attributes that choose the variant and are not read by its body."""

    def inputs_of(self, variant: str) -> tuple[str, ...]:
        """Input names of a variant, in order."""
        return self.inputs + self.variant_inputs.get(variant, ())

    def outputs_of(self, variant: str) -> tuple[str, ...]:
        """Output names of a variant, in order."""
        return self.outputs + self.variant_outputs.get(variant, ())

    def variant_of_node(self, node: onnx.NodeProto) -> str:
        """The variant that a node of a graph is."""
        from onnx.helper import get_attribute_value

        values = {attribute.name: get_attribute_value(attribute) for attribute in node.attribute}
        texts = {name: value.decode() if isinstance(value, bytes) else value for name, value in values.items()}
        return self.variant_of(texts, len(node.input))

    def function(self, variant: str = "") -> onnx.FunctionProto:
        """The variant's body as a model-local ONNX function."""
        import onnx.parser

        declared = self.selectors | set(re.findall(r"@(\w+)", self.bodies[variant]))
        attributes = ", ".join(name for name in self.attributes if name in declared)
        text = (
            f'<domain: "{DOMAIN}", opset_import: ["" : {STANDARD_OPSET}]>\n'
            f"{self.name} {f'<{attributes}> ' if attributes else ''}"
            f"({', '.join(self.inputs_of(variant))}) => ({', '.join(self.outputs_of(variant))})\n"
            f"{{{self.bodies[variant]}}}"
        )
        function = onnx.parser.parse_function(text)
        function.doc_string = self.doc
        return function


def poison(case: Case, row: int, value: float, *names: str) -> Case:
    """The case with NaN or an infinity in some elements of one row of the named inputs."""
    inputs = {name: array.copy() if name in names else array for name, array in case.inputs.items()}
    for name in names:
        inputs[name][row].reshape(-1)[::7] = value
    return replace(case, name=f"{case.name}-with-{value}", inputs=inputs, poisoned_row=row)


def random_of(name: str) -> np.random.Generator:
    """A generator of random numbers that a case's name fixes."""
    return np.random.default_rng(zlib.crc32(name.encode()))


def dtype_of(name: str) -> np.dtype[Any]:
    """The NumPy dtype of a name, int4 and bfloat16 (``ml_dtypes``) among them."""
    if name in ("int4", "bfloat16"):
        import ml_dtypes

        named: np.dtype[Any] = np.dtype(getattr(ml_dtypes, name))
        return named
    return np.dtype(name)
