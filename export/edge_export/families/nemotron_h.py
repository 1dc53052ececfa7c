"""Nemotron-H and Nemotron 3 checkpoints (arXiv 2504.03624), old and new config.json dialects."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from edge_export.families import common
from edge_export.tensors import TensorMap
from edge_sdk.errors import CheckpointError, explain
from edge_sdk.model import AttentionSpec, LayerSpec, Mamba2Spec, MlpSpec, ModelConfig, MoeSpec

KINDS = {"M": "mamba2", "*": "attention", "-": "mlp", "E": "moe"}
LAYER_TYPES = {"M": "linear_attention", "*": "full_attention", "-": "mlp", "E": "moe"}
LETTERS = {name: letter for letter, name in LAYER_TYPES.items()} | {"mamba": "M", "attention": "*"}

ALIASES = {
    "mamba_n_groups": "n_groups",
    "mamba_num_groups": "n_groups",
    "mamba_d_conv": "conv_kernel",
    "mamba_dt_limit": "time_step_limit",
    "mamba_conv_bias": "use_conv_bias",
    "mamba_state_dim": "ssm_state_size",
    "norm_eps": "layer_norm_epsilon",
    "rms_norm_eps": "layer_norm_epsilon",
    "attention_head_dim": "head_dim",
    "layer_types": "layers_block_type",
}

FIXED = {
    "mamba_hidden_act": "silu",
    "mlp_hidden_act": "relu2",
    "attention_bias": False,
    "mlp_bias": False,
    "mamba_proj_bias": False,
    "sliding_window": None,
    "n_shared_experts": 1,
}
"""Settings that must have this value where they are given: others change the model in ways not implemented."""

IGNORED_PREFIXES = ("mtp.",)
"""Tensors of the multi-token prediction head, which the graph does not hold."""

OTHER_PREFIXES = {"model.": "backbone."}
"""transformers' own files say the one where NVIDIA's say the other."""


def parse_config(raw: dict[str, Any]) -> ModelConfig:
    """A ModelConfig from the parsed config.json; refuses by name what it does not support."""
    config = {ALIASES.get(key, key): value for key, value in raw.items()}
    common.require(config, FIXED)
    return ModelConfig(
        family="nemotron_h",
        vocab_size=common.get(config, "vocab_size"),
        hidden=common.get(config, "hidden_size"),
        layers=tuple(_layer(config, letter) for letter in _pattern(config)),
        norm_eps=config.get("layer_norm_epsilon", 1e-5),
        tie_embeddings=config.get("tie_word_embeddings", False),
        max_length=config.get("max_position_embeddings", 4096),
        **common.special_tokens(config),
    )


def _pattern(config: dict[str, Any]) -> str:
    types = config.get("layers_block_type")
    if types is None:
        pattern = str(common.get(config, "hybrid_override_pattern"))
        unknown = set(pattern) - set(KINDS)
    else:
        pattern = "".join(LETTERS.get(name, "?") for name in types)
        unknown = set(types) - set(LETTERS)
    if unknown:
        raise CheckpointError(
            explain("The layer pattern", expected="M, *, - and E", found=sorted(unknown), todo="Not supported.")
        )
    return pattern


def _layer(config: dict[str, Any], letter: str) -> LayerSpec:
    if letter == "M":
        return Mamba2Spec(
            heads=common.get(config, "mamba_num_heads"),
            head_dim=common.get(config, "mamba_head_dim"),
            groups=common.get(config, "n_groups"),
            state=common.get(config, "ssm_state_size"),
            conv_kernel=config.get("conv_kernel", 4),
            proj_bias=config.get("use_bias", False),
            conv_bias=config.get("use_conv_bias", True),
            **common.time_step_limit(config),
        )
    if letter == "*":
        heads = common.get(config, "num_attention_heads")
        return AttentionSpec(
            heads=heads, kv_heads=config.get("num_key_value_heads") or heads, head_dim=common.get(config, "head_dim")
        )
    if letter == "-":
        return MlpSpec(intermediate=common.get(config, "intermediate_size"))
    return MoeSpec(
        experts=common.get(config, "n_routed_experts"),
        top_k=common.get(config, "num_experts_per_tok"),
        intermediate=common.get(config, "moe_intermediate_size"),
        shared_intermediate=common.get(config, "moe_shared_expert_intermediate_size"),
        latent=config.get("moe_latent_size"),
        n_group=config.get("n_group", 1),
        topk_group=config.get("topk_group", 1),
        norm_topk_prob=config.get("norm_topk_prob", True),
        routed_scaling_factor=float(config.get("routed_scaling_factor", 1.0)),
    )


def format_config(config: ModelConfig) -> dict[str, Any]:
    """The config.json of a ModelConfig whose layers of one kind are all alike, as the format requires."""
    raw: dict[str, Any] = common.format_base(config, "NemotronHForCausalLM") | {
        "layers_block_type": [LAYER_TYPES[letter] for letter in config.pattern],
        "layer_norm_epsilon": config.norm_eps,
        "max_position_embeddings": config.max_length,
    }
    for kind in (Mamba2Spec, AttentionSpec, MlpSpec, MoeSpec):
        if spec := common.the_one(config, kind):
            raw |= _format_layer(spec)
    return raw


def _format_layer(spec: LayerSpec) -> dict[str, Any]:
    if isinstance(spec, Mamba2Spec):
        return {
            "mamba_num_heads": spec.heads,
            "mamba_head_dim": spec.head_dim,
            "n_groups": spec.groups,
            "ssm_state_size": spec.state,
            "conv_kernel": spec.conv_kernel,
            "use_bias": spec.proj_bias,
            "use_conv_bias": spec.conv_bias,
            # transformers clamps dt by time_step_min as well, in its chunked path only: 0 makes it follow the limit.
            "time_step_min": 0.0,
            "time_step_limit": common.format_time_step_limit(spec),
        }
    if isinstance(spec, AttentionSpec):
        return {
            "num_attention_heads": spec.heads,
            "num_key_value_heads": spec.kv_heads,
            "head_dim": spec.head_dim,
        }
    if isinstance(spec, MlpSpec):
        return {"intermediate_size": spec.intermediate}
    return {
        "n_routed_experts": spec.experts,
        "num_experts_per_tok": spec.top_k,
        "moe_intermediate_size": spec.intermediate,
        "moe_shared_expert_intermediate_size": spec.shared_intermediate,
        "moe_latent_size": spec.latent,
        "n_group": spec.n_group,
        "topk_group": spec.topk_group,
        "norm_topk_prob": spec.norm_topk_prob,
        "routed_scaling_factor": spec.routed_scaling_factor,
    }


def tensor_maps(config: ModelConfig) -> Iterator[TensorMap]:
    """Which tensors of the checkpoint make each of ours (the names of ``torch_model.HybridLM``)."""
    yield TensorMap("embeddings.weight", ("backbone.embeddings.weight",))
    for index, spec in enumerate(config.layers):
        yield TensorMap(f"layers.{index}.norm.weight", (f"backbone.layers.{index}.norm.weight",))
        yield from _mixer_maps(f"layers.{index}.mixer", f"backbone.layers.{index}.mixer", spec)
    yield TensorMap("norm_f.weight", ("backbone.norm_f.weight",))
    if not config.tie_embeddings:
        yield TensorMap("lm_head.weight", ("lm_head.weight",))


def _mixer_maps(ours: str, theirs: str, spec: LayerSpec) -> Iterator[TensorMap]:
    if isinstance(spec, Mamba2Spec):
        yield from common.mamba2_maps(ours, theirs, spec)
    elif isinstance(spec, AttentionSpec):
        yield from common.attention_maps(ours, theirs, spec)
    elif isinstance(spec, MlpSpec):
        yield from common.mlp_maps(ours, theirs, spec)
    else:
        names = ["gate.weight", "gate.e_score_correction_bias"]
        names += ["shared_experts.up_proj.weight", "shared_experts.down_proj.weight"]
        names += ["fc1_latent_proj.weight", "fc2_latent_proj.weight"] if spec.latent else []
        yield from common.same(ours, theirs, names)
        for part in ("up", "down"):
            experts = tuple(f"{theirs}.experts.{expert}.{part}_proj.weight" for expert in range(spec.experts))
            yield TensorMap(f"{ours}.experts.{part}_weight", experts, "experts")
