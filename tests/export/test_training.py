"""Training and distillation: deterministic, interruptible, resumable to the bit; and pruning."""

from __future__ import annotations

import csv
import json
import signal
import subprocess
import time
from pathlib import Path

import msgspec
import pytest
import torch

import scan
from edge_export.checkpoint import load_model
from edge_export.data import IGNORED, Batch, Batches, Sample, collate
from edge_export.documents import Pair, read_pairs, tokenize
from edge_export.evaluate import exact_match
from edge_export.families import nemotron_h
from edge_export.importance import measure
from edge_export.prune import StudentShape, prune
from edge_export.recipes import DistilRecipe, TrainRecipe, read_recipe
from edge_export.training import Schedule, Trainer, cross_entropy
from edge_sdk.errors import CheckpointError, ConfigError
from edge_sdk.text import TextCodec
from places import ROVER, TEACHER, WORKSTATION
from tiny import make, relative_error


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("scan")
    train, test = scan.simple_split()
    scan.write_pairs(folder / "train.jsonl", train[:2000])
    scan.write_pairs(folder / "test.jsonl", test[:100])
    return folder


@pytest.fixture(scope="module")
def samples(data: Path) -> list[Sample]:
    return tokenize(read_pairs(data / "train.jsonl"), TextCodec(TEACHER), end=2)


def short_recipe(folder: Path, steps: int) -> Path:
    """The demo's student with fewer steps and small batches."""
    recipe = read_recipe(ROVER / "student.yaml", DistilRecipe)
    schedule = msgspec.structs.replace(recipe.schedule, steps=steps, batch_size=16, save_every=5)
    path = folder / "recipe.yaml"
    path.write_bytes(msgspec.yaml.encode(msgspec.structs.replace(recipe, schedule=schedule)))
    return path


def distil_command(recipe: Path, data: Path, out: Path) -> list[str]:
    options = ["--data", data / "train.jsonl", "--out", out, "--threads", 1]
    return [str(part) for part in (WORKSTATION / "edge-export", "distil", TEACHER, recipe, *options)]


def losses(out: Path) -> list[float]:
    with (out / "log.csv").open() as file:
        return [float(row["loss"]) for row in csv.DictReader(file)]


