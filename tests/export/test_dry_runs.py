"""Dry runs: what they say against what is then written and used, and that they write nothing."""

from __future__ import annotations

import json
import shutil
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from edge_export.calibration import batched
from edge_export.checkpoint import Checkpoint, save_model
from edge_export.cli import app
from edge_export.dry_run import Estimate, require_room, show_estimate
from edge_export.export_estimate import estimate_bundle, estimate_export, estimate_import
from edge_export.families import nemotron_h
from edge_export.importing import import_checkpoint
from edge_export.pack import Storage, export_graph, make_bundle
from edge_export.plan import LEAVES, QuantizeRequest, read_plan
from edge_export.quantize_estimate import estimate_quantize
from edge_export.torch_model import HybridLM
from edge_sdk.errors import BundleError
from edge_sdk.files import partial_directory
from edge_sdk.text import TextCodec
from places import TEACHER
from tiny import BASE, make

CHECKPOINTS = Path(__file__).parent / "checkpoints"

MEMORY_FACTOR = 1.35
"""How far the memory that is said may be from the one that is used, either way."""

LARGE = BASE | {
    "vocab_size": 65536,
    "hidden_size": 768,
    "layers_block_type": ["moe", "linear_attention"],
    "n_routed_experts": 32,
    "moe_intermediate_size": 1536,
    "moe_shared_expert_intermediate_size": 64,
}
"""Leaves of hundreds of megabytes, beside which torch itself is not all there is in memory."""

MEASURE = """
import sys
from pathlib import Path
import torch
from edge_export.export_estimate import estimate_export, estimate_import
from edge_export.importing import import_checkpoint
from edge_export.pack import Storage, export_graph
from edge_sdk.telemetry import read_memory
torch.set_num_threads(1)
work, source, out = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3])
calls = {
    "said-int4": lambda: estimate_export(source, Storage(weights="int4")).memory_bytes,
    "used-int4": lambda: export_graph(source, out, Storage(weights="int4")),
    "said-import": lambda: estimate_import(source, "bfloat16").memory_bytes,
    "used-import": lambda: import_checkpoint(source, out, "bfloat16"),
}
print(calls[work]() or read_memory().peak_bytes)
"""


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    return saved(make("latent-experts"), tmp_path / "checkpoint")


def saved(model: HybridLM, folder: Path) -> Path:
    save_model(model, folder, tokenizer_from=TEACHER)
    return folder


def tree(folder: Path) -> dict[str, int]:
    return {str(path.relative_to(folder)): path.stat().st_mtime_ns for path in folder.rglob("*")}


def written(folder: Path, pattern: str = "*") -> int:
    return sum(path.stat().st_size for path in folder.glob(pattern))


def tensor_bytes(folder: Path) -> int:
    """Of all safetensors files, their headers left out."""
    sizes = []
    for path in folder.glob("*.safetensors"):
        with path.open("rb") as file:
            (header,) = struct.unpack("<Q", file.read(8))
        sizes.append(path.stat().st_size - 8 - header)
    return sum(sizes)


