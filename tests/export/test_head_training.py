"""Drafting heads that are trained: they learn, nothing else changes, and the graph drafts what torch drafted."""

from __future__ import annotations

import json
import logging
import signal
from pathlib import Path

import msgspec
import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from typer.testing import CliRunner

import edge_sdk
import scan
from edge_export.checkpoint import load_model, read_config, save_model
from edge_export.cli import app
from edge_export.data import Batch, Sample, collate
from edge_export.documents import Pair, tokenize
from edge_export.drafting_head import HeadLoss, HeadSchedule, drafts_of, drafts_right, head_spec, train_head
from edge_export.families import family_of, nemotron_h
from edge_export.pack import Storage
from edge_export.torch_model import HybridLM
from edge_export.training import InterruptedRunError
from edge_sdk import Bundle, LanguageModel
from edge_sdk.backends.ort_speculation import SpeculativeEngine
from edge_sdk.errors import CheckpointError, ConfigError
from edge_sdk.model import ModelConfig
from edge_sdk.text import TextCodec
from exported import bundle_of
from places import TEACHER
from test_drafting_head import Reference
from test_speculative_sessions import ATTENTION_ONLY, Eager, Hopeful
from tiny import BASE, make, relative_error

OFFICIAL = Path(__file__).parent / "official"
STORAGE = Storage(cache_dtype="float32", speculation=True)
DRAFTS = 3
LEARNT = HeadSchedule(steps=70, batch_size=16, learning_rate=5e-3, warmup_steps=5, drafts=DRAFTS)
SHORT = HeadSchedule(steps=6, batch_size=4, warmup_steps=2, save_every=2, drafts=2, average_decay=0.5)


def tokenized(pairs: list[tuple[str, str]]) -> list[Sample]:
    return tokenize([Pair(*pair) for pair in pairs], TextCodec(TEACHER), end=2)


@pytest.fixture(scope="module")
def samples() -> list[Sample]:
    return tokenized(scan.simple_split()[0][::8])


@pytest.fixture(scope="module")
def held_out() -> list[Sample]:
    return tokenized(scan.simple_split()[1][::40])


