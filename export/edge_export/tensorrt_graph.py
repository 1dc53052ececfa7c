"""Makes TensorRT's version of a bundle's graph: plugins' functions stripped, mixed precision written out as casts.

docs/tensorrt.md describes the result, which the C++ plugins rely on. What a plugin computes keeps its node and loses
its function, since TensorRT would prefer the function. Everything else becomes standard operators.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import msgspec
import onnx
from onnx import ModelProto, NodeProto, TensorProto, helper
from onnx.inliner import inline_local_functions

from edge_export.float_codes import BLOCK as NVFP4_BLOCK
from edge_export.float_codes import Format
from edge_export.tensorrt_weights import Weights
from edge_plugins import DOMAIN, OPERATORS
from edge_sdk.bundle import GRAPH, WEIGHTS
from edge_sdk.engine_files import NEXT_TOKEN, Precision
from edge_sdk.errors import ConfigError, explain

ELEMENTS = {"float32": TensorProto.FLOAT, "float16": TensorProto.FLOAT16, "bfloat16": TensorProto.BFLOAT16}

LAYERS = "model.layers."
"""What the weights of the layers' projections begin with: embeddings and the head stay what they are."""

FLOAT4_OPSET, FLOAT4_IR = 23, 11
"""The first versions of ONNX with FLOAT4E2M1."""

FLOAT32 = ("model.encoder.", "model.decoder.")
"""What the weights begin with whose products stay in float32: those around the layers of a policy."""

ACTIVATIONS = {"Mamba2Mixer": 1, "CachedAttention": 3, "MoE": 1, "QLinear": 1}
"""How many of an operator's first inputs are activations in the engine's precision; its first output always is."""


class Summary(msgspec.Struct, frozen=True, kw_only=True):
    """What the pass made of a graph."""

    plugins: dict[str, int]
    """Nodes by operator that plugins compute."""
    bodies: dict[str, int]
    """Nodes by operator that run as standard operators, on their function or in its place."""
    casts: int
    converted_bytes: int
    """Of the weights that get another type."""
    projections: dict[str, int]
    """Those that are quantised, by format."""
    kept: int
    """Those of them that lose nothing: their values are ones that the format has, but for bfloat16's rounding."""


def write_tensorrt_graph(
    source: Path,
    target: Path | None,
    precision: Precision,
    claimed: Iterable[str],
    formats: Sequence[Format] = (),
    lossless: bool = False,
) -> Summary:
    """Reads the graph folder ``source`` and writes TensorRT's version of it into the folder ``target``, None: nowhere.

    ``claimed``: the operators that plugins compute. Weights that stay as they are stay where they are: ``target`` gets
    a link to their file. The layers' projections get the first of ``formats``; with ``lossless`` the first that loses
    nothing of a weight, or none. Raises ConfigError where a weight does not fit the precision, a plugin's conventions
    or its format.
    """
    proto = onnx.load(str(source / GRAPH), load_external_data=False)
    _drop_speculation(proto)
    with Weights(list(proto.graph.initializer), source, target) as weights:
        summary = _Rewriter(proto, weights, precision, frozenset(claimed), formats, lossless).run()
    # Inlined here, since TensorRT's parser gives the nodes of a function's second use the names of the first.
    proto = inline_local_functions(proto)
    if "nvfp4" in summary.projections:
        _raise_opset(proto)
    _hide_scales(proto)
    if target is not None:
        os.symlink((source / WEIGHTS).resolve(), target / WEIGHTS)
        (target / GRAPH).write_bytes(proto.SerializeToString())
    return summary


def _drop_speculation(proto: ModelProto) -> None:
    """Removes the outputs for speculative decoding (docs/speculation.md), which the TensorRT backend does not read."""
    graph = proto.graph
    outputs = [value for value in graph.output if value.name.startswith(("logits", "actions", "present."))]
    nodes = [node for node in graph.node if not node.output[0].endswith(".projected")]
    del graph.output[:], graph.node[:]
    graph.output.extend(outputs)
    graph.node.extend(nodes)


def _raise_opset(proto: ModelProto) -> None:
    """To the first that has FLOAT4E2M1; what else stands in the graph means the same in it."""
    proto.ir_version = max(proto.ir_version, FLOAT4_IR)
    for opset in proto.opset_import:
        if not opset.domain:
            opset.version = max(opset.version, FLOAT4_OPSET)


