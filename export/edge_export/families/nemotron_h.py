"""Nemotron-H and Nemotron 3 checkpoints (arXiv 2504.03624), old and new config.json dialects."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

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


def parse_config(raw: dict[str, Any]) -> ModelConfig:
    """A ModelConfig from the parsed config.json; refuses by name what it does not support."""
    config = {ALIASES.get(key, key): value for key, value in raw.items()}
    for key, value in FIXED.items():
        if config.get(key, value) != value:
            raise CheckpointError(
                explain(f"config.json's {key}", expected=value, found=config[key], todo="It is not supported yet.")
            )
    return ModelConfig(
        family="nemotron_h",
        vocab_size=_get(config, "vocab_size"),
        hidden=_get(config, "hidden_size"),
        layers=tuple(_layer(config, letter) for letter in _pattern(config)),
        norm_eps=config.get("layer_norm_epsilon", 1e-5),
        tie_embeddings=config.get("tie_word_embeddings", False),
        max_length=config.get("max_position_embeddings", 4096),
        bos_token_id=config.get("bos_token_id"),
        eos_token_ids=_as_tuple(config.get("eos_token_id")),
        pad_token_id=config.get("pad_token_id"),
    )


def _get(config: dict[str, Any], key: str) -> Any:
    if config.get(key) is None:
        raise CheckpointError(
            explain("config.json", expected=f"a value for {key}", found="none", todo="Complete the config.")
        )
    return config[key]


def _as_tuple(value: int | list[int] | None) -> tuple[int, ...]:
    if value is None:
        return ()
    return tuple(value) if isinstance(value, list) else (value,)


def _number(value: Any) -> float:
    """A number, also as newer transformers write infinity: ``{"__float__": "Infinity"}``."""
    return float(value["__float__"] if isinstance(value, dict) else value)


def _pattern(config: dict[str, Any]) -> str:
    types = config.get("layers_block_type")
    if types is None:
        pattern = str(_get(config, "hybrid_override_pattern"))
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
        dt_min, dt_max = (_number(limit) for limit in config.get("time_step_limit") or (0.0, float("inf")))
        return Mamba2Spec(
            heads=_get(config, "mamba_num_heads"),
            head_dim=_get(config, "mamba_head_dim"),
            groups=_get(config, "n_groups"),
            state=_get(config, "ssm_state_size"),
            conv_kernel=config.get("conv_kernel", 4),
            proj_bias=config.get("use_bias", False),
            conv_bias=config.get("use_conv_bias", True),
            dt_min=dt_min,
            dt_max=None if dt_max == float("inf") else dt_max,
        )
    if letter == "*":
        heads = _get(config, "num_attention_heads")
        return AttentionSpec(
            heads=heads, kv_heads=config.get("num_key_value_heads") or heads, head_dim=_get(config, "head_dim")
        )
    if letter == "-":
        return MlpSpec(intermediate=_get(config, "intermediate_size"))
    return MoeSpec(
        experts=_get(config, "n_routed_experts"),
        top_k=_get(config, "num_experts_per_tok"),
        intermediate=_get(config, "moe_intermediate_size"),
        shared_intermediate=_get(config, "moe_shared_expert_intermediate_size"),
        latent=config.get("moe_latent_size"),
        n_group=config.get("n_group", 1),
        topk_group=config.get("topk_group", 1),
        norm_topk_prob=config.get("norm_topk_prob", True),
        routed_scaling_factor=float(config.get("routed_scaling_factor", 1.0)),
    )


def format_config(config: ModelConfig) -> dict[str, Any]:
    """The config.json of a ModelConfig whose layers of one kind are all alike, as the format requires."""
    raw: dict[str, Any] = {
        "architectures": ["NemotronHForCausalLM"],
        "model_type": "nemotron_h",
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden,
        "layers_block_type": [LAYER_TYPES[letter] for letter in config.pattern],
        "layer_norm_epsilon": config.norm_eps,
        "tie_word_embeddings": config.tie_embeddings,
        "max_position_embeddings": config.max_length,
        "bos_token_id": config.bos_token_id,
        "eos_token_id": list(config.eos_token_ids),
        "pad_token_id": config.pad_token_id,
        "torch_dtype": "float32",
    }
    written: dict[str, LayerSpec] = {}
    for spec in config.layers:
        if written.setdefault(spec.kind, spec) != spec:
            raise CheckpointError(
                explain(
                    f"The {spec.kind} layers", expected="equal sizes", found="different ones", todo="Even them out."
                )
            )
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
            "time_step_limit": [spec.dt_min, float("inf") if spec.dt_max is None else spec.dt_max],
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
        for ours, theirs, layout in _mixer_maps(spec):
            names = tuple(f"backbone.layers.{index}.mixer.{name}" for name in theirs)
            yield TensorMap(f"layers.{index}.mixer.{ours}", names, layout)
    yield TensorMap("norm_f.weight", ("backbone.norm_f.weight",))
    if not config.tie_embeddings:
        yield TensorMap("lm_head.weight", ("lm_head.weight",))


def _mixer_maps(spec: LayerSpec) -> Iterator[tuple[str, tuple[str, ...], str]]:
    if isinstance(spec, Mamba2Spec):
        same = ["in_proj.weight", "dt_bias", "A_log", "D", "norm.weight", "out_proj.weight"]
        same += ["in_proj.bias", "out_proj.bias"] if spec.proj_bias else []
        yield "conv_weight", ("conv1d.weight",), "conv"
        if spec.conv_bias:
            yield "conv_bias", ("conv1d.bias",), "same"
    elif isinstance(spec, AttentionSpec):
        same = ["q_proj.weight", "k_proj.weight", "v_proj.weight", "o_proj.weight"]
    elif isinstance(spec, MlpSpec):
        same = ["up_proj.weight", "down_proj.weight"]
    else:
        same = ["gate.weight", "gate.e_score_correction_bias"]
        same += ["shared_experts.up_proj.weight", "shared_experts.down_proj.weight"]
        same += ["fc1_latent_proj.weight", "fc2_latent_proj.weight"] if spec.latent else []
        for part in ("up", "down"):
            names = tuple(f"experts.{expert}.{part}_proj.weight" for expert in range(spec.experts))
            yield f"experts.{part}_weight", names, "experts"
    for name in same:
        yield name, (name,), "same"
