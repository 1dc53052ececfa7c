"""Distillation's losses and stored answers, and training's options."""

from __future__ import annotations

import math
from pathlib import Path

import msgspec
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_export import teacher as teacher_module
from edge_export.checkpoint import save_model
from edge_export.data import Batches, Sample, collate
from edge_export.distil import DistilLoss, DistilSchedule, ResidualDistance, divergence
from edge_export.teacher import CachedTeacher, LiveTeacher, Targets, stored_teacher
from edge_export.torch_model import HybridLM
from edge_export.training import Trainer, cross_entropy
from edge_sdk.errors import CheckpointError, ConfigError
from tiny import make, relative_error

CPU = torch.device("cpu")
SHORT = DistilSchedule(steps=4, batch_size=4, warmup_steps=1, save_every=2, top_k=0)


@pytest.fixture(scope="module")
def samples() -> list[Sample]:
    rng = np.random.default_rng(0)
    return [Sample(tuple(rng.integers(0, 48, length).tolist()), 1 + length % 3) for length in range(5, 25)]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("teacher") / "teacher"
    save_model(make("plain"), folder)
    return folder


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 1000), top_k=st.integers(1, 11), scale=st.sampled_from([0.1, 1.0, 30.0]))
def test_top_k_divergence_is_that_of_the_distributions_with_the_rest_as_one_event(
    seed: int, top_k: int, scale: float
) -> None:
    generator = torch.Generator().manual_seed(seed)
    theirs, ours = (scale * torch.randn(3, 12, generator=generator, dtype=torch.float64) for _ in range(2))
    p, q = theirs.softmax(-1), ours.softmax(-1)
    ids = p.topk(top_k).indices
    grouped_p, grouped_q = (
        torch.cat([part.gather(1, ids), 1 - part.gather(1, ids).sum(1, keepdim=True)], 1).clamp(min=1e-300)
        for part in (p, q)
    )
    expected = (grouped_p * (grouped_p / grouped_q).log()).sum()
    whole = F.kl_div(q.log(), p.log(), log_target=True, reduction="sum")
    rest = theirs.log_softmax(-1).scatter(1, ids, -math.inf).logsumexp(1, keepdim=True)
    targets = Targets(torch.cat([theirs.log_softmax(-1).gather(1, ids), rest], 1), ids)
    found = divergence(ours, targets)
    assert float(found) == pytest.approx(float(expected), rel=1e-5, abs=1e-8)
    assert float(found) <= float(whole) * (1 + 1e-9) + 1e-9


def test_stored_answers_are_the_teachers(checkpoint: Path, samples: list[Sample], tmp_path: Path) -> None:
    teacher, batch = make("plain"), collate(samples, [7, 0, 19])
    live = LiveTeacher(teacher, 2.0).of(batch).log_probs
    whole = stored_teacher(checkpoint, samples, tmp_path / "all", top_k=99, temperature=2.0, device=CPU).of(batch)
    assert whole.ids is None
    assert torch.allclose(whole.log_probs, live, atol=2e-3)
    five = stored_teacher(checkpoint, samples, tmp_path / "five", top_k=5, temperature=2.0, device=CPU).of(batch)
    assert torch.equal(five.ids, live.topk(5).indices)
    assert torch.allclose(five.log_probs[:, :5], live.topk(5).values, atol=2e-3)
    rest = 1 - live.topk(5).values.exp().sum(-1)
    assert torch.allclose(five.log_probs[:, 5].exp(), rest, atol=1e-3)


