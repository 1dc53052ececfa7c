"""The ways of running an operator: each takes a case and returns a function of inputs like the case's."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from edge_plugins import DOMAIN, OPSET_VERSION, Operator, native_library
from edge_plugins.operator import STANDARD_OPSET, Array, Case, dtype_of

Outputs = tuple[Array, ...]
Run = Callable[[Mapping[str, Array]], Outputs]
"""Inputs of any batch and length to outputs; what the operator calls weights stays that of the case."""

Runner = Callable[[Operator, Case], Run]

FLOAT32, BFLOAT16, INT4 = np.dtype(np.float32), dtype_of("bfloat16"), dtype_of("int4")


def expected_of(operator: Operator, case: Case) -> Outputs:
    """The reference's outputs."""
    with np.errstate(all="ignore"):  # a poisoned row overflows
        return operator.reference(**case.inputs, **case.attributes)


def output_dtype(case: Case, name: str) -> np.dtype[Any]:
    """A present state is stored as the past one; everything else is float32."""
    past = case.inputs.get(name.replace("present_", "past_", 1))
    return FLOAT32 if past is None else past.dtype


def as_model(operator: Operator, case: Case, *, sized: bool = False) -> onnx.ModelProto:
    """A model of one node and its function. Weights are constants; all sizes are dynamic unless ``sized``.

    States in bfloat16, which NumPy does not know, are float32 in the model's inputs and outputs and cast inside.
    """
    inputs, outputs, before, after = [], [], [], []

    def value(name: str, dtype: np.dtype[Any], shape: tuple[int, ...]) -> tuple[str, onnx.ValueInfoProto]:
        """The name that the node uses, and the model's input or output."""
        sizes = shape if sized else [f"{name}_{axis}" for axis in range(len(shape))]
        outside = FLOAT32 if dtype == BFLOAT16 else dtype
        info = helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(outside), sizes)
        return (name if outside == dtype else f"{name}_stored"), info

    node_inputs = []
    for name in operator.inputs_of(case.variant):
        inside = name
        if name not in operator.weights:
            inside, info = value(name, case.inputs[name].dtype, case.inputs[name].shape)
            inputs.append(info)
            if inside != name:
                before.append(helper.make_node("Cast", [name], [inside], to=TensorProto.BFLOAT16))
        node_inputs.append(inside)
    node_outputs = []
    for name, expected in zip(operator.outputs_of(case.variant), expected_of(operator, case)):
        inside, info = value(name, output_dtype(case, name), expected.shape)
        outputs.append(info)
        if inside != name:
            after.append(helper.make_node("Cast", [inside], [name], to=TensorProto.FLOAT))
        node_outputs.append(inside)
    node = helper.make_node(operator.name, node_inputs, node_outputs, domain=DOMAIN, **case.attributes)
    weights = [numpy_helper.from_array(case.inputs[name], name) for name in node_inputs if name in operator.weights]
    graph = helper.make_graph([*before, node, *after], case.name, inputs, outputs, weights)
    opsets = [helper.make_opsetid("", STANDARD_OPSET), helper.make_opsetid(DOMAIN, OPSET_VERSION)]
    functions = [operator.function(case.variant)]
    return helper.make_model(graph, opset_imports=opsets, functions=functions, ir_version=10)


def feeds(model: onnx.ModelProto, inputs: Mapping[str, Array]) -> dict[str, Array]:
    """What the model is fed: a case's inputs, bfloat16 as float32."""
    arrays = {value.name: inputs[value.name] for value in model.graph.input}
    return {name: array.astype(FLOAT32) if array.dtype == BFLOAT16 else array for name, array in arrays.items()}


def on_onnxruntime(operator: Operator, case: Case) -> Run:
    """The function body in ONNX Runtime, activations kept in float32."""
    import onnxruntime

    model, options = as_model(operator, case), onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", "1")
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return lambda inputs: tuple(session.run(None, feeds(model, inputs)))


def on_reference_evaluator(operator: Operator, case: Case) -> Run:
    """The function body in ONNX's own reference evaluator."""
    from onnx.reference import ReferenceEvaluator

    model = as_model(operator, case)
    evaluator = ReferenceEvaluator(model)

    def run(inputs: Mapping[str, Array]) -> Outputs:
        with np.errstate(all="ignore"):
            return tuple(evaluator.run(None, feeds(model, inputs)))

    return run


