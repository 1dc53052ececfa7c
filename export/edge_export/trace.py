"""Traces the torch model to one ONNX graph whose ``edge`` operators carry their bodies as functions."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import onnx
import onnx_ir
import torch
from onnx import ModelProto, TensorProto
from onnxscript import optimizer
from torch._subclasses.fake_tensor import FakeTensorMode

from edge_export.quantize import INT4_SUFFIX, Convert, convert
from edge_export.torch_model import HybridLM, States
from edge_plugins import DOMAIN, OPERATORS, OPSET_VERSION
from edge_plugins.operator import STANDARD_OPSET
from edge_sdk.errors import CheckpointError, explain
from edge_sdk.model import ModelConfig, TensorSpec

IR_VERSION = 10


class _Graph(torch.nn.Module):
    """The model with the states as flat inputs and outputs, as the graph has them."""

    def __init__(self, model: HybridLM) -> None:
        super().__init__()
        self.model = model

    def forward(
        self, input_ids: torch.Tensor, past_length: torch.Tensor, logit_positions: torch.Tensor, states: States
    ) -> tuple[torch.Tensor, ...]:
        logits, present = self.model.step(input_ids, past_length, logit_positions, states)
        return (logits, *present)


def trace(config: ModelConfig, make: Convert, describe: Callable[[ModelConfig], ModelConfig]) -> onnx_ir.Model:
    """One graph for prefill and decode of a model whose leaves ``make`` converts; its weights are names and shapes.

    Nothing is computed and no weight exists: tensors are fake. batch, length, capacity and kept are dynamic.
    """
    with FakeTensorMode(allow_non_fake_inputs=True), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        logging.getLogger("torch.onnx").setLevel(logging.ERROR)
        model = convert(HybridLM(config), make).eval()
        model.config = describe(config)
        inputs, dynamic = _example(model.config)
        program = torch.onnx.export(
            _Graph(model),
            inputs,
            input_names=[spec.name for spec in model.config.inputs()],
            output_names=[spec.name for spec in model.config.outputs()],
            dynamic_shapes=dynamic,
            opset_version=STANDARD_OPSET,
            dynamo=True,
            verbose=False,
            optimize=False,
        )
    assert program is not None
    _optimize(program.model)
    return program.model


def _optimize(model: onnx_ir.Model) -> None:
    """Folds constants and removes what is not used. Fake weights have no values, so they are hidden meanwhile."""
    weights = {name: value.const_value for name, value in model.graph.initializers.items()}
    for value in model.graph.initializers.values():
        value.const_value = None
    logging.getLogger("onnx_ir").setLevel(logging.ERROR)
    optimizer.optimize_ir(model)
    for name, value in model.graph.initializers.items():
        value.const_value = value.const_value or weights[name]


def save_graph(model: onnx_ir.Model, config: ModelConfig, path: Path, notes: Mapping[str, str]) -> None:
    """Writes a graph whose weights stand in a file already; ``notes`` become its metadata. onnx.checker checks it."""
    proto = onnx_ir.to_proto(model)
    _finish(proto, config)
    onnx.helper.set_model_props(proto, dict(notes))
    path.write_bytes(proto.SerializeToString())
    onnx.checker.check_model(str(path), full_check=True)


def _example(config: ModelConfig) -> tuple[tuple[object, ...], tuple[object, ...]]:
    """Inputs to trace with, and which of their axes are dynamic."""
    names = {name: torch.export.Dim(name, min=1, max=2**20) for name in ("batch", "length", "capacity")}
    names["kept"] = torch.export.Dim("kept", min=0, max=2**20)
    sizes = {"batch": 2, "length": 3, "capacity": 7, "kept": 4}

    def axes(spec: TensorSpec) -> dict[int, object]:
        return {axis: names[dim] for axis, dim in enumerate(spec.shape) if isinstance(dim, str)}

    specs = config.inputs()
    zeros = [torch.zeros(spec.sized(**sizes), dtype=getattr(torch, spec.dtype)) for spec in specs]
    count = len(specs) - len(config.past_specs())
    return (*zeros[:count], tuple(zeros[count:])), (
        *(axes(spec) for spec in specs[:count]),
        tuple(axes(spec) for spec in specs[count:]),
    )


def _finish(proto: ModelProto, config: ModelConfig) -> None:
    """Adds the functions and opset, types int4 weights as such and names the dynamic axes as we do."""
    variants: dict[str, set[str]] = {}
    for node in proto.graph.node:
        if node.domain == DOMAIN:
            variants.setdefault(node.op_type, set()).add(OPERATORS[node.op_type].variant_of_node(node))
    for name, found in sorted(variants.items()):
        if len(found) > 1:
            raise CheckpointError(
                explain(f"The {name} nodes", expected="one variant", found=sorted(found), todo="Quantise all or none.")
            )
        proto.functions.append(OPERATORS[name].function(found.pop()))
    for tensor in proto.graph.initializer:
        if tensor.name.endswith(INT4_SUFFIX):
            tensor.data_type = TensorProto.INT4
            tensor.dims[-1] *= 2
    opsets = {opset.domain: opset.version for opset in proto.opset_import} | {DOMAIN: OPSET_VERSION}
    del proto.opset_import[:]
    proto.opset_import.extend(onnx.helper.make_opsetid(domain, version) for domain, version in opsets.items())
    proto.ir_version = IR_VERSION
    del proto.graph.value_info[:]
    for values, specs in ((proto.graph.input, config.inputs()), (proto.graph.output, config.outputs())):
        for value, spec in zip(values, specs):
            assert value.name == spec.name
            element = onnx.helper.np_dtype_to_tensor_dtype(np.dtype(spec.dtype))
            value.CopyFrom(onnx.helper.make_tensor_value_info(spec.name, element, spec.shape))
