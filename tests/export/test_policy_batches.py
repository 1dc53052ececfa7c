"""Episodes as batches: what a policy is given to learn in a step, and what it is not."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import feedback
from edge_export.episode_batches import EpisodeBatch, EpisodeBatches, EpisodeSettings
from edge_export.episode_folder import EpisodeFolder, write_episodes
from edge_export.episodes import Episode, open_episodes
from edge_export.policy_evaluate import chunks_of
from edge_export.training import data_loss
from edge_sdk.errors import CheckpointError, ConfigError, PromptError
from edge_sdk.instruction import InstructionCodec
from edge_sdk.policy_spec import NO_TOKEN
from feedback import CHUNK, HEADS, Episodes, episodes, small_policy
from policies import CAMERA, VECTOR, make_policy, schema, write_tokenizer


def batch_of(settings: EpisodeSettings, indices: list[int], head: str = "regression", stride: int = 1) -> EpisodeBatch:
    model = small_policy(head, stride=stride)
    return EpisodeBatches(episodes(10, head), model.spec, settings, 4, 0).of(indices)


def test_a_batch_holds_what_the_episodes_hold() -> None:
    source = episodes(10)
    settings = EpisodeSettings(chunks=30, committed=0.6)
    batch = batch_of(settings, [0, 3, 5])
    scaling = source.schema.action.normalization.scaling()
    for row, index in enumerate(batch.indices):
        length = len(source[index])
        assert batch.counted[row].tolist() == [True] * length + [False] * (batch.counted.shape[1] - length)
        np.testing.assert_array_equal(batch.observations[0][row, :length], source[index].observations["state"])
        assert set(batch.positions[row].tolist()) <= set(range(length))
        for place, position in enumerate(batch.positions[row].tolist()):
            there = source[index].actions[position : position + CHUNK]
            np.testing.assert_array_equal(batch.chunks.actions[row, place, : len(there)], scaling.normalize(there))
            known, learnt = (part[row, place, :, 0] for part in (batch.chunks.known, batch.chunks.learnt))
            assert not (known & learnt).any()
            assert (known | learnt).tolist() == [step < len(there) for step in range(CHUNK)]
            assert known.tolist() == sorted(known.tolist(), reverse=True)
    lengths = batch.chunks.known.sum(2)
    assert set(lengths.flatten().tolist()) == {0, 1, 2, 3}
    assert batch.tokens == int(batch.chunks.learnt.sum())
    assert float(batch.chunks.time.min()) >= 0
    assert float(batch.chunks.time.max()) < 1


@torch.no_grad()
def test_what_is_not_learnt_has_no_part_in_the_loss() -> None:
    """Neither padding of rows, nor actions behind an episode's end: those hold the last action, unlearnt."""
    for head in HEADS:
        model, batch = small_policy(head), batch_of(EpisodeSettings(), [0, 3, 5], head)
        expected = data_loss(model, batch)
        spoilt = batch.observations[0].clone()
        spoilt[~batch.counted] = 1e3
        assert data_loss(model, replace(batch, observations=(spoilt,))) == expected
        found = model.predict(batch)
        assert found.shape == (batch.tokens, 2)
        assert float(expected) == pytest.approx(float(model.data_error(found, batch)) / batch.tokens)
        inside = batch.chunks.known | batch.chunks.learnt
        assert not inside.all()
        ends = inside.sum(2, keepdim=True) - 1
        held = batch.chunks.actions.gather(2, ends.expand(-1, -1, CHUNK, 2))
        assert torch.equal(batch.chunks.actions[~inside[..., 0]], held[~inside[..., 0]])
        changed = replace(batch.chunks, actions=torch.where(inside, batch.chunks.actions, 50.0))
        same = data_loss(model, replace(batch, chunks=changed)) == expected
        assert bool(same) == (head == "regression")  # a flow reads the whole chunk, as it does in the loop


@torch.no_grad()
def test_rows_of_a_batch_add_up_to_it() -> None:
    """As several processes share a batch."""
    model, batch = small_policy("regression"), batch_of(EpisodeSettings(), [0, 3, 5, 7])
    parts = [data_loss(model, batch.rows(slice(rank, None, 2))) for rank in range(2)]
    assert float(sum(parts)) == pytest.approx(float(data_loss(model, batch)), rel=1e-5)


