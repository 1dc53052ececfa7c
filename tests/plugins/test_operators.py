"""The operator matrix: every operator, case and way of running it, against the float64 reference."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from edge_plugins import DOMAIN, OPERATORS, OPSET_VERSION, Operator
from edge_plugins.operator import STANDARD_OPSET, Case

Outputs = tuple[np.ndarray, ...]


def as_model(operator: Operator, case: Case) -> onnx.ModelProto:
    """A model of one node and its function; weights that are int4 in the case's name become INT4 tensors."""
    names = operator.inputs_of(case.variant)
    node = helper.make_node(operator.name, names, operator.outputs, domain=DOMAIN, **case.attributes)
    initializers = [
        helper.make_tensor(name, TensorProto.INT4, value.shape, value.ravel())
        if value.dtype == np.int8 and "int4" in case.name
        else numpy_helper.from_array(value, name)
        for name, value in case.inputs.items()
        if value.dtype == np.int8 or name.endswith("scales")
    ]
    stored = {tensor.name for tensor in initializers}
    inputs = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, case.inputs[name].shape)
        for name in names
        if name not in stored
    ]
    expected = operator.reference(**case.inputs, **case.attributes)
    outputs = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, value.shape)
        for name, value in zip(operator.outputs, expected)
    ]
    graph = helper.make_graph([node], case.name, inputs, outputs, initializers)
    opsets = [helper.make_opsetid("", STANDARD_OPSET), helper.make_opsetid(DOMAIN, OPSET_VERSION)]
    functions = [operator.function(case.variant)]
    return helper.make_model(graph, opset_imports=opsets, functions=functions, ir_version=10)


def feeds(model: onnx.ModelProto, case: Case) -> dict[str, np.ndarray]:
    return {value.name: case.inputs[value.name] for value in model.graph.input}


def run_ort(model: onnx.ModelProto, operator: Operator, case: Case) -> Outputs:
    options = onnxruntime.SessionOptions()
    options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", "1")
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return tuple(session.run(None, feeds(model, case)))


def run_reference_evaluator(model: onnx.ModelProto, operator: Operator, case: Case) -> Outputs:
    return tuple(ReferenceEvaluator(model).run(None, feeds(model, case)))


def run_torch(model: onnx.ModelProto, operator: Operator, case: Case) -> Outputs:
    torch = pytest.importorskip("torch")
    from edge_export import torch_ops

    functions: dict[str, Callable[..., Any]] = {
        "Mamba2Mixer": torch_ops.mamba2_mixer,
        "MoE": torch_ops.moe,
        "QLinear": torch_ops.qlinear,
    }
    inputs = {name: torch.from_numpy(np.array(value)) for name, value in case.inputs.items()}
    attributes = {name: value for name, value in case.attributes.items() if name != "conv_dim"}
    if case.variant == "quantized":
        block_size = attributes.pop("block_size")
        for part in ("up", "down"):
            scales = inputs.pop(f"{part}_scales")
            inputs[f"{part}_weight"] = torch_ops.dequantize(inputs[f"{part}_weight"], scales, block_size)
    result = functions[operator.name](**inputs, **attributes)
    return tuple(item.numpy() for item in (result if isinstance(result, tuple) else (result,)))


RUNNERS = {"ort": run_ort, "onnx-reference": run_reference_evaluator, "torch": run_torch}
CASES = [
    pytest.param(operator, case, id=f"{operator.name}-{case.name}")
    for operator in OPERATORS.values()
    for case in operator.make_cases()
]


def assert_close(found: Outputs, expected: Outputs, tolerance: float) -> None:
    assert len(found) == len(expected)
    for got, want in zip(found, expected):
        assert got.shape == want.shape
        if want.size:
            scale = max(1.0, float(np.abs(want).max()))
            assert np.abs(got - want).max() <= tolerance * scale


@pytest.mark.parametrize("runner", RUNNERS)
@pytest.mark.parametrize(("operator", "case"), CASES)
def test_agrees_with_the_float64_reference(operator: Operator, case: Case, runner: str) -> None:
    model = as_model(operator, case)
    onnx.checker.check_model(model, full_check=True)
    expected = operator.reference(**case.inputs, **case.attributes)
    assert_close(RUNNERS[runner](model, operator, case), expected, operator.tolerance)


@pytest.mark.parametrize("operator", OPERATORS.values(), ids=OPERATORS)
def test_every_attribute_is_read_by_a_body(operator: Operator) -> None:
    used = {name for variant in operator.bodies for name in operator.function(variant).attribute}
    assert used == set(operator.attributes)
