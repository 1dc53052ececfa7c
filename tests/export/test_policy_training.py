"""Policies learn: batches of episodes, both heads on tasks with known answers, resuming, pruning, distilling."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import torch

import feedback
from edge_export.checkpoint import load_body, load_model, save_model
from edge_export.distil import DistilLoss, DistilSchedule
from edge_export.episode_batches import EpisodeBatch, EpisodeBatches, EpisodeSettings
from edge_export.episode_folder import EpisodeFolder, write_episodes
from edge_export.episodes import Episode, open_episodes
from edge_export.families import policy
from edge_export.importance import measure
from edge_export.lessons import EpisodeLessons
from edge_export.policy_decoder import Chunks, FlowDecoder
from edge_export.policy_evaluate import action_errors, chunks_of
from edge_export.prune import StudentShape, prune
from edge_export.search import axis_sizes, candidates
from edge_export.students import SearchSettings, make_student, train_student
from edge_export.torch_policy import HybridPolicy
from edge_export.training import Schedule, Trainer, data_loss
from edge_sdk.control.policy import ActionDim, ActionSpec, ObservationSpec, PolicyConfig
from edge_sdk.errors import CheckpointError, ConfigError, PromptError
from edge_sdk.instruction import InstructionCodec
from edge_sdk.policy_spec import NO_TOKEN
from feedback import CHUNK, Episodes, actions_from, episodes
from policies import CAMERA, VECTOR, make_policy, raw_config, schema, write_tokenizer

SMALL: dict[str, Any] = {
    "hidden": 32,
    "layers": [
        {"type": "mamba2", "heads": 2, "head_dim": 16, "groups": 1, "state": 8},
        {"type": "mlp", "intermediate": 64},
    ],
    "decoder": {"layers": 1, "heads": 2, "head_dim": 16, "intermediate": 64, "flow_steps": 8},
}
SCHEDULE = Schedule(steps=300, batch_size=16, learning_rate=5e-3, warmup_steps=20, weight_decay=0.0)
HEADS = ("regression", "flow_matching")


def small_policy(head: str, seed: int = 0, **changes: Any) -> HybridPolicy:
    model = HybridPolicy(policy.parse_config(raw_config(feedback.schema(head), **SMALL | changes)))
    model.reset_parameters(seed)
    return model


def trained(head: str, folder: Path) -> HybridPolicy:
    model = small_policy(head)
    batches = EpisodeBatches(episodes(64, head), model.spec, EpisodeSettings(), SCHEDULE.batch_size, 0)
    return Trainer(model, batches, SCHEDULE, folder, data_loss, head).run()


@pytest.fixture(scope="module", params=HEADS)
def teacher(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> HybridPolicy:
    """A policy that has learnt the feedback task."""
    return trained(request.param, tmp_path_factory.mktemp(request.param))


def test_both_heads_learn_linear_feedback(teacher: HybridPolicy) -> None:
    """The spread of normalised actions is about 1: what is left is a few percent of it."""
    found = action_errors(teacher, episodes(8, teacher.spec.schema.head, seed=7), None)
    assert found["action_error"] < 0.06
    assert found["error of left"] == pytest.approx(0.6 * found["action_error"], rel=0.5)
    untrained = action_errors(small_policy(teacher.spec.schema.head), episodes(8, seed=7), None)
    assert untrained["action_error"] > 0.5


def test_a_committed_prefix_is_continued(teacher: HybridPolicy) -> None:
    """Actions of another state were committed: the rest goes on from the observation, and the prefix comes back."""
    one, other = np.array([1.4, -3.0]), np.array([1.5, -2.8])
    observation = {"observation.state": torch.tensor(one, dtype=torch.float32)[None, None]}
    committed = torch.from_numpy(actions_from(other, CHUNK))[None, None]
    fed = observation | {
        "past_length": torch.zeros(1, dtype=torch.int64),
        "action_positions": torch.zeros(1, dtype=torch.int64),
        "committed": committed,
        "committed_length": torch.full((1, 1), 2),
        "noise": torch.zeros_like(committed),
    }
    found, _ = teacher.step(fed, teacher.empty_states(1, 4))
    assert torch.equal(found[0, 0, :2], committed[0, 0, :2])
    assert np.abs(found[0, 0, 2:].detach().numpy() - actions_from(one, CHUNK)[2:]).max() < 0.25


@pytest.mark.parametrize("head", HEADS)
def test_training_goes_on_to_the_bit(head: str, tmp_path: Path) -> None:
    schedule = msgspec.structs.replace(SCHEDULE, steps=6, save_every=3, batch_size=4)

    def run(folder: str, stop: int | None = None) -> HybridPolicy:
        model = small_policy(head)
        batches = EpisodeBatches(episodes(12, head), model.spec, EpisodeSettings(window=5), 4, 0)
        trainer = Trainer(model, batches, schedule, tmp_path / folder, data_loss, "test")
        if stop is None:
            return trainer.run()
        trainer.folder.mkdir()
        for _ in range(stop):
            trainer._train_step()
        trainer._save()
        return model

    whole = run("whole").state_dict()
    run("parts", stop=3)
    again = run("parts").state_dict()
    assert all(torch.equal(again[name], tensor) for name, tensor in whole.items())
    assert (tmp_path / "whole" / "loss.png").exists()


def test_the_velocity_field_of_a_gaussian(tmp_path: Path) -> None:
    """Actions are normal with mean 2 and deviation 0.5 whatever is seen: the best field is known in closed form.

    With x = t a + (1 - t) e: E[a - e | x] = mean + (t var - (1 - t)) / (t**2 var + (1 - t)**2) * (x - t mean).
    """
    mean, deviation = 2.0, 0.5
    seen = ObservationSpec(name="state", shape=(1,))
    action = ActionSpec(dims=(ActionDim(name="only", unit="N"),), rate_hz=10)
    described = PolicyConfig(observations=(seen,), action=action, chunk_length=1, budget_ms=50, head="flow_matching")
    rng = np.random.default_rng(0)
    drawn = rng.normal(mean, deviation, (8, 500, 1)).astype(np.float32)
    source = Episodes([Episode({"state": np.zeros((500, 1), np.float32)}, actions) for actions in drawn], described)
    model = HybridPolicy(policy.parse_config(raw_config(described, **SMALL)))
    model.reset_parameters(0)
    settings = EpisodeSettings(window=8, chunks=64, committed=0.0)
    schedule = msgspec.structs.replace(SCHEDULE, steps=300, batch_size=8, learning_rate=4e-3)
    Trainer(model, EpisodeBatches(source, model.spec, settings, 8, 0), schedule, tmp_path, data_loss, "flow").run()
    decoder = model.decoder
    assert isinstance(decoder, FlowDecoder)
    for time in (0.1, 0.4, 0.7):
        spread = (time**2 * deviation**2 + (1 - time) ** 2) ** 0.5
        x = torch.linspace(-1.5, 1.5, 7).view(7, 1, 1) * spread + time * mean
        with torch.no_grad():
            condition = model((torch.zeros(1, 1, 1),), None)[0].expand(7, -1)
            found = decoder.velocity(condition, x, torch.full_like(x, time))
        slope = (time * deviation**2 - (1 - time)) / spread**2
        expected = mean + slope * (x - time * mean)
        assert (found - expected).abs().max() < 0.35
        assert (found - expected).abs().mean() < 0.15


def test_no_field_has_a_smaller_loss_than_that_of_the_gaussian() -> None:
    """The loss's own minimum: at the closed form it is the variance that is left, and any other field has more."""
    rng = torch.Generator().manual_seed(0)
    rows, deviation = 200_000, 0.5
    actions, noise = (torch.randn(rows, 1, 1, generator=rng) * scale for scale in (deviation, 1.0))
    time = torch.full((rows, 1, 1), 0.6)
    true = torch.ones(rows, 1, 1, dtype=torch.bool)
    chunks = Chunks(actions, ~true, true, noise, time)
    decoder = small_policy("flow_matching").decoder
    x = 0.6 * actions + 0.4 * noise
    variance = 0.36 * deviation**2 + 0.16
    slope = (0.6 * deviation**2 - 0.4) / variance
    target = decoder.target(chunks)
    errors = {factor: float(decoder.distance(factor * slope * x, target).mean()) for factor in (0.9, 1.0, 1.1)}
    assert errors[1.0] == pytest.approx(deviation**2 + 1 - slope**2 * variance, rel=0.02)
    assert min(errors, key=errors.__getitem__) == 1.0


