"""Packed rows: every document says and learns what it would alone, and batches of them follow from the seed."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers import AutoModelForCausalLM

from edge_export import torch_ops
from edge_export.checkpoint import load_model, save_model
from edge_export.data import Batch, Batches, Part, Sample, collate, pack, part_of
from edge_export.distil import DistilLoss, DistilSchedule, ResidualDistance
from edge_export.episode_batches import EpisodeSettings
from edge_export.lessons import EpisodeLessons
from edge_export.packed_rows import PADDING, first_fit, positions
from edge_export.teacher import LiveTeacher, stored_teacher
from edge_export.torch_layers import Rope
from edge_export.torch_model import HybridLM
from edge_export.training import Trainer, cross_entropy
from edge_sdk.errors import ConfigError
from feedback import episodes
from policies import make_policy, schema
from test_families import CASES, TOLERANCE, make_checkpoint
from tiny import make, relative_error

EXACT = 1e-5
"""Of float32 sums in another order."""

EXACT_OF_FAMILIES = 3e-5
"""Whose large random weights blow up what is rounded; ours are as far from transformers' before anything is packed."""

LENGTHS = [70, 1, 90, 2, 130, 64, 40, 3]
"""Over two rows that cross the scan's chunks, with documents shorter than the convolution."""


def random_parts(lengths: list[int], seed: int = 0) -> list[Part]:
    generator = torch.Generator().manual_seed(seed)
    return [Part(*torch.randint(3, 48, (2, length), generator=generator)) for length in lengths]


def by_document(values: Tensor, batch: Batch) -> dict[int, Tensor]:
    """Of each sample its own positions' values (length, ...)."""
    assert batch.documents is not None
    return {index: values[batch.documents == document] for document, index in enumerate(batch.indices)}


@pytest.mark.parametrize(("name", "setting"), CASES)
def test_a_document_in_a_packed_row_has_transformers_logits_of_it_alone(
    name: str, setting: str, tmp_path: Path
) -> None:
    checkpoint, parts = make_checkpoint(name, setting, tmp_path / "checkpoint"), random_parts(LENGTHS)
    theirs = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32).eval()
    ours, batch = load_model(checkpoint).eval(), pack(parts, range(len(parts)), 210)
    assert len(batch.input_ids) == 2
    with torch.inference_mode():
        for index, found in by_document(ours(batch.input_ids, batch.documents), batch).items():
            alone = parts[index].input_ids[None]
            assert relative_error(found, ours(alone)[0]) <= EXACT_OF_FAMILIES
            assert relative_error(found, theirs(alone).logits[0]) <= TOLERANCE


MODELS = ["plain", "latent-experts", "only-mamba", "no-experts"]


@settings(max_examples=12, deadline=None)
@given(
    variant=st.sampled_from(MODELS),
    lengths=st.lists(st.integers(1, 40), min_size=1, max_size=6),
    room=st.integers(0, 60),
    chunk=st.sampled_from([1, 4, 16, 128]),
)
def test_packed_gradients_are_those_of_the_documents_alone(
    variant: str, lengths: list[int], room: int, chunk: int
) -> None:
    model, parts = make(variant), random_parts(lengths, seed=room)
    batch = pack(parts, range(len(parts)), max(lengths) + room)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch_ops, "CHUNK", chunk)
        packed = gradients(model, [batch])
        alone = gradients(
            model, [Batch(part.input_ids[None], part.targets[None], (0,), batch.tokens) for part in parts]
        )
    assert batch.tokens == sum(lengths)
    assert packed.keys() == alone.keys()
    for name, expected in alone.items():
        assert torch.allclose(packed[name], expected, rtol=1e-4, atol=EXACT * float(expected.abs().max())), name


def gradients(model: HybridLM, batches: list[Batch]) -> dict[str, Tensor]:
    """Of the cross-entropy, summed over batches, by parameter; of the loss itself as well."""
    model.zero_grad()
    losses = [cross_entropy(model, batch) for batch in batches]
    torch.stack(losses).sum().backward()
    found = {name: parameter.grad.clone() for name, parameter in model.named_parameters() if parameter.grad is not None}
    return found | {"loss": torch.stack(losses).detach().sum()}


