"""What the families share: reading settings of a config.json, and refusing those that are not implemented."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Set
from functools import wraps
from typing import Any

from edge_export.tensors import TensorMap
from edge_sdk.errors import CheckpointError, explain
from edge_sdk.model import AttentionSpec, LayerSpec, Mamba2Spec, MlpSpec, ModelConfig, MoeSpec, RopeSpec

Config = Mapping[str, Any]
"""A parsed config.json."""


Parse = Callable[[Config], ModelConfig]
"""From a config.json to our description of the model."""


def names(text: str) -> frozenset[str]:
    """The words of a text."""
    return frozenset(text.split())


SILENT = names(
    """
    _attn_implementation _name_or_path add_cross_attention architectures attention_dropout auto_map
    chunk_size_feed_forward cross_attention_hidden_size decoder_start_token_id dtype finetuning_task
    hidden_dropout id2label initializer_range is_decoder is_encoder_decoder label2id mamba_chunk_size
    mamba_ssm_cache_dtype model_type num_logits_to_keep output_attentions output_hidden_states
    output_router_logits prefix problem_type quantization_config rescale_prenorm_residual residual_in_fp32
    return_dict router_aux_loss_coef sep_token_id task_specific_params time_step_floor time_step_max
    time_step_min time_step_rank tokenizer_class torch_dtype torchscript transformers_version use_cache
    use_mamba_kernels
    """
)
"""Settings that say nothing of what is computed: of training, of initial values, of other programs. How weights are
stored (quantization_config) is read where they are."""


class Settings(Mapping[str, Any]):
    """A parsed config.json, keys under their usual names, that remembers which of them were asked for."""

    def __init__(self, raw: Config, aliases: Mapping[str, str]) -> None:
        self._values = {aliases.get(key, key): value for key, value in raw.items()}
        self._asked: set[str] = set()

    def __getitem__(self, key: str) -> Any:
        self._asked.add(key)
        return self._values[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def refuse_unread(self, ignored: Set[str]) -> None:
        """Raises CheckpointError that names the settings that nobody asked for and that may matter."""
        unread = self._values.keys() - self._asked - SILENT - ignored
        if unread:
            raise CheckpointError(
                explain(
                    "config.json",
                    expected="settings that are known here",
                    found=", ".join(sorted(unread)),
                    todo="They are not supported yet; remove them if they change nothing.",
                )
            )


def strict(
    fixed: Mapping[str, Any], *, aliases: Mapping[str, str] | None = None, ignored: Set[str] = frozenset()
) -> Callable[[Parse], Parse]:
    """Makes a family's parse_config refuse by name what it does not know, and other values than the ``fixed`` ones.

    ``ignored`` are settings that change nothing in this family.
    """

    def decorate(parse: Parse) -> Parse:
        @wraps(parse)
        def parse_config(raw: Config) -> ModelConfig:
            settings = Settings(raw, aliases or {})
            require(settings, fixed)
            config = parse(settings)
            settings.refuse_unread(ignored)
            return config

        return parse_config

    return decorate


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
    keys = ("rope_parameters", "rope_scaling", "partial_rotary_factor", "rope_theta")
    parameters, scaling, partial, theta = (config.get(key) for key in keys)
    rope = dict(parameters or scaling or {})
    kind = rope.get("rope_type") or rope.get("type") or "default"
    if kind not in ("default", "linear", "llama3"):
        raise CheckpointError(
            explain("config.json's rope_type", expected="default, linear or llama3", found=kind, todo="Not supported.")
        )
    share = rope.get("partial_rotary_factor") or partial or share
    theta = rope.get("rope_theta") or theta or 10000.0
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


def parse_attention(config: Config, head_dim: int, *, share: float = 1.0, **more: Any) -> AttentionSpec:
    """Attention with a rotary embedding; ``share`` as in :func:`parse_rope`, ``more`` of the spec's fields."""
    heads, bias = get(config, "num_attention_heads"), config.get("attention_bias", False)
    return AttentionSpec(
        heads=heads,
        kv_heads=config.get("num_key_value_heads") or heads,
        head_dim=head_dim,
        rope=parse_rope(config, head_dim, share),
        bias=bias,
        output_bias=bias,
        **more,
    )


