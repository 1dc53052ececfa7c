"""The commands of language models on a policy: train, evaluate, prune, distil, inspect, onnx, bundle; and a chain."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnxruntime
import pytest
from typer.testing import CliRunner

import feedback
from edge_export.budget import Budget, weight_bytes
from edge_export.checkpoint import load_body, read_config
from edge_export.cli import app
from edge_export.episode_folder import write_episodes
from edge_export.inspect import describe, describe_graph, stored_bytes
from edge_export.pack import Storage
from edge_sdk import Bundle
from edge_sdk.errors import CheckpointError, ConfigError
from edge_sdk.traffic import step_bytes
from feedback import episodes
from policies import CAMERA, MAMBA, MLP, VECTOR, make_policy, schema

MODEL: dict[str, Any] = {
    "model_type": "policy",
    "hidden": 32,
    "layers": [
        {"type": "mamba2", "heads": 2, "head_dim": 16, "groups": 1, "state": 8},
        {"type": "mlp", "intermediate": 64},
    ],
    "policy": {
        "schema": {"chunk_length": 4, "budget_ms": 20, "head": "flow_matching"},
        "encoder": {"width": 32},
        "decoder": {"layers": 1, "heads": 2, "head_dim": 16, "intermediate": 64},
    },
}
SCHEDULE = {"steps": 60, "batch_size": 16, "learning_rate": 0.005, "warmup_steps": 10}
TRAIN = {"model": MODEL, "schedule": SCHEDULE, "episodes": {"chunks": 6}}
DISTIL = {
    "student": {"decoder_heads": 1, "encoder_width": 16},
    "schedule": SCHEDULE | {"data_weight": 0.5},
    "search": {"calibration_samples": 16},
}


def invoke(*arguments: object) -> str:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with episodes, recipes and a trained policy."""
    folder = tmp_path_factory.mktemp("work")
    for name, count, seed in (("train", 48, 0), ("test", 6, 7)):
        found = episodes(count, seed=seed)
        write_episodes(folder / name, found.schema, found)
    (folder / "train.yaml").write_bytes(msgspec.yaml.encode(TRAIN))
    (folder / "distil.yaml").write_bytes(msgspec.yaml.encode(DISTIL))
    data = ("--data", folder / "train", "--test", folder / "test", "--threads", 1)
    invoke("train", folder / "train.yaml", *data, "--out", folder / "run")
    return folder


def test_training_takes_the_rest_of_the_schema_from_the_episodes(work: Path) -> None:
    config = read_config(work / "run" / "model")
    assert config.policy.schema == msgspec.structs.replace(
        feedback.schema("flow_matching"), chunk_length=4, budget_ms=20.0
    )
    report = json.loads((work / "run" / "report.json").read_text())
    assert report["parameters"] == config.parameters()
    assert 0 < report["action_error"] < 0.5
    evaluated = json.loads(invoke("evaluate", work / "run" / "model", "--test", work / "test"))
    assert evaluated["action_error"] == pytest.approx(report["action_error"])


def test_a_policy_is_distilled_pruned_exported_and_packed(work: Path) -> None:
    data = ("--data", work / "train", "--threads", 1)
    teacher = work / "run" / "model"
    assert "Time:" in shown(work, "distil", teacher, work / "distil.yaml", *data, "--out", work / "student")
    invoke("distil", teacher, work / "distil.yaml", *data, "--test", work / "test", "--out", work / "student")
    report = json.loads((work / "student" / "report.json").read_text())
    assert report["parameters"] < report["teacher_parameters"]
    assert report["action_error"] < 0.6
    budget = ("--params", 12_000, "--search", 2, "--samples", 16)
    assert "decoder_heads" in shown(work, "prune", teacher, *budget, "--out", work / "pruned")
    invoke("prune", teacher, *budget, *data, "--out", work / "pruned")
    assert load_body(work / "pruned").config.parameters() <= 12_000


def shown(work: Path, *command: object) -> str:
    """What a dry run says, which writes nothing."""
    before = sorted(work.rglob("*"))
    output = invoke(*command, "--dry-run")
    assert sorted(work.rglob("*")) == before
    return output


