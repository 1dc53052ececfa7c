"""Training data in its forms, budgets, the search for a student, and the command that prunes."""

from __future__ import annotations

import copy
import json
import re
from pathlib import Path

import pytest
import torch
import typer.testing
from hypothesis import given
from hypothesis import strategies as st

import scan
from edge_export.budget import Budget, step_ms, weight_bytes
from edge_export.checkpoint import load_model, read_config
from edge_export.cli import app
from edge_export.data import Batch, StoredSamples, collate
from edge_export.documents import Record, cut, read_records, samples_of, store_samples
from edge_export.importance import measure
from edge_export.pack import Storage
from edge_export.prune import prune, shrink
from edge_export.search import axis_sizes, by_zero_shot, candidates
from edge_sdk.errors import ConfigError
from edge_sdk.model import AttentionSpec, Mamba2Spec, MlpSpec, ModelConfig, RopeSpec
from edge_sdk.text import TextCodec
from edge_sdk.traffic import step_weight_bytes
from llm_checkpoints import SIZES
from places import ROOT, TEACHER
from tiny import make

CODEC = TextCodec(TEACHER)
GATED = MlpSpec(intermediate=64, activation="silu_gated")
WALK, RUN = (CODEC.encode(text) for text in ("I_WALK", "I_RUN I_RUN"))


@given(count=st.integers(0, 40), length=st.integers(1, 12))
def test_of_a_text_every_token_but_the_first_is_learnt_once(count: int, length: int) -> None:
    pieces = cut(range(count), length)
    assert [token for piece in pieces for token in piece.ids[1:]] == list(range(1, count))
    assert all(2 <= len(piece.ids) <= length + 1 and piece.prompt_length == 1 for piece in pieces)


def test_each_answer_of_a_conversation_is_learnt_after_what_came_before() -> None:
    messages = [
        {"role": "user", "content": "walk"},
        {"role": "assistant", "content": "I_WALK"},
        {"role": "user", "content": "run twice"},
        {"role": "assistant", "content": "I_RUN I_RUN"},
    ]
    first, second = samples_of(Record(messages=messages), CODEC, 2, None)  # type: ignore[arg-type]
    assert first.ids == (*CODEC.encode_prompt("walk"), *WALK, 2)
    assert list(first.ids[first.prompt_length :]) == [*WALK, 2]
    assert second.ids == (*CODEC.encode_prompt(messages[:3]), *RUN, 2)  # type: ignore[arg-type]
    assert list(second.ids[second.prompt_length :]) == [*RUN, 2]


def test_long_answers_are_cut_and_long_prompts_left_out() -> None:
    prompt = len(CODEC.encode_prompt("run twice"))
    record = Record(prompt="run twice", completion="I_RUN I_RUN")
    (short,) = samples_of(record, CODEC, 2, prompt)
    assert short.ids == (*CODEC.encode_prompt("run twice"), RUN[0])
    assert list(samples_of(record, CODEC, 2, prompt - 1)) == []


RECORDS = [
    {"text": "walk left run"},
    {"prompt": "walk", "completion": "I_WALK"},
    {"messages": [{"role": "user", "content": "run"}, {"role": "assistant", "content": "I_RUN"}]},
]


def write(folder: Path, suffix: str) -> Path:
    path = folder / f"data{suffix}"
    if suffix == ".parquet":
        parquet = pytest.importorskip("pyarrow.parquet", reason="the extra `parquet` is not installed")
        import pyarrow

        parquet.write_table(
            pyarrow.Table.from_pylist([dict.fromkeys(Record.__struct_fields__) | record for record in RECORDS]), path
        )
    else:
        path.write_text("".join(json.dumps(record | {"id": 1}) + "\n" for record in RECORDS))
    return path


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
def test_stored_samples_are_those_that_were_read(suffix: str, tmp_path: Path) -> None:
    path = write(tmp_path, suffix)
    expected = [sample for record in RECORDS for sample in samples_of(Record(**record), CODEC, 2, 8)]  # type: ignore[arg-type]

    def stored(length: int) -> StoredSamples:
        return store_samples(path, TEACHER, tmp_path / "stored", end=2, vocab_size=24, length=length)

    found = stored(8)
    assert list(found) == expected
    assert found.lengths.tolist() == [len(sample.ids) for sample in expected]
    written = (tmp_path / "stored" / "tokens").stat().st_mtime_ns
    stored(8)
    assert (tmp_path / "stored" / "tokens").stat().st_mtime_ns == written
    assert len(stored(2)) != len(found)


