"""The plugin library in TensorRT's own builder: it claims every node, in every precision, and says why it refuses one.

The builder is that of TensorRT-RTX, which needs no GPU to build; no engine is run. Neither are the kernels: they are
those on the model of a GPU, so that this needs no nvcc.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper

from builds import plugin_library
from edge_plugins import OPERATORS, Operator
from edge_plugins.operator import Case
from edge_sdk.backends.trt_module import load_plugins, logger_of
from nodes import CASES, DOMAIN, Node, fits, node_of

trt = pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX is for x86-64 Linux: pip install '.[test]'")

BUILT = [pytest.param(*pair, id=f"{pair[0].name}-{pair[1].name}") for pair in CASES if fits(pair[1])]
SMALL = {operator.name: next(case for other, case in CASES if other is operator) for operator in OPERATORS.values()}


LOG = logger_of(trt)


def said_by_us() -> list[str]:
    """What the plugins said."""
    return [text for _, text in LOG.messages if text.startswith("[edge plugins]")]


@pytest.fixture(scope="module", autouse=True)
def library() -> None:
    """Registers the plugin library with TensorRT-RTX."""
    load_plugins(trt, plugin_library())


def model_of(node: Node, dynamic: Mapping[str, tuple[int, ...]] | None = None) -> onnx.ModelProto:
    """A graph of that node alone; ``dynamic`` names the axes of inputs whose size is left open."""
    constants, inputs = [], []
    for name, array in node.inputs.items():
        element = helper.np_dtype_to_tensor_dtype(array.dtype)
        if name in node.constants:
            constants.append(helper.make_tensor(name, element, array.shape, array.tobytes(), raw=True))
        else:
            open_axes = (dynamic or {}).get(name, ())
            shape = [f"{name}_{axis}" if axis in open_axes else size for axis, size in enumerate(array.shape)]
            inputs.append(helper.make_tensor_value_info(name, element, shape))
    made = helper.make_node(node.operator.name, list(node.inputs), node.outputs, "node", domain=DOMAIN)
    made.attribute.extend(helper.make_attribute(name, value) for name, value in node.attributes.items())
    # TensorRT's parser finds the shapes by itself.
    outputs = [
        helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(dtype), None)
        for name, dtype in node.output_dtypes.items()
    ]
    graph = helper.make_graph([made], "graph", inputs, outputs, constants)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21), helper.make_opsetid(DOMAIN, 1)])


class Build:
    """One model in the builder: what was parsed, what was built and what was said."""

    def __init__(
        self, model: onnx.ModelProto, profile: Mapping[str, tuple[tuple[int, ...], ...]] | None = None
    ) -> None:
        LOG.messages.clear()
        builder = trt.Builder(LOG)
        self.network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
        self.parser = trt.OnnxParser(self.network, LOG)
        self.parsed = self.parser.parse(model.SerializeToString())
        self.engine = None
        if self.parsed:
            config = builder.create_builder_config()
            if profile is not None:
                shapes = builder.create_optimization_profile()
                for name, sizes in profile.items():
                    shapes.set_shape(name, *sizes)
                config.add_optimization_profile(shapes)
            self.engine = builder.build_serialized_network(self.network, config)

    def plugins(self) -> int:
        """Layers that are plugins."""
        layers = [self.network.get_layer(index) for index in range(self.network.num_layers)]
        return sum(layer.type == trt.LayerType.PLUGIN_V3 for layer in layers)

    def output_types(self) -> list[Any]:
        return [self.network.get_output(index).dtype for index in range(self.network.num_outputs)]


def shapes_of(built: Build) -> list[tuple[int, ...]]:
    return [tuple(built.network.get_output(index).shape) for index in range(built.network.num_outputs)]


@pytest.mark.parametrize(("operator", "case"), BUILT)
def test_every_case_is_claimed_and_built(operator: Operator, case: Case) -> None:
    node = node_of(operator, case)
    built = Build(model_of(node))
    assert built.engine is not None, LOG.said(trt.ILogger.WARNING)
    assert built.plugins() == 1
    assert said_by_us() == []
    expected = operator.reference(**case.inputs, **case.attributes)
    assert shapes_of(built) == [array.shape for array in expected]
    assert [name_of(element) for element in built.output_types()] == [d.name for d in node.output_dtypes.values()]


def name_of(element: Any) -> str:
    """NumPy's name of TensorRT's type."""
    return {trt.float32: "float32", trt.float16: "float16", trt.bfloat16: "bfloat16", trt.int8: "int8"}[element]


@pytest.mark.parametrize("precision", ["float16", "bfloat16"])
@pytest.mark.parametrize("operator", OPERATORS.values(), ids=lambda operator: operator.name)
def test_activations_have_the_engines_precision(operator: Operator, precision: str) -> None:
    built = Build(model_of(node_of(operator, SMALL[operator.name], precision)))
    assert built.engine is not None, LOG.said(trt.ILogger.WARNING)
    assert name_of(built.output_types()[0]) == precision


DYNAMIC: dict[str, dict[str, tuple[int, ...]]] = {
    "Mamba2Mixer": {"proj": (0, 1), "past_conv": (0,), "past_ssm": (0,)},
    "CachedAttention": {
        **dict.fromkeys(("query", "key", "value"), (0, 1)),
        "past_length": (0,),
        **dict.fromkeys(("past_key", "past_value"), (0, 2)),
    },
    "MoE": {"x": (0, 1), "router_logits": (0, 1)},
    "QLinear": {"x": (0, 1)},
}
"""The axes that stay open in a real graph: batch, length or capacity."""


@pytest.mark.parametrize("operator", OPERATORS.values(), ids=lambda operator: operator.name)
def test_batch_length_and_capacity_may_stay_open(operator: Operator) -> None:
    node, dynamic = node_of(operator, SMALL[operator.name]), DYNAMIC[operator.name]
    largest = {0: 4, 1: 64, 2: 256}
    profile = {}
    for name, axes in dynamic.items():
        shape = node.inputs[name].shape
        sizes = [
            tuple(size(axis) if axis in axes else old for axis, old in enumerate(shape))
            for size in (lambda axis: 64 if axis == 2 else 1, lambda axis: 64 if axis == 2 else 1, largest.__getitem__)
        ]
        profile[name] = tuple(sizes)
    built = Build(model_of(node, dynamic), profile)
    assert built.engine is not None, LOG.said(trt.ILogger.WARNING)
    assert shapes_of(built)[0][:2] == (-1, -1)


REFUSED = [
    ("Mamba2Mixer", {"groups": None}, {}, "The attribute groups: expected an integer, found none."),
    ("Mamba2Mixer", {"eps": 1}, {}, "The attribute eps: expected a float, found an integer"),
    ("Mamba2Mixer", {"groups": 3}, {}, "The sizes of Mamba2Mixer: expected conv_dim = "),
    ("Mamba2Mixer", {}, {"a_log": np.float16}, "The type of a_log: expected float32, found float16."),
    (
        "Mamba2Mixer",
        {},
        {"past_ssm": np.int32},
        "The type of past_ssm: expected float32 or float16 or bfloat16, found int32",
    ),
    ("MoE", {"activation": "tanh"}, {}, "expected relu2, gelu or silu_gated, found 'tanh'."),
    ("MoE", {"scoring": "tanh"}, {}, "expected sigmoid or softmax, found 'tanh'."),
    ("MoE", {"top_k": 99}, {}, "The attribute top_k of MoE: expected 1 to 8, found 99."),
    ("CachedAttention", {"window": -1}, {}, "The attribute window of CachedAttention: expected at least 0, found -1."),
    ("CachedAttention", {"cache_bits": 8}, {}, "The number of inputs: expected 8, found 6."),
    ("CachedAttention", {}, {"key": np.float16}, "The type of key: expected float32, found float16."),
    ("QLinear", {"weight_bits": 3}, {}, "The attribute weight_bits: expected 8, 4 or, for floats, 0, found 3."),
    ("QLinear", {"block_size": 0}, {}, "The attribute block_size: expected at least 1, found 0."),
    ("QLinear", {}, {"scales": np.float16}, "The type of scales: expected float32, found float16."),
    ("QLinear", {"block_size": 24}, {}, "the block size is not one of"),
]


@pytest.mark.parametrize(("name", "attributes", "types", "message"), REFUSED)
def test_what_is_not_supported_is_refused_with_a_reason(
    name: str, attributes: Mapping[str, Any], types: Mapping[str, Any], message: str
) -> None:
    node = node_of(OPERATORS[name], SMALL[name])
    inputs = {key: array.astype(types.get(key, array.dtype)) for key, array in node.inputs.items()}
    given = {key: value for key, value in (node.attributes | attributes).items() if value is not None}
    built = Build(model_of(replace(node, inputs=inputs, attributes=given)))
    assert built.engine is None
    assert any(message in said and said.startswith(f"[edge plugins] {name} ") for said in said_by_us()), LOG.said(
        trt.ILogger.WARNING
    )
