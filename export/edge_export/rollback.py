"""What taking back drafted tokens needs of a traced graph: its scans' inputs as outputs, and a graph of its scans."""

from __future__ import annotations

from collections.abc import Iterator

import onnx_ir

from edge_plugins import DOMAIN
from edge_plugins.mamba2_mixer.op import MAMBA2_MIXER
from edge_sdk.model import ModelConfig
from edge_sdk.speculation import GraphSpec

PROJ, PAST_CONV = (MAMBA2_MIXER.inputs.index(name) for name in ("proj", "past_conv"))


def scans(model: onnx_ir.Model) -> Iterator[tuple[str, onnx_ir.Node]]:
    """The Mamba2Mixer nodes and the indices of their layers, in layer order."""
    for node in model.graph:
        if node.domain == DOMAIN and node.op_type == MAMBA2_MIXER.name:
            past = node.inputs[PAST_CONV]
            assert past is not None
            yield str(past.name).split(".")[1], node


def add_projections(model: onnx_ir.Model, config: ModelConfig) -> None:
    """Adds the outputs ``mixer.<layer>.projected``: what the scans read, at the positions ``logit_positions``.

    They stand where ModelConfig.outputs has them, behind the last state.
    """
    graph, positions = model.graph, next(value for value in model.graph.inputs if value.name == "logit_positions")
    first = 1 + len(config.present_specs())
    for offset, (layer, node) in enumerate(list(scans(model))):
        name = f"mixer.{layer}.projected"
        picked = onnx_ir.Node("", "Gather", [node.inputs[PROJ], positions], [onnx_ir.AttrInt64("axis", 1)], name=name)
        picked.outputs[0].name = name
        graph.insert_before(node, picked)
        graph.outputs.insert(first + offset, picked.outputs[0])


def rollback_graph(model: onnx_ir.Model, spec: GraphSpec) -> onnx_ir.Model:
    """The scans of a traced graph whose weights are written, by themselves; the weights stay where they are."""
    inputs = {tensor.name: onnx_ir.Value(name=tensor.name) for tensor in spec.inputs}
    weights: dict[str, onnx_ir.Value] = {}
    nodes, outputs = [], []
    for layer, node in scans(model):
        read: list[onnx_ir.Value | None] = [inputs[f"mixer.{layer}.projected"]]
        for value in node.inputs[1:PAST_CONV]:
            assert value is not None
            read.append(weights.setdefault(str(value.name), _same_weight(value)))
        read += [inputs[f"past_key_values.{layer}.{name}"] for name in ("conv_state", "recurrent_state")]
        scan = onnx_ir.Node(DOMAIN, node.op_type, read, list(node.attributes.values()), num_outputs=3, name=node.name)
        y, conv, ssm = scan.outputs
        y.name = f"mixer.{layer}.y"
        conv.name, ssm.name = f"present.{layer}.conv_state", f"present.{layer}.recurrent_state"
        nodes.append(scan)
        outputs += [conv, ssm]
    graph = onnx_ir.Graph(
        list(inputs.values()),
        outputs,
        nodes=nodes,
        initializers=list(weights.values()),
        opset_imports=dict(model.graph.opset_imports),
        name="rollback",
    )
    return onnx_ir.Model(graph, ir_version=model.ir_version)


def _same_weight(value: onnx_ir.Value) -> onnx_ir.Value:
    """Another graph's value for the same bytes."""
    return onnx_ir.Value(name=value.name, shape=value.shape, type=value.type, const_value=value.const_value)