def test_a_chain_makes_a_bundle(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    chain = {
        "stages": [
            {"graph": "onnx run/model --out onnx --weights int4"},
            {"bundle": "bundle run/model --graph onnx --out bundle"},
        ]
    }
    (work / "chain.yaml").write_bytes(msgspec.yaml.encode(chain))
    monkeypatch.chdir(work)
    invoke("run", "chain.yaml")
    bundle = Bundle.open(work / "bundle")
    assert bundle.manifest.weights == "int4-block32"
    assert set(bundle.manifest.files) == {"model.onnx", "model.onnx.data", "policy.json"}
    assert np.isfinite(step(bundle)).all()
    assert "(done)" in invoke("run", "chain.yaml")


def step(bundle: Bundle) -> np.ndarray:
    """Actions at a state of zeros."""
    sizes = {"batch": 1, "length": 1, "kept": 1, "capacity": 4}
    fed = {spec.name: np.zeros(spec.sized(**sizes), spec.dtype) for spec in bundle.manifest.inputs}
    session = onnxruntime.InferenceSession(str(bundle.file("model.onnx")))
    return session.run(["actions"], fed)[0]


def test_inspect_tells_what_a_policy_sees_and_does(work: Path) -> None:
    report = json.loads(invoke("inspect", work / "run" / "model", "--json"))
    told = report["settings"]["model"]["policy"]
    assert told["observations"] == {"state": [2]}
    assert told["actions"] == ["left", "right"]
    assert told["head"] == "flow_matching"
    assert "chunk_length" in invoke("inspect", work / "run" / "model")


def test_sizes_are_those_of_what_is_stored() -> None:
    small = {"layers": 1, "heads": 2, "head_dim": 16, "intermediate": 64, "flow_steps": 1}
    described, storage = schema("flow_matching", (VECTOR, CAMERA)), Storage(weights="int8")
    model = make_policy(described, instruction=True, layers=[MAMBA, MLP], decoder=small)
    config, constants = model.config, sum(buffer.nbytes for buffer in model.buffers())
    stored = stored_bytes(config, storage)
    assert describe(config).weight_bytes["int8"] == stored == weight_bytes(config, storage) + constants
    graph = describe_graph(config, storage, length=3)
    assert graph.weight_bytes == pytest.approx(stored, abs=500)  # and the shapes of its Reshape nodes
    assert graph.activation_bytes > 3 * 20 * 28 * 3 * 4  # the image as it enters the first convolution
    assert weight_bytes(config, storage) > step_bytes(config, storage.weight_storage, 1) - 2 * config.state_bytes(1, 1)
    assert Budget(params=1e6).cost(config) == config.parameters()


def test_what_is_missing_is_said(work: Path, tmp_path: Path) -> None:
    wanted = msgspec.json.decode(msgspec.json.encode(TRAIN))
    wanted["model"]["policy"]["instruction"] = True
    wanted["model"]["vocab_size"] = 8
    (tmp_path / "spoken.yaml").write_bytes(msgspec.yaml.encode(wanted))
    common = ("--data", work / "train", "--out", tmp_path / "run")
    with pytest.raises(ConfigError, match="--tokenizer"):
        invoke("train", tmp_path / "spoken.yaml", *common)
    with pytest.raises(ConfigError, match="window"):
        invoke("train", work / "train.yaml", *common, "--length", 5)
    with pytest.raises(ConfigError, match="a language model"):
        invoke("quantize", work / "run" / "model", "--data", work / "train", "--out", tmp_path / "plan")
    del wanted["model"]["policy"]["schema"]["chunk_length"]
    wanted["model"]["policy"] |= {"instruction": False, "schema": {"horizon": 3}}
    wanted["model"]["vocab_size"] = 0
    (tmp_path / "mistyped.yaml").write_bytes(msgspec.yaml.encode(wanted))
    with pytest.raises(CheckpointError, match="horizon"):
        invoke("train", tmp_path / "mistyped.yaml", *common)
