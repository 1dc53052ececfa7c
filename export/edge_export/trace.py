"""Traces the torch model to one ONNX graph whose ``edge`` operators carry their bodies as functions."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir
import torch
from onnx import ModelProto, TensorProto
from onnxscript import optimizer
from torch._subclasses.fake_tensor import FakeTensorMode

from edge_export.checkpoint import VISION_PREFIX
from edge_export.models import make_model
from edge_export.quantize import INT4_SUFFIX, Convert, convert
from edge_export.rollback import add_projections
from edge_export.torch_layers import States
from edge_export.torch_model import HybridLM
from edge_export.torch_policy import HybridPolicy
from edge_export.vision import VisionEncoder
from edge_plugins import DOMAIN, OPERATORS, OPSET_VERSION
from edge_plugins.operator import STANDARD_OPSET
from edge_sdk.errors import CheckpointError, explain
from edge_sdk.model import ModelConfig
from edge_sdk.speculation import DRAFT, EMBED, VISION, GraphSpec, extra_graphs
from edge_sdk.tensor_spec import TensorSpec

IR_VERSION = 10


class _Graph(torch.nn.Module):
    """The model with the states as flat inputs and outputs, as the graph has them."""

    def __init__(self, model: HybridLM) -> None:
        super().__init__()
        self.model = model

    def forward(
        self, fed: torch.Tensor, past_length: torch.Tensor, logit_positions: torch.Tensor, states: States
    ) -> tuple[torch.Tensor, ...]:
        inputs = (fed, past_length, logit_positions, states)
        if self.model.config.vision is not None:
            logits, present = self.model.step_embedded(*inputs)
            return (logits, *present)
        if self.model.config.speculation and self.model.config.mtp is not None:
            logits, hidden, present = self.model.step_with_hidden(*inputs)
            return (logits, *present, hidden)
        logits, present = self.model.step(*inputs)
        return (logits, *present)


class _PolicyGraph(torch.nn.Module):
    """A policy, its inputs by their names in the graph."""

    def __init__(self, model: HybridPolicy) -> None:
        super().__init__()
        self.model = model

    def forward(self, inputs: Mapping[str, torch.Tensor], states: States = ()) -> tuple[torch.Tensor, ...]:
        actions, present = self.model.step(inputs, states)
        return (actions, *present)


class _DraftGraph(torch.nn.Module):
    """The model's drafting head alone."""

    def __init__(self, model: HybridLM) -> None:
        super().__init__()
        self.model = model

    def forward(
        self,
        hidden_states: torch.Tensor,
        input_ids: torch.Tensor,
        past_length: torch.Tensor,
        logit_positions: torch.Tensor,
        states: States,
    ) -> tuple[torch.Tensor, ...]:
        logits, hidden, present = self.model.draft(hidden_states, input_ids, past_length, logit_positions, states)
        return (logits, hidden, *present)


class _EmbedGraph(torch.nn.Module):
    """The model's embeddings alone."""

    def __init__(self, model: HybridLM) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        return self.model.embeddings(input_ids)


class _VisionGraph(torch.nn.Module):
    """An encoder, its tensors named as in the checkpoint."""

    def __init__(self, encoder: VisionEncoder) -> None:
        super().__init__()
        self.model = torch.nn.ModuleDict({VISION_PREFIX.rstrip("."): encoder})

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        (encoder,) = self.model.values()
        return encoder(pixel_values)


Describe = Callable[[ModelConfig], ModelConfig]
"""From a checkpoint's model to the stored one."""


def trace(config: ModelConfig, make: Convert, describe: Describe) -> onnx_ir.Model:
    """One graph for prefill and decode of a model whose leaves ``make`` converts; its weights are names and shapes.

    Nothing is computed and no weight exists: tensors are fake. batch, length, capacity and kept are dynamic.
    """
    stored = describe(config)
    projected = stored.projected_specs("kept") if stored.speculation else ()
    outputs = tuple(spec for spec in stored.outputs() if spec not in projected)
    kind = _Graph if stored.policy is None else _PolicyGraph
    graph = _traced(config, make, describe, kind, GraphSpec(stored.inputs(), outputs))
    if projected:
        add_projections(graph, stored)
    return graph


def trace_draft(config: ModelConfig, make: Convert, describe: Describe) -> onnx_ir.Model:
    """The drafting head of a model as :func:`trace` has the model; the weights that both read have the same names."""
    return _traced(config, make, describe, _DraftGraph, extra_graphs(describe(config))[DRAFT])


