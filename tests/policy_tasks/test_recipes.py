"""The recipes of the tasks: sizes that are compared, and chains that the commands take."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest
import typer

import two_targets
from catalog import TASKS
from collect import collect
from edge_export import cli
from edge_export.chain import read_chain
from edge_export.learning import described_model
from edge_export.lerobot.writer import new_dataset
from edge_export.prune import shrink
from edge_export.recipes import DistilRecipe, TrainRecipe, read_recipe
from edge_sdk.instruction import InstructionCodec
from edge_sdk.model import ModelConfig
from places import POLICIES

RECIPES = POLICIES / "recipes"


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset of each task, two episodes long."""
    folder = tmp_path_factory.mktemp("tasks")
    for name, task in TASKS.items():
        with new_dataset(folder / name, task.config()) as dataset:
            for episode in collect(task, 2):
                dataset.add(episode)
    return folder


def described(recipe: str, data: Path) -> ModelConfig:
    return described_model(read_recipe(RECIPES / recipe, TrainRecipe).model, data)


@pytest.mark.parametrize("size", ["", "small_"])
@pytest.mark.parametrize("name", sorted(TASKS))
def test_sizes(name: str, size: str, data: Path) -> None:
    teacher, feedforward = (described(f"{size}{kind}.yaml", data / name) for kind in ("teacher", "feedforward"))
    assert feedforward.parameters() == pytest.approx(teacher.parameters(), rel=0.01)
    assert feedforward.state_bytes(batch=1, capacity=100) == 0
    assert_is_a_quarter(f"{size}student.yaml", teacher)


def assert_is_a_quarter(recipe: str, teacher: ModelConfig) -> None:
    """Of a student."""
    student = read_recipe(RECIPES / recipe, DistilRecipe).target
    share = shrink(teacher, student).parameters() / teacher.parameters()  # type: ignore[arg-type]
    assert 0.22 < share <= 0.25


@pytest.mark.parametrize("size", ["", "small_"])
def test_the_words_of_instructions_are_as_many_as_the_recipe_says(size: str, data: Path, tmp_path: Path) -> None:
    config = described(f"{size}two_targets_teacher.yaml", data / "two-targets")
    two_targets.write_tokenizer(tmp_path)
    codec = InstructionCodec(tmp_path)
    assert codec.tokenizer.get_vocab_size() == config.vocab_size
    assert config.max_length > two_targets.STEPS + max(len(codec.encode(text)) for text in two_targets.INSTRUCTIONS)
    plain = described(f"{size}teacher.yaml", data / "two-targets")
    same = {"vocab_size": config.vocab_size, "policy": config.policy}
    assert msgspec.structs.replace(plain, **same) == config
    assert_is_a_quarter(f"{size}two_targets_student.yaml", config)


@pytest.mark.parametrize("chain", ["chain.yaml", "feedforward.yaml"])
def test_chains_take_a_task(chain: str) -> None:
    settings = {"task": "pendulum-hidden"}
    stages = read_chain(POLICIES / chain, typer.main.get_group(cli.app), settings)
    assert Path("build/policies/pendulum-hidden/train") in stages[0][0].reads
    made = [step.makes for stage in stages for step in stage]
    assert len(set(made)) == len(made)
    assert all(path is not None and "pendulum-hidden" in path.parts for path in made)