def invoke(*arguments: object) -> str:
    """What the command says."""
    result = CliRunner().invoke(app, [str(argument) for argument in arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


@pytest.mark.parametrize("storage", [Storage(weights="int4", speculation=True), Storage(), Storage(weights="bfloat16")])
def test_an_export_writes_what_was_said(storage: Storage, tmp_path: Path) -> None:
    checkpoint = saved(make("drafting-head"), tmp_path / "checkpoint")
    estimate = estimate_export(checkpoint, storage)
    export_graph(checkpoint, tmp_path / "graph", storage)
    assert estimate.write_bytes == written(tmp_path / "graph")
    weights = tensor_bytes(checkpoint)
    assert estimate.read_bytes == written(checkpoint, "config.json") + written(checkpoint, "*.safetensors") + weights


def test_an_export_of_a_model_that_sees_writes_what_was_said(sighted: Path) -> None:
    estimate = estimate_export(sighted / "checkpoint", Storage(cache_dtype="float32"))
    assert {path.suffix for path in (sighted / "onnx").iterdir()} == {".onnx", ".data"}
    assert estimate.write_bytes == written(sighted / "onnx")
    assert estimate.memory_bytes > 0


@pytest.mark.parametrize("kind", ["modelopt-fp8", "modelopt-nvfp4", "plain"])
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_an_import_writes_what_was_said(kind: str, dtype: Any, checkpoint: Path, tmp_path: Path) -> None:
    source = checkpoint if kind == "plain" else CHECKPOINTS / kind
    estimate = estimate_import(source, dtype)
    import_checkpoint(source, tmp_path / "out", dtype)
    assert estimate.write_bytes == tensor_bytes(tmp_path / "out")
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == estimate.write_bytes


def test_a_bundle_is_what_was_said(checkpoint: Path, tmp_path: Path) -> None:
    export_graph(checkpoint, tmp_path / "graph", Storage())
    estimate = estimate_bundle(checkpoint, tmp_path / "graph")
    make_bundle(checkpoint, tmp_path / "graph", tmp_path / "bundle")
    assert estimate.write_bytes == written(tmp_path / "bundle") - written(tmp_path / "bundle", "manifest.json")


@pytest.fixture
def data(tmp_path: Path) -> Path:
    pairs = [{"prompt": "walk left twice", "completion": "I_TURN_LEFT I_WALK I_TURN_LEFT I_WALK"}] * 3
    (tmp_path / "data.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
    return tmp_path / "data.jsonl"


def test_quantising_writes_what_was_said(checkpoint: Path, data: Path, tmp_path: Path) -> None:
    options = {"weights": "int4", "method": "gptq", "block_size": 32, "cache_dtype": "int8", "state_dtype": "float16"}
    request = QuantizeRequest(**options, budget_gb=None, data="", samples=3, max_length=32, report_only=False)  # type: ignore[arg-type]
    batches = batched([(list(range(3, 20)), 1)])
    estimate = estimate_quantize(checkpoint, Checkpoint(checkpoint), request, batches, batches, compared=True)
    chosen = ["--cache-dtype", "int8", "--state-dtype", "float16", "--no-report"]
    invoke("quantize", checkpoint, "--data", data, "--out", tmp_path / "plan", *chosen)
    assert estimate.write_bytes == tensor_bytes(tmp_path / "plan" / LEAVES)
    assert not (tmp_path / "plan" / "report.json").exists()
    plan = read_plan(tmp_path / "plan")
    assert (plan.cache_dtype, plan.state_dtype) == ("int8", "float16")


@pytest.mark.parametrize("command", ["import", "onnx", "bundle", "quantize", "engine", "prune", "distil", "head"])
def test_a_dry_run_writes_nothing(command: str, checkpoint: Path, data: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    options: dict[str, list[object]] = {
        "import": [checkpoint, "--out", out],
        "onnx": [checkpoint, "--weights", "int4", "--out", out],
        "bundle": [checkpoint, "--graph", tmp_path / "graph", "--out", out],
        "quantize": [checkpoint, "--data", data, "--out", out],
        "engine": [tmp_path / "bundle", "--board", "orin-nx-16gb"],
        "prune": [checkpoint, "--params", 40_000, "--out", out],
        "distil": [checkpoint, tmp_path / "recipe.yaml", "--data", data, "--out", out],
        "head": [checkpoint, tmp_path / "head.yaml", "--data", data, "--out", out],
    }
    (tmp_path / "recipe.yaml").write_text("{student: {hidden: 32}, schedule: {steps: 10}}")
    (tmp_path / "head.yaml").write_text("schedule: {steps: 10}")
    if command in ("bundle", "engine"):
        export_graph(checkpoint, tmp_path / "graph", Storage())
        make_bundle(checkpoint, tmp_path / "graph", tmp_path / "bundle")
    before = tree(tmp_path)
    shown = invoke(command, *options[command], "--dry-run")
    assert tree(tmp_path) == before
    assert all(f"  {what} " in shown for what in ("reads", "writes", "memory", "time"))
    assert "Nothing was written" in shown


def use_disk_with(monkeypatch: pytest.MonkeyPatch, free: int) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: type("Usage", (), {"free": free})())


def test_a_disk_without_room_is_refused_with_figures_before_anything_is_written(
    checkpoint: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    export_graph(checkpoint, tmp_path / "graph", Storage())
    out, before = tmp_path / "out", tree(tmp_path)
    use_disk_with(monkeypatch, 1000)
    for command in (
        ["import", checkpoint, "--out", out],
        ["import", checkpoint, "--out", out, "--dry-run"],
        ["onnx", checkpoint, "--out", out],
        ["onnx", checkpoint, "--out", out, "--dry-run"],
        ["bundle", checkpoint, "--graph", tmp_path / "graph", "--out", out],
        ["quantize", checkpoint, "--data", data, "--out", out],
    ):
        with pytest.raises(OSError, match=r"out: expected 0\.00\d GB of room, found 0\.000 GB"):
            invoke(*command)
        assert tree(tmp_path) == before


def test_what_an_interrupted_run_left_counts_as_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    partial_directory(tmp_path / "out").mkdir()
    (partial_directory(tmp_path / "out") / "weights").write_bytes(b"x" * 50_000)
    use_disk_with(monkeypatch, 50_000)
    require_room(tmp_path / "out", 90_000)
    with pytest.raises(OSError, match="of room"):
        require_room(tmp_path / "out", 200_000)


def test_time_is_only_said_where_it_is_known(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    show_estimate(Estimate(0, 0, 0, None), tmp_path)
    assert "not estimated" in capsys.readouterr().err
    show_estimate(Estimate(0, 0, 0, 600.0), tmp_path)
    assert "about 10 min" in capsys.readouterr().err


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("large") / "checkpoint"
    model = HybridLM(nemotron_h.parse_config(LARGE))
    for parameter in model.parameters():
        parameter.data.fill_(0.01)
    return saved(model, folder)


@pytest.mark.parametrize("work", ["int4", "import"])
def test_the_peak_of_memory_is_about_what_was_said(work: str, large: Path, tmp_path: Path) -> None:
    said, used = (
        float(
            subprocess.run(
                [sys.executable, "-c", MEASURE, f"{kind}-{work}", large, tmp_path / "out"],
                check=True,
                capture_output=True,
                text=True,
            ).stdout.splitlines()[-1]
        )
        for kind in ("said", "used")
    )
    print(f"{work}: said {said / 1e9:.2f} GB, used {used / 1e9:.2f} GB")
    assert used / MEMORY_FACTOR < said < used * MEMORY_FACTOR


@pytest.mark.parametrize("several", [False, True])
def test_a_template_among_the_tokenizers_settings_becomes_the_bundles(
    several: bool, checkpoint: Path, tmp_path: Path
) -> None:
    template = (checkpoint / "chat_template.jinja").read_text()
    (checkpoint / "chat_template.jinja").unlink()
    export_graph(checkpoint, tmp_path / "graph", Storage())
    with pytest.raises(BundleError, match=r"expected a chat_template\.jinja, or one in tokenizer_config\.json"):
        estimate_bundle(checkpoint, tmp_path / "graph")
    settings = [{"name": "tool_use", "template": "x"}, {"name": "default", "template": template}]
    (checkpoint / "tokenizer_config.json").write_text(json.dumps({"chat_template": settings if several else template}))
    estimate = estimate_bundle(checkpoint, tmp_path / "graph")
    bundle = make_bundle(checkpoint, tmp_path / "graph", tmp_path / "bundle")
    assert (bundle.path / "chat_template.jinja").read_text() == template
    assert estimate.write_bytes == written(bundle.path) - written(bundle.path, "manifest.json")
    assert TextCodec(checkpoint).encode_prompt("walk") == TextCodec(TEACHER).encode_prompt("walk")
