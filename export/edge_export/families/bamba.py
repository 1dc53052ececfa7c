"""Bamba checkpoints (IBM, Princeton, CMU and UIUC, 2024): Mamba-2 or attention with half a head turned, then an MLP."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from edge_export.families import common
from edge_export.tensors import TensorMap
from edge_sdk.model import AttentionSpec, Mamba2Spec, MlpSpec, ModelConfig

FIXED = {"hidden_act": "silu", "mamba_n_groups": 1}
"""With more groups the gated norm, which goes over all channels here, would not be the operator's."""

TURNED_SHARE = 0.5
"""Of a head's channels, where the config does not say."""


def parse_config(raw: common.Config) -> ModelConfig:
    """A ModelConfig from the parsed config.json; refuses by name what it does not support."""
    common.require(raw, FIXED)
    hidden = common.get(raw, "hidden_size")
    head_dim = raw.get("head_dim") or hidden // common.get(raw, "num_attention_heads")
    attention = common.parse_attention(raw, head_dim, share=TURNED_SHARE)
    mamba = Mamba2Spec(
        heads=common.get(raw, "mamba_n_heads"),
        head_dim=_mamba_head_dim(raw),
        groups=1,
        state=raw.get("mamba_d_state", 256),
        conv_kernel=raw.get("mamba_d_conv", 4),
        proj_bias=raw.get("mamba_proj_bias", False),
        conv_bias=raw.get("mamba_conv_bias", True),
        **common.time_step_limit(raw),
    )
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


def _mamba_head_dim(raw: common.Config) -> int:
    given = raw.get("mamba_d_head", "auto")
    if given == "auto":
        return int(raw.get("mamba_expand", 2) * common.get(raw, "hidden_size")) // int(common.get(raw, "mamba_n_heads"))
    return int(given)


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
        raw |= {
            "mamba_n_heads": mamba.heads,
            "mamba_d_head": mamba.head_dim,
            "mamba_expand": common.expansion(mamba, config.hidden),
            "mamba_n_groups": 1,
            "mamba_d_state": mamba.state,
            "mamba_d_conv": mamba.conv_kernel,
            "mamba_proj_bias": mamba.proj_bias,
            "mamba_conv_bias": mamba.conv_bias,
            "time_step_limit": common.format_time_step_limit(mamba),
        }
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
        yield from common.mlp_maps(f"{rest}.mixer", f"{block}.feed_forward", mlp)
    yield TensorMap("norm_f.weight", ("model.final_layernorm.weight",))
    if not config.tie_embeddings:
        yield TensorMap("lm_head.weight", ("lm_head.weight",))
