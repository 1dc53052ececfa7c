"""The head for multi-token prediction: against a plain float64 reading of its tensors, in and out of checkpoints."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor

from edge_export.checkpoint import load_model, read_config, save_model
from edge_export.data import Batch
from edge_export.families import nemotron_h
from edge_export.importance import measure
from edge_export.pack import Storage
from edge_export.prune import StudentShape, prune
from edge_sdk.backends.ort_speculation import SpeculativeEngine, SpeculativeStates
from edge_sdk.errors import CheckpointError, ConfigError
from edge_sdk.model import Mamba2Spec, MtpSpec
from edge_sdk.pace import HEAD
from exported import TinyBundle
from test_checkpoint import edit_config, edit_tensors
from tiny import BASE, make, relative_error

PLAIN = Storage(cache_dtype="float32", speculation=True)
HEADS = ("drafting-head", "dense-drafting-head")
LENGTH = 30


def rms(x: Tensor, weight: Tensor) -> Tensor:
    return x * (x.square().mean(-1, keepdim=True) + 1e-5).rsqrt() * weight


class Reference:
    """The head from the checkpoint's tensors in float64, as the model files of vLLM and SGLang describe it.

    ``eh_proj([enorm(embedding of the next token), hnorm(hidden state after the model's final norm)])``, then layers
    ``x + mixer(norm(x))``, then ``final_layernorm``; the model's lm_head reads the result, and so does the next step.
    """

    def __init__(self, checkpoint: Path) -> None:
        tensors = load_file(checkpoint / "model.safetensors")
        self.weights = {name: tensor.double() for name, tensor in tensors.items()}
        self.config = json.loads((checkpoint / "config.json").read_text())

    def __call__(self, hidden: Tensor, next_ids: Tensor) -> tuple[Tensor, Tensor]:
        """hidden (length, width) and next_ids (length) -> logits (length, vocab) and hidden (length, width)."""
        w, types = self.weights, self.config["mtp_layers_block_type"]
        embedded = rms(w["backbone.embeddings.weight"][next_ids], w["mtp.layers.0.enorm.weight"])
        joined = torch.cat([embedded, rms(hidden.double(), w["mtp.layers.0.hnorm.weight"])], dim=-1)
        x = joined @ w["mtp.layers.0.eh_proj.weight"].T
        for layer, kind in enumerate(types):
            mixers = {"full_attention": self.attention, "mlp": self.mlp, "moe": self.moe}
            x = x + mixers[kind](f"mtp.layers.{layer}.mixer", rms(x, w[f"mtp.layers.{layer}.norm.weight"]))
        x = rms(x, w[f"mtp.layers.{len(types) - 1}.final_layernorm.weight"])
        return x @ w["lm_head.weight"].T, x

    def attention(self, name: str, x: Tensor) -> Tensor:
        heads, kv_heads = self.config["num_attention_heads"], self.config["num_key_value_heads"]
        q, k, v = (x @ self.weights[f"{name}.{part}_proj.weight"].T for part in "qkv")
        outputs = []
        for head in range(heads):
            dims = slice(head * 32, head * 32 + 32)
            shared = slice(head * kv_heads // heads * 32, head * kv_heads // heads * 32 + 32)
            scores = q[:, dims] @ k[:, shared].T / 32**0.5
            scores = scores.masked_fill(torch.ones_like(scores, dtype=torch.bool).triu(1), float("-inf"))
            outputs.append(scores.softmax(-1) @ v[:, shared])
        return torch.cat(outputs, dim=-1) @ self.weights[f"{name}.o_proj.weight"].T

    def mlp(self, name: str, x: Tensor) -> Tensor:
        up, down = (self.weights[f"{name}.{part}_proj.weight"] for part in ("up", "down"))
        return F.relu(x @ up.T).square() @ down.T

    def moe(self, name: str, x: Tensor) -> Tensor:
        scores = (x @ self.weights[f"{name}.gate.weight"].T).sigmoid()
        choice = scores + self.weights[f"{name}.gate.e_score_correction_bias"]
        same = torch.eye(x.shape[-1], dtype=x.dtype)  # experts without a latent width have no projections
        into, back = (self.weights.get(f"{name}.fc{part}_latent_proj.weight", same) for part in (1, 2))
        latent = x @ into.T
        routed = torch.zeros_like(latent)
        for token in range(len(x)):
            chosen = choice[token].topk(self.config["num_experts_per_tok"]).indices
            shares = scores[token, chosen] / scores[token, chosen].sum()
            for expert, share in zip(chosen.tolist(), shares):
                routed[token] += share * self.mlp(f"{name}.experts.{expert}", latent[token])
        return routed @ back.T + self.mlp(f"{name}.shared_experts", x)


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    save_model(make("drafting-head"), tmp_path / "checkpoint")
    return tmp_path / "checkpoint"


def inputs(seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Hidden states (1, LENGTH, 64) and tokens (1, LENGTH)."""
    rng = np.random.default_rng(seed)
    return rng.standard_normal((1, LENGTH, 64), dtype=np.float32), rng.integers(0, 48, (1, LENGTH))


@pytest.mark.parametrize("variant", HEADS)
def test_the_torch_head_agrees_with_its_description(variant: str, tmp_path: Path) -> None:
    model = PLAIN.apply(make(variant))
    save_model(make(variant), tmp_path)
    hidden, ids = (torch.from_numpy(array) for array in inputs())
    expected = Reference(tmp_path)(hidden[0], ids[0])
    states = model.empty_draft_states(1, LENGTH)
    with torch.inference_mode():
        found = model.draft(hidden, ids, torch.zeros(1, dtype=torch.int64), torch.arange(LENGTH), states)[:2]
    for ours, theirs in zip(found, expected):
        assert relative_error(ours[0], theirs) <= 1e-5


@pytest.mark.parametrize("kernels", ["auto", "none"])
@pytest.mark.parametrize("variant", HEADS)
def test_the_graph_agrees_with_its_description(variant: str, kernels: str, tiny_bundle: TinyBundle) -> None:
    bundle = tiny_bundle(variant, PLAIN)
    head = SpeculativeEngine(bundle, exact=True, kernels=kernels).head
    assert head is not None
    hidden, ids = inputs()
    reference = Reference(bundle.path.parent / "checkpoint")
    expected = reference(torch.from_numpy(hidden[0]), torch.from_numpy(ids[0]))
    states, found = head.empty_states(1), []
    for start, end in ((0, 7), (7, 8), (8, 9), (9, LENGTH)):
        found.append(head.step(hidden[:, start:end], ids[:, start:end], states, logits="all"))
    for ours, theirs in zip(zip(*found), expected):
        assert relative_error(torch.from_numpy(np.concatenate(ours, axis=1)[0]), theirs) <= 1e-5
    assert states.past_length.tolist() == [LENGTH]


@pytest.mark.parametrize("weights", ["bfloat16", "int8", "int4"])
def test_the_graph_agrees_with_the_stored_torch_model(weights: Any, tiny_bundle: TinyBundle) -> None:
    storage = Storage(weights=weights, cache_dtype="float32", speculation=True)
    head = SpeculativeEngine(tiny_bundle("drafting-head", storage), exact=True).head
    assert head is not None
    model = storage.apply(make("drafting-head")).eval()
    hidden, ids = inputs()
    found = head.step(hidden, ids, head.empty_states(1))
    past, last = torch.zeros(1, dtype=torch.int64), torch.tensor([LENGTH - 1])
    with torch.inference_mode():
        states = model.empty_draft_states(1, LENGTH)
        expected = model.draft(torch.from_numpy(hidden), torch.from_numpy(ids), past, last, states)
    for ours, theirs in zip(found, expected):
        assert relative_error(torch.from_numpy(ours), theirs) <= 1e-4


def test_positions_set_back_are_forgotten(tiny_bundle: TinyBundle) -> None:
    head = SpeculativeEngine(tiny_bundle("drafting-head", PLAIN), exact=True).head
    assert head is not None
    (hidden, ids), (other_hidden, other_ids) = inputs(), inputs(seed=1)
    straight, back = head.empty_states(1), head.empty_states(1)
    head.step(hidden[:, :10], ids[:, :10], straight)
    head.step(hidden[:, :10], ids[:, :10], back)
    head.step(other_hidden[:, :5], other_ids[:, :5], back)
    back.past_length[:] = 10
    expected = head.step(hidden[:, 10:], ids[:, 10:], straight)
    for ours, theirs in zip(head.step(hidden[:, 10:], ids[:, 10:], back), expected):
        np.testing.assert_array_equal(ours, theirs)


def test_only_drafts_that_take_the_usual_time_are_timed(tiny_bundle: TinyBundle) -> None:
    """Neither one that reads the prompt nor one that makes its bindings first: the head would seem too slow to use."""
    engine = SpeculativeEngine(tiny_bundle("drafting-head", PLAIN), threads=1, follows=True)
    states, known = engine.empty_states(1), []
    engine.step(inputs()[1], states)
    for _ in range(4):
        drafted = engine.draft(5, states, 2)
        assert len(drafted) == 2
        known.append(engine.times.of(HEAD) > 0)
        engine.verify(np.array([[5, *drafted]]), states)
        engine.accept(states, np.array([2]))
    assert known == [False, False, True, True]


def test_the_states_of_an_ended_session_draft_as_new_ones(tiny_bundle: TinyBundle) -> None:
    engine = SpeculativeEngine(tiny_bundle("drafting-head", PLAIN), threads=1, follows=True)
    drafts, used = [], engine.empty_states(1)
    engine.step(inputs(seed=1)[1], used)
    engine.draft(7, used, 3)
    engine.release(used)
    for states in (engine.empty_states(1), SpeculativeStates(engine, engine.past_specs, 1, engine.first_capacity)):
        engine.step(inputs()[1], states)
        drafts.append(engine.draft(5, states, 5))
        drafts.append(engine.draft(drafts[-1][0], states, 5))
    assert drafts[:2] == drafts[2:]


def test_saving_and_loading_keeps_the_head(checkpoint: Path) -> None:
    expected = make("drafting-head").state_dict()
    model = load_model(checkpoint)
    assert model.config == make("drafting-head").config
    assert any(name.startswith("mtp.") for name in expected)
    assert all(torch.equal(tensor, expected[name]) for name, tensor in model.state_dict().items())
    assert expected.keys() == model.state_dict().keys()


def test_both_dialects_mean_the_same_and_no_pattern_is_the_published_one() -> None:
    pattern, types = "mtp_hybrid_override_pattern", "mtp_layers_block_type"
    head = [{pattern: "*E"}, {types: ["attention", "moe"]}, {types: ["full_attention", "moe"]}, {}]
    read = [nemotron_h.parse_config(BASE | {"num_nextn_predict_layers": 1} | keys).mtp for keys in head]
    assert read[0] is not None
    assert [spec.kind for spec in read[0].layers] == ["attention", "moe"]
    assert read == read[:1] * 4
    assert nemotron_h.parse_config(BASE | {pattern: "*E"}).mtp is None


@pytest.mark.parametrize(
    "changes",
    [
        {"num_nextn_predict_layers": 2},
        {"num_nextn_predict_layers": 1, "mtp_hybrid_override_pattern": "ME"},
        {"num_nextn_predict_layers": 1, "mtp_use_rope": True},
    ],
)
def test_another_kind_of_head_is_left_out_and_named(changes: dict[str, Any], caplog: pytest.LogCaptureFixture) -> None:
    assert nemotron_h.parse_config(BASE | changes).mtp is None
    assert "drafting heads are left out" in caplog.text
    assert "found" in caplog.text


def test_a_head_of_recurrent_layers_does_not_exist() -> None:
    with pytest.raises(ConfigError, match="no recurrent layer"):
        MtpSpec(layers=(Mamba2Spec(heads=2, head_dim=4, groups=1, state=4),))


def test_a_checkpoint_without_the_heads_tensors_is_read_without_it(
    checkpoint: Path, caplog: pytest.LogCaptureFixture
) -> None:
    expected = make("drafting-head")
    without(checkpoint, lambda name: name.startswith("mtp."))
    model = load_model(checkpoint)
    assert "no file holds its mtp.* tensors" in caplog.text
    assert model.config.mtp is None
    assert read_config(checkpoint).mtp is not None
    ids = torch.from_numpy(inputs()[1])
    with torch.inference_mode():
        assert torch.equal(model(ids), expected(ids))


def test_a_missing_or_surplus_tensor_of_the_head_is_named(checkpoint: Path) -> None:
    edit_tensors(checkpoint, lambda tensors: tensors.update({"mtp.layers.2.norm.weight": torch.ones(64)}))
    with pytest.raises(CheckpointError, match=r"mtp\.layers\.2\.norm\.weight is not part of the model"):
        load_model(checkpoint)
    without(checkpoint, lambda name: name in ("mtp.layers.2.norm.weight", "mtp.layers.0.hnorm.weight"))
    with pytest.raises(CheckpointError, match=r"mtp\.layers\.0\.hnorm\.weight is missing"):
        load_model(checkpoint)


def test_a_head_that_the_config_does_not_state_is_ignored(checkpoint: Path) -> None:
    edit_config(checkpoint, num_nextn_predict_layers=0)
    assert load_model(checkpoint).config.mtp is None


def without(folder: Path, dropped: Callable[[str], bool]) -> None:
    tensors = load_file(folder / "model.safetensors")
    save_file({name: tensor for name, tensor in tensors.items() if not dropped(name)}, folder / "model.safetensors")


def test_a_student_has_no_head(caplog: pytest.LogCaptureFixture) -> None:
    teacher = make("drafting-head")
    ids = torch.from_numpy(inputs()[1])
    with caplog.at_level(logging.WARNING, logger="edge_export"):
        student = prune(teacher, StudentShape(hidden=32), measure(teacher, [Batch(ids, ids, (0,), ids.numel())]))
    assert "no drafting head" in caplog.text
    assert student.config.mtp is None
    assert student(ids).shape == (1, LENGTH, 48)


def test_training_runs_beside_the_head() -> None:
    model = make("dense-drafting-head")
    model(torch.from_numpy(inputs()[1])).sum().backward()
    trained = {name for name, parameter in model.named_parameters() if parameter.grad is not None}
    assert {name for name, _ in model.named_parameters()} - trained == {
        name for name, _ in model.named_parameters() if name.startswith("mtp.")
    }
