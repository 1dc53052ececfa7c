"""Policies learn: both heads on tasks with known answers, resuming, pruning, distilling."""

from __future__ import annotations

from pathlib import Path

import msgspec
import numpy as np
import pytest
import torch

from edge_export.checkpoint import load_body, load_model, save_model
from edge_export.distil import DistilLoss, DistilSchedule
from edge_export.episode_batches import EpisodeBatch, EpisodeBatches, EpisodeSettings
from edge_export.episodes import Episode
from edge_export.families import policy
from edge_export.importance import measure
from edge_export.lessons import EpisodeLessons
from edge_export.policy_decoder import Chunks, FlowDecoder
from edge_export.policy_evaluate import action_errors
from edge_export.prune import StudentShape, prune
from edge_export.search import axis_sizes, candidates
from edge_export.students import SearchSettings, make_student, train_student
from edge_export.torch_policy import HybridPolicy
from edge_export.training import Trainer, data_loss
from edge_sdk.control.policy import ActionDim, ActionSpec, ObservationSpec, PolicyConfig
from edge_sdk.errors import CheckpointError, ConfigError
from feedback import CHUNK, HEADS, SCHEDULE, SMALL, Episodes, actions_from, episodes, small_policy
from policies import raw_config


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


def test_an_encoder_learns_where_something_is_in_a_picture(tmp_path: Path) -> None:
    """A bright spot among noise: the action is its place, from -0.8 to 0.8; 0.4 is the error of knowing nothing."""
    camera = ObservationSpec(name="camera", shape=(16, 24, 3), kind="image")
    dims = (ActionDim(name="row", unit="m"), ActionDim(name="column", unit="m"))
    described = PolicyConfig(
        observations=(camera,), action=ActionSpec(dims=dims, rate_hz=10), chunk_length=1, budget_ms=50
    )

    def make(seed: int, steps: int = 12) -> Episode:
        rng = np.random.default_rng(seed)
        places = rng.uniform(-0.8, 0.8, (steps, 2)).astype(np.float32)
        rows, columns = np.linspace(-1, 1, 16)[:, None], np.linspace(-1, 1, 24)
        square = (rows - places[:, 0, None, None]) ** 2 + (columns - places[:, 1, None, None]) ** 2
        spot = 180 * np.exp(-square / 0.03)[..., None] * (1, 0.3, 0.1)
        return Episode({"camera": (spot + rng.uniform(0, 60, spot.shape)).astype(np.uint8)}, places)

    source = Episodes([make(seed) for seed in range(64)], described)
    small = SMALL | {"layers": SMALL["layers"][1:], "encoder": {"channels": [8, 16]}}
    model = HybridPolicy(policy.parse_config(raw_config(described, **small)))
    model.reset_parameters(0)
    batches = EpisodeBatches(source, model.spec, EpisodeSettings(committed=0.0), 8, 0)
    schedule = msgspec.structs.replace(SCHEDULE, steps=150, batch_size=8)
    Trainer(model, batches, schedule, tmp_path, data_loss, "camera").run()
    assert action_errors(model, Episodes([make(1000, 40)], described), None)["action_error"] < 0.1
