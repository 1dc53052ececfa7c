"""Nemotron-H and Nemotron 3 checkpoints (arXiv 2504.03624), old and new config.json dialects."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import msgspec

from edge_export.families import common
from edge_export.tensors import TensorMap
from edge_sdk.errors import CheckpointError, explain
from edge_sdk.model import AttentionSpec, LayerSpec, Mamba2Spec, MlpSpec, ModelConfig, MoeSpec, MtpSpec

LAYER_TYPES = {"M": "linear_attention", "*": "full_attention", "-": "mlp", "E": "moe"}
LETTERS = {name: letter for letter, name in LAYER_TYPES.items()} | {"mamba": "M", "attention": "*"}
LETTERS |= {letter: letter for letter in LAYER_TYPES}

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
    "num_local_experts": "n_routed_experts",
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

MTP_PREFIX = "mtp."
"""Begins the tensors of the head for multi-token prediction, which a checkpoint may lack."""

OTHER_MTP = (
    "mtp_use_rope",
    "mtp_bottleneck_hidden_size",
    "mtp_use_bottleneck_lm_head",
    "mtp_naive_parallel_enabled",
)
"""Settings of other heads, which variants of vLLM's nemotron_h_mtp.py know."""

log = logging.getLogger("edge_export")

UNUSED = common.names(
    """
    chunk_size expand head_dim hybrid_override_pattern intermediate_size keep_mtp_spec_in_bf16
    mamba_dt_init_floor mamba_dt_max mamba_dt_min mamba_expand moe_intermediate_size moe_latent_size
    moe_shared_expert_intermediate_size moe_shared_expert_overlap mtp_block_configs mtp_hybrid_override_pattern
    mtp_layers_block_type n_group n_routed_experts norm_topk_prob num_attention_heads num_experts_per_tok
    num_key_value_heads num_nextn_predict_layers partial_rotary_factor rope_parameters rope_scaling rope_theta
    routed_scaling_factor topk_group
    """
)
"""Settings of kinds of layers that a model may not have, of the multi-token prediction head, and of rotary embeddings,
which the configs name and no layer has."""

OTHER_PREFIXES = {"model.": "backbone."}
"""transformers' own files say the one where NVIDIA's say the other."""


@common.strict(FIXED, aliases=ALIASES, ignored=UNUSED.union(OTHER_MTP))
def parse_config(config: common.Config) -> ModelConfig:
    """A ModelConfig from the parsed config.json; refuses by name what it does not support."""
    pattern = _pattern(config)
    common.require(config, {"num_hidden_layers": len(pattern)})
    model = describe(config, "nemotron_h", tuple(parse_layer(config, letter) for letter in pattern))
    return msgspec.structs.replace(model, mtp=_mtp(config))


def describe(config: common.Config, family: str, layers: tuple[LayerSpec, ...]) -> ModelConfig:
    """A ModelConfig of these layers."""
    return ModelConfig(
        family=family,
        vocab_size=common.get(config, "vocab_size"),
        hidden=common.get(config, "hidden_size"),
        layers=layers,
        norm_eps=config.get("layer_norm_epsilon", 1e-5),
        tie_embeddings=config.get("tie_word_embeddings", False),
        max_length=config.get("max_position_embeddings", 4096),
        **common.special_tokens(config),
    )


def _pattern(config: common.Config) -> str:
    types = config.get("layers_block_type")
    return letters(common.get(config, "hybrid_override_pattern") if types is None else types)


def letters(kinds: Iterable[str]) -> str:
    """The layer pattern, from letters or from names of kinds of layers."""
    kinds = tuple(kinds)
    unknown = set(kinds) - set(LETTERS)
    if unknown:
        raise CheckpointError(
            explain("The layer pattern", expected="M, *, - and E", found=sorted(unknown), todo="Not supported.")
        )
    return "".join(LETTERS[kind] for kind in kinds)


