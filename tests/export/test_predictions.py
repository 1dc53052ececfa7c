"""``edge-sdk plan`` against what is known from elsewhere: published rates, and the bytes of files and graphs."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path

import msgspec
import numpy as np
import pytest

from edge_export.checkpoint import read_config
from edge_export.inspect import activation_bytes as graph_activations
from edge_export.inspect import stored_bytes
from edge_export.pack import Storage
from edge_export.trace import trace
from edge_sdk import model_source
from edge_sdk.boards import board_named
from edge_sdk.errors import BundleError, ConfigError
from edge_sdk.model_source import READERS, read_model
from edge_sdk.planning import DECODE_ERROR, PREFILL_ERROR, Request, make_plan, measured_storage, storable
from edge_sdk.roofline import SHARES
from edge_sdk.traffic import activation_bytes, mixing_operations, product_operations, step_bytes, weight_bytes
from exported import bundle_of
from places import ROOT
from published import DECODE, MODELS, OFFICIAL, PARAMETERS, PREFILL, UNPREDICTED, Row, predicted, stored, table
from tiny import VARIANTS, make

DOCS = ROOT / "docs" / "boards.md"


def error(row: Row) -> float:
    return abs(predicted(row) / row.measured - 1)


@pytest.mark.parametrize(
    "row", DECODE, ids=lambda row: f"{row.board} {row.model} {row.precision} {row.context} {row.note}"
)
def test_decoding_is_predicted(row: Row) -> None:
    assert error(row) < DECODE_ERROR


@pytest.mark.parametrize(
    "row", PREFILL, ids=lambda row: f"{row.board} {row.model} {row.precision} {row.tokens} {row.note}"
)
def test_prompts_are_predicted(row: Row) -> None:
    assert error(row) < PREFILL_ERROR


def test_most_rows_only_judge() -> None:
    """And on the boards and models that the constants were not fitted to, decoding is predicted no worse."""
    for rows in (DECODE, PREFILL):
        assert sum(row.fitted for row in rows) < 0.4 * len(rows)
    unseen = [row for row in DECODE if row.board == "orin-nano-8gb" or "nemotron" in row.model]
    assert len(unseen) == 7
    assert max(error(row) for row in unseen) < DECODE_ERROR
    assert not any(row.fitted for row in unseen)


def least_squares(rows: list[tuple[list[float], float]]) -> np.ndarray:
    """The factors of terms (rows, terms) that make them most nearly seconds (rows), by relative errors."""
    terms = np.array([row for row, _ in rows])
    seconds = np.array([second for _, second in rows])
    return np.linalg.lstsq(terms / seconds[:, None], np.ones(len(seconds)), rcond=None)[0]


def layer_terms(row: Row) -> tuple[float, float]:
    """Seconds that a step's bytes would take at the data sheet's bandwidth, and its layers over the clock."""
    config, (_, mode) = row.config, row.place
    moved = step_bytes(config, stored(row.precision, config), row.context if row.tokens is None else 0, row.tokens or 1)
    return moved / (1e9 * mode.bandwidth_gb_s), len(config.layers) / (1e6 * mode.gpu_mhz)


def operation_terms(row: Row) -> tuple[float, float]:
    """Seconds that a prompt's products, and its attention and scans, would take at the data sheet's rates."""
    config, (board, mode) = row.config, row.place
    assert row.tokens is not None
    rate = 1e12 * mode.gpu_mhz / board.modes[0].gpu_mhz
    multiplied = stored(row.precision, config).multiplied
    products = product_operations(config, row.tokens) / (rate * board.tensor_tops[multiplied])
    return products, mixing_operations(config, row.tokens) / (rate * board.tensor_tops["float16"])


@pytest.mark.parametrize("family", ["orin", "thor"])
def test_the_constants_are_what_the_fit_gives(family: str) -> None:
    shares = SHARES[family]  # type: ignore[index]
    rows = [row for row in DECODE if row.fitted and row.place[0].family == family]
    bandwidth, cycles = least_squares([(list(layer_terms(row)), 1 / row.measured) for row in rows])
    assert shares.bandwidth == pytest.approx(1 / bandwidth, rel=2e-3)
    assert shares.decode_cycles == pytest.approx(cycles, rel=2e-3)
    prompts = [row for row in PREFILL if row.fitted and row.place[0].family == family]
    formats = sorted({row.precision for row in prompts})
    known, wanted = [], []
    for row in prompts:
        products, mixing = operation_terms(row)
        terms = [1e-6 * len(row.config.layers), *(products * (row.precision == name) for name in formats)]
        if family == "orin":  # where attention's share is that of products
            terms[1] += mixing
            mixing = 0.0
        rest = layer_terms(row)[0] / shares.bandwidth + mixing / shares.tensor["float16"]
        known.append([term / row.measured * 1e3 for term in terms])
        wanted.append(1 - rest / row.measured * 1e3)
    launch, *slopes = np.linalg.lstsq(np.array(known), np.array(wanted), rcond=None)[0]
    assert shares.prefill_us == pytest.approx(launch, rel=5e-3)
    assert [shares.tensor[name] for name in formats] == pytest.approx([1 / slope for slope in slopes], rel=5e-3)
    assert set(formats) == shares.fitted
    assert shares.tensor["float16"] == SHARES["orin"].tensor["int4"]


def test_the_docs_have_the_constants() -> None:
    orin, thor = SHARES["orin"], SHARES["thor"]
    rows = (
        f"share of the bandwidth | {orin.bandwidth:.3f} | {thor.bandwidth:.3f}",
        f"cycles of a layer, one token | {orin.decode_cycles:,.0f} | {thor.decode_cycles:,.0f}",
        f"microseconds of a layer, many tokens | {orin.prefill_us:.0f} | {thor.prefill_us:.0f}",
        f"int4 weights multiplied in float16 | {orin.tensor['int4']:.3f} | {thor.tensor['int4']:.3f}",
        f"share of the rate, NVFP4 | - | {thor.tensor['nvfp4']:.3f}",
        f"attention and scans | {orin.tensor['float16']:.3f} | {thor.tensor['float16']:.3f}",
    )
    text = DOCS.read_text(encoding="utf-8")
    assert [row for row in rows if row not in text] == []


@pytest.mark.parametrize("name", PARAMETERS)
def test_the_published_models_have_their_published_sizes(name: str) -> None:
    config, (billions, body) = MODELS[name], PARAMETERS[name]
    assert config.parameters() / 1e9 == pytest.approx(billions, abs=0.05)
    embedding = config.vocab_size * config.hidden * (1 if config.tie_embeddings else 2)
    assert (config.parameters() - embedding) / 1e9 == pytest.approx(body, abs=0.05)


@pytest.mark.parametrize("rows", [DECODE, PREFILL, UNPREDICTED], ids=["decode", "prefill", "unpredicted"])
def test_the_docs_compare_measured_and_predicted(rows: tuple[Row, ...]) -> None:
    assert table(rows) in DOCS.read_text(encoding="utf-8"), table(rows)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("weights", ["float32", "bfloat16", "int8", "int4"])
def test_weights_are_those_that_torch_stores(variant: str, weights: str) -> None:
    config, storage = make(variant).config, Storage(weights=weights)  # type: ignore[arg-type]
    real = stored_bytes(config, storage)
    assert weight_bytes(config, storage.weight_storage) == real
    names = [each.name for each in storable(config)]
    assert (weights in names) == (real is not None) or weights == "float32"


def test_an_official_models_weights_are_those_that_torch_stores() -> None:
    config = read_config(OFFICIAL / "nemotron-3-nano-30b-a3b.json")
    for stored_as in storable(config):
        storage = Storage(weights=stored_as.name)  # type: ignore[arg-type]
        assert weight_bytes(config, stored_as) == stored_bytes(config, storage)


@pytest.mark.parametrize(
    ("name", "layers", "length"), [("Qwen3-0.6B", (0, 1), 512), ("nemotron-3-nano-4b", (0, 1, 12), 64)]
)
def test_activations_are_estimated_from_above(name: str, layers: tuple[int, ...], length: int) -> None:
    whole, storage = MODELS[name], Storage(weights="bfloat16")
    config = msgspec.structs.replace(whole, layers=tuple(whole.layers[index] for index in layers))
    graph = trace(config, storage.convert(), storage.describe).graph
    real = graph_activations(graph, {"batch": 1, "length": length, "kept": 1, "capacity": 4096})
    assert real <= activation_bytes(config, length) <= 3 * real


def test_a_config_json_is_enough() -> None:
    registered = [entry.value for entry in entry_points(group=READERS)]
    if not registered:
        pytest.skip("the installed edge-sdk is older than its setup.py: pip install -e . again")
    assert registered == ["edge_export.checkpoint:read_config"]
    path = OFFICIAL / "nemotron-3-nano-4b.json"
    assert read_model(path) == (read_config(path), None)
    command = [sys.executable, "-m", "edge_sdk.cli", "plan", str(path), "--board", "orin-nx-16gb", "--context", "32768"]
    result = subprocess.run([*command, "--json"], capture_output=True, text=True, timeout=120, check=True)
    expected = make_plan(read_config(path), board_named("orin-nx-16gb"), Request(context=32768))
    assert json.loads(result.stdout) == json.loads(msgspec.json.encode(expected))


def test_without_the_workstations_part_a_config_json_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    for found, says in (
        ((), r"edge-sdk\[export\]"),
        ((EntryPoint("any", "no_such_package:read", READERS),), "no_such_p"),
    ):
        monkeypatch.setattr(model_source, "entry_points", lambda group, found=found: found)
        with pytest.raises(ConfigError, match=says):
            read_model(OFFICIAL / "nemotron-3-nano-4b.json")


def test_a_bundle_is_planned_as_it_is_stored(tmp_path: Path) -> None:
    storage = Storage(weights="int4", cache_dtype="int8")
    bundle = bundle_of(make("latent-experts"), storage, tmp_path)
    config, weights = read_model(bundle.path)
    assert config == bundle.manifest.model
    assert weights is not None
    measured = measured_storage(config, weights.label, weights.bytes)
    plan = make_plan(config, board_named("orin-nano-4gb"), Request(context=300, prompt=8), [measured])
    (setting,) = plan.settings
    file = (bundle.path / "model.onnx.data").stat().st_size
    assert (setting.weights, setting.cache) == ("int4", "int8")
    assert setting.weight_bytes == pytest.approx(file, abs=1)
    assert setting.state_bytes == config.state_bytes(batch=1, capacity=300)
    (bundle.path / "model.onnx").unlink()
    with pytest.raises(BundleError, match=r"model\.onnx"):
        read_model(bundle.path)
