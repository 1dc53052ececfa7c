"""GPTQ against the method written out plainly, and the commands that use it."""

from __future__ import annotations

import copy
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import msgspec
import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import nn
from typer.testing import CliRunner

from edge_export.calibration import Sequences, _in_steps, batched, compare, read_sequences
from edge_export.checkpoint import Checkpoint, fingerprint, load_model, save_model
from edge_export.cli import app
from edge_export.gptq import DAMPING, MIN_TOKENS, Observed, gptq, solve_experts
from edge_export.pack import Storage, export_graph
from edge_export.plan import LEAVES, Level, Plan, quantizable, read_plan, total_bytes
from edge_export.quantize import convert, quantize_blocks
from edge_export.sensitivity import choose, measure
from edge_export.solve import solve
from edge_export.torch_layers import Experts
from edge_sdk.errors import ConfigError
from edge_sdk.text import TextCodec
from places import TEACHER
from tiny import make, relative_error

ROUTING = {"top_k": 1, "n_group": 1, "topk_group": 1, "norm_topk_prob": True, "routed_scaling_factor": 1.0}


def correlated(tokens: int, width: int) -> torch.Tensor:
    """Inputs (tokens, width) that depend on each other, one of them always zero."""
    torch.manual_seed(0)
    x = torch.randn(tokens, width) @ torch.randn(width, width)
    x[:, 3] = 0
    return x


def plainly(weight: np.ndarray, hessian: np.ndarray, bits: int, block_size: int) -> np.ndarray:
    """Optimal brain quantisation in the inputs' order: each error is spread by the inverse of what is left of H."""
    hessian, weight = hessian.copy(), weight.copy()
    diagonal = np.diagonal(hessian).copy()
    hessian += np.diag(np.where(diagonal == 0, 1.0, DAMPING * diagonal.mean()))
    done = np.zeros_like(weight)
    limit = 2 ** (bits - 1)
    for at in range(len(weight)):
        if at % block_size == 0:
            block = weight[at : at + block_size]
            extreme = np.take_along_axis(block, np.abs(block).argmax(0)[None], 0)[0]
            scale = (extreme / -limit).astype(np.float16).astype(np.float64)
        done[at] = np.clip(np.round(weight[at] / scale), -limit, limit - 1) * scale
        inverse = np.linalg.inv(hessian[at:, at:])
        weight[at:] -= np.outer(inverse[:, 0] / inverse[0, 0], weight[at] - done[at])
    return done


def values_of(found: tuple[torch.Tensor, torch.Tensor], block_size: int) -> torch.Tensor:
    return found[0] * found[1].repeat_interleave(block_size, -2)


@torch.no_grad()
def test_states_and_caches_are_rounded_from_step_to_step() -> None:
    model, ids = make("plain"), torch.arange(48).reshape(2, 24)

    def error(cache: str, state: str, step: int) -> float:
        changed = copy.copy(model)
        changed.config = msgspec.convert({"cache_dtype": cache, "state_dtype": state}, Storage).describe(model.config)
        return relative_error(_in_steps(changed, ids, step), model(ids))

    assert max(error("float32", "float32", step) for step in (1, 5)) < 1e-5
    assert 1e-5 < error("float16", "float32", 1) < error("int8", "float32", 1) < 1e-2
    assert 1e-5 < error("float32", "float16", 12) < error("float32", "float16", 1) < 1e-2


@pytest.mark.parametrize("bits", [4, 8])
def test_it_is_optimal_brain_quantisation(bits: int) -> None:
    x, weight = correlated(200, 64), torch.randn(64, 12)
    hessian = x.T @ x
    found = values_of(gptq(weight, hessian, bits, 16), 16)
    expected = plainly(weight.double().numpy(), hessian.double().numpy(), bits, 16)
    step = np.abs(expected).max() / 2 ** (bits - 1)
    different = np.abs(found.numpy() - expected) > step / 100
    assert different.mean() < 0.01  # float32 decides a tie otherwise, seldom
    rounded = values_of(quantize_blocks(weight, bits, 16), 16)
    assert (x @ (found - weight)).norm() < 0.8 * (x @ (rounded - weight)).norm()


