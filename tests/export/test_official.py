"""The official models in full size, described by their config.json and traced without a weight."""

from __future__ import annotations

import os
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import msgspec
import onnx
import onnx_ir
import pytest

from edge_export.checkpoint import read_config
from edge_export.inspect import activation_bytes, stored_bytes
from edge_export.pack import Storage
from edge_export.trace import graph_proto, save_graph, trace
from edge_export.weights import PREFIX
from edge_sdk.model import ModelConfig, MoeSpec
from edge_sdk.speculation import GraphSpec

FOLDER = Path(__file__).parent / "official"


@dataclass(frozen=True)
class Expected:
    """What is known of a model from elsewhere; official/README.md says from where."""

    layers: str
    """How many M, *, - and E."""
    billions: float
    """Of parameters, without the multi-token prediction head."""
    active_billions: float
    kv_bytes: int
    """Of a token's keys and values in float16."""
    traced: bool = False
    """In every run of the tests; the others are marked slow."""
    published: int | None = None
    """Parameters in the published files, the drafting head's included, the routers' corrections (float32) not."""


MODELS = {
    "nemotron-h-4b": Expected("24 4 24 0", 4.49, 4.49, 16 << 10),
    "nemotron-h-8b": Expected("24 4 24 0", 8.10, 8.10, 16 << 10),
    "nemotron-h-47b": Expected("45 5 48 0", 46.79, 46.79, 20 << 10),
    "nemotron-h-56b": Expected("54 10 54 0", 56.32, 56.32, 40 << 10),
    "nemotron-nano-9b-v2": Expected("27 4 25 0", 8.89, 8.89, 16 << 10, published=8_888_227_328),
    "nemotron-nano-12b-v2": Expected("28 6 28 0", 12.31, 12.31, 24 << 10),
    "nemotron-3-nano-4b": Expected("21 4 17 0", 3.97, 3.97, 16 << 10, traced=True, published=3_973_556_832),
    "nemotron-3-nano-30b-a3b": Expected("23 6 0 23", 31.58, 3.58, 6 << 10, published=31_577_937_344),
    "nemotron-3-super-120b-a12b": Expected("40 8 0 40", 120.67, 12.77, 8 << 10, traced=True, published=123_611_012_096),
    "nemotron-labs-3-puzzle-75b-a9b": Expected("40 8 0 40", 75.35, 9.34, 8 << 10),
}


def test_every_config_is_tested() -> None:
    assert {path.stem for path in FOLDER.glob("*.json")} == set(MODELS)


@pytest.mark.parametrize("name", MODELS)
def test_sizes_are_the_published_ones(name: str) -> None:
    config, expected = read_config(FOLDER / f"{name}.json"), MODELS[name]
    assert " ".join(str(config.pattern.count(letter)) for letter in "M*-E") == expected.layers
    body = msgspec.structs.replace(config, mtp=None)  # the published totals leave out the drafting head
    assert body.parameters() / 1e9 == pytest.approx(expected.billions, abs=0.005)
    assert body.active_parameters() / 1e9 == pytest.approx(expected.active_billions, abs=0.005)
    assert config.state_bytes(batch=1, capacity=1) - config.state_bytes(batch=1, capacity=0) == expected.kv_bytes


@pytest.mark.parametrize("name", [name for name, expected in MODELS.items() if expected.published])
def test_parameters_are_those_of_the_published_files(name: str) -> None:
    config = read_config(FOLDER / f"{name}.json")
    specs = (*config.layers, *(config.mtp.layers if config.mtp else ()))
    corrections = sum(spec.experts for spec in specs if isinstance(spec, MoeSpec))
    assert config.parameters() - corrections == MODELS[name].published


def expected_operators(config: ModelConfig) -> dict[str, int]:
    """Our operators in the bfloat16 graph, from the layers alone."""
    count = Counter(spec.kind for spec in config.layers)
    latent = sum(getattr(spec, "latent", None) is not None for spec in config.layers)
    linear = 2 * (count["mamba2"] + count["mlp"] + count["moe"] + latent) + 4 * count["attention"] + 1
    operators = {"Mamba2Mixer": count["mamba2"], "CachedAttention": count["attention"], "MoE": count["moe"]}
    return {name: number for name, number in (operators | {"QLinear": linear}).items() if number}


TRACED = [pytest.param(name, marks=() if MODELS[name].traced else pytest.mark.slow) for name in MODELS]


@pytest.mark.parametrize("name", TRACED)
def test_the_whole_model_is_traced(name: str, tmp_path: Path) -> None:
    storage = Storage(weights="bfloat16")
    config = storage.describe(read_config(FOLDER / f"{name}.json"))
    graph = trace(config, storage.convert(), storage.describe)
    sizes = {"batch": 1, "length": 256, "kept": 1, "capacity": 4096}
    weights = sum(value.const_value.nbytes for value in graph.graph.initializers.values() if value.const_value)
    activations = activation_bytes(graph.graph, sizes)
    kinds = Counter(f"{node.domain}.{node.op_type}".lstrip(".") for node in graph.graph)
    print(f"{name}: weights {weights / 1e9:.2f} GB, activations {activations / 1e6:.0f} MB, {kinds.total()} nodes")
    print(dict(kinds.most_common()))
    assert weights == pytest.approx(stored_bytes(config, storage), abs=1024)
    # a few rows of the widest layer, and no more than that
    assert 256 * config.hidden * 4 < activations < 256 * 4 * (config.vocab_size + 16 * 32768)
    point_nowhere(graph, tmp_path)
    proto = graph_proto(graph, GraphSpec(config.inputs(), config.outputs()), {})
    save_graph(proto, tmp_path / "model.onnx")  # onnx.checker with shape inference
    proto = onnx.load(tmp_path / "model.onnx", load_external_data=False)
    found = Counter(node.op_type for node in proto.graph.node if node.domain == "edge")
    assert found == expected_operators(config)
    assert {node.domain for node in proto.graph.node} == {"", "edge"}
    for values, specs in ((proto.graph.input, config.inputs()), (proto.graph.output, config.outputs())):
        shapes = [[dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim] for value in values]
        assert [value.name for value in values] == [spec.name for spec in specs]
        assert shapes == [list(spec.shape) for spec in specs]


def point_nowhere(graph: onnx_ir.Model, folder: Path) -> None:
    """Lets every weight stand at the start of a file that is one large hole."""
    largest = 0
    for name, value in graph.graph.initializers.items():
        weight = value.const_value
        if weight is None or not name.startswith(PREFIX):  # a number of the graph's own
            continue
        largest = max(largest, weight.nbytes)
        value.const_value = onnx_ir.ExternalTensor(
            "hole", 0, weight.nbytes, weight.dtype, shape=weight.shape, name=name, base_dir=folder
        )
    with (folder / "hole").open("wb") as file:
        os.truncate(file.fileno(), largest)