def test_sigint_during_distil_resumes_to_the_same_end(data: Path, tmp_path: Path) -> None:
    recipe, whole, cut = short_recipe(tmp_path, steps=30), tmp_path / "whole", tmp_path / "cut"
    subprocess.run(distil_command(recipe, data, whole), check=True, timeout=300)
    process = subprocess.Popen(distil_command(recipe, data, cut), stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 200
    while not (cut / "checkpoint").exists():  # the first five steps are saved
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    _, message = process.communicate(timeout=60)
    assert process.returncode == 130, message
    assert "Run the same command again" in " ".join(message.split())
    assert "Traceback" not in message
    assert 5 <= len(losses(cut)) < 30
    assert not (cut / "model").exists()
    subprocess.run(distil_command(recipe, data, cut), check=True, timeout=300)
    assert losses(cut) == losses(whole)
    assert (cut / "model" / "model.safetensors").read_bytes() == (whole / "model" / "model.safetensors").read_bytes()
    assert (cut / "loss.png").read_bytes().startswith(b"\x89PNG")


def test_a_checkpoint_of_another_schedule_is_not_resumed(samples: list[Sample], tmp_path: Path) -> None:
    def trainer(steps: int) -> Trainer:
        schedule = Schedule(steps=steps, batch_size=8)
        teacher = load_model(TEACHER)
        return Trainer(teacher, Batches(samples, 8, 0), schedule, tmp_path, cross_entropy, "test")

    trainer(2).run()
    trainer(2).run()
    with pytest.raises(CheckpointError, match="schedule"):
        trainer(3).run()


def test_batches_follow_from_seed_and_step(samples: list[Sample]) -> None:
    first, second = Batches(samples, 32, seed=5), Batches(samples, 32, seed=5)
    first.at(0)
    for step in (200, 3, 3, 61):
        one, other = first.at(step), second.at(step)
        assert one.indices == other.indices
        assert torch.equal(one.input_ids, other.input_ids)
    assert Batches(samples, 32, seed=6).at(3).indices != first.at(3).indices
    epoch = [index for step in range(first.per_epoch) for index in first.at(step).indices]
    assert len(set(epoch)) == len(epoch) == first.per_epoch * 32


def test_targets_are_the_completions_next_tokens(samples: list[Sample]) -> None:
    batch = collate(samples, [3, 0])
    for row, index in enumerate((3, 0)):
        sample = samples[index]
        learnt = batch.targets[row][batch.targets[row] != IGNORED].tolist()
        assert learnt == list(sample.ids[sample.prompt_length :])
        assert learnt[-1] == 2


def test_the_teacher_answers_what_it_never_saw() -> None:
    """In torch; the demo asks the exported model for all of them (tests/test_readme.py)."""
    held_out = scan.simple_split()[1]
    pairs = [Pair(*held_out[index]) for index in range(0, len(held_out), 24)]
    assert exact_match(load_model(TEACHER), tokenize(pairs, TextCodec(TEACHER), end=2)) >= 0.99


def test_the_recipe_of_the_teacher_describes_the_shipped_files() -> None:
    recipe = read_recipe(TEACHER / "recipe.yaml", TrainRecipe)
    assert nemotron_h.parse_config(recipe.model) == load_model(TEACHER).config
    with (TEACHER / "log.csv").open() as file:
        assert int(list(csv.DictReader(file))[-1]["step"]) == recipe.schedule.steps
    assert json.loads((TEACHER / "report.json").read_text())["exact_match"] >= 0.995
    assert sum(path.stat().st_size for path in TEACHER.iterdir()) <= 8_000_000


def test_the_demo_students_size(samples: list[Sample]) -> None:
    teacher, recipe = load_model(TEACHER), read_recipe(ROVER / "student.yaml", DistilRecipe)
    student = prune(teacher, recipe.student, measure(teacher, [collate(samples, range(64))]))
    assert student.config.parameters() <= teacher.config.parameters() / 4
    assert student.config.parameters() == sum(tensor.numel() for tensor in student.state_dict().values())
    assert {spec.kind for spec in student.config.layers} == {"mamba2", "attention", "moe", "mlp"}


def test_pruning_nothing_changes_nothing(samples: list[Sample]) -> None:
    teacher, batch = load_model(TEACHER).eval(), collate(samples, range(16))
    student = prune(teacher, StudentShape(), measure(teacher, [batch])).eval()
    with torch.inference_mode():
        assert torch.equal(student(batch.input_ids), teacher(batch.input_ids))


def random_batch() -> Batch:
    ids = torch.randint(0, 48, (4, 30), generator=torch.Generator().manual_seed(0))
    return Batch(ids, torch.zeros_like(ids), (0, 1, 2, 3), ids.numel())


def test_pruning_dead_parts_changes_nothing() -> None:
    teacher, batch = make("plain"), random_batch()
    with torch.no_grad():
        for layer in (1, 5):
            teacher.layers[layer].mixer.gate.e_score_correction_bias[::2] = -10.0
        teacher.layers[2].mixer.v_proj.weight[:32] = 0.0
        teacher.layers[3].mixer.up_proj.weight[::3] = 0.0
    shape = StudentShape(experts=4, kv_heads=1, intermediate=64)
    student = prune(teacher, shape, measure(teacher, [batch])).eval()
    assert [spec.kind for spec in student.config.layers] == [spec.kind for spec in teacher.config.layers]
    assert (student.config.layers[1].experts, student.config.layers[2].heads) == (4, 2)
    assert student.config.layers[3].intermediate == 64
    with torch.inference_mode():
        assert relative_error(student(batch.input_ids), teacher(batch.input_ids)) < 1e-6


def test_of_each_group_the_mamba_heads_that_say_least_are_pruned() -> None:
    teacher, batch = make("plain"), random_batch()
    mixer = teacher.layers[0].mixer
    with torch.no_grad():
        for head in (1, 2):
            mixer.norm.weight[16 * head : 16 * (head + 1)] = 1e-3
    student = prune(teacher, StudentShape(mamba_heads=2), measure(teacher, [batch]))
    assert torch.equal(student.layers[0].mixer.A_log, mixer.A_log[[0, 3]])
    assert torch.equal(student.layers[0].mixer.out_proj.weight[:, 16:], mixer.out_proj.weight[:, 48:])


def test_dead_channels_go_without_a_trace() -> None:
    """Hidden channels and Mamba head channels that are always zero: the norms make up for their number."""
    teacher, batch = make("plain"), random_batch()
    live_hidden = torch.arange(64) % 4 != 0
    with torch.no_grad():
        teacher.embeddings.weight[:, ~live_hidden] = 0.0
        for layer in teacher.layers:
            for name, parameter in layer.mixer.named_parameters():
                if name.endswith(("out_proj.weight", "o_proj.weight", "down_proj.weight")):
                    parameter[~live_hidden] = 0.0
                if name == "experts.down_weight":
                    parameter[..., ~live_hidden] = 0.0
        for index in (0, 4):
            mixer = teacher.layers[index].mixer
            mixer.in_proj.weight[:64].view(4, 16, 64)[:, ::4] = 0.0  # the gates z of every fourth head channel
    shape = StudentShape(hidden=48, mamba_head_dim=12)
    student = prune(teacher, shape, measure(teacher, [batch])).eval()
    assert student.config.layers[0].head_dim == 12
    with torch.inference_mode():
        assert relative_error(student(batch.input_ids), teacher(batch.input_ids)) < 2e-3  # the norms' eps


def test_importance_is_that_of_all_batches_together() -> None:
    teacher, batch = make("latent-experts"), random_batch()
    halves = [
        Batch(batch.input_ids[rows], batch.targets[rows], batch.indices[rows], 60) for rows in (slice(2), slice(2, 4))
    ]
    whole, parts = measure(teacher, [batch]), measure(teacher, halves)
    assert torch.allclose(parts.hidden, whole.hidden, rtol=1e-4)
    for part, expected in zip(parts.layers, whole.layers):
        assert part.removal == pytest.approx(expected.removal, rel=1e-3)
        assert part.parts.keys() == expected.parts.keys()
        for name, scores in expected.parts.items():
            assert torch.allclose(part.parts[name], scores, rtol=1e-4, atol=1e-9), name


def test_an_experts_score_is_the_square_of_what_it_adds() -> None:
    teacher, batch = make("plain"), random_batch()
    mixer, taken = teacher.layers[1].mixer, []
    hook = mixer.register_forward_pre_hook(lambda module, inputs: taken.append(inputs[0].flatten(0, 1)))
    with torch.no_grad():
        scores = measure(teacher, [batch]).layers[1].parts["experts"]
        hook.remove()
        tokens = taken[0]
        routed = mixer.experts(tokens, mixer.gate(tokens), mixer.gate.e_score_correction_bias, **mixer.routing())
        for expert in (0, 5):
            silenced = mixer.experts.down_weight[expert].clone()
            mixer.experts.down_weight[expert] = 0.0
            without = mixer.experts(tokens, mixer.gate(tokens), mixer.gate.e_score_correction_bias, **mixer.routing())
            mixer.experts.down_weight[expert] = silenced
            added = (routed - without).square().sum(-1).mean()
            assert float(scores[expert]) == pytest.approx(float(added), rel=1e-4)


def test_a_layer_that_does_nothing_is_dropped_first() -> None:
    teacher, batch = make("plain"), random_batch()
    with torch.no_grad():
        teacher.layers[4].mixer.out_proj.weight.zero_()
    importance = measure(teacher, [batch])
    assert importance.layers[4].removal == pytest.approx(0.0, abs=1e-6)
    student = prune(teacher, StudentShape(layers={"mamba2": 1}), importance).eval()
    with torch.inference_mode():
        assert torch.equal(student(batch.input_ids), teacher(batch.input_ids))


@pytest.mark.parametrize("shape", [StudentShape(hidden=999), StudentShape(mamba_heads=3), StudentShape(experts=0)])
def test_an_impossible_student_is_refused(shape: StudentShape, samples: list[Sample]) -> None:
    teacher = load_model(TEACHER)
    with pytest.raises(ConfigError, match="expected"):
        prune(teacher, shape, measure(teacher, [collate(samples, range(4))]))


def test_a_bad_line_of_data_is_named(tmp_path: Path) -> None:
    path = tmp_path / "data.jsonl"
    path.write_text('{"prompt": "walk", "completion": "I_WALK"}\n{"prompt": 1}\n')
    with pytest.raises(ConfigError, match="line 2"):
        read_pairs(path)
