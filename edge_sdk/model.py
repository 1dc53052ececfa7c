"""One description of a hybrid model, from which names, shapes, states and sizes follow.

Shapes use the glossary of the project: batch, length, hidden, heads, head_dim, groups, state,
experts, top_k. A checkpoint family (``edge_export.families``) turns its config.json into a
:class:`ModelConfig`; everything after that, the traced graph and the runtime included, reads only this.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import ClassVar, Literal, Union

import msgspec

from edge_sdk.errors import ConfigError, explain
from edge_sdk.policy_spec import PolicySpec
from edge_sdk.tensor_spec import DTYPE_BYTES, Dim, DType, TensorSpec
from edge_sdk.vision_spec import VisionSpec

CacheDType = Literal["float32", "float16", "int8"]
StateDType = Literal["float32", "float16"]
StateShape = tuple[DType, tuple[Dim, ...]]
"""How a state is stored, and its shape."""


def _require(condition: bool, what: str, expected: object, found: object) -> None:
    if not condition:
        raise ConfigError(explain(what, expected=expected, found=found, todo="Correct the model's config."))


def _require_positive(spec: msgspec.Struct, *names: str) -> None:
    for name in names:
        value = getattr(spec, name)
        _require(value > 0, f"{type(spec).__name__}.{name}", "a positive number", value)


class MixerSpec(msgspec.Struct, frozen=True, kw_only=True):
    """What every mixer may have: the multipliers of maximal update parametrisation (Yang et al., arXiv 2203.03466).

    They are numbers of the graph and not folded into the weights, which so stay what the checkpoint holds, in
    bfloat16 too.
    """

    input_multiplier: float = 1.0
    output_multiplier: float = 1.0


class Mamba2Spec(MixerSpec, frozen=True, kw_only=True, tag="mamba2"):
    """A Mamba-2 mixer (Dao and Gu 2024, arXiv 2405.21060); B and C are shared by the heads of a group."""

    kind: ClassVar[str] = "mamba2"
    heads: int
    head_dim: int
    groups: int
    state: int
    conv_kernel: int = 4
    proj_bias: bool = False
    conv_bias: bool = True
    dt_min: float = 0.0
    dt_max: float | None = None
    """Limits of the time step after softplus; None is unbounded."""
    output_bias: bool | None = None
    """Of out_proj; None is as proj_bias says."""
    norm: bool = True
    """Whether the gated output is RMS-normalised group by group."""
    proj_multipliers: tuple[float, float, float, float, float] | None = None
    """Of the parts z, x, B, C and dt of in_proj's output."""

    def __post_init__(self) -> None:
        _require_positive(self, "heads", "head_dim", "groups", "state")
        _require(self.heads % self.groups == 0, "Mamba2Spec.heads", f"a multiple of {self.groups} groups", self.heads)
        _require(self.conv_kernel >= 2, "Mamba2Spec.conv_kernel", "at least 2", self.conv_kernel)

    @property
    def inner(self) -> int:
        """Width of x and z: heads * head_dim."""
        return self.heads * self.head_dim

    @property
    def conv_dim(self) -> int:
        """Channels of the causal convolution: those of x, B and C."""
        return self.inner + 2 * self.groups * self.state

    @property
    def proj_dim(self) -> int:
        """Width of in_proj's output: z, x, B, C, dt."""
        return self.inner + self.conv_dim + self.heads

    @property
    def has_output_bias(self) -> bool:
        """Whether out_proj has a bias."""
        return self.proj_bias if self.output_bias is None else self.output_bias

    def parameters(self, hidden: int) -> int:
        """Number of weights, the layer's norm not counted."""
        projections = hidden * (self.proj_dim + self.inner)
        biases = self.proj_bias * self.proj_dim + self.has_output_bias * hidden
        convolution = self.conv_dim * (self.conv_kernel + self.conv_bias)
        return projections + biases + convolution + 3 * self.heads + self.norm * self.inner

    def states(self, config: ModelConfig) -> dict[str, StateShape]:
        """The states carried from step to step: the convolution's last inputs and the scan's state."""
        return {
            "conv_state": ("float32", ("batch", self.conv_dim, self.conv_kernel - 1)),
            "recurrent_state": (config.state_dtype, ("batch", self.heads, self.head_dim, self.state)),
        }


