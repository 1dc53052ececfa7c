"""Bamba checkpoints (IBM, Princeton, CMU and UIUC, 2024): Mamba-2 or attention with half a head turned, then an MLP."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from edge_export.families import common
from edge_export.tensors import TensorMap
from edge_sdk.model import AttentionSpec, Mamba2Spec, MlpSpec, ModelConfig

FIXED = {"hidden_act": "silu"}

TURNED_SHARE = 0.5
"""Of a head's channels, where the config does not say."""


@common.strict(FIXED, ignored={"layer_types", "layers_block_type", "z_loss_coefficient"})
def parse_config(raw: common.Config) -> ModelConfig:
    """A ModelConfig from the parsed config.json; refuses by name what it does not support."""
    hidden = common.get(raw, "hidden_size")
    head_dim = raw.get("head_dim") or hidden // common.get(raw, "num_attention_heads")
    attention = common.parse_attention(raw, head_dim, share=TURNED_SHARE)
    mamba = common.parse_mamba2(raw)
    mlp = MlpSpec(
        intermediate=common.get(raw, "intermediate_size"), activation="silu_gated", bias=raw.get("mlp_bias", False)
    )
    with_attention = set(raw.get("attn_layer_indices") or ())
    count = common.get(raw, "num_hidden_layers")
    return ModelConfig(
        family="bamba",
        vocab_size=common.get(raw, "vocab_size"),
        hidden=hidden,
        layers=tuple(spec for index in range(count) for spec in (attention if index in with_attention else mamba, mlp)),
        norm_eps=raw.get("rms_norm_eps", 1e-5),
        tie_embeddings=raw.get("tie_word_embeddings", False),
        max_length=raw.get("max_position_embeddings", 262144),
        **common.special_tokens(raw),
    )


def format_config(config: ModelConfig) -> dict[str, Any]:
    """The config.json of a ModelConfig."""
    raw: dict[str, Any] = common.format_base(config, "BambaForCausalLM") | {
        "num_hidden_layers": len(list(common.blocks(config))),
        "attn_layer_indices": [index for index, mixer, _ in common.blocks(config) if isinstance(mixer, AttentionSpec)],
        "hidden_act": "silu",
        "rms_norm_eps": config.norm_eps,
        "max_position_embeddings": config.max_length,
    }
    if attention := common.the_one(config, AttentionSpec):
        raw |= common.format_attention(attention)
    if mamba := common.the_one(config, Mamba2Spec):
        raw |= common.format_mamba2(mamba) | {"mamba_expand": common.expansion(mamba, config.hidden)}
    mlp = common.the_one(config, MlpSpec)
    return raw | {"intermediate_size": mlp.intermediate, "mlp_bias": mlp.bias}


def tensor_maps(config: ModelConfig) -> Iterator[TensorMap]:
    """Which tensors of the checkpoint make each of ours."""
    yield TensorMap("embeddings.weight", ("model.embed_tokens.weight",))
    for index, spec, mlp in common.blocks(config):
        block, mixer, rest = f"model.layers.{index}", f"layers.{2 * index}", f"layers.{2 * index + 1}"
        yield TensorMap(f"{mixer}.norm.weight", (f"{block}.input_layernorm.weight",))
        if isinstance(spec, AttentionSpec):
            yield from common.attention_maps(f"{mixer}.mixer", f"{block}.self_attn", spec)
        else:
            assert isinstance(spec, Mamba2Spec)
            yield from common.mamba2_maps(f"{mixer}.mixer", f"{block}.mamba", spec)
        yield TensorMap(f"{rest}.norm.weight", (f"{block}.pre_ff_layernorm.weight",))
        assert isinstance(mlp, MlpSpec)
        yield from common.mlp_maps(f"{rest}.mixer", f"{block}.feed_forward", mlp)
    yield TensorMap("norm_f.weight", ("model.final_layernorm.weight",))
    if not config.tie_embeddings:
        yield TensorMap("lm_head.weight", ("lm_head.weight",))