def _mtp(config: common.Config) -> MtpSpec | None:
    """The head for multi-token prediction; one that is not implemented is left out, since no answer depends on it."""
    count = config.get("num_nextn_predict_layers") or 0
    if not count:
        return None
    types = config.get("mtp_layers_block_type")
    pattern = letters(config.get("mtp_hybrid_override_pattern", "*E") if types is None else types)  # the usual default
    other = [key for key in OTHER_MTP if config.get(key)]
    if count > 1 or "M" in pattern or other:
        found = f"{count} heads of layers {pattern}" + "".join(f", {key}" for key in other)
        log.warning("the drafting heads are left out: expected one head without Mamba layers, found %s", found)
        return None
    return MtpSpec(layers=tuple(parse_layer(config, letter) for letter in pattern))


def parse_layer(config: common.Config, letter: str) -> LayerSpec:
    """The layer of a kind that a config.json describes."""
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
    raw = format_model(config, "NemotronHForCausalLM")
    head = () if config.mtp is None else config.mtp.layers
    if head:
        raw |= {"num_nextn_predict_layers": 1, "mtp_layers_block_type": _types(head)}
    every_layer = msgspec.structs.replace(config, layers=(*config.layers, *head))
    for kind in (Mamba2Spec, AttentionSpec, MlpSpec, MoeSpec):
        if spec := common.the_one(every_layer, kind):
            raw |= format_layer(spec)
    return raw


def _types(layers: Sequence[LayerSpec]) -> list[str]:
    return [LAYER_TYPES[ModelConfig.LETTERS[spec.kind]] for spec in layers]


def format_model(config: ModelConfig, architecture: str) -> dict[str, Any]:
    """What a config.json says of the whole model."""
    return common.format_base(config, architecture) | {
        "layers_block_type": _types(config.layers),
        "layer_norm_epsilon": config.norm_eps,
        "max_position_embeddings": config.max_length,
    }


def format_layer(spec: LayerSpec) -> dict[str, Any]:
    """The reverse of :func:`parse_layer`."""
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
    assert isinstance(spec, MoeSpec)
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
    yield from _layer_maps("layers", "backbone.layers", config.layers)
    yield TensorMap("norm_f.weight", ("backbone.norm_f.weight",))
    if not config.tie_embeddings:
        yield TensorMap("lm_head.weight", ("lm_head.weight",))
    if config.mtp is not None:
        first, last = "mtp.layers.0", f"mtp.layers.{len(config.mtp.layers) - 1}"
        yield from common.same("mtp", first, ["enorm.weight", "hnorm.weight", "eh_proj.weight"])
        yield from _layer_maps("mtp.layers", "mtp.layers", config.mtp.layers)
        yield from common.same("mtp", last, ["final_layernorm.weight"])


def _layer_maps(ours: str, theirs: str, layers: Sequence[LayerSpec]) -> Iterator[TensorMap]:
    for index, spec in enumerate(layers):
        yield from common.same(f"{ours}.{index}", f"{theirs}.{index}", ["norm.weight"])
        yield from _mixer_maps(f"{ours}.{index}.mixer", f"{theirs}.{index}.mixer", spec)


def _mixer_maps(ours: str, theirs: str, spec: LayerSpec) -> Iterator[TensorMap]:
    if isinstance(spec, Mamba2Spec):
        yield from common.mamba2_maps(ours, theirs, spec)
    elif isinstance(spec, AttentionSpec):
        yield from common.attention_maps(ours, theirs, spec)
    elif isinstance(spec, MlpSpec):
        yield from common.mlp_maps(ours, theirs, spec)
    else:
        assert isinstance(spec, MoeSpec)
        names = ["gate.weight", "gate.e_score_correction_bias"]
        names += ["shared_experts.up_proj.weight", "shared_experts.down_proj.weight"]
        names += ["fc1_latent_proj.weight", "fc2_latent_proj.weight"] if spec.latent else []
        yield from common.same(ours, theirs, names)
        for part in ("up", "down"):
            experts = tuple(f"{theirs}.experts.{expert}.{part}_proj.weight" for expert in range(spec.experts))
            yield TensorMap(f"{ours}.experts.{part}_weight", experts, "experts")