@settings(max_examples=25, deadline=None)
@given(
    variant=st.sampled_from(["only-mamba", "no-experts"]),
    lengths=st.lists(st.integers(1, 40), min_size=2, max_size=9),
    chunk=st.sampled_from([4, 16, 128]),
    data=st.data(),
)
def test_no_bit_of_a_document_leaks_into_another(variant: str, lengths: list[int], chunk: int, data: object) -> None:
    model, changed = make(variant), data.draw(st.integers(0, len(lengths) - 1))  # type: ignore[attr-defined]
    batch = pack(random_parts(lengths), range(len(lengths)), sum(lengths))
    other = batch.input_ids.clone()
    other[batch.documents == batch.indices.index(changed)] = 1
    with pytest.MonkeyPatch.context() as patch, torch.no_grad():
        patch.setattr(torch_ops, "CHUNK", chunk)
        before, after = (by_document(model(ids, batch.documents), batch) for ids in (batch.input_ids, other))
    assert [index for index in before if not torch.equal(before[index], after[index])] == [changed]


def test_experts_mix_no_documents() -> None:
    """Their products round by how many tokens an expert gets, so that here bits are not the same."""
    model, batch = make("plain"), pack(random_parts(LENGTHS), range(len(LENGTHS)), 500)
    other = batch.input_ids.clone()
    other[batch.documents == 2] = 1
    with torch.inference_mode():
        before, after = (by_document(model(ids, batch.documents), batch) for ids in (batch.input_ids, other))
    apart = {index: relative_error(after[index], before[index]) for index in before}
    assert apart.pop(batch.indices[2]) > 0.1
    assert max(apart.values()) < 1e-6


def test_fast_decay_beside_slow_makes_no_infinities() -> None:
    model, batch = make("only-mamba"), pack(random_parts(LENGTHS), range(len(LENGTHS)), 500)
    for layer in (0, 2):
        with torch.no_grad():
            model.layers[layer].mixer.A_log.fill_(6.0)
            model.layers[layer].mixer.dt_bias.fill_(3.0)
    assert all(torch.isfinite(gradient).all() for gradient in gradients(model, [batch]).values())


@given(lengths=st.lists(st.integers(1, 50), min_size=1, max_size=40), room=st.integers(0, 30))
def test_first_fit_places_all_and_wastes_little(lengths: list[int], room: int) -> None:
    longest = max(lengths) + room
    rows = first_fit(lengths, longest)
    assert sorted(item for row in rows for item in row) == list(range(len(lengths)))
    held = [sum(lengths[item] for item in row) for row in rows]
    assert max(held) <= longest
    assert sum(2 * positions_held <= longest for positions_held in held) <= 1  # two of them would have shared one


def test_positions_begin_anew_with_every_document() -> None:
    documents = torch.tensor([[0, 0, 0, 1, 2, 2], [3, 3, PADDING, PADDING, PADDING, PADDING]])
    assert positions(documents).tolist() == [[0, 1, 2, 0, 0, 1], [0, 1, 0, 1, 2, 3]]


def test_rotary_embeddings_get_these_positions(tmp_path: Path) -> None:
    """Nothing else would show it: what attention sees depends on distances alone, but for what is rounded."""
    model = load_model(make_checkpoint("falcon_h1", "plain", tmp_path / "checkpoint"))
    batch, seen = pack(random_parts([5, 3, 4]), range(3), 8), []
    for module in model.modules():
        if isinstance(module, Rope):
            module.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[1]))
    model(batch.input_ids, batch.documents)
    assert len(seen) == 4  # queries and keys of two layers
    assert all(places.tolist() == [[0, 1, 2, 3, 4, 0, 1, 2], [0, 1, 2, 3, 0, 1, 2, 3]] for places in seen)