def trace_embed(config: ModelConfig, make: Convert, describe: Describe) -> onnx_ir.Model:
    """From tokens to what :func:`trace`'s graph takes, of a model that sees."""
    return _traced(config, make, describe, _EmbedGraph, extra_graphs(describe(config))[EMBED])


def trace_vision(config: ModelConfig) -> onnx_ir.Model:
    """A model's encoder of images; its weights are float32."""
    spec = config.vision
    assert spec is not None
    return _exported(lambda: _VisionGraph(VisionEncoder(spec, config.hidden)).eval(), extra_graphs(config)[VISION])


def _traced(
    config: ModelConfig,
    make: Convert,
    describe: Describe,
    graph: Callable[[Any], torch.nn.Module],
    spec: GraphSpec,
) -> onnx_ir.Model:
    def made() -> torch.nn.Module:
        model = convert(make_model(config), make).eval()
        model.config = describe(config)
        return graph(model)

    return _exported(made, spec)


def _exported(make: Callable[[], torch.nn.Module], spec: GraphSpec) -> onnx_ir.Model:
    """A module that is made of fake tensors as a graph."""
    with FakeTensorMode(allow_non_fake_inputs=True), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        logging.getLogger("torch.onnx").setLevel(logging.ERROR)
        module = make()
        inputs, dynamic = _example(spec.inputs, by_name=isinstance(module, _PolicyGraph))
        program = torch.onnx.export(
            module,
            inputs,
            input_names=[tensor.name for tensor in spec.inputs],
            output_names=[tensor.name for tensor in spec.outputs],
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


def graph_proto(model: onnx_ir.Model, spec: GraphSpec, notes: Mapping[str, str]) -> ModelProto:
    """A graph whose weights have their places in a file, as it is stored; ``notes`` become its metadata."""
    proto = onnx_ir.to_proto(model)
    _finish(proto, spec)
    onnx.helper.set_model_props(proto, dict(notes))
    return proto


def save_graph(proto: ModelProto, path: Path) -> None:
    """Writes a graph whose weights stand in the file already, and has onnx.checker look at it."""
    path.write_bytes(proto.SerializeToString())
    onnx.checker.check_model(str(path), full_check=True)


def _example(specs: Sequence[TensorSpec], *, by_name: bool) -> tuple[tuple[object, ...], tuple[object, ...]]:
    """Inputs to trace with, and which of their axes are dynamic; those but the states in a dict, or one by one.

    Behind the inputs' dict there is always something: torch takes a last dict for keyword arguments.
    """
    names = {name: torch.export.Dim(name, min=1, max=2**20) for name in ("batch", "images", "length", "capacity")}
    names["kept"] = torch.export.Dim("kept", min=0, max=2**20)
    sizes = {"batch": 2, "images": 2, "length": 3, "capacity": 7, "kept": 4}

    def axes(spec: TensorSpec) -> dict[int, object]:
        return {axis: names[dim] for axis, dim in enumerate(spec.shape) if isinstance(dim, str)}

    zeros = [torch.zeros(spec.sized(**sizes), dtype=getattr(torch, spec.dtype)) for spec in specs]
    count = sum(not spec.name.startswith("past_key_values.") for spec in specs)
    inputs: tuple[object, ...] = tuple(zeros[:count])
    dynamic: tuple[object, ...] = tuple(axes(spec) for spec in specs[:count])
    if by_name:
        names_of = [spec.name for spec in specs[:count]]
        inputs, dynamic = (dict(zip(names_of, inputs)),), (dict(zip(names_of, dynamic)),)
    if count == len(specs):
        return (*inputs, *([{}] if by_name else [])), dynamic
    return (*inputs, tuple(zeros[count:])), (*dynamic, tuple(axes(spec) for spec in specs[count:]))


def _finish(proto: ModelProto, spec: GraphSpec) -> None:
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
    for values, tensors in ((proto.graph.input, spec.inputs), (proto.graph.output, spec.outputs)):
        for value, tensor in zip(values, tensors):
            assert value.name == tensor.name
            element = onnx.helper.np_dtype_to_tensor_dtype(np.dtype(tensor.dtype))
            value.CopyFrom(onnx.helper.make_tensor_value_info(tensor.name, element, tensor.shape))