def test_inputs_that_do_not_depend_on_each_other_are_rounded_to_nearest() -> None:
    weight = torch.randn(64, 12)
    for found, expected in zip(gptq(weight, torch.eye(64) * 3, 4, 32), quantize_blocks(weight, 4, 32)):
        assert torch.equal(found, expected)


def test_experts_are_solved_from_their_own_tokens_and_rounded_without_them() -> None:
    torch.manual_seed(0)
    experts = Experts(3, 32, 32, gated=False)
    nn.init.normal_(experts.up_weight)
    nn.init.normal_(experts.down_weight)
    x = correlated(4 * MIN_TOKENS, 32)[None]
    logits = torch.zeros(1, x.shape[1], 3)
    logits[:, :-5, 0] = 5.0
    logits[:, -5:, 1] = 5.0
    observed = Observed()
    observed.present = torch.ones(x.shape[:2], dtype=torch.bool)
    with observed.watching(experts):
        experts(x, logits, torch.zeros(3), **ROUTING)
    made = solve_experts(experts, observed, "", 4, 32)
    rounded = values_of(quantize_blocks(experts.up_weight, 4, 32), 32)
    assert not torch.equal(made.up.dequantized()[0], rounded[0])
    assert torch.equal(made.up.dequantized()[1:], rounded[1:])  # five tokens, and none
    mine = x[0, :-5]
    expected = gptq(experts.up_weight[0], mine.T @ mine, 4, 32)
    torch.testing.assert_close(made.up.dequantized()[0], values_of(expected, 32))


def test_padding_counts_for_nothing() -> None:
    linear = nn.Linear(8, 4)
    x = torch.randn(2, 5, 8)
    observed = Observed()
    observed.present = Sequences(torch.zeros(2, 5), torch.tensor([5, 2]), torch.tensor([1, 1])).present()
    with observed.watching(linear):
        linear(x)
    rows = torch.cat([x[0], x[1, :2]])
    torch.testing.assert_close(observed.hessians[""], rows.T @ rows)
    linear(x)  # no longer watched
    torch.testing.assert_close(observed.hessians[""], rows.T @ rows)


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    save_model(make("latent-experts"), tmp_path / "checkpoint")
    for name in ("tokenizer.json", "chat_template.jinja"):
        (tmp_path / "checkpoint" / name).write_bytes((TEACHER / name).read_bytes())
    return tmp_path / "checkpoint"


def random_batches() -> list[Sequences]:
    torch.manual_seed(1)
    return batched([(torch.randint(3, 24, (length,)).tolist(), 1) for length in range(4, 40)], tokens=256)


def made_plan(checkpoint: Path, leaves: dict[str, Level], method: str = "gptq") -> Plan:
    return msgspec.convert(
        {"checkpoint": fingerprint(checkpoint), "block_size": 32, "method": method, "leaves": leaves}, Plan
    )