@pytest.fixture(scope="module")
def run(samples: list[Sample], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run's folder: SCAN's teacher with a head that was trained briefly, saved as ``model``."""
    out = tmp_path_factory.mktemp("head")
    save_model(train_head(load_model(TEACHER), samples, LEARNT, out), out / "model", tokenizer_from=TEACHER)
    return out


@pytest.fixture(scope="module")
def bundle(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """With a drafting head and float32 throughout."""
    return bundle_of(load_model(run / "model"), STORAGE, tmp_path_factory.mktemp("bundle"))


def untrained(model: HybridLM) -> HybridLM:
    """With the random head that training begins with."""
    model.add_head(head_spec(model.config))
    model.mtp.reset_parameters(LEARNT.seed)
    return model.eval()


def test_a_head_learns_and_drafts_right_what_it_never_saw(run: Path, held_out: list[Sample]) -> None:
    before, after = untrained(load_model(TEACHER)), load_model(run / "model").eval()
    batch = collate(held_out, range(32))
    with torch.inference_mode():
        losses = [float(HeadLoss(model, LEARNT)(model.mtp, batch)) for model in (before, after)]
    assert losses[1] < losses[0] / 2
    assert max(drafts_right(before, held_out, DRAFTS)) < 0.2
    assert min(drafts_right(after, held_out, DRAFTS)) > 0.5


def test_the_checkpoint_is_the_models_with_a_head(run: Path) -> None:
    theirs, ours = (load_file(folder / "model.safetensors") for folder in (TEACHER, run / "model"))
    assert all(torch.equal(ours[name], tensor) for name, tensor in theirs.items())
    assert {name.split(".")[0] for name in ours.keys() - theirs.keys()} == {"mtp"}
    raw = json.loads((run / "model" / "config.json").read_text())
    assert raw["num_nextn_predict_layers"] == 1
    assert raw["mtp_layers_block_type"] == ["full_attention", "moe"]
    assert msgspec.structs.replace(read_config(run / "model"), mtp=None) == read_config(TEACHER)


def test_the_graph_drafts_as_torch_and_as_the_published_description(run: Path, bundle: Bundle) -> None:
    """On the model's own hidden states, which the graph returns."""
    ids = np.array([tokenized([("walk around left twice", "I_TURN_LEFT I_WALK I_TURN_LEFT I_WALK")])[0].ids])
    model, engine = load_model(run / "model").eval(), SpeculativeEngine(bundle, threads=1, exact=True)
    states = engine.empty_states(1)
    engine.step(ids[:, :-1], states)
    hidden = engine.hidden_states(states).copy()
    assert engine.head is not None
    own, found = engine.head.empty_states(1), []
    for start, end in ((0, 4), (4, 5), (5, hidden.shape[1])):
        found.append(engine.head.step(hidden[:, start:end], ids[:, 1 + start : 1 + end], own, "all")[0])
    logits = torch.from_numpy(np.concatenate(found, axis=1)[0])
    with torch.inference_mode():
        inside = model.hidden_states(torch.from_numpy(ids[:, :-1]))
        expected = model.head(model.mtp(inside, model.embed(torch.from_numpy(ids[:, 1:])))[0])[0]
    assert relative_error(torch.from_numpy(hidden), inside) <= 1e-4
    assert relative_error(logits, expected) <= 1e-4
    described = Reference(run / "model")(inside[0], torch.from_numpy(ids[0, 1:]))[0]
    assert relative_error(expected, described) <= 1e-5


def test_answers_are_the_same_and_drafts_are_kept(bundle: Bundle) -> None:
    commands = [command for command, _ in scan.simple_split()[1][::500]]
    engine = SpeculativeEngine(bundle, threads=1, exact=True, follows=True)
    engine.times = Eager()
    drafting = LanguageModel(bundle, engine, speculation="head")
    drafting._acceptance = Hopeful()
    ways = [edge_sdk.load(bundle.path, threads=1, speculation=way) for way in ("off", "auto")]
    kept = trials = 0
    for command in commands:
        answers = []
        for model in (*ways, drafting):
            with model.session() as session:
                answers.append([token.token_id for token in session.stream(command, max_new_tokens=64)])
        assert answers[0] == answers[1] == answers[2]
        kept, trials = kept + session.speculation.accepted, trials + session.speculation.trials
    assert kept > 1.5 * trials > 0


@pytest.mark.parametrize("variant", ["drafting-head", "dense-drafting-head"])
def test_what_is_trained_is_what_is_used(variant: str) -> None:
    """Position by position from caches, which drafts are taken back from: those of the model's own are left alone."""
    model = STORAGE.apply(make(variant))
    ids = torch.randint(0, 48, (1, 14), generator=torch.Generator().manual_seed(0))
    batch = Batch(ids[:, :-1], ids[:, 1:], (0,), 13)
    with torch.inference_mode():
        trained = [draft.logits for draft in drafts_of(model, batch, DRAFTS)]
        hidden, states = model.hidden_states(batch.input_ids), model.empty_draft_states(1, 16)
        used: list[list[torch.Tensor]] = [[] for _ in range(DRAFTS)]
        for position in range(12):
            here, kept = hidden[:, position : position + 1], states
            for ahead in range(min(DRAFTS, 12 - position)):
                place, after = torch.tensor([position + ahead]), ids[:, position + ahead + 1 : position + ahead + 2]
                logits, here, states = model.draft(here, after, place, torch.tensor([0]), states)
                kept = states if ahead == 0 else kept
                used[ahead].append(logits[0, 0])
            states = kept
    for ours, theirs in zip(trained, used):
        assert relative_error(ours, torch.stack(theirs)) <= 1e-5


def test_a_draft_is_compared_with_the_token_it_stands_for(held_out: list[Sample]) -> None:
    indices = [5, 40, 90]
    model, batch = untrained(load_model(TEACHER)), collate(held_out, indices)
    with torch.inference_mode():
        logits = model(batch.input_ids)
        for number, draft in enumerate(drafts_of(model, batch, DRAFTS), 1):
            counted = torch.zeros_like(batch.counted)
            for row, index in enumerate(indices):  # from the second, third and so on token of the answer on
                counted[row, held_out[index].prompt_length - 1 + number : len(held_out[index].ids) - 1] = True
            assert torch.equal(draft.targets, batch.targets[counted])
            assert relative_error(draft.models, logits[counted]) <= 1e-5
    assert number == DRAFTS


def test_what_is_too_short_to_draft_teaches_nothing() -> None:
    model, batch = untrained(make("plain")), collate([Sample((3, 4), 1)], [0])
    model.requires_grad_(False)
    model.mtp.requires_grad_(True)
    loss = HeadLoss(model, SHORT)(model.mtp, batch)
    loss.backward()
    assert loss.item() == 0
    assert all(parameter.grad is None for parameter in model.parameters())


def test_the_data_can_be_the_teacher(samples: list[Sample]) -> None:
    model, batch = untrained(make("plain")), collate(samples, range(8))
    with torch.inference_mode():
        drafts = list(drafts_of(model, batch, 2))
        logits, targets = (torch.cat(parts) for parts in zip(*((draft.logits, draft.targets) for draft in drafts)))
        alone = HeadLoss(model, msgspec.structs.replace(SHORT, data_weight=1.0))(model.mtp, batch)
        model_s, half = (
            HeadLoss(model, msgspec.structs.replace(SHORT, data_weight=weight))(model.mtp, batch)
            for weight in (0.0, 0.5)
        )
    assert alone.item() == pytest.approx(float(torch.nn.functional.cross_entropy(logits, targets)), rel=1e-5)
    assert half.item() == pytest.approx((alone.item() + model_s.item()) / 2, rel=1e-5)
    assert alone.item() != pytest.approx(model_s.item(), rel=1e-3)


def test_an_interrupted_run_goes_on_to_the_same_bits(
    samples: list[Sample], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With experts whose load is balanced and averaged weights; the model itself is what it was."""
    schedule, calls = msgspec.structs.replace(SHORT, recompute=True), [0]
    given = {"checkpoint": "one"}
    whole = train_head(make("plain"), samples, schedule, tmp_path / "whole")
    loss = HeadLoss.__call__

    def interrupted(self: HeadLoss, head: torch.nn.Module, batch: object) -> torch.Tensor:
        calls[0] += 1
        if calls[0] == 4:
            signal.raise_signal(signal.SIGINT)
        return loss(self, head, batch)  # type: ignore[arg-type]

    monkeypatch.setattr(HeadLoss, "__call__", interrupted)
    with pytest.raises(InterruptedRunError, match="step 4 of 6"):
        train_head(make("plain"), samples, schedule, tmp_path / "cut", given=given)
    resumed = train_head(make("plain"), samples, schedule, tmp_path / "cut", given=given)
    assert calls == [6]
    before = make("plain").state_dict()
    for name, tensor in whole.state_dict().items():
        assert torch.equal(resumed.state_dict()[name], tensor), name
        assert name.startswith("mtp.") or torch.equal(tensor, before[name]), name
    random = untrained(make("plain")).mtp.state_dict()
    assert not any(torch.equal(tensor, random[name]) for name, tensor in whole.mtp.state_dict().items())
    with pytest.raises(CheckpointError, match="the same checkpoint"):
        train_head(make("plain"), samples, schedule, tmp_path / "cut", given={"checkpoint": "another"})


def test_a_head_that_is_there_is_trained_on(samples: list[Sample], tmp_path: Path) -> None:
    schedule = HeadSchedule(steps=1, batch_size=4, learning_rate=0.0)
    trained = train_head(make("drafting-head"), samples, schedule, tmp_path).state_dict()
    before = make("drafting-head").state_dict()
    bias = "e_score_correction_bias"  # which learns without a rate
    assert all(torch.equal(tensor, before[name]) for name, tensor in trained.items() if not name.endswith(bias))


def kinds(config: ModelConfig, letters: str | None = None) -> list[str]:
    return [spec.kind for spec in head_spec(config, letters).layers]


def test_a_heads_layers_are_like_the_models() -> None:
    assert kinds(make("plain").config) == ["attention", "moe"]
    assert kinds(make("plain").config, "-") == ["mlp"]
    assert kinds(make("no-experts").config) == ["attention", "mlp"]
    assert kinds(nemotron_h.parse_config(ATTENTION_ONLY), "*") == ["attention"]
    assert head_spec(make("dense-drafting-head").config) == make("dense-drafting-head").config.mtp
    for name, pattern in (("nemotron-nano-9b-v2", "*-"), ("nemotron-3-nano-30b-a3b", "*E")):
        official = read_config(OFFICIAL / f"{name}.json")
        assert all(spec in official.layers for spec in head_spec(official).layers)
        assert kinds(official) == kinds(official, pattern)


@pytest.mark.parametrize(
    ("model", "letters", "message"),
    [
        (make("plain").config, "M*", r"expected some of \*, E, -.*found M\*"),
        (make("plain").config, "", "found none"),
        (make("no-experts").config, "*E", r"expected some of \*, -"),
        (make("only-mamba").config, "*", "expected some of -,"),
        (
            msgspec.structs.replace(make("only-mamba").config, layers=make("only-mamba").config.layers[:1]),
            None,
            "other layers than Mamba-2",
        ),
        (make("drafting-head").config, "*-", r"expected \*E, as the model's head"),
        (read_config(OFFICIAL / "nemotron-labs-3-puzzle-75b-a9b.json"), None, "found nemotron_h_puzzle"),
    ],
)
def test_a_head_that_cannot_be_is_refused(model: ModelConfig, letters: str | None, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        head_spec(model, letters)


def test_a_family_without_heads_is_refused() -> None:
    raw = {
        "model_type": "llama",
        "vocab_size": 48,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 64,
    }
    with pytest.raises(ConfigError, match="found llama"):
        head_spec(family_of(raw).parse_config(raw))


@pytest.mark.parametrize("settings", [{"drafts": 0}, {"data_weight": 1.5}, {"data_weight": -0.1}, {"packing": True}])
def test_a_schedule_that_means_nothing_is_refused(settings: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match=r"drafts of 1 or more|false for a drafting head"):
        HeadSchedule(steps=1, **settings)  # type: ignore[arg-type]


def invoke(*words: object) -> None:
    CliRunner().invoke(app, [str(word) for word in words], catch_exceptions=False)


def test_the_command(tmp_path: Path) -> None:
    recipe, out = tmp_path / "recipe.yaml", tmp_path / "run"
    recipe.write_text("{layers: '*-', schedule: {steps: 2, batch_size: 4, drafts: 2}}")
    scan.write_pairs(tmp_path / "train.jsonl", scan.simple_split()[0][:20])
    scan.write_pairs(tmp_path / "test.jsonl", scan.simple_split()[1][:20])
    options = ["--data", tmp_path / "train.jsonl", "--threads", 1, "--out", out]
    invoke("head", TEACHER, recipe, *options, "--test", tmp_path / "test.jsonl")
    report = json.loads((out / "report.json").read_text())
    assert report["head_parameters"] + read_config(TEACHER).parameters() == report["parameters"]
    assert 0 <= report["draft_1_right"] <= 1
    assert "draft_2_right" in report
    assert "draft_3_right" not in report
    assert kinds(load_model(out / "model").config) == ["attention", "mlp"]
    assert (out / "model" / "tokenizer.json").read_bytes() == (TEACHER / "tokenizer.json").read_bytes()
    assert (out / "loss.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(CheckpointError, match="the same checkpoint"):
        invoke("head", out / "model", recipe, *options)
    recipe.write_text("{layer: '*-', schedule: {steps: 2}}")
    with pytest.raises(ConfigError, match="layer"):
        invoke("head", TEACHER, recipe, *options)


def test_training_a_model_says_what_becomes_of_its_head(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    scan.write_pairs(tmp_path / "train.jsonl", scan.simple_split()[0][:20])
    model = BASE | {"num_nextn_predict_layers": 1}
    recipe = tmp_path / "recipe.yaml"
    recipe.write_bytes(msgspec.yaml.encode({"model": model, "schedule": {"steps": 1, "batch_size": 4}}))
    options = ["--tokenizer", TEACHER, "--data", tmp_path / "train.jsonl", "--threads", 1, "--out", tmp_path / "run"]
    with caplog.at_level(logging.WARNING, logger="edge_export"):
        invoke("train", recipe, *options)
    assert "edge-export head" in caplog.text
