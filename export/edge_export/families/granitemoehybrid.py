"""Granite 4.0 checkpoints (IBM, 2025): Mamba-2 or attention, then experts beside a gated MLP, or the MLP alone."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import msgspec

from edge_export.families import common
from edge_export.tensors import TensorMap
from edge_sdk.errors import CheckpointError, explain
from edge_sdk.model import AttentionSpec, LayerSpec, Mamba2Spec, MlpSpec, ModelConfig, MoeSpec

FIXED = {"hidden_act": "silu", "normalization_function": "rmsnorm"}

MIXERS = {"mamba": "mamba2", "linear_attention": "mamba2", "attention": "attention", "full_attention": "attention"}
"""Kinds of sequence mixers, in the words of IBM's files and of newer transformers."""

NO_POSITIONS = (None, "nope")
ROPE = "rope"


@common.strict(FIXED, ignored={"init_method", "model_name"})
def parse_config(raw: common.Config) -> ModelConfig:
    """A ModelConfig from the parsed config.json; refuses by name what it does not support."""
    hidden = common.get(raw, "hidden_size")
    shared: dict[str, Any] = {"output_multiplier": float(raw.get("residual_multiplier", 1.0))}
    mixers: dict[str, LayerSpec] = {
        "attention": _parse_attention(raw, hidden, shared),
        "mamba2": common.parse_mamba2(raw, **shared),
    }
    rest = _parse_rest(raw, shared)
    kinds = raw.get("layer_types") or raw.get("layers_block_type") or ["mamba"] * common.get(raw, "num_hidden_layers")
    common.require({"layer_types": sorted(set(kinds) - MIXERS.keys())}, {"layer_types": []})
    common.require(raw, {"num_hidden_layers": len(kinds)})
    return ModelConfig(
        family="granitemoehybrid",
        vocab_size=common.get(raw, "vocab_size"),
        hidden=hidden,
        layers=tuple(spec for kind in kinds for spec in (mixers[MIXERS[kind]], rest)),
        norm_eps=raw.get("rms_norm_eps", 1e-6),
        tie_embeddings=raw.get("tie_word_embeddings", False),
        embedding_multiplier=float(raw.get("embedding_multiplier", 1.0)),
        logits_multiplier=1.0 / raw.get("logits_scaling", 1.0),
        max_length=raw.get("max_position_embeddings", 2048),
        **common.special_tokens(raw),
    )


def _parse_attention(raw: common.Config, hidden: int, shared: dict[str, Any]) -> AttentionSpec:
    head_dim = raw.get("head_dim") or hidden // common.get(raw, "num_attention_heads")
    spec = common.parse_attention(raw, head_dim, scale=float(raw.get("attention_multiplier", 1.0)), **shared)
    positions = raw.get("position_embedding_type")
    if positions in NO_POSITIONS:
        return msgspec.structs.replace(spec, rope=None)
    common.require({"position_embedding_type": positions}, {"position_embedding_type": ROPE})
    return spec


def _parse_rest(raw: common.Config, shared: dict[str, Any]) -> MlpSpec | MoeSpec:
    """What stands behind every sequence mixer."""
    experts, top_k = raw.get("num_local_experts", 8), raw.get("num_experts_per_tok", 2)
    intermediate = raw.get("intermediate_size", 11008)  # of an expert; the dense models have another key for theirs
    shared_intermediate = raw.get("shared_intermediate_size", 1024)
    if not experts:
        return MlpSpec(intermediate=shared_intermediate, activation="silu_gated", **shared)
    return MoeSpec(
        experts=experts,
        top_k=top_k,
        intermediate=intermediate,
        shared_intermediate=shared_intermediate,
        scoring="softmax",
        activation="silu_gated",
        **shared,
    )