def test_the_graph_holds_what_the_plan_says(checkpoint: Path, tmp_path: Path) -> None:
    """int4, int8 and float32 side by side: bytes, and logits of the graph against those of the torch model."""
    source = Checkpoint(checkpoint)
    names = list(quantizable(source.config))
    cycle: tuple[Level, ...] = ("int4", "int8", "float32")
    leaves: dict[str, Level] = {
        name: "int4" if name.endswith("experts") else cycle[at % 3] for at, name in enumerate(names)
    }
    plan, folder = made_plan(checkpoint, leaves), tmp_path / "plan"
    folder.mkdir()
    solve(source, plan, random_batches(), folder)
    assert len(list((folder / LEAVES).iterdir())) == sum(level != "float32" for level in leaves.values())
    (folder / "plan.json").write_bytes(msgspec.json.encode(plan))
    export_graph(checkpoint, tmp_path / "graph", Storage(cache_dtype="float32"), plan=folder)
    path = tmp_path / "graph" / "model.onnx"
    proto = onnx.load(str(path), load_external_data=False)
    held = sum(
        int(entry.value) for item in proto.graph.initializer for entry in item.external_data if entry.key == "length"
    )
    assert held == total_bytes(source.config, leaves, 32)
    model = convert(load_model(checkpoint), plan.convert(folder)).eval()
    model.config = Storage(cache_dtype="float32").describe(model.config)
    ids, zero, states = torch.arange(3, 15)[None], torch.zeros(1, dtype=torch.int64), model.empty_states(1, 16)
    options = onnxruntime.SessionOptions()
    options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", "1")  # else activations are rounded
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    inputs = (ids, zero, torch.arange(12), *states)
    feed = {item.name: tensor.numpy() for item, tensor in zip(session.get_inputs(), inputs)}
    with torch.no_grad():
        expected, _ = model.step(ids, zero, torch.arange(12), states)
    assert relative_error(torch.from_numpy(session.run(None, feed)[0]), expected) < 1e-4


def test_gptq_stays_closer_than_rounding_and_goes_on_where_it_was(checkpoint: Path, tmp_path: Path) -> None:
    source, batches, model = Checkpoint(checkpoint), random_batches(), load_model(checkpoint).eval()
    plan = made_plan(checkpoint, dict.fromkeys(quantizable(source.config), "int4"))
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        solve(source, plan, batches, tmp_path / name)
        if name == "one":
            continue
        for path in sorted((tmp_path / name / LEAVES).iterdir())[::2]:
            path.unlink()
        solve(source, plan, batches, tmp_path / name)
    for path in (tmp_path / "one" / LEAVES).iterdir():
        assert path.read_bytes() == (tmp_path / "two" / LEAVES / path.name).read_bytes()
    solved, rounded = (convert(load_model(checkpoint), plan.convert(folder)) for folder in (tmp_path / "one", None))
    assert compare(solved, model, batches).kl < 0.7 * compare(rounded, model, batches).kl