def on_torch(operator: Operator, case: Case) -> Run:
    """What training and the torch model compute."""
    import torch

    from edge_export import torch_ops

    functions: dict[str, Callable[..., Any]] = {
        "CachedAttention": torch_ops.cached_attention,
        "Mamba2Mixer": torch_ops.mamba2_mixer,
        "MoE": torch_ops.moe,
        "QLinear": torch_ops.qlinear,
    }
    function = functions[operator.name]
    attributes = {name: value for name, value in case.attributes.items() if name != "conv_dim"}
    block_size = attributes.pop("block_size", 0) if operator.name == "MoE" else 0

    def tensor(array: Array) -> torch.Tensor:
        if array.dtype == BFLOAT16:
            return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
        return torch.from_numpy(array.astype(np.int8) if array.dtype == INT4 else array)

    def run(inputs: Mapping[str, Array]) -> Outputs:
        tensors = [tensor(inputs[name]) for name in operator.inputs_of(case.variant)]
        if block_size:
            *tensors, up_scales, down_scales = tensors
            tensors[3] = torch_ops.dequantize(tensors[3], up_scales, block_size)
            tensors[4] = torch_ops.dequantize(tensors[4], down_scales, block_size)
        result = function(*tensors, **attributes)
        outputs = result if isinstance(result, tuple) else (result,)
        return tuple((item.float() if item.dtype == torch.bfloat16 else item).numpy() for item in outputs)

    return run


def on_module(isa: str, *, exact: bool = True, threads: int = 1) -> Runner:
    """The native kernels on NumPy arrays."""
    from edge_plugins.native import _native

    functions: dict[str, Callable[..., Any]] = {
        "CachedAttention": _native.cached_attention,
        "Mamba2Mixer": _native.mamba2_mixer,
        "MoE": _native.moe,
        "QLinear": _native.qlinear,
    }

    def runner(operator: Operator, case: Case) -> Run:
        settings: dict[str, Any] = {"isa": isa, "threads": threads}
        if operator.weights & {"weight", "up_weight"}:
            settings["exact"] = exact
        if any(array.dtype == INT4 for array in case.inputs.values()):
            settings["bits"] = 4

        def run(inputs: Mapping[str, Array]) -> Outputs:
            arrays = {name: array.astype(np.int8) if array.dtype == INT4 else array for name, array in inputs.items()}
            result = functions[operator.name](**arrays, **case.attributes, **settings)
            outputs = result if isinstance(result, tuple) else (result,)
            return tuple(array.astype(FLOAT32) if array.dtype == BFLOAT16 else array for array in outputs)

        return run

    return runner


def on_kernels(isa: str) -> Runner:
    """The native kernels in ONNX Runtime."""

    def runner(operator: Operator, case: Case) -> Run:
        import onnxruntime

        model, options = as_model(operator, case), onnxruntime.SessionOptions()
        options.log_severity_level = 3
        options.add_session_config_entry("edge.exact", "1")
        options.add_session_config_entry("edge.isa", isa)
        options.register_custom_ops_library(str(native_library()))
        session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        return lambda inputs: tuple(session.run(None, feeds(model, inputs)))

    return runner


def instruction_sets() -> list[str]:
    """Those that this machine's kernels can be forced to use; none where they are not compiled."""
    if native_library() is None:
        return []
    from edge_plugins.native import _native

    return _native.isas()


BODIES: dict[str, Runner] = {
    "onnxruntime": on_onnxruntime,
    "onnx-reference": on_reference_evaluator,
    "torch": on_torch,
}
RUNNERS = {
    **BODIES,
    **{f"module-{isa}": on_module(isa) for isa in instruction_sets()},
    **{f"kernels-{isa}": on_kernels(isa) for isa in instruction_sets()},
}


def why_not(runner: str, case: Case) -> str | None:
    """Why a runner is not held to a case; None if it is."""
    if case.kernel_only and runner in BODIES:
        return "only native kernels can do this"
    return None
