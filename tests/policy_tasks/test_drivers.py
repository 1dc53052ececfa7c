"""Collecting where a policy drives: its actions are executed, the expert's are stored, and the expert takes over."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import collect as command
import two_targets
from catalog import TASKS, load
from collect import collect
from edge_export.checkpoint import save_model
from edge_export.episodes import Episode, open_episodes
from edge_export.learning import described_model
from edge_export.lerobot.writer import new_dataset
from edge_export.models import make_model
from edge_export.pack import Storage, export_graph, make_bundle
from edge_export.recipes import TrainRecipe, read_recipe
from places import POLICIES
from tasks import STATE, instruction_of

TASK = TASKS["two-targets"]


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The bundle of a policy as it begins to learn, which reads instructions."""
    folder = tmp_path_factory.mktemp("driver")
    with new_dataset(folder / "data", TASK.config()) as dataset:
        for episode in collect(TASK, 2):
            dataset.add(episode)
    two_targets.write_tokenizer(folder / "tokenizer")
    recipe = read_recipe(POLICIES / "recipes" / "small_two_targets_teacher.yaml", TrainRecipe)
    model = make_model(described_model(recipe.model, folder / "data"))
    model.reset_parameters(0)
    save_model(model, folder / "checkpoint", tokenizer_from=folder / "tokenizer")
    export_graph(folder / "checkpoint", folder / "onnx", Storage())
    return str(make_bundle(folder / "checkpoint", folder / "onnx", folder / "bundle").path)


def replayed(policy: Any, seed: int, driven: int) -> Episode:
    """An episode without noise, of which the first ``driven`` steps are the policy's."""
    env = TASK.env()
    observation, _ = env.reset(seed=seed)
    policy.instruct(instruction_of(env))
    policy.reset()
    seen, labels, over = [], [], False
    while not over:
        seen.append(observation.astype(np.float32))
        labels.append(TASK.expert(env).astype(np.float32))
        action = policy.infer({STATE: seen[-1]}, None)[0].clip(-1, 1) if len(seen) <= driven else TASK.expert(env)
        observation, _, finished, cut_off, _ = env.step(action.astype(np.float32))
        over = finished or cut_off
    return Episode({STATE: np.stack(seen)}, np.stack(labels), instruction_of(env))


def test_the_driver_acts_until_the_expert_takes_over(driver: str) -> None:
    policy, taken_over = load(driver, TASK, TASK.env()), []
    for seed, episode in enumerate(collect(replace(TASK, noise=0.0), 6, drivers=[driver])):
        agree = [
            np.array_equal(one, other)
            for one, other in zip(
                episode.observations[STATE], replayed(policy, seed, driven=two_targets.STEPS).observations[STATE]
            )
        ]
        taken_over.append(agree.index(False) - 1)
        expected = replayed(policy, seed, driven=taken_over[-1])
        np.testing.assert_array_equal(episode.observations[STATE], expected.observations[STATE])
        np.testing.assert_array_equal(episode.actions, expected.actions)
        assert episode.instruction == expected.instruction
    assert min(taken_over) < 40
    assert max(taken_over) > 60


def test_drivers_take_turns(driver: str) -> None:
    alone, others = (list(collect(TASK, 4, 7, drivers)) for drivers in (["expert"], ["expert", driver]))
    same = [np.array_equal(one.observations[STATE], other.observations[STATE]) for one, other in zip(alone, others)]
    assert same == [True, False, True, False]


def test_the_command(driver: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = [
        TASK.name,
        "--episodes",
        "3",
        "--seed",
        "7",
        "--driver",
        driver,
        "expert",
        "--out",
        str(tmp_path / "set"),
    ]
    monkeypatch.setattr(sys, "argv", ["collect.py", *arguments])
    command.main()
    source = open_episodes(tmp_path / "set")
    assert len(source) == 3
    for number, episode in enumerate(collect(TASK, 3, 7, [driver, "expert"])):
        np.testing.assert_array_equal(source[number].actions, episode.actions)
