"""What commands refuse before they read or write anything, in words that say what to do instead."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from edge_export.arguments import chosen, require_target
from edge_export.checkpoint import save_model
from edge_export.cli import ORDER, app
from edge_export.pack import Storage
from edge_export.plan import QuantizeRequest
from edge_sdk.errors import ConfigError
from places import TEACHER
from tiny import make


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    save_model(make("no-experts"), tmp_path / "checkpoint", tokenizer_from=TEACHER)
    (tmp_path / "data.jsonl").write_text('{"prompt": "walk", "completion": "I_WALK"}\n')
    return tmp_path / "checkpoint"


def tree(folder: Path) -> dict[str, int]:
    return {str(path.relative_to(folder)): path.stat().st_mtime_ns for path in folder.rglob("*")}


WRITERS = {
    "import": ["import", "{checkpoint}"],
    "onnx": ["onnx", "{checkpoint}"],
    "prune": ["prune", "{checkpoint}", "--params", "20000", "--data", "{data}"],
    "quantize": ["quantize", "{checkpoint}", "--data", "{data}"],
    "bundle": ["bundle", "{checkpoint}", "--graph", "{checkpoint}"],
}


@pytest.mark.parametrize("command", WRITERS)
@pytest.mark.parametrize("target", ["checkpoint", ".", "others", "data.jsonl"])
@pytest.mark.parametrize("dry", [False, True])
def test_no_command_replaces_what_it_did_not_write(command: str, target: str, dry: bool, checkpoint: Path) -> None:
    folder = checkpoint.parent
    (folder / "others").mkdir()
    (folder / "others" / "thesis.txt").write_text("years of work")
    before = tree(folder)
    words = [word.format(checkpoint=checkpoint, data=folder / "data.jsonl") for word in WRITERS[command]]
    options = ["--out", str(folder / target), *(["--dry-run"] if dry else [])]
    with pytest.raises(ConfigError, match="--out"):
        CliRunner().invoke(app, [*words, *options], catch_exceptions=False)
    assert tree(folder) == before


def test_what_an_earlier_run_wrote_may_be_replaced(tmp_path: Path) -> None:
    for name in ("absent", "empty", "earlier"):
        if name != "absent":
            (tmp_path / name).mkdir()
        if name == "earlier":
            (tmp_path / name / "model.onnx").touch()
            (tmp_path / name / "model.onnx.data").touch()
        require_target(tmp_path / name, "model.onnx", tmp_path / "checkpoint", None)
    with pytest.raises(ConfigError, match=r"with a config\.json to replace"):
        require_target(tmp_path / "earlier", "config.json")
    (tmp_path / "link").symlink_to(tmp_path / "earlier")
    with pytest.raises(ConfigError, match="would replace"):
        require_target(tmp_path / "link", "model.onnx", tmp_path / "earlier")


def test_a_wrong_choice_is_refused_with_those_that_there_are() -> None:
    with pytest.raises(ConfigError, match="--weights: expected one of float32, bfloat16, int8, int4, found int5"):
        chosen({"weights": "int5"}, Storage)
    with pytest.raises(ConfigError, match="--head-bits: expected one of 4, 8, found 5"):
        chosen({"head_bits": 5}, Storage)
    with pytest.raises(ConfigError, match="--method: expected one of rtn, gptq, found awq"):
        chosen({"method": "awq", "budget_gb": None}, QuantizeRequest)
    assert chosen({"weights": "int8", "block_size": 64}, Storage) == Storage(weights="int8", block_size=64)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ("inspect nowhere", "nowhere: expected a config.json"),
        ("onnx {checkpoint} --out g --plan p --weights int8", "p/plan.json: expected a plan"),
        ("import {checkpoint} --out g --dtype float16", "--dtype: expected one of bfloat16, float32, found float16"),
        ("prune {checkpoint} --out p", "expected one of params, gb and ms, found none"),
        ("prune {checkpoint} --out p --params 9 --shape s", "--shape: expected no budget beside it"),
        ("prune {checkpoint} --out p --params 20000", "--data: expected calibration data"),
        ("prune {checkpoint} --out p --ms 3", "--board: expected one of orin-nano-4gb"),
        ("prune {checkpoint} --out p --params 20000 --data {data} --device gpu", "--device: expected cpu"),
        ("prune {checkpoint} --out p --params 20000 --data x.jsonl", "x.jsonl: expected .txt, .jsonl, .parquet files"),
        ("prune {checkpoint} --out p --shape {data}", "expected YAML of hidden, layers, mamba_heads"),
        ("quantize {checkpoint} --data {data}", "--out: expected a folder, or --report-only"),
        ("quantize {checkpoint} --data x.csv --out q", "x.csv: expected .txt, .jsonl, .parquet files"),
        ("plot {data} --out x.png", "data.jsonl: expected a run's log.csv"),
        ("evaluate {checkpoint} --test x.jsonl", "x.jsonl: expected .txt, .jsonl, .parquet files"),
    ],
)
def test_a_mistake_is_answered_with_what_to_do(arguments: str, says: str, checkpoint: Path) -> None:
    data = checkpoint.parent / "data.jsonl"
    words = arguments.format(checkpoint=checkpoint, data=data).split()
    result = CliRunner().invoke(app, words)
    assert says in str(result.exception)
    assert type(result.exception).__module__ == "edge_sdk.errors"


def test_the_systems_errors_come_in_our_words(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "edge_export.cli", "distil", "teacher", tmp_path / "none.yaml"]
    result = subprocess.run(
        list(map(str, [*command, "--data", "d", "--out", "o"])), capture_output=True, text=True, check=False
    )
    assert result.returncode == 1
    assert "none.yaml: expected a path that can be used, found No such file or directory. Check it." in result.stderr


def test_help_lists_commands_as_they_follow_one_another() -> None:
    shown = CliRunner().invoke(app, ["--help"]).output
    assert re.findall(r"^│ (\w+) ", shown, re.MULTILINE)[: len(ORDER)] == ORDER
    for name in ORDER:
        assert f"edge-export {name} " in CliRunner().invoke(app, [name, "--help"]).output
