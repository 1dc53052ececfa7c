"""What the families share: reading settings of a config.json, and refusing those that are not implemented."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from edge_export.tensors import TensorMap
from edge_sdk.errors import CheckpointError, explain
from edge_sdk.model import AttentionSpec, LayerSpec, Mamba2Spec, MlpSpec, ModelConfig, RopeSpec

Config = Mapping[str, Any]
"""A parsed config.json."""


def get(config: Config, key: str) -> Any:
    """A setting that must be there."""
    if config.get(key) is None:
        raise CheckpointError(
            explain("config.json", expected=f"a value for {key}", found="none", todo="Complete the config.")
        )
    return config[key]


def require(config: Config, fixed: Mapping[str, Any]) -> None:
    """Refuses by name any setting that has another value than the one implemented."""
    for key, value in fixed.items():
        if config.get(key, value) != value:
            raise CheckpointError(
                explain(f"config.json's {key}", expected=value, found=config[key], todo="It is not supported yet.")
            )


def as_tuple(value: int | list[int] | None) -> tuple[int, ...]:
    """End-of-sequence ids, given as one or several."""
    if value is None:
        return ()
    return tuple(value) if isinstance(value, list) else (value,)


def number(value: Any) -> float:
    """A number, also as newer transformers write infinity: ``{"__float__": "Infinity"}``."""
    return float(value["__float__"] if isinstance(value, dict) else value)


def special_tokens(config: Config) -> dict[str, Any]:
    """The ModelConfig's special token ids."""
    return {
        "bos_token_id": config.get("bos_token_id"),
        "eos_token_ids": as_tuple(config.get("eos_token_id")),
        "pad_token_id": config.get("pad_token_id"),
    }


def format_base(config: ModelConfig, architecture: str) -> dict[str, Any]:
    """What every family's config.json says in the same words."""
    return {
        "architectures": [architecture],
        "model_type": config.family,
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden,
        "tie_word_embeddings": config.tie_embeddings,
        "bos_token_id": config.bos_token_id,
        "eos_token_id": list(config.eos_token_ids),
        "pad_token_id": config.pad_token_id,
        "torch_dtype": "float32",
    }


def time_step_limit(config: Config) -> dict[str, Any]:
    """A Mamba2Spec's dt_min and dt_max."""
    dt_min, dt_max = (number(limit) for limit in config.get("time_step_limit") or (0.0, float("inf")))
    return {"dt_min": dt_min, "dt_max": None if dt_max == float("inf") else dt_max}


def format_time_step_limit(spec: Mamba2Spec) -> list[float]:
    """The reverse of :func:`time_step_limit`."""
    return [spec.dt_min, float("inf") if spec.dt_max is None else spec.dt_max]


def expansion(spec: Mamba2Spec, hidden: int) -> int:
    """Inner width over hidden width, which a config.json of transformers' own families states as an integer."""
    if spec.inner % hidden:
        raise CheckpointError(
            explain("heads * head_dim", expected=f"a multiple of {hidden}", found=spec.inner, todo="Keep more heads.")
        )
    return spec.inner // hidden


def parse_rope(config: Config, head_dim: int, share: float = 1.0) -> RopeSpec:
    """The rotary embedding in any of transformers' dialects; ``share`` of a head is turned unless it says otherwise."""
    rope = dict(config.get("rope_parameters") or config.get("rope_scaling") or {})
    kind = rope.get("rope_type") or rope.get("type") or "default"
    if kind not in ("default", "linear", "llama3"):
        raise CheckpointError(
            explain("config.json's rope_type", expected="default, linear or llama3", found=kind, todo="Not supported.")
        )
    share = rope.get("partial_rotary_factor") or config.get("partial_rotary_factor") or share
    theta = rope.get("rope_theta") or config.get("rope_theta") or 10000.0
    spec: dict[str, Any] = {"dims": int(head_dim * share), "theta": float(theta)}
    if kind != "default":
        spec["factor"] = float(get(rope, "factor"))
    if kind == "llama3":
        spec["original_length"] = get(rope, "original_max_position_embeddings")
        spec["low_frequency"] = float(get(rope, "low_freq_factor"))
        spec["high_frequency"] = float(get(rope, "high_freq_factor"))
    return RopeSpec(**spec)