class RopeSpec(msgspec.Struct, frozen=True, kw_only=True):
    """Rotary position embedding (Su et al. 2021, arXiv 2104.09864) of the first ``dims`` channels of a head.

    Channel i is turned together with channel i + dims / 2. ``factor`` over 1 stretches the positions: all of them
    alike, or, with ``original_length``, the long wavelengths only, as Llama 3.1 does (arXiv 2407.21783).
    """

    dims: int
    theta: float = 10000.0
    factor: float = 1.0
    original_length: int | None = None
    """Context that the unstretched positions were trained for, in tokens."""
    low_frequency: float = 1.0
    high_frequency: float = 4.0
    """Wavelengths over original_length / low_frequency are stretched, under original_length / high_frequency kept."""

    def __post_init__(self) -> None:
        _require_positive(self, "dims", "theta", "factor")
        _require(self.dims % 2 == 0, "RopeSpec.dims", "an even number", self.dims)


class AttentionSpec(MixerSpec, frozen=True, kw_only=True, tag="attention"):
    """Causal grouped-query attention."""

    kind: ClassVar[str] = "attention"
    heads: int
    kv_heads: int
    head_dim: int
    rope: RopeSpec | None = None
    """None is no position embedding, as in Nemotron-H."""
    qk_norm: bool = False
    """Queries and keys are RMS-normalised head by head before they are turned."""
    bias: bool = False
    """Of the query, key and value projections."""
    output_bias: bool = False
    scale: float | None = None
    """Of the products of queries and keys; None is head_dim**-0.5."""
    key_multiplier: float = 1.0
    """Of the keys, and so of those products too."""

    def __post_init__(self) -> None:
        _require_positive(self, "heads", "kv_heads", "head_dim")
        _require(self.heads % self.kv_heads == 0, "AttentionSpec.heads", f"a multiple of {self.kv_heads}", self.heads)
        if self.rope is not None:
            _require(self.rope.dims <= self.head_dim, "RopeSpec.dims", f"at most {self.head_dim}", self.rope.dims)

    def parameters(self, hidden: int) -> int:
        """Number of weights, the layer's norm not counted."""
        projections = 2 * hidden * self.head_dim * (self.heads + self.kv_heads)
        biases = self.bias * self.head_dim * (self.heads + 2 * self.kv_heads) + self.output_bias * hidden
        return projections + biases + self.qk_norm * 2 * self.head_dim

    def states(self, config: ModelConfig) -> dict[str, StateShape]:
        """The caches, and the scale of each stored row where they are int8."""
        place: tuple[Dim, ...] = ("batch", self.kv_heads, "capacity")
        cache: StateShape = (config.cache_dtype, (*place, self.head_dim))
        scales: dict[str, StateShape] = {"key_scale": ("float32", place), "value_scale": ("float32", place)}
        return {"key": cache, "value": cache} | (scales if config.cache_dtype == "int8" else {})


class MlpSpec(MixerSpec, frozen=True, kw_only=True, tag="mlp"):
    """down(activation(up(x))): relu(up)**2, or gated SiLU(gate(x)) * up(x)."""

    kind: ClassVar[str] = "mlp"
    intermediate: int
    activation: Literal["relu2", "silu_gated"] = "relu2"
    bias: bool = False
    gate_multiplier: float = 1.0
    """Of gate(x), before its SiLU."""

    def __post_init__(self) -> None:
        _require_positive(self, "intermediate")

    def parameters(self, hidden: int) -> int:
        """Number of weights, the layer's norm not counted."""
        risen = 2 if self.activation == "silu_gated" else 1
        biases = risen * self.intermediate + hidden if self.bias else 0
        return (risen + 1) * hidden * self.intermediate + biases

    def states(self, config: ModelConfig) -> dict[str, StateShape]:
        """None: the layer looks at one position at a time."""
        return {}


