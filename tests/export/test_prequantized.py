"""FP8 and NVFP4 checkpoints: those that other programs wrote, against an independent decoding; and their import."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM
from typer.testing import CliRunner

from edge_export import importing
from edge_export.checkpoint import Checkpoint, TensorFiles, load_model
from edge_export.cli import app
from edge_export.importing import import_checkpoint
from edge_export.pack import Storage, export_graph
from edge_export.prequantized import decode_fp8
from edge_sdk.errors import CheckpointError
from tiny import relative_error

CHECKPOINTS = Path(__file__).parent / "checkpoints"
KINDS = ["modelopt-fp8", "modelopt-nvfp4"]


@pytest.fixture(params=KINDS)
def checkpoint(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    shutil.copytree(CHECKPOINTS / request.param, tmp_path / "checkpoint")
    return tmp_path / "checkpoint"


def decoded(tensors: dict[str, torch.Tensor], name: str) -> torch.Tensor:
    """A weight by other means: torch's and ml_dtypes' own types."""
    weight = tensors[name]
    if weight.dtype == torch.float8_e4m3fn:
        return weight.float() * tensors[f"{name}_scale"]
    if weight.dtype != torch.uint8:
        return weight.float()
    halves = np.stack([weight.numpy() & 15, weight.numpy() >> 4], -1).reshape(len(weight), -1)
    values = halves.view(ml_dtypes.float4_e2m1fn).astype(np.float32)
    scales = np.repeat(tensors[f"{name}_scale"].float().numpy(), 16, axis=1)
    return torch.from_numpy(values * scales * tensors[f"{name}_scale_2"].numpy())


def edit_config(folder: Path, **changes: Any) -> None:
    raw = json.loads((folder / "config.json").read_text())
    raw["quantization_config"] |= changes
    (folder / "config.json").write_text(json.dumps(raw))


def test_every_weight_is_what_another_decoding_says(checkpoint: Path) -> None:
    tensors, files = load_file(checkpoint / "model.safetensors"), Checkpoint(checkpoint).files
    assert set(files) == {name for name in tensors if "_scale" not in name}
    quantized = [name for name in files if files.quantized(name)]
    assert len(quantized) == 14
    for name in files:
        (found,) = files.read([name])
        assert tuple(found.shape) == files[name]
        torch.testing.assert_close(found.float(), decoded(tensors, name), rtol=1e-6, atol=0)


def test_compressed_tensors_weights_are_what_its_own_decoder_makes() -> None:
    config = {"quant_method": "compressed-tensors", "format": "nvfp4-pack-quantized"}
    stored = load_file(CHECKPOINTS / "compressed-tensors-nvfp4.safetensors")
    expected = stored.pop("expected")
    folder = CHECKPOINTS
    (found,) = TensorFiles(folder, config).read(["linear.weight"])
    assert torch.equal(found.bfloat16(), expected)


def test_the_logits_are_those_that_transformers_computes_from_the_imported(checkpoint: Path, tmp_path: Path) -> None:
    import_checkpoint(checkpoint, tmp_path / "out", "float32")
    ids = torch.arange(12)[None]
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32).eval()
    with torch.no_grad():
        expected, found = theirs(ids, use_cache=False).logits, load_model(checkpoint)(ids)
        again = load_model(tmp_path / "out")(ids)
    assert relative_error(found, expected) < 1e-4
    assert torch.equal(found, again)


def test_a_graph_is_exported_from_it(checkpoint: Path, tmp_path: Path) -> None:
    export_graph(checkpoint, tmp_path / "graph", Storage(weights="int8", block_size=16))
    assert (tmp_path / "graph" / "model.onnx").exists()


@pytest.mark.parametrize("missing", ["weight_scale", "weight_scale_2"])
def test_a_missing_scale_is_named(tmp_path: Path, missing: str) -> None:
    folder = tmp_path / "checkpoint"
    shutil.copytree(CHECKPOINTS / "modelopt-nvfp4", folder)
    tensors = load_file(folder / "model.safetensors")
    del tensors[f"backbone.layers.2.mixer.q_proj.{missing}"]
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(CheckpointError, match=rf"q_proj\.{missing} is missing"):
        Checkpoint(folder)


def test_scales_of_another_shape_are_named(tmp_path: Path) -> None:
    folder = tmp_path / "checkpoint"
    shutil.copytree(CHECKPOINTS / "modelopt-nvfp4", folder)
    tensors = load_file(folder / "model.safetensors")
    tensors["backbone.layers.2.mixer.q_proj.weight_scale"] = torch.ones(32, 3).to(torch.float8_e4m3fn)
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"scales of backbone\.layers\.2\.mixer\.q_proj\.weight"):
        Checkpoint(folder)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"quant_algo": "W4A16_AWQ"}, "W4A16_AWQ"),
        (
            {"quant_algo": "MIXED_PRECISION", "quantized_layers": {"layers.7.up": {"quant_algo": "NVFP4_SVD"}}},
            r"layers\.7\.up.*NVFP4_SVD",
        ),
        ({"quant_method": "gptq"}, "'gptq'"),
        ({"quant_method": "compressed-tensors", "format": "pack-quantized"}, "pack-quantized"),
        (
            {
                "quant_method": "compressed-tensors",
                "format": "naive-quantized",
                "config_groups": {"group_0": {"weights": {"type": "int", "num_bits": 8}}},
            },
            "int8",
        ),
    ],
)
def test_another_algorithm_is_refused_by_name(checkpoint: Path, changes: dict[str, Any], expected: str) -> None:
    edit_config(checkpoint, **changes)
    with pytest.raises(CheckpointError, match=expected):
        Checkpoint(checkpoint)


def test_mixed_layers_and_the_older_config_file_are_read(checkpoint: Path) -> None:
    expected = Checkpoint(checkpoint).tensor("layers.1.mixer.experts.up_weight")
    raw = json.loads((checkpoint / "config.json").read_text())
    algorithm = raw.pop("quantization_config")["quant_algo"]
    (checkpoint / "config.json").write_text(json.dumps(raw))
    assert torch.equal(Checkpoint(checkpoint).tensor("layers.1.mixer.experts.up_weight"), expected)
    layers = {"backbone.layers.1.mixer.experts.0.up_proj": {"quant_algo": algorithm}}
    mixed = {"quantization": {"quant_algo": "MIXED_PRECISION", "quantized_layers": layers}}
    (checkpoint / "hf_quant_config.json").write_text(json.dumps(mixed))
    assert torch.equal(Checkpoint(checkpoint).tensor("layers.1.mixer.experts.up_weight"), expected)
    (checkpoint / "hf_quant_config.json").write_text("{}")
    with pytest.raises(CheckpointError, match="hf_quant_config"):
        Checkpoint(checkpoint)


def test_fp8_and_nvfp4_in_one_checkpoint_are_read(tmp_path: Path) -> None:
    """As in Nemotron 3's NVFP4 releases: experts in NVFP4, Mamba-2's projections in FP8, the rest as it was."""
    folder = tmp_path / "checkpoint"
    shutil.copytree(CHECKPOINTS / "modelopt-nvfp4", folder)
    tensors, fp8 = (load_file(CHECKPOINTS / kind / "model.safetensors") for kind in ("modelopt-nvfp4", "modelopt-fp8"))
    projections = ("mixer.in_proj.", "mixer.out_proj.")
    kept = {name: tensor for name, tensor in tensors.items() if not any(part in name for part in projections)}
    mixed = kept | {name: tensor for name, tensor in fp8.items() if any(part in name for part in projections)}
    save_file(mixed, folder / "model.safetensors")
    algorithms = {
        name.removesuffix(".weight"): {"quant_algo": "FP8" if mixed[name].dtype == torch.float8_e4m3fn else "NVFP4"}
        for name in mixed
        if name.endswith(".weight") and mixed[name].dtype in (torch.float8_e4m3fn, torch.uint8)
    }
    assert {settings["quant_algo"] for settings in algorithms.values()} == {"FP8", "NVFP4"}
    edit_config(folder, quant_algo="MIXED_PRECISION", quantized_layers=algorithms)
    files = Checkpoint(folder).files
    assert {files.kind(name) for name in files} == {"plain", "fp8", "nvfp4"}
    for name in files:
        (found,) = files.read([name])
        torch.testing.assert_close(found.float(), decoded(mixed, name), rtol=1e-6, atol=0)


def test_scales_of_the_cache_are_no_weights(checkpoint: Path) -> None:
    tensors = load_file(checkpoint / "model.safetensors")
    tensors["backbone.layers.2.mixer.k_proj.k_scale"] = torch.ones(())
    save_file(tensors, checkpoint / "model.safetensors")
    Checkpoint(checkpoint)


def test_fp8_scales_of_rows_and_of_blocks() -> None:
    values = torch.arange(1, 13).reshape(3, 4).to(torch.float8_e4m3fn)
    rows, blocks = torch.tensor([1.0, 2.0, 4.0]), torch.tensor([[1.0, 2.0], [4.0, 8.0]])
    assert decode_fp8(values, rows)[2].tolist() == [36, 40, 44, 48]
    assert torch.equal(decode_fp8(values, rows), decode_fp8(values, rows[:, None]))
    expected = [[1, 2, 6, 8], [5, 6, 14, 16], [36, 40, 88, 96]]
    assert decode_fp8(values, blocks).tolist() == expected
    assert decode_fp8(values, blocks.reshape(2, 1, 2, 1)).tolist() == expected


KILLED = """
import os, signal, sys
from pathlib import Path
from edge_export import importing
importing.SHARD_BYTES = 2000
def progress(done, total):
    if done > total / 2:
        os.kill(os.getpid(), signal.SIGKILL)