def format_config(config: ModelConfig) -> dict[str, Any]:
    """The config.json of a ModelConfig."""
    blocks = list(common.blocks(config))
    multipliers = {spec.output_multiplier for spec in config.layers}
    if len(multipliers) > 1:
        raise CheckpointError(
            explain("The layers' output_multiplier", expected="one", found=sorted(multipliers), todo="Even them out.")
        )
    raw: dict[str, Any] = common.format_base(config, "GraniteMoeHybridForCausalLM") | {
        "num_hidden_layers": len(blocks),
        "layer_types": [
            "full_attention" if mixer.kind == "attention" else "linear_attention" for _, mixer, _ in blocks
        ],
        "hidden_act": "silu",
        "rms_norm_eps": config.norm_eps,
        "max_position_embeddings": config.max_length,
        "residual_multiplier": multipliers.pop(),
        "embedding_multiplier": config.embedding_multiplier,
        "logits_scaling": 1.0 / config.logits_multiplier,
    }
    if attention := common.the_one(config, AttentionSpec):
        raw |= common.format_attention(attention) | {
            "attention_multiplier": attention.scale,
            "position_embedding_type": None if attention.rope is None else ROPE,
        }
    if mamba := common.the_one(config, Mamba2Spec):
        raw |= common.format_mamba2(mamba) | {"mamba_expand": common.expansion(mamba, config.hidden)}
    return raw | _format_rest(config)


def _format_rest(config: ModelConfig) -> dict[str, Any]:
    mlp, moe = common.the_one(config, MlpSpec), common.the_one(config, MoeSpec)
    if mlp and moe:
        raise CheckpointError(
            explain("A granitemoehybrid model", expected="MLPs or experts", found="both", todo="Keep one kind.")
        )
    if mlp:
        return {"num_local_experts": 0, "num_experts_per_tok": 0, "shared_intermediate_size": mlp.intermediate}
    return {
        "num_local_experts": moe.experts,
        "num_experts_per_tok": moe.top_k,
        "intermediate_size": moe.intermediate,
        "shared_intermediate_size": moe.shared_intermediate,
    }


def tensor_maps(config: ModelConfig) -> Iterator[TensorMap]:
    """Which tensors of the checkpoint make each of ours."""
    yield TensorMap("embeddings.weight", ("model.embed_tokens.weight",))
    for index, spec, rest in common.blocks(config):
        block, mixer, after = f"model.layers.{index}", f"layers.{2 * index}", f"layers.{2 * index + 1}"
        yield TensorMap(f"{mixer}.norm.weight", (f"{block}.input_layernorm.weight",))
        yield from _mixer_maps(f"{mixer}.mixer", block, spec)
        yield TensorMap(f"{after}.norm.weight", (f"{block}.post_attention_layernorm.weight",))
        yield from _rest_maps(f"{after}.mixer", block, rest)
    yield TensorMap("norm_f.weight", ("model.norm.weight",))
    if not config.tie_embeddings:
        yield TensorMap("lm_head.weight", ("lm_head.weight",))


def _mixer_maps(ours: str, block: str, spec: LayerSpec) -> Iterator[TensorMap]:
    if isinstance(spec, AttentionSpec):
        return common.attention_maps(ours, f"{block}.self_attn", spec)
    assert isinstance(spec, Mamba2Spec)
    return common.mamba2_maps(ours, f"{block}.mamba", spec)


def _rest_maps(ours: str, block: str, spec: MlpSpec | MoeSpec) -> Iterator[TensorMap]:
    """Gate and up stand in one tensor there as here."""
    mlp = ours
    if isinstance(spec, MoeSpec):
        mlp, moe = f"{ours}.shared_experts", f"{block}.block_sparse_moe"
        yield TensorMap(f"{ours}.gate.weight", (f"{moe}.router.layer.weight",))
        yield TensorMap(f"{ours}.experts.up_weight", (f"{moe}.input_linear.weight",), "transposed")
        yield TensorMap(f"{ours}.experts.down_weight", (f"{moe}.output_linear.weight",), "transposed")
    yield TensorMap(f"{mlp}.gate_up_proj.weight", (f"{block}.shared_mlp.input_linear.weight",))
    yield TensorMap(f"{mlp}.down_proj.weight", (f"{block}.shared_mlp.output_linear.weight",))
