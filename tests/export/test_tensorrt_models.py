"""Whole models through the plugin library and NVIDIA's own builder: every node of ours is claimed, and an engine built.

Their weights mean nothing: what is tested are graphs and shapes. Builds take the memory of a model's weights.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch

import llm_checkpoints
from builds import plugin_library
from edge_export.checkpoint import load_model
from edge_export.data import Batch
from edge_export.importance import measure
from edge_export.pack import Storage, export_graph, make_bundle
from edge_export.prune import prune
from edge_export.recipes import DistilRecipe, read_recipe
from edge_export.tensorrt_builder import EngineBuilder
from edge_export.tensorrt_graph import ACTIVATIONS, write_tensorrt_graph
from edge_plugins import DOMAIN
from edge_sdk import Bundle
from edge_sdk.backends.trt_module import load_plugins
from edge_sdk.engine_files import Limits
from exported import bundle_of
from places import ROVER, TEACHER

INT4 = Storage(weights="int4")


@pytest.fixture(scope="module")
def trt() -> Any:
    """TensorRT-RTX with our plugins."""
    module = pytest.importorskip("tensorrt_rtx", reason="PyPI's tensorrt-rtx-cu13 is not installed")
    load_plugins(module, plugin_library())
    return module


def nodes_of(graph: Path) -> Counter[str]:
    """A graph's nodes of domain ``edge``, by operator."""
    proto = onnx.load(str(graph), load_external_data=False)
    return Counter(node.op_type for node in proto.graph.node if node.domain == DOMAIN)


def claimed_by(trt: Any, builder: EngineBuilder) -> Iterator[str]:
    """The operators of a network's plugin layers, each by its plugin's own name."""
    for index in range(builder.network.num_layers):
        layer = builder.network.get_layer(index)
        if layer.type == trt.LayerType.PLUGIN_V3:
            layer.__class__ = trt.IPluginV3Layer
            yield layer.plugin.get_capability_interface(trt.PluginCapabilityType.CORE).plugin_name


def assert_built_with_plugins(trt: Any, bundle: Bundle, folder: Path, expected: dict[str, int]) -> None:
    """``expected``: the layers of the model that are nodes of ours, by operator; products are not counted there."""
    write_tensorrt_graph(bundle.path, folder, "float16", ACTIVATIONS)
    nodes = nodes_of(folder / "model.onnx")
    assert {name: count for name, count in nodes.items() if name != "QLinear"} == expected
    builder = EngineBuilder(trt, "tensorrt-rtx", "8.9")
    builder.parse(folder / "model.onnx")
    assert Counter(claimed_by(trt, builder)) == nodes
    builder.add_profiles(bundle.manifest.model, Limits(batch=1, prefill=64, context=256, kept=32))
    assert memoryview(builder.build()).nbytes > 0


@pytest.mark.parametrize("weights", ["float32", "int4"])
def test_the_demos_student(trt: Any, tmp_path: Path, weights: Any) -> None:
    teacher, recipe = load_model(TEACHER), read_recipe(ROVER / "student.yaml", DistilRecipe)
    ids = torch.randint(3, teacher.config.vocab_size, (8, 16), generator=torch.Generator().manual_seed(0))
    importance = measure(teacher, [Batch(ids, ids, tuple(range(8)), ids.numel())])
    student = prune(teacher, recipe.student, importance)
    layers = Counter(spec.kind for spec in student.config.layers)
    expected = {"Mamba2Mixer": layers["mamba2"], "MoE": layers["moe"], "CachedAttention": layers["attention"]}
    (tmp_path / "graph").mkdir()
    bundle = bundle_of(student, Storage(weights=weights), tmp_path)
    assert_built_with_plugins(trt, bundle, tmp_path / "graph", expected)


@pytest.fixture
def cheap_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    """Checkpoints whose weights repeat themselves: drawing them would take longer than building."""
    few = np.random.default_rng(0).standard_normal(1 << 16, dtype=np.float32) / 32
    monkeypatch.setattr(llm_checkpoints, "draw", lambda name, shape, layers, seed: np.resize(few, shape))


@pytest.mark.usefixtures("cheap_weights")
@pytest.mark.parametrize(
    ("size", "expected"),
    [
        # The demo's student has dense layers too.
        pytest.param("260m", {"Mamba2Mixer": 11, "CachedAttention": 3}, marks=pytest.mark.slow),
        ("260m-moe", {"Mamba2Mixer": 11, "CachedAttention": 3, "MoE": 10}),
    ],
)
def test_a_260_m_model(trt: Any, tmp_path: Path, size: str, expected: dict[str, int]) -> None:
    llm_checkpoints.make(tmp_path / "checkpoint", size)
    export_graph(tmp_path / "checkpoint", tmp_path / "onnx", INT4)
    bundle = make_bundle(tmp_path / "checkpoint", tmp_path / "onnx", tmp_path / "bundle")
    (tmp_path / "graph").mkdir()
    assert_built_with_plugins(trt, bundle, tmp_path / "graph", expected)