importing.import_checkpoint(Path(sys.argv[1]), Path(sys.argv[2]), progress=progress)
"""


def test_a_killed_import_goes_on_where_it_was(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importing, "SHARD_BYTES", 2000)
    import_checkpoint(checkpoint, tmp_path / "whole")
    result = subprocess.run([sys.executable, "-c", KILLED, checkpoint, tmp_path / "out"], check=False)
    assert result.returncode == -signal.SIGKILL
    assert not (tmp_path / "out").exists()
    read: list[str] = []
    original = TensorFiles.read

    def noting(self: TensorFiles, names: Sequence[str]) -> list[torch.Tensor]:
        read.extend(names)
        return original(self, names)

    monkeypatch.setattr(TensorFiles, "read", noting)
    import_checkpoint(checkpoint, tmp_path / "out")
    files = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    assert files == {path.name: path.read_bytes() for path in (tmp_path / "whole").iterdir()}
    assert 0 < len(read) < len(TensorFiles(tmp_path / "out")) * 0.7
    assert sorted(os.listdir(tmp_path)) == ["checkpoint", "out", "whole"]
    index = json.loads(files["model.safetensors.index.json"])
    assert len(set(index["weight_map"].values())) > 5
    assert "quantization_config" not in json.loads(files["config.json"])


def test_vectors_keep_their_type_and_matrices_get_the_one_asked_for(checkpoint: Path, tmp_path: Path) -> None:
    for dtype in ("float32", "bfloat16"):
        command = ["import", checkpoint, "--out", tmp_path / dtype, "--dtype", dtype]
        result = CliRunner().invoke(app, list(map(str, command)), catch_exceptions=False)
        assert result.exit_code == 0, result.output
        (path,) = (tmp_path / dtype).glob("*.safetensors")
        tensors = load_file(path)
        assert tensors["backbone.layers.0.mixer.A_log"].dtype == torch.bfloat16
        assert tensors["backbone.layers.0.mixer.in_proj.weight"].dtype == getattr(torch, dtype)


def test_a_disk_without_room_leaves_no_folder(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: type("Usage", (), {"free": 1000})())
    with pytest.raises(OSError, match="of room"):
        import_checkpoint(checkpoint, tmp_path / "out")
    assert not (tmp_path / "out").exists()
