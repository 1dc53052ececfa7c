"""Policies for TensorRT: what its version of their graphs computes, and engines by NVIDIA's own builder.

Their weights mean nothing. No engine is run.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto

from edge_export.engine import EngineRequest, make_engine
from edge_export.pack import Storage
from edge_export.tensorrt_graph import ACTIVATIONS, write_tensorrt_graph
from edge_sdk import Bundle
from edge_sdk.engine_files import Precision, read_records
from policies import ATTENTION, CAMERA, MAMBA, MLP, RANGE, VECTOR, bundle_of, make_policy, schema
from test_tensorrt_models import assert_built_with_plugins, trt  # noqa: F401  # a fixture

EXPERTS = {"type": "moe", "experts": 4, "top_k": 2, "intermediate": 32, "shared_intermediate": 32}
LAYERS = [MAMBA, MLP, ATTENTION, EXPERTS]

VARIANTS: dict[str, tuple[Storage, Callable[[], Any]]] = {
    "regression": (
        Storage(cache_dtype="float32"),
        lambda: make_policy(schema("regression", (VECTOR, RANGE)), layers=LAYERS),
    ),
    "flow matching of images and words": (
        Storage(weights="int4", cache_dtype="int8"),
        lambda: make_policy(schema("flow_matching", (CAMERA, VECTOR)), layers=LAYERS, instruction=True),
    ),
}
TOLERANCES = {"float32": 1e-6, "float16": 4e-3}
"""Of actions, relative to the largest."""


@pytest.fixture(scope="module", params=VARIANTS)
def bundle(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    storage, make = VARIANTS[request.param]
    return bundle_of(make(), tmp_path_factory.mktemp("policy"), storage)


def run(graph: Path, bundle: Bundle) -> dict[str, np.ndarray]:
    """All outputs for the same observations, by ONNX Runtime as the file says it: nothing fused, no casts removed."""
    config, random = bundle.manifest.model, np.random.default_rng(0)
    sizes = {"batch": 2, "length": 5, "kept": 2, "capacity": 12}
    fed = {spec.name: np.zeros(spec.sized(**sizes), spec.dtype) for spec in config.inputs()}
    for name, array in fed.items():
        if name.startswith(("observation.", "noise")):
            array[...] = random.normal(0.0, 2.0, array.shape) if array.dtype == np.float32 else 77
    fed["action_positions"][:] = (0, 4)
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(str(graph), options, providers=["CPUExecutionProvider"])
    return dict(zip((output.name for output in session.get_outputs()), session.run(None, fed)))


@pytest.mark.parametrize("precision", TOLERANCES)
def test_without_plugins_it_computes_the_same(bundle: Bundle, precision: Precision, tmp_path: Path) -> None:
    summary = write_tensorrt_graph(bundle.path, tmp_path, precision, ())
    assert not summary.plugins
    link = tmp_path / "model.onnx.data"
    data = link.read_bytes()
    link.unlink()
    link.write_bytes(data)  # ONNX Runtime reads no weights outside of the graph's folder
    expected, found = run(bundle.file("model.onnx"), bundle), run(tmp_path / "model.onnx", bundle)
    assert list(found) == list(expected) == [spec.name for spec in bundle.manifest.model.outputs()]
    distance = np.abs(found["actions"] - expected["actions"]).max()
    assert distance <= TOLERANCES[precision] * np.abs(expected["actions"]).max()
    assert (distance > 0) == (precision == "float16")


def test_encoder_and_decoder_stay_in_float32(bundle: Bundle, tmp_path: Path) -> None:
    write_tensorrt_graph(bundle.path, tmp_path, "float16", ACTIVATIONS)
    graph = onnx.load(str(tmp_path / "model.onnx"), load_external_data=False).graph
    elements = {tensor.name: tensor.data_type for tensor in graph.initializer}
    around = [name for name in elements if name.startswith(("model.encoder.", "model.decoder."))]
    assert len(around) > 10
    assert {elements[name] for name in around} == {TensorProto.FLOAT}
    stored = {node.output[0]: node.input[0] for node in graph.node if node.op_type == "Transpose"}
    products = [node for node in graph.node if node.op_type == "MatMul"]
    for node in products:
        weight = stored.get(node.input[1], node.input[1])
        assert weight not in around or not node.input[0].endswith("_float16")
    assert any(node.input[0].endswith("_float16") for node in products)


def test_every_node_of_ours_is_claimed(bundle: Bundle, trt: Any, tmp_path: Path) -> None:  # noqa: F811
    layers = {"Mamba2Mixer": 1, "CachedAttention": 1, "MoE": 1}
    assert_built_with_plugins(trt, bundle, tmp_path, layers)


@pytest.mark.usefixtures("trt")
def test_the_command_builds_an_engine(bundle: Bundle) -> None:
    request = EngineRequest(backend="tensorrt-rtx", board="rtx-4090", max_prefill=8, max_context=256, plugins="none")
    record = make_engine(bundle.path, request)
    assert record is not None
    assert read_records(bundle) == [record]
