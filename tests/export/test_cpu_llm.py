"""The whole-model benchmark: its checkpoints are real ones, and its tables say what was measured."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import onnx
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import cpu_llm
import llm_checkpoints
from edge_export.checkpoint import TensorFiles, load_model, read_config
from edge_sdk.errors import CheckpointError, ConfigError
from edge_sdk.model import MoeSpec
from edge_sdk.text import TextCodec
from tiny import relative_error

FAKE_LLAMA_BENCH = """#!{python}
import json, sys
option = dict(zip(sys.argv[1::2], sys.argv[2::2]))
tests = [(int(option["-p"]), 0), (0, int(option["-n"]))]
entries = [
    dict(n_prompt=prompt, n_gen=gen, n_depth=int(depth), avg_ns=10**9, build_commit="0123abc")
    for depth in option["-d"].split(",") for prompt, gen in tests
]
print(json.dumps(entries))
"""


def command(*arguments: object) -> None:
    options = cpu_llm.command_line().parse_args([str(argument) for argument in arguments])
    options.function(options)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("moe")
    command("make", folder / "model", "--size", "tiny-moe")
    command("export", folder / "model", "--weights", "int4", "--out", folder / "int4")
    return folder / "int4"


@pytest.mark.parametrize("size", ["tiny", "tiny-moe"])
def test_transformers_and_we_read_the_same_model(size: str, tmp_path: Path) -> None:
    llm_checkpoints.make(tmp_path, size, shard_bytes=200_000)
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    assert read_config(tmp_path) == llm_checkpoints.SIZES[size]
    ids = torch.randint(0, 320, (1, 100), generator=torch.Generator().manual_seed(0))
    theirs, report = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32, output_loading_info=True)
    assert not any(report.values()), report
    with torch.inference_mode():
        ours = load_model(tmp_path)(ids)[0]
        assert relative_error(ours, theirs(ids).logits) <= 1e-4
    assert 0.5 < ours.std() < 2.0
    text = "walk, träge 走 th\n"
    assert TextCodec(tmp_path).encode(text) == AutoTokenizer.from_pretrained(tmp_path)(text)["input_ids"]
    assert TextCodec(tmp_path).decode(TextCodec(tmp_path).encode(text)) == text


def test_a_checkpoint_is_the_same_however_it_is_written(tmp_path: Path) -> None:
    command("make", tmp_path / "whole", "--size", "tiny")
    llm_checkpoints.make(tmp_path / "shards", "tiny", shard_bytes=100_000)
    whole, shards = TensorFiles(tmp_path / "whole"), TensorFiles(tmp_path / "shards")
    assert set(whole) == set(shards)
    assert all(torch.equal(whole.read([name])[0], shards.read([name])[0]) for name in whole)
    assert (
        json.loads((tmp_path / "whole" / "config.json").read_text())
        .keys()
        .isdisjoint({"num_experts_per_tok", "n_routed_experts", "layers_block_type"})
    )


def test_the_sizes_are_those_that_are_said() -> None:
    sizes = {name: config.parameters() for name, config in llm_checkpoints.SIZES.items()}
    assert (sizes["260m"], sizes["260m-moe"], sizes["4b"]) == (259_633_184, 564_376_224, 3_973_556_832)
    sparse = next(spec for spec in llm_checkpoints.SIZES["260m-moe"].layers if isinstance(spec, MoeSpec))
    idle = 2 * (sparse.experts - sparse.top_k) * sparse.latent * sparse.intermediate
    assert sparse.parameters(1024) - idle == pytest.approx(2 * 1024 * 4096, rel=0.02)


def test_a_run_beside_llama_bench(bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    program = tmp_path / "llama-bench"
    program.write_text(FAKE_LLAMA_BENCH.format(python=sys.executable))
    program.chmod(0o755)
    command(
        *("run", "--ours", bundle, "--llama-bench", program, "--gguf", "Q4_0=q4.gguf", "Q8_0=q8.gguf"),
        *("--rounds", 2, "--prefill", 16, "--decode", 4, "--contexts", 0, 8, "--json", tmp_path / "samples.json"),
    )
    report = capsys.readouterr().out
    samples = json.loads((tmp_path / "samples.json").read_text())["samples"]
    assert {name: len(found) for name, found in samples.items()} == {
        "Edge SDK int4": 8,
        "llama.cpp Q4_0": 8,
        "llama.cpp Q8_0": 8,
    }
    for context in (0, 8):
        rates = {
            kind: sorted(
                sample["task"]["tokens"] / sample["seconds"]
                for sample in samples["Edge SDK int4"]
                if (sample["task"]["kind"], sample["task"]["context"]) == (kind, context)
            )
            for kind in ("prefill", "decode")
        }
        prefill, decode = (sum(found) / 2 for found in rates.values())
        assert f"| Edge SDK int4 | {prefill:,.1f} | {decode:,.1f} |" in report
        assert f"| int4 | {context} | {prefill / 16:.2f} (Q4_0) | {decode / 4:.2f} (Q4_0) |" in report
    assert "llama.cpp 0123abc" in report


def test_of_the_experts_only_the_chosen_are_counted_as_read(bundle: Path) -> None:
    tensors = onnx.load(str(bundle / "model.onnx"), load_external_data=False).graph.initializer
    sizes = {tensor.name: cpu_llm.stored_bytes(onnx, tensor) for tensor in tensors}
    experts = sum(sizes[tensor.name] for tensor in tensors if list(tensor.dims[:1]) == [8] and len(tensor.dims) == 3)
    (embedding,) = (sizes[tensor.name] for tensor in tensors if list(tensor.dims) == [320, 64])
    assert experts > 2 * 2 * 8 * 32 * 32 / 2  # two layers, two matrices, int4 with scales
    assert cpu_llm.weights_read(bundle) == sum(sizes.values()) - experts * 6 / 8 - embedding * 319 / 320


def test_a_context_longer_than_the_models_is_refused(bundle: Path) -> None:
    with pytest.raises(ConfigError, match="expected a context of 16896 tokens, found 16384"):
        command("run", "--ours", bundle, "--contexts", 16384)


def test_a_folder_that_holds_something_else_is_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(CheckpointError, match="something else"):
        llm_checkpoints.make(tmp_path, "tiny")
    assert (tmp_path / "thesis.tex").exists()