def test_sensitivities_and_budgets(checkpoint: Path) -> None:
    model, reference, batches = load_model(checkpoint), load_model(checkpoint), random_batches()
    found = measure(model, reference, batches, 32)
    assert compare(model, reference, batches).kl == pytest.approx(0, abs=1e-6)  # as it was
    assert found.keys() == quantizable(model.config).keys()
    assert all(of["int4"] > of["int8"] >= of["float32"] == 0 for of in found.values())
    sizes = {level: total_bytes(model.config, dict.fromkeys(found, level), 32) for level in ("int4", "int8")}
    divergences = []
    for budget in range(sizes["int4"], sizes["int8"] * 2, 20_000):
        chosen = choose(model.config, found, 32, budget)
        assert total_bytes(model.config, chosen, 32) <= budget
        divergences.append(sum(found[name][level] for name, level in chosen.items()))
    assert divergences[0] == sum(of["int4"] for of in found.values())
    assert divergences[-1] < divergences[len(divergences) // 4] < divergences[0]
    everything = choose(model.config, found, 32, 10**9)
    assert set(everything.values()) == {"int8", "float32"}  # experts are of integers
    with pytest.raises(ConfigError, match="budget"):
        choose(model.config, found, 32, sizes["int4"] - 1)


def test_the_command_writes_a_plan_and_a_report(checkpoint: Path, tmp_path: Path) -> None:
    data = tmp_path / "data.jsonl"
    pairs = [{"prompt": "walk left twice", "completion": "I_TURN_LEFT I_WALK I_TURN_LEFT I_WALK"}] * 3
    data.write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
    size = total_bytes(
        load_model(checkpoint).config, dict.fromkeys(quantizable(make("latent-experts").config), "int8"), 32
    )
    command = ["quantize", checkpoint, "--data", data, "--out", tmp_path / "plan", "--budget-gb", size / 1e9]
    result = CliRunner().invoke(app, list(map(str, command)), catch_exceptions=False)
    assert result.exit_code == 0, result.output
    rows = {row["setting"].split(":")[0]: row for row in json.loads((tmp_path / "plan" / "report.json").read_text())}
    assert rows["float32"]["kl"] == 0
    assert rows["float32"]["top1_agreement"] == 1
    assert rows["plan"]["bytes"] <= size < rows["float32"]["bytes"]
    assert read_plan(tmp_path / "plan").method == "gptq"
    states = {name: row for name, row in rows.items() if name.startswith(("cache", "state"))}
    assert {row["bytes"] for row in states.values()} == {rows["float32"]["bytes"]}
    order = ("state float16", "cache float16", "cache int8")
    sizes = [rows[name]["state_bytes"] for name in order]
    assert rows["float32"]["state_bytes"] > sizes[0] > sizes[1] > sizes[2]
    assert all(abs(row["kl"]) < 0.01 for row in states.values())
    save_model(make("latent-experts", seed=1), checkpoint)
    with pytest.raises(ConfigError, match="another checkpoint"):
        export_graph(checkpoint, tmp_path / "graph", Storage(), plan=tmp_path / "plan")


KILLED = """
import os, signal, sys
from edge_export import quantize_commands as commands
from edge_export.cli import app
original = commands.solve
def killed(source, plan, batches, folder, progress):
    def at(done, total):
        if done > total / 2:
            os.kill(os.getpid(), signal.SIGKILL)
    original(source, plan, batches, folder, at)
commands.solve = killed
app(sys.argv[1:])
"""


def test_a_killed_run_leaves_no_plan_and_is_gone_on_with(checkpoint: Path, tmp_path: Path) -> None:
    data = tmp_path / "data.txt"
    data.write_text("I_TURN_LEFT I_WALK I_JUMP I_RUN " * 30)

    def command(name: str) -> list[str]:
        options = ["--max-length", "40", "--no-report"]
        return ["quantize", str(checkpoint), "--data", str(data), "--out", str(tmp_path / name), *options]

    result = subprocess.run([sys.executable, "-c", KILLED, *command("out")], check=False)
    assert result.returncode == -signal.SIGKILL
    assert not (tmp_path / "out").exists()
    left = {path.name: path.stat().st_mtime_ns for path in (tmp_path / ".out.partial" / LEAVES).iterdir()}
    for name in ("out", "whole"):
        done = CliRunner().invoke(app, command(name), catch_exceptions=False)
        assert done.exit_code == 0, done.output
    leaves = {path.name: path for path in (tmp_path / "out" / LEAVES).iterdir()}
    assert 0 < len(left) < len(leaves)
    assert {name: leaves[name].stat().st_mtime_ns for name in left} == left  # not solved again
    for path in (tmp_path / "whole").rglob("*.*"):
        assert path.read_bytes() == (tmp_path / "out" / path.relative_to(tmp_path / "whole")).read_bytes()
    assert sorted(os.listdir(tmp_path)) == ["checkpoint", "data.txt", "out", "whole"]


def test_only_what_comes_after_the_prompt_is_scored(tmp_path: Path) -> None:
    codec, path = TextCodec(TEACHER), tmp_path / "data.jsonl"
    path.write_text('{"prompt": "walk", "completion": "I_WALK"}\n{"text": "walk left"}\n{"prompt": "walk"}\n')
    pair, text = read_sequences(path, codec, 2, samples=2, max_length=100)
    (batch,) = batched([pair, text])
    ids = [row[row_scored.nonzero()[:, 0] + 1].tolist() for row, row_scored in zip(batch.ids, batch.scored())]
    assert [*codec.encode("I_WALK"), 2] in ids
    assert [*codec.encode("walk left")[1:], 2] in ids
    with pytest.raises(ConfigError, match="line 3"):
        read_sequences(path, codec, 2, samples=3, max_length=100)
