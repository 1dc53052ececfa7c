"""TensorRT's version of the graph: what it computes, what is left to plugins, and which bytes it shares."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import ModelProto, TensorProto, helper

from edge_export.float_codes import Format
from edge_export.pack import Storage
from edge_export.tensorrt_graph import ACTIVATIONS, ELEMENTS, Summary, write_tensorrt_graph
from edge_plugins import OPERATORS
from edge_sdk import Bundle
from edge_sdk.engine_files import NEXT_TOKEN, Precision
from edge_sdk.errors import ConfigError
from exported import TinyBundle

STORAGES = {
    "int4": ("latent-experts", Storage(weights="int4", cache_dtype="float32")),
    "int8": ("projection-bias", Storage(weights="int8", cache_dtype="float32")),
    "bfloat16": ("tied", Storage(weights="bfloat16", cache_dtype="float32")),
    "float32": ("many-queries-per-key", Storage(cache_dtype="int8")),
}
"""Some of those that test_trace.py has, so that they are traced once."""

TOLERANCES = {"float32": 1e-6, "float16": 4e-3}
"""Of logits, relative to the largest."""


@pytest.fixture(scope="module", params=STORAGES)
def bundle(request: pytest.FixtureRequest, tiny_bundle: TinyBundle) -> Bundle:
    return tiny_bundle(*STORAGES[request.param])


def written(
    bundle: Bundle, folder: Path, precision: Precision, claimed: Iterable[str], formats: Sequence[Format] = ()
) -> tuple[ModelProto, Summary]:
    """TensorRT's version in ``folder``, as ONNX's checker took it, and what was made of the graph."""
    folder.mkdir()
    summary = write_tensorrt_graph(bundle.path, folder, precision, claimed, formats)
    link = folder / "model.onnx.data"
    data = link.read_bytes()
    assert link.is_symlink()
    link.unlink()
    link.write_bytes(data)  # the checker takes no links
    onnx.checker.check_model(str(folder / "model.onnx"))
    return onnx.load(str(folder / "model.onnx"), load_external_data=False), summary


def fed(bundle: Bundle) -> dict[str, np.ndarray]:
    """The same tokens for all graphs, and empty states."""
    config = bundle.manifest.model
    rng = np.random.default_rng(0)
    feeds = {
        spec.name: np.zeros(spec.sized(batch=2, capacity=12), np.dtype(spec.dtype)) for spec in config.past_specs()
    }
    feeds |= {"past_length": np.zeros(2, np.int64), "logit_positions": np.array([0, 8])}
    return feeds | {"input_ids": rng.integers(0, config.vocab_size, (2, 9))}


def run(path: Path, bundle: Bundle) -> dict[str, np.ndarray]:
    """All outputs for the same tokens, by ONNX Runtime as the file says it: nothing fused, no casts removed."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return dict(zip((output.name for output in session.get_outputs()), session.run(None, fed(bundle))))


def test_outputs_for_speculation_are_left_out(tiny_bundle: TinyBundle, tmp_path: Path) -> None:
    bundle = tiny_bundle("drafting-head", Storage(cache_dtype="float32", speculation=True))
    proto, _ = written(bundle, tmp_path / "graph", "float16", OPERATORS)
    names = [NEXT_TOKEN, "logits", *(spec.name for spec in bundle.manifest.model.present_specs())]
    assert sorted(value.name for value in proto.graph.output) == sorted(names)
    assert not any(name.endswith(".projected") for node in proto.graph.node for name in node.output)


def assert_same(bundle: Bundle, path: Path, precision: str) -> None:
    expected, found = run(bundle.file("model.onnx"), bundle), run(path, bundle)
    assert set(found) == set(expected) | {NEXT_TOKEN}
    assert (
        np.abs(found["logits"] - expected["logits"]).max() <= TOLERANCES[precision] * np.abs(expected["logits"]).max()
    )
    np.testing.assert_array_equal(found[NEXT_TOKEN], found["logits"].argmax(-1))
    for name, state in expected.items():
        assert found[name].dtype == state.dtype
        assert found[name].shape == state.shape


@pytest.mark.parametrize("precision", ["float32", "float16"])
def test_without_plugins_it_says_the_same(bundle: Bundle, precision: Precision, tmp_path: Path) -> None:
    proto, summary = written(bundle, tmp_path / "graph", precision, ())
    assert not summary.plugins
    assert not proto.functions
    assert {node.domain for node in proto.graph.node} == {""}
    assert_same(bundle, tmp_path / "graph" / "model.onnx", precision)


def as_functions(proto: ModelProto) -> Iterator[onnx.NodeProto]:
    """The nodes that plugins would compute turned back to what ONNX knows: integers as such, float32 around them."""
    weights = {tensor.name: tensor for tensor in proto.graph.initializer}
    for node in proto.graph.node:
        if node.domain != "edge":
            yield node
            continue
        attributes = {attribute.name: attribute for attribute in node.attribute}
        bits = attributes["weight_bits"].i if "weight_bits" in attributes else 0
        for index, name in enumerate(node.input):
            if name.endswith(".words"):
                weights[name].data_type = {8: TensorProto.INT8, 4: TensorProto.INT4}[bits]
                weights[name].dims[-1] *= 32 // bits
            if index < ACTIVATIONS[node.op_type]:
                node.input[index] = f"{name}_of_{node.name}"
                yield helper.make_node("Cast", [name], [node.input[index]], to=TensorProto.FLOAT)
        unknown = {"weight_bits", "cache_bits"} | (set() if bits else {"block_size"})
        del node.attribute[:]
        node.attribute.extend(attribute for name, attribute in attributes.items() if name not in unknown)
        result, node.output[0] = node.output[0], f"{node.output[0]}_wide"
        yield node
        yield helper.make_node(
            "Cast", [node.output[0]], [result], to=ELEMENTS.get(result.rpartition("_")[2], TensorProto.FLOAT)
        )


