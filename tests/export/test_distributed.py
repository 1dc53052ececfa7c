"""Two processes that torchrun starts, their model and teacher shared out by FSDP2, learn what one process learns."""

from __future__ import annotations

import csv
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import scan
from edge_export.checkpoint import load_model, save_model
from edge_export.data import Batch, collate
from edge_export.distributed import share
from edge_export.documents import Pair, tokenize
from edge_export.importance import measure
from edge_export.prune import StudentShape, prune
from edge_sdk.text import TextCodec
from places import TEACHER

SHAPE = StudentShape(hidden=32, layers={"mamba2": 1, "attention": 1, "mlp": 1, "moe": 1}, experts=4)

LIVE = "{top_k: 0, hidden_weight: 0.5, hidden_points: 2, data_weight: 0.1, recompute: true"
CACHED = "{top_k: 8"
PACKED = "{top_k: 8, packing: true"
SCHEDULE = ", steps: 6, batch_size: 8, learning_rate: 1.0e-3, warmup_steps: 2, average_decay: 0.5, save_every: 3}"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Data, and a pruned student."""
    folder = tmp_path_factory.mktemp("distributed")
    pairs = scan.simple_split()[0][:64]
    scan.write_pairs(folder / "data.jsonl", pairs)
    samples = tokenize([Pair(*pair) for pair in pairs], TextCodec(TEACHER), end=2)
    teacher = load_model(TEACHER)
    student = prune(teacher, SHAPE, measure(teacher, [collate(samples, range(16))]))
    save_model(student, folder / "student", tokenizer_from=TEACHER)
    return folder


def distil(folder: Path, out: Path, schedule: str, processes: int) -> None:
    (out.parent / "recipe.yaml").write_text(f"schedule: {schedule}\n")
    launch = [sys.executable]
    if processes > 1:
        launch += ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    options = ["--data", folder / "data.jsonl", "--student", folder / "student", "--out", out, "--threads", 1]
    command = [*launch, "-m", "edge_export.cli", "distil", TEACHER, out.parent / "recipe.yaml", *options]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        list(map(str, command)), check=False, env=environment, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr


def losses(out: Path) -> list[float]:
    with (out / "log.csv").open() as file:
        return [float(row["loss"]) for row in csv.DictReader(file)]


@pytest.mark.parametrize("kind", [LIVE, CACHED, PACKED], ids=["live-teacher", "cached-teacher", "packed"])
def test_two_processes_learn_what_one_does(kind: str, folder: Path, tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    distil(folder, one, kind + SCHEDULE, processes=1)
    distil(folder, two, kind + SCHEDULE, processes=2)
    assert losses(two) == pytest.approx(losses(one), rel=1e-4)
    expected, found = (load_file(out / "model" / "model.safetensors") for out in (one, two))
    start = load_file(folder / "student" / "model.safetensors")
    assert list(found) == list(expected)
    for name, tensor in expected.items():
        assert found[name].shape == tensor.shape
        assert torch.allclose(found[name], tensor, rtol=0, atol=2e-4), name
    moved = max(float((expected[name] - start[name]).abs().max()) for name in start)
    assert moved > 2e-3  # ten times the tolerance


def test_a_share_of_a_batch_keeps_its_rows_and_the_count_of_all(monkeypatch: pytest.MonkeyPatch) -> None:
    ids = torch.arange(12).view(4, 3)
    targets = torch.tensor([[1, 2, 3], [1, -100, -100], [-100, 5, 6], [7, -100, -100]])
    monkeypatch.setattr("torch.distributed.is_initialized", lambda: True)
    monkeypatch.setattr("torch.distributed.get_world_size", lambda: 2)
    monkeypatch.setattr("torch.distributed.get_rank", lambda: 1)
    mine = share(Batch(ids, targets, (4, 3, 2, 1), 7))
    assert (mine.indices, mine.tokens) == ((3, 1), 7)
    assert mine.input_ids.tolist() == [[3], [9]]  # cut where nothing is learnt any more
    assert mine.targets.tolist() == [[1], [7]]