@pytest.mark.parametrize("stride", [1, 3])
def test_windows_and_strides(stride: int) -> None:
    batch = batch_of(EpisodeSettings(window=3), [2, 4, 6], stride=stride)
    source = episodes(10)
    assert batch.counted.shape[1] <= 3
    for row, index in enumerate(batch.indices):
        states = source[index].observations["state"]
        fed = batch.observations[0][row][batch.counted[row]].numpy()
        places = [int(np.flatnonzero((states == state).all(1))[0]) for state in fed]
        assert all(after - before == stride for before, after in itertools.pairwise(places))
    with pytest.raises(ConfigError, match="window"):
        EpisodeSettings(window=0)


def test_batches_follow_from_the_seed() -> None:
    spec, source = small_policy("flow_matching").spec, episodes(20, "flow_matching")
    first, second, other = (EpisodeBatches(source, spec, EpisodeSettings(), 4, seed) for seed in (1, 1, 2))
    for step in (7, 0, 3):
        assert torch.equal(first.at(step).chunks.noise, second.at(step).chunks.noise)
        assert first.at(step).indices == second.at(step).indices
    assert not torch.equal(first.at(0).chunks.noise, first.at(5).chunks.noise)
    assert first.at(0).indices != other.at(0).indices


def test_an_instruction_stands_before_the_observations(tmp_path: Path) -> None:
    write_tokenizer(tmp_path)
    codec, described = InstructionCodec(tmp_path), schema("flow_matching", (VECTOR, CAMERA))
    model = make_policy(described, instruction=True)
    rng = np.random.default_rng(0)

    def make(steps: int, instruction: str) -> Episode:
        seen = {
            "state": rng.standard_normal((steps, 3)).astype(np.float32),
            "images.front": rng.integers(0, 256, (steps, *CAMERA.shape), dtype=np.uint8),
        }
        return Episode(seen, rng.standard_normal((steps, 2)).astype(np.float32), instruction)

    source = Episodes([make(4, "reach left"), make(3, "reach the right target")], described)
    batch = EpisodeBatches(source, model.spec, EpisodeSettings(), 2, 0, codec).of([0, 1])
    assert batch.input_ids.tolist()[0][:6] == [0, 2, *[NO_TOKEN] * 4]
    assert batch.input_ids.tolist()[1] == [0, 1, 3, 4, *[NO_TOKEN] * 3]
    np.testing.assert_array_equal(batch.observations[1][1, 4:], source[1].observations["images.front"])
    assert torch.isfinite(data_loss(model, batch))
    found = chunks_of(model, source[0], np.arange(4), codec, seed=0)
    assert found.shape == (4, 6, 2)
    other = Episode(source[0].observations, source[0].actions, "reach right")
    assert np.abs(chunks_of(model, other, np.arange(4), codec, seed=0) - found).max() > 1e-3
    with pytest.raises(PromptError):
        codec.encode(" ")


def test_episodes_are_checked(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="one or more steps"):
        Episode({"state": np.zeros((3, 2), np.float32)}, np.zeros((4, 2), np.float32))
    with pytest.raises(CheckpointError, match="one or more steps"):
        Episode({"state": np.zeros((0, 2), np.float32)}, np.zeros((0, 2), np.float32))
    good = feedback.episode(4, 0)
    for wrong, name in (
        (Episode({}, good.actions), "'state'"),
        (Episode({"state": good.observations["state"].astype(np.float64)}, good.actions), "'state'"),
        (Episode(good.observations, good.actions[:, :1]), "actions"),
    ):
        with pytest.raises(ConfigError, match=name):
            wrong.check(feedback.schema())


def test_a_folder_of_episodes_comes_back(tmp_path: Path) -> None:
    source = episodes(3)
    write_episodes(tmp_path / "data", source.schema, source)
    found = open_episodes(tmp_path / "data")
    assert found.schema == source.schema
    assert found.lengths.tolist() == source.lengths.tolist()
    for before, after in zip(source, (found[index] for index in range(3))):
        np.testing.assert_array_equal(after.observations["state"], before.observations["state"])
        np.testing.assert_array_equal(after.actions, before.actions)
    file = tmp_path / "data" / "000001.safetensors"
    file.write_bytes(file.read_bytes()[:40])
    with pytest.raises(CheckpointError, match="000001"):
        EpisodeFolder(tmp_path / "data")
    with pytest.raises(ConfigError, match="episodes"):
        open_episodes(tmp_path)
