"""Mamba-2 checkpoints in transformers' format (Dao and Gu 2024, arXiv 2405.21060): nothing but Mamba-2 layers."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from edge_export.families import common
from edge_export.tensors import TensorMap
from edge_sdk.model import Mamba2Spec, ModelConfig

FIXED = {"hidden_act": "silu", "rms_norm": True}

MAX_LENGTH = 2**20
"""Tokens: the state bounds nothing and the config names no limit."""


@common.strict(FIXED, ignored={"expand", "chunk_size", "max_position_embeddings"})
def parse_config(raw: common.Config) -> ModelConfig:
    """A ModelConfig from the parsed config.json; refuses by name what it does not support."""
    layer = Mamba2Spec(
        heads=common.get(raw, "num_heads"),
        head_dim=common.get(raw, "head_dim"),
        groups=raw.get("n_groups", 8),
        state=raw.get("state_size", 128),
        conv_kernel=raw.get("conv_kernel", 4),
        proj_bias=raw.get("use_bias", False),
        conv_bias=raw.get("use_conv_bias", True),
        **common.time_step_limit(raw),
    )
    return ModelConfig(
        family="mamba2",
        vocab_size=common.get(raw, "vocab_size"),
        hidden=common.get(raw, "hidden_size"),
        layers=(layer,) * common.get(raw, "num_hidden_layers"),
        norm_eps=raw.get("layer_norm_epsilon", 1e-5),
        tie_embeddings=raw.get("tie_word_embeddings", False),
        max_length=MAX_LENGTH,
        **common.special_tokens(raw),
    )


def format_config(config: ModelConfig) -> dict[str, Any]:
    """The config.json of a ModelConfig."""
    layer = common.the_one(config, Mamba2Spec)
    return common.format_base(config, "Mamba2ForCausalLM") | {
        "expand": common.expansion(layer, config.hidden),
        "num_hidden_layers": len(config.layers),
        "num_heads": layer.heads,
        "head_dim": layer.head_dim,
        "n_groups": layer.groups,
        "state_size": layer.state,
        "conv_kernel": layer.conv_kernel,
        "use_bias": layer.proj_bias,
        "use_conv_bias": layer.conv_bias,
        "time_step_limit": common.format_time_step_limit(layer),
        "layer_norm_epsilon": config.norm_eps,
    }


def tensor_maps(config: ModelConfig) -> Iterator[TensorMap]:
    """Which tensors of the checkpoint make each of ours."""
    yield TensorMap("embeddings.weight", ("backbone.embeddings.weight",))
    for index, spec in enumerate(config.layers):
        assert isinstance(spec, Mamba2Spec)
        yield TensorMap(f"layers.{index}.norm.weight", (f"backbone.layers.{index}.norm.weight",))
        yield from common.mamba2_maps(f"layers.{index}.mixer", f"backbone.layers.{index}.mixer", spec)
    yield TensorMap("norm_f.weight", ("backbone.norm_f.weight",))
    if not config.tie_embeddings:
        yield TensorMap("lm_head.weight", ("lm_head.weight",))