def format_rope(spec: RopeSpec, head_dim: int) -> dict[str, Any]:
    """The ``rope_parameters`` of a RopeSpec."""
    rope: dict[str, Any] = {"rope_type": "default", "rope_theta": spec.theta}
    if spec.dims != head_dim:
        rope["partial_rotary_factor"] = spec.dims / head_dim
    if spec.factor != 1.0:
        rope |= {"rope_type": "linear", "factor": spec.factor}
    if spec.original_length is not None:
        rope |= {
            "rope_type": "llama3",
            "factor": spec.factor,
            "original_max_position_embeddings": spec.original_length,
            "low_freq_factor": spec.low_frequency,
            "high_freq_factor": spec.high_frequency,
        }
    return rope


def parse_attention(config: Config, head_dim: int, *, share: float = 1.0, qk_norm: bool = False) -> AttentionSpec:
    """Attention with a rotary embedding; ``share`` as in :func:`parse_rope`."""
    heads, bias = get(config, "num_attention_heads"), config.get("attention_bias", False)
    return AttentionSpec(
        heads=heads,
        kv_heads=config.get("num_key_value_heads") or heads,
        head_dim=head_dim,
        rope=parse_rope(config, head_dim, share),
        qk_norm=qk_norm,
        bias=bias,
        output_bias=bias,
    )


def format_attention(spec: AttentionSpec) -> dict[str, Any]:
    """The reverse of :func:`parse_attention`."""
    assert spec.rope is not None
    return {
        "num_attention_heads": spec.heads,
        "num_key_value_heads": spec.kv_heads,
        "head_dim": spec.head_dim,
        "attention_bias": spec.bias,
        "rope_parameters": format_rope(spec.rope, spec.head_dim),
    }


def the_one(config: ModelConfig, kind: type[Any]) -> Any:
    """The spec that all layers of a kind share, as a config.json has but one; None if there is no such layer."""
    found = [spec for spec in config.layers if isinstance(spec, kind)]
    if any(spec != found[0] for spec in found):
        raise CheckpointError(
            explain(
                f"The {found[0].kind} layers", expected="equal sizes", found="different ones", todo="Even them out."
            )
        )
    return found[0] if found else None


def blocks(config: ModelConfig) -> Iterator[tuple[int, LayerSpec, MlpSpec]]:
    """The decoder blocks of a model that is made of them: index, sequence mixer and MLP, our layers 2i and 2i + 1."""
    pairs = list(zip(config.layers[::2], config.layers[1::2]))
    for index, (mixer, mlp) in enumerate(pairs):
        if len(config.layers) % 2 or isinstance(mixer, MlpSpec) or not isinstance(mlp, MlpSpec):
            raise CheckpointError(
                explain(
                    f"A {config.family} model's layers",
                    expected="sequence mixers and MLPs in turn",
                    found=config.pattern,
                    todo="Keep as many MLPs as mixers.",
                )
            )
        yield index, mixer, mlp


def same(ours: str, theirs: str, names: list[str]) -> Iterator[TensorMap]:
    """Tensors that are called and stored alike behind two prefixes."""
    for name in names:
        yield TensorMap(f"{ours}.{name}", (f"{theirs}.{name}",))


def attention_maps(ours: str, theirs: str, spec: AttentionSpec) -> Iterator[TensorMap]:
    """The projections and norms of an attention layer, as transformers calls them."""
    names = [f"{part}_proj.weight" for part in "qkvo"]
    names += [f"{part}_proj.bias" for part in "qkv"] if spec.bias else []
    names += ["o_proj.bias"] if spec.output_bias else []
    names += ["q_norm.weight", "k_norm.weight"] if spec.qk_norm else []
    return same(ours, theirs, names)


def mlp_maps(ours: str, theirs: str, spec: MlpSpec) -> Iterator[TensorMap]:
    """The projections of an MLP."""
    parts = ["gate", "up", "down"] if spec.activation == "silu_gated" else ["up", "down"]
    kinds = ["weight", "bias"] if spec.bias else ["weight"]
    return same(ours, theirs, [f"{part}_proj.{kind}" for part in parts for kind in kinds])


def mamba2_maps(ours: str, theirs: str, spec: Mamba2Spec) -> Iterator[TensorMap]:
    """The tensors of a Mamba-2 mixer."""
    names = ["in_proj.weight", "dt_bias", "A_log", "D", "norm.weight", "out_proj.weight"]
    names += ["in_proj.bias", "out_proj.bias"] if spec.proj_bias else []
    yield from same(ours, theirs, names)
    yield TensorMap(f"{ours}.conv_weight", (f"{theirs}.conv1d.weight",), "conv")
    if spec.conv_bias:
        yield TensorMap(f"{ours}.conv_bias", (f"{theirs}.conv1d.bias",))