class MoeSpec(MixerSpec, frozen=True, kw_only=True, tag="moe"):
    """Sparse experts, and a shared expert added to them."""

    kind: ClassVar[str] = "moe"
    experts: int
    top_k: int
    intermediate: int
    shared_intermediate: int
    latent: int | None = None
    """Width the experts work in (LatentMoE); None is the hidden width."""
    n_group: int = 1
    topk_group: int = 1
    norm_topk_prob: bool = True
    routed_scaling_factor: float = 1.0
    scoring: Literal["sigmoid", "softmax"] = "sigmoid"
    """How router logits become the scores; only sigmoid's have a correction bias."""
    activation: Literal["relu2", "silu_gated"] = "relu2"
    """Of all experts, as MlpSpec.activation."""

    def __post_init__(self) -> None:
        _require_positive(self, "experts", "top_k", "intermediate", "shared_intermediate", "n_group", "topk_group")
        _require(self.experts % self.n_group == 0, "MoeSpec.experts", f"a multiple of {self.n_group}", self.experts)
        _require(self.topk_group <= self.n_group, "MoeSpec.topk_group", f"at most {self.n_group}", self.topk_group)
        reachable = self.topk_group * self.experts // self.n_group
        _require(self.top_k <= reachable, "MoeSpec.top_k", f"at most {reachable} reachable experts", self.top_k)

    def parameters(self, hidden: int) -> int:
        """Number of weights, the layer's norm not counted."""
        return self._parameters(hidden, self.experts)

    def active_parameters(self, hidden: int) -> int:
        """Number of weights that one token meets: those of its top_k experts, and all that is not an expert's."""
        return self._parameters(hidden, self.top_k)

    def _parameters(self, hidden: int, experts: int) -> int:
        matrices = 3 if self.activation == "silu_gated" else 2
        projections = 2 * hidden * self.latent if self.latent else 0
        router = self.experts * (hidden + (self.scoring == "sigmoid"))
        shared = matrices * hidden * self.shared_intermediate
        return matrices * experts * (self.latent or hidden) * self.intermediate + projections + shared + router

    def states(self, config: ModelConfig) -> dict[str, StateShape]:
        """None: the layer looks at one position at a time."""
        return {}


class ParallelSpec(MixerSpec, frozen=True, kw_only=True, tag="parallel"):
    """Mamba-2 and attention side by side: the sum of what both make of the same input (Falcon-H1, arXiv 2507.22448)."""

    kind: ClassVar[str] = "parallel"
    mamba: Mamba2Spec
    attention: AttentionSpec

    def parameters(self, hidden: int) -> int:
        """Number of weights, the layer's norm not counted."""
        return self.mamba.parameters(hidden) + self.attention.parameters(hidden)

    def states(self, config: ModelConfig) -> dict[str, StateShape]:
        """Those of Mamba-2, then those of attention."""
        return self.mamba.states(config) | self.attention.states(config)


LayerSpec = Union[Mamba2Spec, AttentionSpec, MlpSpec, MoeSpec, ParallelSpec]


class MtpSpec(msgspec.Struct, frozen=True, kw_only=True):
    """A head that drafts the token after the next: multi-token prediction (DeepSeek-V3, arXiv 2412.19437, 2.2).

    Its layers have no recurrent state: what was drafted in vain is taken back by forgetting positions of a cache.
    """

    layers: tuple[LayerSpec, ...]

    def __post_init__(self) -> None:
        _require(len(self.layers) > 0, "MtpSpec.layers", "at least one layer", "none")
        recurrent = [spec.kind for spec in self.layers if isinstance(spec, Mamba2Spec)]
        _require(not recurrent, "MtpSpec.layers", "no recurrent layer", recurrent)

    def parameters(self, hidden: int) -> int:
        """Number of weights; embeddings and output projection are the model's own."""
        norms = hidden * (3 + len(self.layers))
        return 2 * hidden * hidden + norms + sum(spec.parameters(hidden) for spec in self.layers)


class ModelConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A stack of layers ``x + mixer(rms_norm(x))`` between an embedding and an output projection."""

    LETTERS: ClassVar[dict[str, str]] = {"mamba2": "M", "attention": "*", "mlp": "-", "moe": "E", "parallel": "H"}

    family: str
    vocab_size: int
    hidden: int
    layers: tuple[LayerSpec, ...]
    norm_eps: float = 1e-5
    tie_embeddings: bool = False
    embedding_multiplier: float = 1.0
    logits_multiplier: float = 1.0
    max_length: int = 4096
    """Longest context, prompt and answer together, in tokens."""
    bos_token_id: int | None = None
    eos_token_ids: tuple[int, ...] = ()
    pad_token_id: int | None = None
    cache_dtype: CacheDType = "float16"
    """How keys and values are stored; float16 costs half of float32's memory and at most 2**-11 of each number."""
    state_dtype: StateDType = "float32"
    """How the scan's states are stored from step to step; within a step they are float32."""
    mtp: MtpSpec | None = None
    """The head that drafts tokens, where the model has one."""
    speculation: bool = False
    """The graph has the outputs that taking back tokens and drafting need (``edge_sdk.speculation``)."""
    vision: VisionSpec | None = None
    """How the model sees; then the graph takes embeddings, which stand for tokens or for parts of an image."""
    policy: PolicySpec | None = None
    """What it sees and does where it drives a robot; then it has no output projection over a vocabulary."""

    def __post_init__(self) -> None:
        _require_positive(self, "hidden", "max_length")
        textless = self.policy is not None and not self.policy.instruction
        vocabulary = "0: no instruction is read" if textless else "a positive number"
        _require((self.vocab_size == 0) if textless else self.vocab_size > 0, "vocab_size", vocabulary, self.vocab_size)
        alone = self.policy is None or (self.mtp is None and self.vision is None and not self.speculation)
        _require(alone, "A policy", "no mtp, vision or speculation", "one of them")
        _require(len(self.layers) > 0, "ModelConfig.layers", "at least one layer", "none")
        for token in self.eos_token_ids:
            _require(0 <= token < self.vocab_size, "eos_token_id", f"an id below {self.vocab_size}", token)

    @property
    def pattern(self) -> str:
        """The layer order in Nemotron's letters: M Mamba-2, * attention, - MLP, E experts; and H, M beside *."""
        return "".join(self.LETTERS[spec.kind] for spec in self.layers)

    def parameters(self) -> int:
        """Number of weights of the whole model, the drafting head included."""
        embeddings = self.vocab_size * self.hidden * (1 if self.tie_embeddings or self.policy is not None else 2)
        norms = self.hidden * (len(self.layers) + 1)
        specs = [*self.layers, *(spec for spec in (self.mtp, self.vision, self.policy) if spec is not None)]
        return embeddings + norms + sum(spec.parameters(self.hidden) for spec in specs)

    def active_parameters(self) -> int:
        """Number of weights without those of the experts that a token does not meet."""
        sparse = [spec for spec in self.layers if isinstance(spec, MoeSpec)]
        idle = sum(spec.parameters(self.hidden) - spec.active_parameters(self.hidden) for spec in sparse)
        return self.parameters() - idle

    def inputs(self) -> tuple[TensorSpec, ...]:
        """Inputs of the graph: token ids, how many positions each row's caches hold, whose logits to return, states.

        Of a policy: see :meth:`PolicySpec.inputs`.
        """
        if self.policy is not None:
            return (*self.policy.inputs(), *self.past_specs())
        ids = TensorSpec("input_ids", "int64", ("batch", "length"))
        return (
            ids if self.vision is None else TensorSpec("inputs_embeds", "float32", ("batch", "length", self.hidden)),
            TensorSpec("past_length", "int64", ("batch",)),
            TensorSpec("logit_positions", "int64", ("kept",)),
            *self.past_specs(),
        )

    def outputs(self) -> tuple[TensorSpec, ...]:
        """Outputs of the graph: the wanted logits, every state after the last token, and what speculation needs."""
        if self.policy is not None:
            return (*self.policy.outputs(), *self.present_specs())
        logits = TensorSpec("logits", "float32", ("batch", "kept", self.vocab_size))
        return (logits, *self.present_specs(), *self.speculation_specs())

    def speculation_specs(self) -> tuple[TensorSpec, ...]:
        """Outputs besides logits and states: the scans' inputs at the kept positions, and what the head reads."""
        if not self.speculation:
            return ()
        hidden = TensorSpec("hidden_states", "float32", ("batch", "length", self.hidden))
        return (*self.projected_specs("kept"), *([] if self.mtp is None else [hidden]))

    def projected_specs(self, length: str) -> tuple[TensorSpec, ...]:
        """What each Mamba-2 layer's in_proj made of ``length`` positions."""
        return tuple(
            TensorSpec(f"mixer.{index}.projected", "float32", ("batch", length, spec.proj_dim))
            for index, spec in enumerate(self.layers)
            if isinstance(spec, Mamba2Spec)
        )

    def past_specs(self) -> tuple[TensorSpec, ...]:
        """The states as the graph reads them, in layer order."""
        return state_specs("past_key_values", self.layers, self)

    def present_specs(self) -> tuple[TensorSpec, ...]:
        """The states as the graph returns them; order, dtypes and shapes of :meth:`past_specs`."""
        return state_specs("present", self.layers, self)

    def state_bytes(self, batch: int, capacity: int) -> int:
        """Memory of all states with caches of ``capacity`` positions, in bytes."""
        return sum(
            DTYPE_BYTES[spec.dtype] * math.prod(spec.sized(batch=batch, capacity=capacity))
            for spec in self.past_specs()
        )


def state_specs(prefix: str, layers: Sequence[LayerSpec], config: ModelConfig) -> tuple[TensorSpec, ...]:
    """The states of some layers of a model, in layer order."""
    return tuple(
        TensorSpec(f"{prefix}.{index}.{name}", dtype, shape)
        for index, spec in enumerate(layers)
        for name, (dtype, shape) in spec.states(config).items()
    )