def test_what_the_decoder_is_fed_in_training() -> None:
    """Between noise and actions by the time; committed actions as they are, at time 1."""
    decoder, fed = small_policy("flow_matching").decoder, {}
    decoder.velocity = lambda condition, x, time: fed.update(x=x, time=time) or x
    actions, noise = torch.randn(3, CHUNK, 2), torch.randn(3, CHUNK, 2)
    known = (torch.arange(CHUNK) < 2).view(1, CHUNK, 1).expand(3, -1, -1)
    time = torch.tensor([0.0, 0.25, 1.0]).view(3, 1, 1)
    decoder.output(torch.zeros(3, 32), Chunks(actions, known, ~known, noise, time))
    assert torch.equal(fed["x"][:, :2], actions[:, :2])
    assert (fed["time"][:, :2] == 1).all()
    assert torch.equal(fed["x"][0, 2:], noise[0, 2:])
    assert torch.allclose(fed["x"][1, 2:], 0.25 * actions[1, 2:] + 0.75 * noise[1, 2:])
    assert torch.equal(fed["x"][2, 2:], actions[2, 2:])
    assert torch.equal(decoder.target(Chunks(actions, known, ~known, noise, time)), actions - noise)


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


def calibration(model: HybridPolicy) -> list[EpisodeBatch]:
    head = model.spec.schema.head
    batches = EpisodeBatches(episodes(16, head), model.spec, EpisodeSettings(), 8, 0)
    return [batches.at(step) for step in range(2)]


