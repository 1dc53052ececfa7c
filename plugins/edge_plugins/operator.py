"""What an operator folder declares: schema, float64 reference, ONNX function bodies and test cases."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
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
    """One test case: named inputs in float32 (or integers, which quantised weights are) and attributes."""

    name: str
    inputs: Mapping[str, Array]
    attributes: Mapping[str, int | float]
    variant: str = ""


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
    variant_of: Callable[[Mapping[str, Any]], str]
    """The variant that a node with these attributes is."""
    make_cases: Callable[[], list[Case]]
    tolerance: float = 2e-5
    """Largest float32 error allowed, relative to the largest magnitude of the output."""
    variant_inputs: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Inputs that a variant has in addition."""

    def inputs_of(self, variant: str) -> tuple[str, ...]:
        """Input names of a variant, in order."""
        return self.inputs + self.variant_inputs.get(variant, ())

    def function(self, variant: str = "") -> onnx.FunctionProto:
        """The variant's body as a model-local ONNX function."""
        import onnx.parser

        read = set(re.findall(r"@(\w+)", self.bodies[variant]))
        attributes = ", ".join(name for name in self.attributes if name in read)
        text = (
            f'<domain: "{DOMAIN}", opset_import: ["" : {STANDARD_OPSET}]>\n'
            f"{self.name} <{attributes}> ({', '.join(self.inputs_of(variant))}) => ({', '.join(self.outputs)})\n"
            f"{{{self.bodies[variant]}}}"
        )
        function = onnx.parser.parse_function(text)
        function.doc_string = self.doc
        return function