class _Rewriter:
    """One pass over the nodes in order. ``narrow`` knows of every value whether it exists in the engine's precision."""

    def __init__(
        self,
        proto: ModelProto,
        weights: Weights,
        precision: Precision,
        claimed: frozenset[str],
        formats: Sequence[Format],
        lossless: bool,
    ) -> None:
        self.proto, self.weights, self.claimed = proto, weights, claimed
        self.precision, self.element = precision, ELEMENTS[precision]
        self.formats, self.lossless = formats, lossless
        self.quantized = Counter[str]()
        """Projections by format, so far."""
        self.nodes: list[NodeProto] = []
        self.narrow: dict[str, str] = {}
        """Name of a float32 value -> name of the same value in the engine's precision."""
        self.transposes = {
            node.output[0]: node
            for node in proto.graph.node
            if node.op_type == "Transpose" and node.input[0] in weights.tensors
        }
        """By output: the transposed weights of float products."""
        self.routers = {node.input[1] for node in proto.graph.node if node.op_type == "MoE"}

    def run(self) -> Summary:
        """Rewrites the graph in place."""
        counts = Counter(node.op_type for node in self.proto.graph.node if node.domain == DOMAIN)
        for node in self.proto.graph.node:
            self._rewrite(node)
        self._add_next_token()
        self._replace_nodes()
        kept = {node.op_type for node in self.nodes if node.domain == DOMAIN} - self.claimed
        functions = [function for function in self.proto.functions if function.name in kept]
        del self.proto.functions[:]
        self.proto.functions.extend(functions)
        plugins = Counter(node.op_type for node in self.nodes if node.op_type in self.claimed)
        return Summary(
            plugins=dict(sorted(plugins.items())),
            bodies=dict(sorted((counts - plugins).items())),
            casts=sum(node.name.startswith("edge_cast") for node in self.nodes),
            converted_bytes=self.weights.converted_bytes,
            projections=dict(sorted(self.quantized.items())),
            kept=self.weights.kept,
        )

    def _rewrite(self, node: NodeProto) -> None:
        if node.op_type == "MatMul" and self._is_narrow(node):
            self._product(node, self._matrix(node.input[1]))
        elif node.domain == DOMAIN and node.op_type == "QLinear":
            self._qlinear(node)
        elif node.domain == DOMAIN and node.op_type in self.claimed:
            self._plugin(node)
        else:
            self.nodes.append(node)

    def _is_narrow(self, product: NodeProto) -> bool:
        """Whether a product is one with a weight, and to be made in the engine's precision."""
        matrix = product.input[1]
        stored = self.transposes[matrix].input[0] if matrix in self.transposes else matrix
        return (
            stored in self.weights.tensors and not stored.startswith(FLOAT32) and product.output[0] not in self.routers
        )

    def _qlinear(self, node: NodeProto) -> None:
        """A plugin's node, or a product with the matrix, dequantised where it is an integer one."""
        matrix = node.input[1]
        if not self.weights.bits(matrix):
            self._product(node, self._matrix(matrix))
        elif matrix.startswith(LAYERS) and self.formats and not self.lossless:
            raise ConfigError(
                explain(
                    f"The weight {matrix}",
                    expected=f"a float one: {self.formats[0]} of what is rounded already would lose twice",
                    found=f"int{self.weights.bits(matrix)}",
                    todo="Export with --weights bfloat16, or leave --projections out.",
                )
            )
        elif "QLinear" in self.claimed and self.weights.fills_words(matrix):
            self._plugin(node)
        else:
            scales, (block_size,) = self.weights.converted(node.input[2], self.element), node.attribute
            made = f"{node.output[0]}_matrix"
            dequantize = helper.make_node("DequantizeLinear", [matrix, scales], [made], f"{node.name}_matrix", axis=0)
            dequantize.attribute.append(block_size)
            self.nodes.append(dequantize)
            self._product(node, made)

    def _matrix(self, name: str) -> str:
        """The name of a float weight, or of the transpose of one, in the engine's precision."""
        stored = name if name in self.weights.tensors else self.transposes[name].input[0]
        kind = self._format(stored, by_output=stored != name)
        if kind is not None:
            return self._dequantized(stored, kind, by_output=stored != name)
        if stored == name:
            return self.weights.converted(name, self.element)
        converted = self.weights.converted(stored, self.element)
        if converted == stored:
            return name
        if name not in self.narrow:
            self.narrow[name] = f"{name}_{self.precision}"
            self._transpose(converted, self.narrow[name])
        return self.narrow[name]

    def _format(self, stored: str, *, by_output: bool) -> Format | None:
        """The format that a float weight gets; None leaves it in the engine's precision."""
        if not stored.startswith(LAYERS):
            return None
        fitting = (
            kind for kind in self.formats if not self.lossless or self.weights.is_lossless(stored, by_output, kind)
        )
        return next(fitting, None)

    def _dequantized(self, stored: str, kind: Format, *, by_output: bool) -> str:
        """A quantised weight (out, in) behind what makes it the engine's precision (in, out), as Model Optimizer does.

        ``by_output``: whether it is stored as (out, in), not as (in, out).
        """
        made = f"{stored}.dequantized"
        self.quantized[kind] += 1
        if kind == "fp8":
            codes, scale = self.weights.fp8(stored, by_output, self.element)
            attributes: dict[str, Any] = {"axis": 0} if self.weights.tensors[scale].dims else {}
        else:
            codes, scales, of_all = self.weights.nvfp4(stored, by_output, self.element)
            scale, attributes = f"{scales}.dequantized", {"axis": 1, "block_size": NVFP4_BLOCK}
            self.nodes.append(helper.make_node("DequantizeLinear", [scales, of_all], [scale], scale))
        self.nodes.append(helper.make_node("DequantizeLinear", [codes, scale], [made], made, **attributes))
        if self.precision != "float32":
            wide, made = made, f"{made}_{self.precision}"
            self._cast(wide, made, self.element)
        self._transpose(made, f"{made}_transposed")
        return f"{made}_transposed"

    def _transpose(self, old: str, new: str) -> None:
        self.nodes.append(helper.make_node("Transpose", [old], [new], new, perm=(1, 0)))

    def _product(self, node: NodeProto, matrix: str) -> None:
        """x times a matrix that has the engine's precision."""
        product = helper.make_node("MatMul", [self._narrowed(node.input[0]), matrix], [node.output[0]], node.name)
        self._append_narrow(product)

    def _plugin(self, node: NodeProto) -> None:
        """The node with activations in the engine's precision, integer weights as words and our plugins' attributes."""
        operator, made = OPERATORS[node.op_type], NodeProto()
        made.CopyFrom(node)
        variant = operator.variant_of_node(node)
        attributes: dict[str, int] = {}
        for index, (role, name) in enumerate(zip(operator.inputs_of(variant), node.input)):
            if index < ACTIVATIONS[node.op_type]:
                made.input[index] = self._narrowed(name)
            elif role.endswith("weight") and node.op_type in ("MoE", "QLinear"):
                attributes["weight_bits"] = self.weights.bits(name)
                made.input[index] = self._plugin_weight(name)
        if node.op_type == "CachedAttention":
            attributes["cache_bits"] = 8 if variant == "int8" else 0
        present = {attribute.name for attribute in node.attribute}
        if "weight_bits" in attributes and "block_size" not in present:
            attributes["block_size"] = 0
        made.attribute.extend(helper.make_attribute(name, value) for name, value in attributes.items())
        self._append_narrow(made)

    def _plugin_weight(self, name: str) -> str:
        if not self.weights.bits(name):
            return self.weights.converted(name, self.element)
        if not self.weights.fills_words(name):
            raise ConfigError(
                explain(
                    f"The last axis of {name}",
                    expected=f"a multiple of {32 // self.weights.bits(name)}",
                    found=self.weights.tensors[name].dims[-1],
                    todo="Build with --plugins none, or export the weights as bfloat16.",
                )
            )
        return self.weights.as_words(name)

    def _narrowed(self, name: str) -> str:
        """The name of a value in the engine's precision, cast once for all who read it."""
        if self.precision == "float32":
            return name
        if name not in self.narrow:
            self.narrow[name] = f"{name}_{self.precision}"
            self._cast(name, self.narrow[name], self.element)
        return self.narrow[name]

    def _append_narrow(self, node: NodeProto) -> None:
        """Adds a node whose first output has the engine's precision, and the cast back to float32."""
        self.nodes.append(node)
        if self.precision != "float32":
            wide = node.output[0]
            node.output[0] = self.narrow[wide] = f"{wide}_{self.precision}"
            self._cast(node.output[0], wide, TensorProto.FLOAT)

    def _cast(self, old: str, new: str, element: int) -> None:
        self.nodes.append(helper.make_node("Cast", [old], [new], f"edge_cast_{new}", to=element))

    def _add_next_token(self) -> None:
        logits = self.proto.graph.output[0]
        if logits.name != "logits":
            return  # a policy has none
        argmax = helper.make_node("ArgMax", [logits.name], [NEXT_TOKEN], NEXT_TOKEN, axis=-1, keepdims=0)
        self.nodes.append(argmax)
        batch, kept, _ = (dim.dim_param for dim in logits.type.tensor_type.shape.dim)
        output = helper.make_tensor_value_info(NEXT_TOKEN, TensorProto.INT64, (batch, kept))
        self.proto.graph.output.insert(1, output)

    def _replace_nodes(self) -> None:
        """The new nodes without casts and transposes that nobody reads, and only the weights that somebody reads."""
        outputs = {value.name for value in self.proto.graph.output}
        read = outputs | {name for node in self.nodes for name in node.input}
        self.nodes = [
            node for node in self.nodes if node.op_type not in ("Cast", "Transpose") or node.output[0] in read
        ]
        read = {name for node in self.nodes for name in node.input}
        graph = self.proto.graph
        del graph.node[:], graph.initializer[:]
        graph.node.extend(self.nodes)
        graph.initializer.extend(tensor for name, tensor in self.weights.tensors.items() if name in read)


def _hide_scales(proto: ModelProto) -> None:
    """Puts a cast before the scales of integers: TensorRT's parser refuses negative constants in DequantizeLinear."""
    nodes: list[NodeProto] = []
    elements = {tensor.name: tensor.data_type for tensor in proto.graph.initializer}
    for node in proto.graph.node:
        quantized = node.op_type == "DequantizeLinear" and node.input[1] in elements
        if quantized and elements.get(node.input[0]) != TensorProto.FLOAT8E4M3FN:
            hidden = f"{node.output[0]}_scales"
            nodes.append(helper.make_node("Cast", [node.input[1]], [hidden], hidden, to=elements[node.input[1]]))
            node.input[1] = hidden
        nodes.append(node)
    del proto.graph.node[:]
    proto.graph.node.extend(nodes)