def test_the_template_for_base_models_in_the_docs_passes_text_on(tmp_path: Path) -> None:
    (template,) = re.findall(r"```jinja\n(.*?)\n```", (ROOT / "docs" / "export.md").read_text(), re.DOTALL)
    (tmp_path / "chat_template.jinja").write_text(template)
    (tmp_path / "tokenizer.json").write_bytes((TEACHER / "tokenizer.json").read_bytes())
    assert TextCodec(tmp_path).encode_prompt("walk left") == CODEC.encode("walk left")


def test_a_folder_is_read_file_by_file(tmp_path: Path) -> None:
    (tmp_path / "b.txt").write_text("walk\nrun")
    (tmp_path / "a.jsonl").write_text('{"text": "look"}\n')
    (tmp_path / "c.md").write_text("left out")
    assert [record.text for record in read_records(tmp_path)] == ["look", "walk\nrun"]


@pytest.mark.parametrize(
    "line",
    ['{"prompt": "walk"}', '{"text": "a", "messages": []}', "{}", '{"messages": [{"role": "user"}]}', "[", "\xff"],
)
def test_a_record_of_no_form_is_named(line: str, tmp_path: Path) -> None:
    path = tmp_path / "data.jsonl"
    path.write_bytes(b'{"text": "walk"}\n' + line.encode("latin-1") + b"\n")
    with pytest.raises(ConfigError, match="line 2"):
        list(read_records(path))