def test_storing_goes_on_where_it_was_interrupted(
    checkpoint: Path, samples: list[Sample], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(teacher_module, "BATCH_TOKENS", 30)
    monkeypatch.setattr(teacher_module, "SYNC_BATCHES", 2)
    whole = stored_teacher(checkpoint, samples, tmp_path / "whole", top_k=5, temperature=1.0, device=CPU)
    computed: list[int] = []
    top = teacher_module._top

    def failing(logits: torch.Tensor, top_k: int) -> object:
        computed.append(len(logits))
        if len(computed) == 6:
            raise KeyboardInterrupt
        return top(logits, top_k)

    monkeypatch.setattr(teacher_module, "_top", failing)
    with pytest.raises(KeyboardInterrupt):
        stored_teacher(checkpoint, samples, tmp_path / "cut", top_k=5, temperature=1.0, device=CPU)
    assert not (tmp_path / "cut").exists()
    first = list(computed)
    resumed = stored_teacher(checkpoint, samples, tmp_path / "cut", top_k=5, temperature=1.0, device=CPU)
    assert computed[6] == first[4]  # four batches had been made sure of
    batch = collate(samples, range(len(samples)))
    assert torch.equal(resumed.of(batch).log_probs, whole.of(batch).log_probs)
    computed.clear()
    stored_teacher(checkpoint, samples, tmp_path / "cut", top_k=5, temperature=1.0, device=CPU)
    assert computed == []
    monkeypatch.setattr(teacher_module, "_top", top)
    other = stored_teacher(checkpoint, samples, tmp_path / "cut", top_k=5, temperature=3.0, device=CPU)
    assert not torch.equal(other.of(batch).log_probs, whole.of(batch).log_probs)


def test_a_copy_of_the_teacher_has_nothing_to_learn(checkpoint: Path, samples: list[Sample], tmp_path: Path) -> None:
    teacher, batch = make("plain"), collate(samples, [3, 4, 5])
    cached: CachedTeacher = stored_teacher(checkpoint, samples, tmp_path / "a", top_k=8, temperature=2.0, device=CPU)
    schedule = DistilSchedule(steps=1, temperature=2.0)
    assert DistilLoss(cached, schedule)(teacher, batch).item() == pytest.approx(0.0, abs=1e-5)
    assert DistilLoss(cached, schedule)(make("plain", seed=1), batch).item() > 0.01
    close = msgspec.structs.replace(schedule, top_k=0, hidden_weight=1.0, hidden_points=3)
    residuals = ResidualDistance(64, 64, 3, "cosine")
    live = DistilLoss(LiveTeacher(teacher, 2.0, 3), close, residuals)
    assert live(teacher, batch).item() == pytest.approx(0.0, abs=1e-5)
    assert live(make("plain", seed=1), batch).item() > 0.1


def test_data_weight_mixes_both_losses(samples: list[Sample]) -> None:
    teacher, student, batch = make("plain"), make("plain", seed=1), collate(samples, [1, 2])
    parts = [DistilLoss(LiveTeacher(teacher, 1.0), DistilSchedule(steps=1, data_weight=w)) for w in (0.0, 0.25, 1.0)]
    pure, mixed, data = (float(loss(student, batch)) for loss in parts)
    assert data == pytest.approx(float(cross_entropy(student, batch)), rel=1e-5)
    assert mixed == pytest.approx(0.75 * pure + 0.25 * data, rel=1e-5)


def test_residual_distances() -> None:
    student, teacher = torch.randn(5, 8), torch.randn(5, 8)
    cosine = ResidualDistance(8, 8, 1, "cosine")([student], [teacher])
    assert float(cosine) == pytest.approx(
        sum(1 - float(F.cosine_similarity(a, b, 0)) for a, b in zip(student, teacher))
    )
    mse = ResidualDistance(8, 8, 1, "mse")([student], [teacher])
    expected = sum(float((a - b).square().sum() / b.square().sum()) for a, b in zip(student, teacher))
    assert float(mse) == pytest.approx(expected, rel=1e-5)


def test_hidden_loss_needs_a_live_teacher() -> None:
    with pytest.raises(ConfigError, match="top_k"):
        DistilSchedule(steps=1, hidden_weight=1.0)


def run(folder: Path, schedule: DistilSchedule, samples: list[Sample], stop: int | None = None) -> Trainer:
    """A student of another width learns, with a projection between; ``stop`` ends it as a kill would."""
    student, teacher = HybridLM(make("no-experts").config), make("plain")
    student.reset_parameters(0)
    residuals = None
    if schedule.hidden_weight:
        torch.manual_seed(0)
        residuals = ResidualDistance(64, 64, 2, "mse")
        residuals.projections[0] = torch.nn.Linear(64, 64, bias=False)
    loss = DistilLoss(LiveTeacher(teacher, schedule.temperature, schedule.points), schedule, residuals)
    trainer = Trainer(student, Batches(samples, 4, 0), schedule, folder, loss, "test", tensorboard=schedule is OPTIONS)
    if stop is not None:
        step = trainer._train_step

        def failing() -> float:
            if trainer.step == stop:
                raise KeyboardInterrupt
            return step()

        trainer._train_step = failing  # type: ignore[method-assign]
        with pytest.raises(KeyboardInterrupt):
            trainer.run()
    else:
        trainer.run()
    return trainer


OPTIONS = msgspec.structs.replace(
    SHORT, hidden_weight=0.5, hidden_points=2, data_weight=0.2, recompute=True, precision="bfloat16", average_decay=0.5
)


def test_with_every_option_a_killed_run_resumes_to_the_same_bits(samples: list[Sample], tmp_path: Path) -> None:
    pytest.importorskip("tensorboard", reason="the extra `tensorboard` is not installed")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    whole, cut = run(tmp_path / "whole", OPTIONS, samples), tmp_path / "cut"
    run(cut, OPTIONS, samples, stop=3)  # the checkpoint is of step 2
    resumed = run(cut, OPTIONS, samples)
    assert [row[:4] for row in resumed.rows] == [row[:4] for row in whole.rows]
    for name, tensor in whole.model.state_dict().items():
        assert torch.equal(resumed.model.state_dict()[name], tensor), name
    for name, parameter in whole.parameters.items():
        assert torch.equal(resumed.parameters[name], parameter), name
    events = EventAccumulator(str(cut / "tensorboard")).Reload()
    logged = [(event.step, event.value) for event in events.Scalars("loss")]
    assert logged == [(row[0], pytest.approx(row[1])) for row in whole.rows]


def test_recomputing_layers_changes_no_gradient(samples: list[Sample], tmp_path: Path) -> None:
    plain = run(tmp_path / "plain", SHORT, samples)
    again = run(tmp_path / "again", msgspec.structs.replace(SHORT, recompute=True), samples)
    assert [row[1] for row in again.rows] == [row[1] for row in plain.rows]
    assert all("forward" not in vars(layer) for layer in again.model.layers)


def test_bfloat16_products_stay_close_and_routers_exact(samples: list[Sample]) -> None:
    model, batch = make("no-experts"), collate(samples, [3, 9])
    gate, x = make("plain").layers[1].mixer.gate, torch.randn(3, 64)
    with torch.no_grad():
        exact, chosen = model(batch.input_ids), gate(x)
        with torch.autocast("cpu", torch.bfloat16):
            rounded, routed = model(batch.input_ids), gate(x)
    assert rounded.dtype == torch.bfloat16
    assert 0 < relative_error(rounded.float(), exact) < 0.05
    assert torch.equal(routed, chosen)


def test_a_checkpoint_of_other_options_is_not_resumed(samples: list[Sample], tmp_path: Path) -> None:
    run(tmp_path, SHORT, samples)
    with pytest.raises(CheckpointError, match="schedule"):
        run(tmp_path, msgspec.structs.replace(SHORT, data_weight=0.1), samples)
    with pytest.raises(CheckpointError, match="the same data"):
        run(tmp_path, SHORT, samples[:-1])
