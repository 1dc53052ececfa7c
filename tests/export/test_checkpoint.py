"""Checkpoints with something wrong are refused by name, and configs of both dialects mean the same."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from edge_export.checkpoint import load_model, read_config, save_model
from edge_export.families import FAMILIES, nemotron_h
from edge_export.recipes import TrainRecipe, read_recipe
from edge_export.torch_model import HybridLM
from edge_sdk.errors import CheckpointError, ConfigError
from edge_sdk.model import Mamba2Spec, ModelConfig, MoeSpec
from places import WORKSTATION
from tiny import BASE, VARIANTS, make


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    save_model(make("plain"), tmp_path / "checkpoint")
    return tmp_path / "checkpoint"


def edit_tensors(folder: Path, edit: Callable[[dict[str, torch.Tensor]], object]) -> None:
    tensors = load_file(folder / "model.safetensors")
    edit(tensors)
    save_file(tensors, folder / "model.safetensors")


def edit_config(folder: Path, **changes: Any) -> None:
    raw = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(raw | changes))


def test_saving_and_loading_is_exact(checkpoint: Path) -> None:
    expected = make("plain").state_dict()
    found = load_model(checkpoint).state_dict()
    assert expected.keys() == found.keys()
    assert all(torch.equal(expected[name], found[name]) for name in expected)


@pytest.mark.parametrize(
    "name",
    ["backbone.layers.0.mixer.A_log", "backbone.layers.1.mixer.experts.3.up_proj.weight", "lm_head.weight"],
)
def test_a_missing_tensor_is_named(checkpoint: Path, name: str) -> None:
    edit_tensors(checkpoint, lambda tensors: tensors.pop(name))
    with pytest.raises(CheckpointError, match=f"{name} is missing"):
        load_model(checkpoint)


def test_a_misshapen_tensor_is_named_with_both_shapes(checkpoint: Path) -> None:
    name = "backbone.layers.1.mixer.experts.3.up_proj.weight"
    edit_tensors(checkpoint, lambda tensors: tensors.update({name: tensors[name][:-1].contiguous()}))
    with pytest.raises(CheckpointError, match=r"has shape \(31, 64\) instead of \(32, 64\)"):
        load_model(checkpoint)


def test_a_surplus_tensor_is_named_and_the_mtp_head_is_not(checkpoint: Path) -> None:
    edit_tensors(checkpoint, lambda tensors: tensors.update({"mtp.layers.0.norm.weight": torch.ones(64)}))
    load_model(checkpoint)
    edit_tensors(checkpoint, lambda tensors: tensors.update({"backbone.layers.9.norm.weight": torch.ones(64)}))
    with pytest.raises(CheckpointError, match=r"layers\.9\.norm\.weight is not part of the model"):
        load_model(checkpoint)


def test_a_truncated_file_is_refused(checkpoint: Path) -> None:
    path = checkpoint / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match="Copy it again"):
        load_model(checkpoint)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"model_type": "gpt2"}, "gpt2"),
        ({"model_type": None}, "model_type"),
        ({"mlp_hidden_act": "gelu"}, "mlp_hidden_act"),
        ({"sliding_window": 4096}, "sliding_window"),
        ({"layers_block_type": ["linear_attention", "convolution"]}, "convolution"),
        ({"mamba_num_heads": None}, "mamba_num_heads"),
        ({"mamba_num_heads": 5}, "multiple of 2 groups"),
        ({"num_experts_per_tok": 9}, "at most 8"),
        ({"layers_block_type": []}, "at least one layer"),
    ],
)
def test_an_unsupported_config_is_refused_by_name(checkpoint: Path, changes: dict[str, Any], expected: str) -> None:
    edit_config(checkpoint, **changes)
    with pytest.raises((CheckpointError, ConfigError), match=expected):
        load_model(checkpoint)


def test_no_config_and_no_json_are_refused(checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"config\.json"):
        read_config(tmp_path)
    (checkpoint / "config.json").write_text("{")
    with pytest.raises(CheckpointError, match="JSON"):
        read_config(checkpoint)


def test_the_old_dialect_means_the_same() -> None:
    old = dict(BASE) | {
        "hybrid_override_pattern": "ME*-ME",
        "mamba_num_groups": BASE["n_groups"],
        "mamba_state_dim": BASE["ssm_state_size"],
        "rms_norm_eps": 1e-5,
        "attention_head_dim": BASE["head_dim"],
    }
    for name in ("layers_block_type", "n_groups", "ssm_state_size", "head_dim"):
        del old[name]
    assert nemotron_h.parse_config(old) == nemotron_h.parse_config(BASE)


@pytest.mark.parametrize("variant", VARIANTS)
def test_parameters_are_counted_as_instantiated(variant: str) -> None:
    config = nemotron_h.parse_config(BASE | VARIANTS[variant])
    with torch.device("meta"):
        model = HybridLM(config)
    learnt = [parameter for parameter in model.parameters() if parameter.requires_grad]
    assert config.parameters() == sum(tensor.numel() for tensor in [*learnt, *model.buffers()])


def test_published_sizes_are_counted_as_published() -> None:
    """Nemotron 3 Nano 4B and 30B-A3B, from the values of their config.json."""
    nano_4b = {
        "hybrid_override_pattern": "M-M-M-MM-M-M*-M-M*-M-M-M*-M-M-MM*-MMM-M-M-",
        "hidden_size": 3136,
        "vocab_size": 131072,
        "mamba_num_heads": 96,
        "mamba_head_dim": 80,
        "n_groups": 8,
        "ssm_state_size": 128,
        "num_attention_heads": 40,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "intermediate_size": 12544,
    }
    assert round(nemotron_h.parse_config(nano_4b).parameters() / 1e9, 2) == 3.97
    nano_30b = nano_4b | {
        "hybrid_override_pattern": "MEMEM*EMEMEM*EMEMEM*EMEMEM*EMEMEM*EMEMEMEM*EMEMEMEME",
        "hidden_size": 2688,
        "mamba_num_heads": 64,
        "mamba_head_dim": 64,
        "num_attention_heads": 32,
        "num_key_value_heads": 2,
        "n_routed_experts": 128,
        "num_experts_per_tok": 6,
        "moe_intermediate_size": 1856,
        "moe_shared_expert_intermediate_size": 3712,
    }
    config = nemotron_h.parse_config(nano_30b)
    assert round(config.parameters() / 1e9, 1) == 31.6
    assert config.state_bytes(1, 1) - config.state_bytes(1, 0) == 6 * 1024
    assert FAMILIES["nemotron_h"] is nemotron_h


@settings(max_examples=60, deadline=None)
@given(heads=st.integers(-1, 8), groups=st.integers(-1, 8), experts=st.integers(0, 8), top_k=st.integers(0, 9))
def test_a_spec_that_exists_is_valid(heads: int, groups: int, experts: int, top_k: int) -> None:
    try:
        mamba = Mamba2Spec(heads=heads, head_dim=4, groups=groups, state=4)
        moe = MoeSpec(experts=experts, top_k=top_k, intermediate=4, shared_intermediate=4)
        config = ModelConfig(family="nemotron_h", vocab_size=8, hidden=8, layers=(mamba, moe))
    except ConfigError:
        assert heads < 1 or groups < 1 or heads % groups or not 0 < top_k <= experts
        return
    model = HybridLM(config)
    model.reset_parameters(0)
    zero = torch.zeros(1, dtype=torch.int64)
    logits, states = model.eval().step(zero[None], zero, zero, model.empty_states(1, capacity=4))
    assert logits.shape == (1, 1, 8)
    assert [tuple(state.shape) for state in states] == [spec.sized(batch=1) for spec in config.present_specs()]


def test_an_unknown_setting_of_a_recipe_is_named(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text("model: {}\nschedule: {steps: 3, learning_speed: 7}\n")
    with pytest.raises(ConfigError, match="learning_speed"):
        read_recipe(path, TrainRecipe)


def test_the_command_line_says_it_in_one_message(checkpoint: Path, tmp_path: Path) -> None:
    edit_config(checkpoint, model_type="gpt2")
    command = [WORKSTATION / "edge-export", "onnx", checkpoint, "--out", tmp_path / "graph"]
    result = subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=120, check=False)
    assert result.returncode == 1
    families = ", ".join(sorted(FAMILIES))
    assert result.stderr.startswith(f"error: config.json's model_type: expected one of {families}, found 'gpt2'")
    assert "Traceback" not in result.stderr
    assert not (tmp_path / "graph").exists()