def test_pruning_to_the_same_shape_changes_nothing(teacher: HybridPolicy) -> None:
    batches = calibration(teacher)
    same = prune(teacher, StudentShape(), measure(teacher, batches))
    assert same.config == teacher.config
    expected = teacher.state_dict()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in same.state_dict().items())


def test_a_pruned_policy_keeps_the_channels_that_matter(teacher: HybridPolicy) -> None:
    """Channels that are always zero are found and cut away everywhere: what is left computes the same."""
    wide = make_wide(teacher)
    batches = calibration(wide)
    expected = [wide.predict(batch) for batch in batches]
    shape = StudentShape(encoder_width=32, decoder_heads=2, decoder_intermediate=64, intermediate=64)
    student = prune(wide, shape, measure(wide, batches)).eval()
    assert student.config == teacher.config
    for batch, before in zip(batches, expected):
        torch.testing.assert_close(student.predict(batch), before, rtol=1e-4, atol=1e-5)


def make_wide(teacher: HybridPolicy) -> HybridPolicy:
    """The same policy with half as many channels again, in between, that do nothing."""
    layers = [SMALL["layers"][0], {"type": "mlp", "intermediate": 96}]
    decoder = SMALL["decoder"] | {"heads": 3, "intermediate": 96}
    changes = {"layers": layers, "decoder": decoder, "encoder": {"width": 48, "channels": [4, 8]}}
    wide = small_policy(teacher.spec.schema.head, **changes)
    state = wide.state_dict()
    keep = {64: torch.arange(96) % 3 != 1, 32: torch.arange(48) % 3 != 1}
    for name, narrow in teacher.state_dict().items():
        target = state[name]
        if target.shape == narrow.shape:
            target.copy_(narrow)
            continue
        target.zero_()
        axis = next(axis for axis, size in enumerate(narrow.shape) if target.shape[axis] != size)
        if name.endswith(("qkv_proj.weight", "out_proj.weight")):
            heads = torch.tensor([True, False, True]).repeat_interleave(16)
            kept = heads.repeat(target.shape[axis] // 48)
        else:
            kept = keep[narrow.shape[axis]]
        target.index_copy_(axis, kept.nonzero().squeeze(-1), narrow)
    wide.load_state_dict(state)
    return wide.eval()


def test_a_narrower_policy_can_be_made_along_every_axis(teacher: HybridPolicy, tmp_path: Path) -> None:
    batches = calibration(teacher)
    importance = measure(teacher, batches)
    axes = axis_sizes(teacher.config)
    assert {"hidden", "encoder_width", "decoder_layers", "decoder_heads", "decoder_intermediate"} <= axes.keys()
    found = candidates(
        teacher.config, importance, lambda config: config.parameters(), 0.5 * teacher.config.parameters(), count=3
    )
    for item in found:
        student = prune(teacher, item.shape, importance)
        assert sum(part.numel() for part in student.parameters()) == item.cost
        assert torch.isfinite(student.predict(batches[0])).all()
    save_model(student, tmp_path)
    assert load_body(tmp_path).config == student.config
    with pytest.raises(CheckpointError, match="a policy"):
        load_model(tmp_path)
    with pytest.raises(ConfigError, match="decoder_heads"):
        prune(teacher, StudentShape(decoder_heads=3), importance)


def test_a_student_learns_from_its_teacher(teacher: HybridPolicy, tmp_path: Path) -> None:
    """Half the hidden width, from the teacher's actions or velocities alone; on its own noise the teacher is exact."""
    head = teacher.spec.schema.head
    lessons = EpisodeLessons(episodes(64, head), teacher.spec, EpisodeSettings())
    made = make_student(
        teacher, lessons, StudentShape(hidden=16, decoder_intermediate=32), SearchSettings(), tmp_path / "tries"
    )
    schedule = DistilSchedule(
        steps=200, batch_size=16, learning_rate=5e-3, warmup_steps=10, weight_decay=0.0, top_k=0, hidden_weight=0.1
    )
    live = lessons.live_teacher(teacher, schedule)
    own = DistilLoss(live, msgspec.structs.replace(schedule, hidden_weight=0.0), gap=lessons.gap)
    assert float(own(teacher, calibration(teacher)[0])) == 0
    save_model(teacher, tmp_path / "teacher")
    before = action_errors(made.model, episodes(8, head, seed=7), None)["action_error"]
    student = train_student(made.model, tmp_path / "teacher", lessons, schedule, tmp_path / "run")
    after = action_errors(student, episodes(8, head, seed=7), None)["action_error"]
    assert student.config.parameters() < 0.6 * teacher.config.parameters()
    assert after < 0.15
    assert after < before / 2
