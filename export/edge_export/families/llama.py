"""Llama 2 and 3 checkpoints (arXiv 2307.09288, 2407.21783): attention with RoPE and gated MLPs in turn."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from edge_export.families import common
from edge_export.tensors import TensorMap
from edge_sdk.model import AttentionSpec, MlpSpec, ModelConfig

FIXED = {"hidden_act": "silu", "pretraining_tp": 1}
"""Settings that must have this value where they are given."""


@common.strict(FIXED)
def parse_config(raw: common.Config) -> ModelConfig:
    """A ModelConfig from the parsed config.json; refuses by name what it does not support."""
    head_dim = raw.get("head_dim") or common.get(raw, "hidden_size") // common.get(raw, "num_attention_heads")
    return decoder(raw, "llama", common.parse_attention(raw, head_dim))


def decoder(raw: common.Config, family: str, attention: AttentionSpec) -> ModelConfig:
    """A decoder whose blocks all have this attention and a gated MLP."""
    for kind in raw.get("layer_types") or ():
        common.require({"layer_types": kind}, {"layer_types": "full_attention"})
    mlp = MlpSpec(
        intermediate=common.get(raw, "intermediate_size"),
        activation="silu_gated",
        bias=raw.get("mlp_bias", False),
    )
    return ModelConfig(
        family=family,
        vocab_size=common.get(raw, "vocab_size"),
        hidden=common.get(raw, "hidden_size"),
        layers=(attention, mlp) * common.get(raw, "num_hidden_layers"),
        norm_eps=raw.get("rms_norm_eps", 1e-6),
        tie_embeddings=raw.get("tie_word_embeddings", False),
        max_length=raw.get("max_position_embeddings", 2048),
        **common.special_tokens(raw),
    )


def format_config(config: ModelConfig) -> dict[str, Any]:
    """The config.json of a ModelConfig."""
    return format_decoder(config, "LlamaForCausalLM")


def format_decoder(config: ModelConfig, architecture: str) -> dict[str, Any]:
    """The config.json of a decoder."""
    attention, mlp = common.the_one(config, AttentionSpec), common.the_one(config, MlpSpec)
    return common.format_base(config, architecture) | {
        "num_hidden_layers": len(list(common.blocks(config))),
        **common.format_attention(attention),
        "intermediate_size": mlp.intermediate,
        "mlp_bias": mlp.bias,
        "hidden_act": "silu",
        "rms_norm_eps": config.norm_eps,
        "max_position_embeddings": config.max_length,
    }


def tensor_maps(config: ModelConfig) -> Iterator[TensorMap]:
    """Which tensors of the checkpoint make each of ours."""
    yield TensorMap("embeddings.weight", ("model.embed_tokens.weight",))
    for index, attention, mlp in common.blocks(config):
        block, mixer, rest = f"model.layers.{index}", f"layers.{2 * index}", f"layers.{2 * index + 1}"
        yield TensorMap(f"{mixer}.norm.weight", (f"{block}.input_layernorm.weight",))
        assert isinstance(attention, AttentionSpec)
        yield from common.attention_maps(f"{mixer}.mixer", f"{block}.self_attn", attention)
        yield TensorMap(f"{rest}.norm.weight", (f"{block}.post_attention_layernorm.weight",))
        assert isinstance(mlp, MlpSpec)
        yield from common.mlp_maps(f"{rest}.mixer", f"{block}.mlp", mlp)
    yield TensorMap("norm_f.weight", ("model.norm.weight",))
    if not config.tie_embeddings:
        yield TensorMap("lm_head.weight", ("lm_head.weight",))
