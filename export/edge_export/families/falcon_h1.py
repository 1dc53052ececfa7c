"""Falcon-H1 checkpoints (TII, arXiv 2507.22448): Mamba-2 and attention side by side, then a gated MLP."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from edge_export.families import common
from edge_export.tensors import TensorMap
from edge_sdk.model import Mamba2Spec, MlpSpec, ModelConfig, ParallelSpec

FIXED = {"hidden_act": "silu"}


@common.strict(FIXED, ignored={"layer_types", "layers_block_type", "mlp_expansion_factor", "mamba_use_mlp"})
def parse_config(raw: common.Config) -> ModelConfig:
    """A ModelConfig from the parsed config.json; refuses by name what it does not support."""
    gate, down = raw.get("mlp_multipliers") or (1.0, 1.0)
    mlp = MlpSpec(
        intermediate=common.get(raw, "intermediate_size"),
        activation="silu_gated",
        bias=raw.get("mlp_bias", False),
        gate_multiplier=float(gate),
        output_multiplier=float(down),
    )
    return ModelConfig(
        family="falcon_h1",
        vocab_size=common.get(raw, "vocab_size"),
        hidden=common.get(raw, "hidden_size"),
        layers=(_parse_mixer(raw), mlp) * common.get(raw, "num_hidden_layers"),
        norm_eps=raw.get("rms_norm_eps", 1e-5),
        tie_embeddings=raw.get("tie_word_embeddings", False),
        embedding_multiplier=float(raw.get("embedding_multiplier", 1.0)),
        logits_multiplier=float(raw.get("lm_head_multiplier", 1.0)),
        max_length=raw.get("max_position_embeddings", 8192),
        **common.special_tokens(raw),
    )


def _parse_mixer(raw: common.Config) -> ParallelSpec:
    multiplier = {
        name: float(raw.get(f"{name}_multiplier", 1.0))
        for name in ("attention_in", "attention_out", "key", "ssm_in", "ssm_out")
    }
    norm, norm_before_gate = raw.get("mamba_rms_norm", False), raw.get("mamba_norm_before_gate", True)
    if norm:
        common.require({"mamba_norm_before_gate": norm_before_gate}, {"mamba_norm_before_gate": False})
    head_dim = raw.get("head_dim") or common.get(raw, "hidden_size") // common.get(raw, "num_attention_heads")
    attention = common.parse_attention(
        raw,
        head_dim,
        key_multiplier=multiplier["key"],
        input_multiplier=multiplier["attention_in"],
        output_multiplier=multiplier["attention_out"],
    )
    return ParallelSpec(mamba=_parse_mamba2(raw, multiplier, norm=norm), attention=attention)


def _parse_mamba2(raw: common.Config, multiplier: dict[str, float], *, norm: bool) -> Mamba2Spec:
    return common.parse_mamba2(
        raw,
        inner=raw.get("mamba_d_ssm", 1024),
        norm=norm,
        output_bias=raw.get("projectors_bias", False),
        proj_multipliers=tuple(map(float, raw.get("ssm_multipliers") or (1.0,) * 5)),
        input_multiplier=multiplier["ssm_in"],
        output_multiplier=multiplier["ssm_out"],
    )


def format_config(config: ModelConfig) -> dict[str, Any]:
    """The config.json of a ModelConfig."""
    blocks = list(common.blocks(config))
    mixer, mlp = common.the_one(config, ParallelSpec), common.the_one(config, MlpSpec)
    mamba, attention = mixer.mamba, mixer.attention
    return common.format_base(config, "FalconH1ForCausalLM") | {
        "num_hidden_layers": len(blocks),
        **common.format_attention(attention),
        **common.format_mamba2(mamba),
        "mamba_d_ssm": mamba.inner,
        "mamba_rms_norm": mamba.norm,
        "mamba_norm_before_gate": False,
        "projectors_bias": mamba.has_output_bias,
        "intermediate_size": mlp.intermediate,
        "mlp_bias": mlp.bias,
        "hidden_act": "silu",
        "rms_norm_eps": config.norm_eps,
        "max_position_embeddings": config.max_length,
        "embedding_multiplier": config.embedding_multiplier,
        "lm_head_multiplier": config.logits_multiplier,
        "mlp_multipliers": [mlp.gate_multiplier, mlp.output_multiplier],
        "key_multiplier": attention.key_multiplier,
        "attention_in_multiplier": attention.input_multiplier,
        "attention_out_multiplier": attention.output_multiplier,
        "ssm_multipliers": list(mamba.proj_multipliers),
        "ssm_in_multiplier": mamba.input_multiplier,
        "ssm_out_multiplier": mamba.output_multiplier,
    }


def tensor_maps(config: ModelConfig) -> Iterator[TensorMap]:
    """Which tensors of the checkpoint make each of ours."""
    yield TensorMap("embeddings.weight", ("model.embed_tokens.weight",))
    for index, spec, mlp in common.blocks(config):
        block, mixer, rest = f"model.layers.{index}", f"layers.{2 * index}", f"layers.{2 * index + 1}"
        assert isinstance(spec, ParallelSpec)
        assert isinstance(mlp, MlpSpec)
        yield TensorMap(f"{mixer}.norm.weight", (f"{block}.input_layernorm.weight",))
        yield from common.mamba2_maps(f"{mixer}.mixer.mamba", f"{block}.mamba", spec.mamba)
        yield from common.attention_maps(f"{mixer}.mixer.attention", f"{block}.self_attn", spec.attention)
        yield TensorMap(f"{rest}.norm.weight", (f"{block}.pre_ff_layernorm.weight",))
        yield from common.mlp_maps(f"{rest}.mixer", f"{block}.feed_forward", mlp)
    yield TensorMap("norm_f.weight", ("model.final_layernorm.weight",))
    if not config.tie_embeddings:
        yield TensorMap("lm_head.weight", ("lm_head.weight",))