def test_what_is_no_parquet_file_is_named(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow", reason="the extra `parquet` is not installed")
    (tmp_path / "data.parquet").write_bytes(b"PAR1 and no more")
    with pytest.raises(ConfigError, match=r"data\.parquet"):
        list(read_records(tmp_path / "data.parquet"))


@pytest.mark.parametrize("variant", ["plain", "latent-experts", "projection-bias"])
@pytest.mark.parametrize("weights", ["float32", "bfloat16", "int8", "int4"])
def test_a_budgets_bytes_are_those_that_are_stored(variant: str, weights: str) -> None:
    storage, model = Storage(weights=weights), make(variant)  # type: ignore[arg-type]
    stored = storage.apply(copy.deepcopy(model))
    real = sum(tensor.nbytes for tensor in (*stored.parameters(), *stored.buffers()))
    assert weight_bytes(model.config, storage) == real


def test_a_steps_bytes_are_those_of_the_benchmark() -> None:
    """docs/benchmarks.md: 4b in int4 reads 2,437 MB a step, states and caches not counted."""
    config, storage = SIZES["4b"], Storage(weights="int4")
    assert step_weight_bytes(config, storage.weight_storage) == pytest.approx(2.437e9, rel=2e-3)
    # with a long context the caches are most of a step
    assert step_ms(config, storage, "orin-nano-8gb", 131072) > 1.5 * step_ms(config, storage, "orin-nano-8gb", 1)


@pytest.mark.parametrize("limits", [{}, {"params": 1.0, "gb": 1.0}, {"ms": 1.0}, {"ms": 1.0, "board": "rtx-3060"}])
def test_a_budget_is_one_limit_and_ms_need_a_known_board(limits: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match="expected"):
        Budget(**limits)  # type: ignore[arg-type]


@pytest.fixture(autouse=True)
def few_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edge_export.search.DRAWS", 1500)


@pytest.mark.parametrize(("seed", "share"), [(0, 0.7), (1, 0.85)])
def test_candidates_fit_the_budget_and_are_what_pruning_makes(seed: int, share: float) -> None:
    config, storage = make("plain").config, Storage(weights="int4")
    board = {"board": "agx-orin-64gb", "storage": storage}
    budget = Budget(ms=share * step_ms(config, storage, "agx-orin-64gb"), **board)  # type: ignore[arg-type]
    found = candidates(config, None, budget.cost, budget.limit, count=5, seed=seed)
    assert [item.kept for item in found] == sorted((item.kept for item in found), reverse=True)
    for item in found:
        assert item.cost == pytest.approx(budget.cost(item.config))
        assert item.cost <= budget.limit
        assert item.config == shrink(config, item.shape)


def test_a_budget_that_nothing_fits_says_what_would() -> None:
    with pytest.raises(ConfigError, match="at least"):
        candidates(make("plain").config, None, lambda config: config.parameters(), 1000, count=5)


def test_the_search_finds_what_does_nothing() -> None:
    """Half of the experts and of the MLP's channels are dead: of shapes without them the best has the lowest loss."""
    teacher = make("plain")
    with torch.no_grad():
        teacher.layers[3].mixer.up_proj.weight[32:] = 0.0
        teacher.layers[4].mixer.out_proj.weight.zero_()
    ids = torch.randint(0, 48, (4, 20), generator=torch.Generator().manual_seed(0))
    targets = teacher(ids).argmax(-1)
    batches = [Batch(ids, targets, (0, 1, 2, 3), targets.numel())]
    importance = measure(teacher, batches)
    size = teacher.config.parameters()
    found = by_zero_shot(
        teacher,
        importance,
        candidates(teacher.config, importance, lambda c: c.parameters(), 0.8 * size, count=12),
        batches,
    )
    losses = [item.loss for item in found]
    assert losses == sorted(losses)  # type: ignore[type-var]
    assert found[0].shape.layers["mamba2"] == 1
    assert prune(teacher, found[0].shape, importance).config == found[0].config


def test_axes_keep_what_kernels_and_groups_need() -> None:
    axes = axis_sizes(SIZES["4b"])
    assert set(axes["mamba_head_dim"]) == {32, 48, 64, 80}
    assert all(heads % 8 == 0 for heads in axes["mamba_heads"])
    assert all(hidden % 16 == 0 for hidden in axes["hidden"])
    assert axes["layers.attention"][-1] == sum(spec.kind == "attention" for spec in SIZES["4b"].layers)


def test_layers_of_blocks_stay() -> None:
    config = ModelConfig(
        family="llama",
        vocab_size=8,
        hidden=32,
        layers=(AttentionSpec(heads=2, kv_heads=2, head_dim=16, rope=RopeSpec(dims=16)), GATED) * 4,
    )
    axes = axis_sizes(config)
    assert axes["layers.attention"] == axes["layers.mlp"] == [4]
    assert axes["hidden"] == [16, 32]


def test_prune_writes_an_ordinary_smaller_checkpoint(tmp_path: Path) -> None:
    data, out = tmp_path / "data.jsonl", tmp_path / "student"
    scan.write_pairs(data, scan.simple_split()[0][:48])
    runner = typer.testing.CliRunner()
    common = ["prune", str(TEACHER), "--out", str(out), "--params", "300000", "--search", "3", "--samples", "32"]
    dry = runner.invoke(app, [*common, "--dry-run", "--board", "thor-t5000"], catch_exceptions=False)
    assert dry.exit_code == 0
    assert not out.exists()
    options = ["--data", str(data), "--try-steps", "2", "--threads", "1"]
    done = runner.invoke(app, [*common, *options], catch_exceptions=False)
    assert done.exit_code == 0
    config = read_config(out)
    assert 0.9 * 300_000 < config.parameters() <= 300_000
    assert (out / "tokenizer.json").exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data.jsonl", "student"]
    ids = collate(store_samples(data, out, tmp_path / "s", end=2, vocab_size=24), [0, 1]).input_ids
    assert torch.isfinite(load_model(out)(ids)).all()


def test_prune_to_sizes(tmp_path: Path) -> None:
    data, shape, out = tmp_path / "data.jsonl", tmp_path / "shape.yaml", tmp_path / "student"
    scan.write_pairs(data, scan.simple_split()[0][:8])
    shape.write_text("{hidden: 64, mamba_head_dim: 8, layers: {moe: 1}}")
    options = ["--out", out, "--data", data, "--shape", shape, "--threads", 1]
    done = typer.testing.CliRunner().invoke(app, list(map(str, ["prune", TEACHER, *options])), catch_exceptions=False)
    assert done.exit_code == 0
    config = read_config(out)
    assert (config.hidden, config.layers[0], config.pattern.count("E")) == (
        64,
        Mamba2Spec(heads=8, head_dim=8, groups=2, state=16),
        1,
    )


def test_a_dry_run_of_distilling_reads_no_weights(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_bytes((TEACHER / "config.json").read_bytes())
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("{budget: {params: 250000}, schedule: {steps: 10}}")
    options = ["--data", tmp_path / "none.jsonl", "--out", tmp_path / "run", "--dry-run"]
    done = typer.testing.CliRunner().invoke(app, list(map(str, ["distil", tmp_path, recipe, *options])))
    assert done.exit_code == 0, done.exception
    assert not (tmp_path / "run").exists()
    recipe.write_text("schedule: {steps: 10}")
    done = typer.testing.CliRunner().invoke(app, list(map(str, ["distil", tmp_path, recipe, *options])))
    assert "`student` or `budget`" in str(done.exception)