@pytest.mark.parametrize("precision", ["float32", "float16"])
def test_what_plugins_get_means_the_same(bundle: Bundle, precision: Precision, tmp_path: Path) -> None:
    proto, summary = written(bundle, tmp_path / "graph", precision, ACTIVATIONS)
    assert not proto.functions
    kinds = [spec.kind for spec in bundle.manifest.model.layers]
    for operator, kind in (("Mamba2Mixer", "mamba2"), ("MoE", "moe"), ("CachedAttention", "attention")):
        assert summary.plugins[operator] == kinds.count(kind)
    assert ("QLinear" in summary.plugins) == bundle.manifest.weights.startswith("int")
    nodes = list(as_functions(proto))
    variants = {node.op_type: OPERATORS[node.op_type].variant_of_node(node) for node in nodes if node.domain == "edge"}
    del proto.graph.node[:]
    proto.graph.node.extend(nodes)
    proto.functions.extend(OPERATORS[name].function(variant) for name, variant in variants.items())
    path = tmp_path / "graph" / "functions.onnx"
    path.write_bytes(proto.SerializeToString())
    assert_same(bundle, path, precision)


def test_plugins_get_what_the_conventions_say(bundle: Bundle, tmp_path: Path) -> None:
    proto, _ = written(bundle, tmp_path / "graph", "bfloat16", ACTIVATIONS)
    weights = {tensor.name: tensor for tensor in proto.graph.initializer}
    original = onnx.load(str(bundle.file("model.onnx")), load_external_data=False)
    offsets = {tensor.name: list(tensor.external_data) for tensor in original.graph.initializer}
    casts = {node.output[0]: node for node in proto.graph.node if node.op_type == "Cast"}
    assert len(casts) == len({(node.input[0], node.attribute[0].i) for node in casts.values()})
    for node in proto.graph.node:
        if node.domain != "edge":
            continue
        attributes = {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}
        constants = [weights[name] for name in node.input if name in weights]
        if node.op_type == "CachedAttention":
            assert attributes["cache_bits"] == (8 if len(node.input) == 8 else 0)
        elif node.op_type == "Mamba2Mixer":
            assert {tensor.data_type for tensor in constants} == {TensorProto.FLOAT}
        else:
            assert (attributes["weight_bits"] > 0) == (attributes["block_size"] > 0)
            if attributes["weight_bits"]:
                assert {tensor.data_type for tensor in constants} == {TensorProto.INT32, TensorProto.FLOAT}
            for tensor in constants:
                if tensor.data_type == TensorProto.INT32:
                    assert list(tensor.external_data) == offsets[tensor.name.removesuffix(".words")]
    routers = {node.input[1] for node in proto.graph.node if node.op_type == "MoE"}
    transposed = {node.output[0]: node.input[0] for node in proto.graph.node if node.op_type == "Transpose"}
    for node in proto.graph.node:
        if node.op_type == "MatMul":
            expected = TensorProto.FLOAT if node.output[0] in routers else TensorProto.BFLOAT16
            assert node.input[0].endswith("_bfloat16") == (expected == TensorProto.BFLOAT16)
            weight = weights.get(transposed.get(node.input[1], node.input[1]))
            assert weight is None or weight.data_type == expected  # None: it is dequantised in the graph
    assert [output.name for output in proto.graph.output][:2] == ["logits", NEXT_TOKEN]


def test_only_weights_of_another_type_are_converted(bundle: Bundle, tmp_path: Path) -> None:
    written(bundle, tmp_path / "graph", "bfloat16", ACTIVATIONS)
    converted = (tmp_path / "graph" / "converted.data").stat().st_size
    if bundle.manifest.weights == "float32":
        assert converted > 0.3 * bundle.file("model.onnx.data").stat().st_size
    elif bundle.manifest.weights == "bfloat16":
        assert converted == 0


def test_a_weight_too_large_for_float16_is_refused(tiny_bundle: TinyBundle, tmp_path: Path) -> None:
    copy = Bundle.open(shutil.copytree(tiny_bundle(*STORAGES["float32"]).path, tmp_path / "bundle"))
    proto = onnx.load(str(copy.file("model.onnx")))
    (weight,) = (tensor for tensor in proto.graph.initializer if tensor.name == "model.lm_head.weight")
    values = onnx.numpy_helper.to_array(weight).copy()
    values[3, 5] = 1e5
    weight.CopyFrom(onnx.numpy_helper.from_array(values, weight.name))
    copy.file("model.onnx").write_bytes(proto.SerializeToString())
    with pytest.raises(ConfigError, match=r"float16 holds, found 100000\.0.*bfloat16"):
        written(copy, tmp_path / "half", "float16", ())
    written(copy, tmp_path / "brain", "bfloat16", ())


def test_experts_that_do_not_fill_words_are_refused(tiny_bundle: TinyBundle, tmp_path: Path) -> None:
    copy = Bundle.open(shutil.copytree(tiny_bundle(*STORAGES["int4"]).path, tmp_path / "bundle"))
    proto = onnx.load(str(copy.file("model.onnx")), load_external_data=False)
    experts = {name for node in proto.graph.node if node.op_type == "MoE" for name in node.input[4:5]}
    for tensor in proto.graph.initializer:
        if tensor.name in experts:
            tensor.dims[-1] -= 2
    copy.file("model.onnx").write_bytes(proto.SerializeToString())
    with pytest.raises(ConfigError, match=r"a multiple of 8, found 30.*--plugins none"):
        written(copy, tmp_path / "graph", "float16", ACTIVATIONS)
