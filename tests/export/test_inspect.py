"""``edge-export inspect``: numbers that the exported files and graphs have too."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import onnx
import pytest
from typer.testing import CliRunner

from edge_export.checkpoint import read_raw_config, save_model
from edge_export.cli import app
from edge_export.inspect import FORMATS, describe, describe_graph, stored_bytes
from edge_export.pack import Storage, export_graph
from edge_sdk.errors import CheckpointError
from edge_sdk.model import ModelConfig
from tiny import make

LARGEST_CONSTANTS = 256
"""Bytes of a graph's own numbers, such as a head's size, that are no weights."""


def run(*arguments: str) -> str:
    result = CliRunner().invoke(app, ["inspect", *arguments], catch_exceptions=False)
    assert result.exit_code == 0
    return result.stdout


@pytest.mark.parametrize("weights", FORMATS)
@pytest.mark.parametrize("variant", ["plain", "tied", "projection-bias", "latent-experts"])
def test_stored_bytes_are_those_of_the_exported_file(variant: str, weights: str, tmp_path: Path) -> None:
    save_model(make(variant), tmp_path / "checkpoint")
    storage = Storage(weights=weights)  # type: ignore[arg-type]
    export_graph(tmp_path / "checkpoint", tmp_path / "onnx", storage)
    graph = onnx.load(tmp_path / "onnx" / "model.onnx", load_external_data=False).graph
    lengths = [
        int(entry.value) for tensor in graph.initializer for entry in tensor.external_data if entry.key == "length"
    ]
    assert sum(lengths) == pytest.approx(stored_bytes(make(variant).config, storage), abs=LARGEST_CONSTANTS)


def test_a_width_that_blocks_do_not_divide_has_no_size_in_integers() -> None:
    config = make("no-experts").config
    odd = ModelConfig(family="nemotron_h", vocab_size=48, hidden=40, layers=config.layers)
    assert [stored_bytes(odd, FORMATS[name]) is None for name in FORMATS] == [False, False, True, True]


def test_a_bare_config_is_enough_and_json_says_what_the_model_is(tmp_path: Path) -> None:
    model = make("latent-experts")
    save_model(model, tmp_path / "checkpoint")
    bare = tmp_path / "bare.json"
    bare.write_text(json.dumps(read_raw_config(tmp_path / "checkpoint")))
    found: dict[str, Any] = json.loads(run(str(bare), "--json"))
    assert found == json.loads(run(str(tmp_path / "checkpoint"), "--json"))
    assert found["parameters"] == sum(p.numel() for p in model.parameters()) + 2 * 8  # the correction biases
    assert found["layers"] == {"mamba2": 2, "moe": 2, "attention": 1, "mlp": 1}
    assert found["settings"]["moe"] == {"latent": 32}
    caches = {int(length): size for length, size in found["cache_bytes"].items()}
    assert caches == {512: 512 * 2 * 2 * 32 * 2}  # keys and values, heads, head_dim, float16
    assert found["recurrent_bytes"] + caches[512] == model.config.state_bytes(batch=1, capacity=512)


def test_the_graph_is_counted_and_its_memory_grows_with_the_block() -> None:
    config = make("plain").config
    short, long = (describe_graph(config, Storage(), length) for length in (1, 256))
    assert {name: short.operators[f"edge.{name}"] for name in ("Mamba2Mixer", "MoE", "CachedAttention")} == {
        "Mamba2Mixer": 2,
        "MoE": 2,
        "CachedAttention": 1,
    }
    assert short.weight_bytes == long.weight_bytes
    widest = max(spec.proj_dim for spec in config.layers if hasattr(spec, "proj_dim"))
    assert 256 * 4 * widest <= long.activation_bytes <= 256 * 4 * 4 * widest
    assert long.peak_bytes > short.peak_bytes > short.weight_bytes


def test_tables_show_it(tmp_path: Path) -> None:
    save_model(make("plain"), tmp_path)
    shown = run(str(tmp_path), "--graph", "--weights", "int4")
    for part in ("nemotron_h", "ME*-ME", "edge.Mamba2Mixer", "peak memory", f"{make('plain').config.parameters():,}"):
        assert part in shown


def test_what_is_not_supported_is_refused(tmp_path: Path) -> None:
    save_model(make("plain"), tmp_path)
    raw = read_raw_config(tmp_path) | {"softcap": 30.0}
    (tmp_path / "config.json").write_text(json.dumps(raw))
    with pytest.raises(CheckpointError, match="softcap"):
        CliRunner().invoke(app, ["inspect", str(tmp_path)], catch_exceptions=False)


def test_layers_of_a_kind_that_differ_are_counted() -> None:
    layers = make("plain").config.layers + make("latent-experts").config.layers
    report = describe(ModelConfig(family="nemotron_h_puzzle", vocab_size=48, hidden=64, layers=layers))
    assert report.settings["moe"]["different_layers"] == 2