def format_attention(spec: AttentionSpec) -> dict[str, Any]:
    """The reverse of :func:`parse_attention`."""
    rope = {} if spec.rope is None else {"rope_parameters": format_rope(spec.rope, spec.head_dim)}
    return rope | {
        "num_attention_heads": spec.heads,
        "num_key_value_heads": spec.kv_heads,
        "head_dim": spec.head_dim,
        "attention_bias": spec.bias,
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


def blocks(config: ModelConfig) -> Iterator[tuple[int, LayerSpec, MlpSpec | MoeSpec]]:
    """The decoder blocks of a model that is made of them: index, sequence mixer and MLP or experts.

    They are our layers 2i and 2i + 1.
    """
    pairs = list(zip(config.layers[::2], config.layers[1::2]))
    for index, (mixer, mlp) in enumerate(pairs):
        if len(config.layers) % 2 or isinstance(mixer, (MlpSpec, MoeSpec)) or not isinstance(mlp, (MlpSpec, MoeSpec)):
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
    for kind in ["weight", "bias"] if spec.bias else ["weight"]:
        if spec.activation == "silu_gated":
            parts = tuple(f"{theirs}.{part}_proj.{kind}" for part in ("gate", "up"))
            yield TensorMap(f"{ours}.gate_up_proj.{kind}", parts, "rows")
        else:
            yield from same(ours, theirs, [f"up_proj.{kind}"])
        yield from same(ours, theirs, [f"down_proj.{kind}"])


def parse_mamba2(config: Config, *, inner: int | None = None, **more: Any) -> Mamba2Spec:
    """A Mamba-2 layer as Bamba and its descendants describe it.

    ``inner`` is heads * head_dim where the config says it, ``more`` are of the spec's fields.
    """
    heads, head_dim = get(config, "mamba_n_heads"), config.get("mamba_d_head", "auto")
    expanded = int(config.get("mamba_expand", 2) * get(config, "hidden_size"))
    inner = expanded if inner is None else inner
    return Mamba2Spec(
        heads=heads,
        head_dim=inner // heads if head_dim == "auto" else head_dim,
        groups=config.get("mamba_n_groups", 1),
        state=config.get("mamba_d_state", 256),
        conv_kernel=config.get("mamba_d_conv", 4),
        proj_bias=config.get("mamba_proj_bias", False),
        conv_bias=config.get("mamba_conv_bias", True),
        **time_step_limit(config),
        **more,
    )


def format_mamba2(spec: Mamba2Spec) -> dict[str, Any]:
    """The reverse of :func:`parse_mamba2`, but for ``mamba_expand``."""
    return {
        "mamba_n_heads": spec.heads,
        "mamba_d_head": spec.head_dim,
        "mamba_n_groups": spec.groups,
        "mamba_d_state": spec.state,
        "mamba_d_conv": spec.conv_kernel,
        "mamba_proj_bias": spec.proj_bias,
        "mamba_conv_bias": spec.conv_bias,
        "time_step_limit": format_time_step_limit(spec),
    }


def mamba2_maps(ours: str, theirs: str, spec: Mamba2Spec) -> Iterator[TensorMap]:
    """The tensors of a Mamba-2 mixer."""
    names = ["in_proj.weight", "dt_bias", "A_log", "D", "out_proj.weight"]
    names += ["norm.weight"] if spec.norm else []
    names += ["in_proj.bias"] if spec.proj_bias else []
    names += ["out_proj.bias"] if spec.has_output_bias else []
    yield from same(ours, theirs, names)
    yield TensorMap(f"{ours}.conv_weight", (f"{theirs}.conv1d.weight",), "conv")
    if spec.conv_bias:
        yield TensorMap(f"{ours}.conv_bias", (f"{theirs}.conv1d.bias",))