@pytest.fixture(scope="module")
def samples() -> list[Sample]:
    generator = torch.Generator().manual_seed(0)
    counts = torch.randint(2, 40, (30,), generator=generator).tolist()
    drawn = [torch.randint(3, 48, (count,), generator=generator) for count in counts]
    return [Sample(tuple(ids.tolist()), 1 + len(ids) // 3) for ids in drawn]


def test_packed_batches_follow_from_seed_and_step(samples: list[Sample]) -> None:
    first, second = (Batches(samples, 6, 5, packing=True) for _ in range(2))
    first.at(0)
    for step in (7, 3, 3, 61):
        one, other = first.at(step), second.at(step)
        assert one.indices == other.indices
        assert torch.equal(one.input_ids, other.input_ids)
    assert Batches(samples, 6, 6, packing=True).at(3).indices != first.at(3).indices
    epoch = [first.at(step) for step in range(first.per_epoch)]
    assert sorted(index for batch in epoch for index in batch.indices) == list(range(30))
    assert max(batch.input_ids.shape[1] for batch in epoch) <= max(len(sample.ids) for sample in samples) - 1
    for batch in epoch:
        learnt, fed = by_document(batch.targets, batch), by_document(batch.input_ids, batch)
        assert batch.tokens == sum(len(samples[index].ids) - samples[index].prompt_length for index in batch.indices)
        for index in batch.indices:
            part = part_of(samples[index])
            assert torch.equal(fed[index], part.input_ids)
            assert torch.equal(learnt[index], part.targets)


def test_a_share_of_a_packed_batch_is_packed_anew(samples: list[Sample]) -> None:
    batch = Batches(samples, 6, 0, packing=True).at(0)
    shares = [batch.rows(slice(rank, None, 2)) for rank in range(2)]
    assert sorted(index for share in shares for index in share.indices) == sorted(batch.indices)
    assert sum(int(share.counted.sum()) for share in shares) == batch.tokens
    for share in shares:
        assert share.tokens == batch.tokens
        for index, ids in by_document(share.input_ids, share).items():
            assert torch.equal(ids, part_of(samples[index]).input_ids)


def test_every_loss_is_that_of_the_same_samples_unpacked(samples: list[Sample], tmp_path: Path) -> None:
    save_model(make("plain"), tmp_path / "teacher")
    packed = Batches(samples, 6, 0, packing=True).at(2)
    padded, student = collate(samples, packed.indices), make("plain", seed=1)
    assert (packed.tokens, len(packed.input_ids) < 6) == (padded.tokens, True)
    cached = stored_teacher(
        tmp_path / "teacher", samples, tmp_path / "a", top_k=8, temperature=1.0, device=torch.device("cpu")
    )
    close = DistilSchedule(steps=1, top_k=0, hidden_weight=1.0, hidden_points=3, data_weight=0.3)
    losses = [
        DistilLoss(cached, DistilSchedule(steps=1)),
        DistilLoss(LiveTeacher(make("plain"), 1.0, 3), close, ResidualDistance(64, 64, 3, "cosine")),
        cross_entropy,
    ]
    with torch.no_grad():
        for loss in losses:
            assert float(loss(student, packed)) == pytest.approx(float(loss(student, padded)), rel=EXACT)


def run(folder: Path, samples: list[Sample], monkeypatch: pytest.MonkeyPatch, stop: int | None = None) -> Trainer:
    """A student learns from packed rows; ``stop`` ends it as a kill would."""
    schedule = DistilSchedule(
        steps=4, batch_size=6, packing=True, save_every=2, top_k=0, recompute=True, precision="bfloat16"
    )
    student, teacher = make("latent-experts", seed=1), LiveTeacher(make("plain"), 1.0)
    batches = Batches(samples, schedule.batch_size, schedule.seed, packing=schedule.packing)
    trainer = Trainer(student, batches, schedule, folder, DistilLoss(teacher, schedule), "test")
    step = trainer._train_step

    def failing() -> float:
        if trainer.step == stop:
            raise KeyboardInterrupt
        return step()

    monkeypatch.setattr(trainer, "_train_step", failing)
    trainer.run()
    return trainer


def test_a_killed_run_of_packed_rows_resumes_to_the_same_bits(
    samples: list[Sample], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, cut = run(tmp_path / "whole", samples, monkeypatch), tmp_path / "cut"
    with pytest.raises(KeyboardInterrupt):
        run(cut, samples, monkeypatch, stop=3)  # the checkpoint is of step 2
    resumed = run(cut, samples, monkeypatch)
    assert [row[:4] for row in resumed.rows] == [row[:4] for row in whole.rows]
    for name, tensor in whole.model.state_dict().items():
        assert torch.equal(resumed.model.state_dict()[name], tensor), name


def test_a_policy_is_not_packed() -> None:
    lessons = EpisodeLessons(episodes(4, "regression"), make_policy(schema()).spec, EpisodeSettings())
    with pytest.raises(ConfigError, match="packing"):
        lessons.batches(2, 0, packing=True)
