"""The layers of the hybrid model in torch: norms, and the mixers that a layer's spec describes.

While ``torch.export`` traces, the operators emit their ONNX nodes (``onnx_ops``); otherwise they compute
(``torch_ops``).
"""

from __future__ import annotations

import math
from types import ModuleType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edge_export import onnx_ops, torch_ops
from edge_export.packed_rows import positions, together
from edge_sdk.model import AttentionSpec, LayerSpec, Mamba2Spec, MlpSpec, MoeSpec, ParallelSpec, RopeSpec

States = tuple[Tensor, ...]
"""In the order of ``ModelConfig.past_specs``; a mixer gets its own, or none: then it starts from nothing."""


def operators() -> ModuleType:
    """The module whose functions stand for the ``edge`` operators right now."""
    return onnx_ops if torch.compiler.is_exporting() else torch_ops


class RMSNorm(nn.Module):
    """Root-mean-square norm over the last axis, computed in float32."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        x32 = x.float()
        # In these very operations, so that ONNX Runtime fuses them.
        normed = x32 / torch.sqrt(x32.pow(2).mean(-1, keepdim=True) + self.eps)
        return (self.weight.float() * normed).to(x.dtype)


class Constant(nn.Module):
    """Numbers that a spec fixes, and no checkpoint holds."""

    def __init__(self, values: Tensor) -> None:
        super().__init__()
        self.weight = nn.Buffer(values, persistent=False)


def times(x: Tensor, multiplier: float) -> Tensor:
    """x * multiplier, without a node in the graph where that is 1."""
    return x if multiplier == 1.0 else x * multiplier


NO_NORM = 2.0**40
"""A norm with the weight NO_NORM and the epsilon NO_NORM**2 passes its input on as it is: against the epsilon float32
does not see a mean square below 2**56, and powers of two divide and multiply exactly."""


class Mamba2Mixer(nn.Module):
    """in_proj, the ``edge::Mamba2Mixer`` operator, out_proj."""

    def __init__(self, spec: Mamba2Spec, hidden: int, eps: float) -> None:
        super().__init__()
        self.spec, self.eps = spec, eps if spec.norm else NO_NORM**2
        self.in_proj = nn.Linear(hidden, spec.proj_dim, bias=spec.proj_bias)
        self.conv_weight = nn.Parameter(torch.empty(spec.conv_dim, spec.conv_kernel))
        self.conv_bias = nn.Parameter(torch.zeros(spec.conv_dim), requires_grad=spec.conv_bias)
        self.dt_bias = nn.Parameter(torch.empty(spec.heads))
        self.A_log = nn.Parameter(torch.empty(spec.heads))
        self.D = nn.Parameter(torch.ones(spec.heads))
        undone = Constant(torch.full((spec.inner,), NO_NORM, device="cpu"))
        self.norm = RMSNorm(spec.inner, eps) if spec.norm else undone
        self.out_proj = nn.Linear(spec.inner, hidden, bias=spec.has_output_bias)
        self.proj_scale = None if spec.proj_multipliers is None else Constant(proj_scale(spec))

    def reset_parameters(self) -> None:
        """Mamba-2's own initialisation: time steps log-uniform in 0.001 to 0.1, A uniform in -16 to -1."""
        nn.init.uniform_(self.conv_weight, -0.5, 0.5)
        nn.init.uniform_(self.A_log, 1.0, 16.0)
        step = torch.empty_like(self.dt_bias).uniform_(math.log(1e-3), math.log(1e-1)).exp()
        with torch.no_grad():
            self.A_log.log_()
            self.dt_bias.copy_(step + torch.log(-torch.expm1(-step)))

    def forward(
        self, x: Tensor, past_length: Tensor | None = None, states: States = (), documents: Tensor | None = None
    ) -> tuple[Tensor, States]:
        proj = self.in_proj(x)
        if self.proj_scale is not None:
            proj = proj * self.proj_scale.weight
        y, conv, ssm = operators().mamba2_mixer(
            proj,
            self.conv_weight,
            self.conv_bias,
            self.dt_bias,
            self.A_log,
            self.D,
            self.norm.weight,
            *(states or self._no_states(x)),
            groups=self.spec.groups,
            eps=self.eps,
            dt_min=self.spec.dt_min,
            dt_max=math.inf if self.spec.dt_max is None else self.spec.dt_max,
            **({} if documents is None else {"documents": documents}),
        )
        return self.out_proj(y), (conv, ssm)

    def _no_states(self, x: Tensor) -> States:
        spec, batch = self.spec, x.shape[0]
        conv = x.new_zeros(batch, spec.conv_dim, spec.conv_kernel - 1)
        return conv, x.new_zeros(batch, spec.heads, spec.head_dim, spec.state)


def proj_scale(spec: Mamba2Spec) -> Tensor:
    """The multiplier of each channel of in_proj's output (proj_dim)."""
    assert spec.proj_multipliers is not None
    bc = spec.groups * spec.state
    parts = zip(spec.proj_multipliers, (spec.inner, spec.inner, bc, bc, spec.heads))
    return torch.cat([torch.full((width,), multiplier, device="cpu") for multiplier, width in parts])


ROPE_STRIDE = 1024
"""Positions of which whole multiples are turned by an angle of their own (see Rope.angles)."""


class Rope(nn.Module):
    """Turns queries and keys by their positions (see RopeSpec)."""

    def __init__(self, spec: RopeSpec) -> None:
        super().__init__()
        self.dims = spec.dims
        by_position = inverse_wavelengths(spec)
        by_stride = torch.remainder(by_position * ROPE_STRIDE + math.pi, 2 * math.pi) - math.pi
        self.by_position = nn.Buffer(by_position.float(), persistent=False)
        self.by_stride = nn.Buffer(by_stride.float(), persistent=False)

    def angles(self, positions: Tensor) -> Tensor:
        """Radians (batch, length, dims / 2), but for whole turns, of positions (batch, length) below 2**24.

        A position times an angle, both in float32, is 0.06 off at a million. So the position is split in two: whole
        strides turn by what is left of ROPE_STRIDE angles without their whole turns, taken in float64. Positions below
        ROPE_STRIDE have the very angles of the plain product; at a million they are less than 0.001 off.
        """
        position = positions.unsqueeze(-1).float()
        strides = (position * (1 / ROPE_STRIDE)).floor()
        return strides * self.by_stride + (position - strides * ROPE_STRIDE) * self.by_position

    def forward(self, x: Tensor, positions: Tensor) -> Tensor:
        """x (batch, length, heads, head_dim), positions (batch, length) or (1, length)."""
        angles = self.angles(positions)
        angles = torch.cat([angles, angles], -1).unsqueeze(2)
        turned, rest = x[..., : self.dims], x[..., self.dims :]
        first, second = turned.chunk(2, -1)
        turned = turned * angles.cos() + torch.cat([-second, first], -1) * angles.sin()
        return torch.cat([turned, rest], -1) if rest.shape[-1] else turned


def inverse_wavelengths(spec: RopeSpec) -> Tensor:
    """Angle per position of each pair of channels (dims / 2), in radians, float64."""
    exponents = torch.arange(0, spec.dims, 2, dtype=torch.float64, device="cpu") / spec.dims
    inverse = spec.theta**-exponents
    if spec.original_length is None:
        return inverse / spec.factor
    turns = spec.original_length * inverse / (2 * math.pi)  # over the original context
    kept = ((turns - spec.low_frequency) / (spec.high_frequency - spec.low_frequency)).clamp(0, 1)
    return inverse * (kept + (1 - kept) / spec.factor)


class Attention(nn.Module):
    """Causal grouped-query attention, over a cache (``edge::CachedAttention``) or, in training, over whole sequences.

    In training the states are keys and values (batch, kv_heads, length, head_dim), one pair for each time that it ran
    over the sequences; only a drafting head runs several times (:func:`attend_to_drafts`).
    """

    def __init__(self, spec: AttentionSpec, hidden: int, eps: float) -> None:
        super().__init__()
        self.spec = spec
        self.q_proj = nn.Linear(hidden, spec.heads * spec.head_dim, bias=spec.bias)
        self.k_proj = nn.Linear(hidden, spec.kv_heads * spec.head_dim, bias=spec.bias)
        self.v_proj = nn.Linear(hidden, spec.kv_heads * spec.head_dim, bias=spec.bias)
        self.o_proj = nn.Linear(spec.heads * spec.head_dim, hidden, bias=spec.output_bias)
        self.q_norm = RMSNorm(spec.head_dim, eps) if spec.qk_norm else nn.Identity()
        self.k_norm = RMSNorm(spec.head_dim, eps) if spec.qk_norm else nn.Identity()
        self.rope = None if spec.rope is None else Rope(spec.rope)

    def forward(
        self, x: Tensor, past_length: Tensor | None = None, states: States = (), documents: Tensor | None = None
    ) -> tuple[Tensor, States]:
        query = self._placed(self.q_proj(x), self.q_norm, past_length, documents)
        key = self._placed(self.k_proj(x), self.k_norm, past_length, documents)
        value = self.v_proj(x)
        scale = self.spec.head_dim**-0.5 if self.spec.scale is None else self.spec.scale
        scale *= self.spec.key_multiplier
        if past_length is None:
            q, k, v = (part.unflatten(-1, (-1, self.spec.head_dim)).transpose(1, 2) for part in (query, key, value))
            if states:
                mixed = attend_to_drafts(q, (*states, k, v), scale)
            else:
                seen = None if documents is None else together(documents).tril().unsqueeze(1)
                causal = seen is None
                mixed = F.scaled_dot_product_attention(q, k, v, seen, is_causal=causal, scale=scale, enable_gqa=True)
            return self.o_proj(mixed.transpose(1, 2).flatten(-2)), (*states, k, v)
        y, *present = operators().cached_attention(query, key, value, past_length, *states, scale=scale, window=0)
        return self.o_proj(y), tuple(present)

    def _placed(self, flat: Tensor, norm: nn.Module, past_length: Tensor | None, documents: Tensor | None) -> Tensor:
        """Queries or keys (batch, length, heads * head_dim), normalised and turned where the spec says so."""
        if self.rope is None and not self.spec.qk_norm:
            return flat
        by_head = norm(flat.unflatten(-1, (-1, self.spec.head_dim)))
        if self.rope is not None:
            steps = torch.arange(flat.shape[1], device=flat.device)
            places = steps.unsqueeze(0) if past_length is None else past_length.unsqueeze(1) + steps
            by_head = self.rope(by_head, places if documents is None else positions(documents))
        return by_head.flatten(-2)


def attend_to_drafts(query: Tensor, rounds: States, scale: float) -> Tensor:
    """Attention of a drafting head that drafts on at all positions of a sequence at once, as if at each one alone.

    query (batch, heads, length, head_dim) is of the last of several rounds, whose keys and values are ``rounds``, a
    pair for each; of the rounds before, the first ``length`` positions count. A position attends to the first round
    causally, since there the head read what the model said, and of the later ones to its own drafts.
    """
    heads, length = query.shape[1:3]
    pairs = [part[:, :, :length].repeat_interleave(heads // part.shape[1], 1) for part in rounds]
    (first, *drafted), (first_value, *values) = pairs[::2], pairs[1::2]
    ahead = torch.ones(length, length, dtype=torch.bool, device=query.device).triu(1)
    scores = [(query @ first.transpose(-1, -2)).masked_fill(ahead, float("-inf"))]
    scores += [(query * key).sum(-1, keepdim=True) for key in drafted]
    shares = (torch.cat(scores, -1) * scale).float().softmax(-1).to(query.dtype)
    mixed = shares[..., :length] @ first_value
    for index, value in enumerate(values, length):
        mixed = mixed + shares[..., index : index + 1] * value
    return mixed


class Mlp(nn.Module):
    """down(relu(up(x))**2), or down(SiLU(gate(x)) * up(x))."""

    def __init__(self, spec: MlpSpec, hidden: int) -> None:
        super().__init__()
        self.spec = spec
        self.gated = spec.activation == "silu_gated"
        if self.gated:
            self.gate_up_proj = nn.Linear(hidden, 2 * spec.intermediate, bias=spec.bias)
        else:
            self.up_proj = nn.Linear(hidden, spec.intermediate, bias=spec.bias)
        self.down_proj = nn.Linear(spec.intermediate, hidden, bias=spec.bias)

    def forward(
        self, x: Tensor, past_length: Tensor | None = None, states: States = (), documents: Tensor | None = None
    ) -> tuple[Tensor, States]:
        if self.gated:
            gate, risen = self.gate_up_proj(x).chunk(2, -1)
            return self.down_proj(F.silu(times(gate, self.spec.gate_multiplier)) * risen), ()
        risen = F.relu(self.up_proj(x))
        return self.down_proj(risen * risen), ()  # a product, since Pow is slow


class Router(nn.Module):
    """Logits per expert, in float32, and the bias that corrects the choice (not the weights)."""

    def __init__(self, hidden: int, experts: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(experts, hidden))
        self.e_score_correction_bias = nn.Buffer(torch.zeros(experts))

    def forward(self, x: Tensor) -> Tensor:
        with torch_ops.without_autocast(x):
            return F.linear(x.float(), self.weight.float())


class Experts(nn.Module):
    """Weights of all experts, (experts, in, out) each; gated ones have [gate | up] side by side in up_weight."""

    def __init__(self, experts: int, width: int, intermediate: int, *, gated: bool) -> None:
        super().__init__()
        self.up_weight = nn.Parameter(torch.empty(experts, width, 2 * intermediate if gated else intermediate))
        self.down_weight = nn.Parameter(torch.empty(experts, intermediate, width))

    def forward(self, x: Tensor, router_logits: Tensor, correction_bias: Tensor, **routing: Any) -> Tensor:
        return operators().moe(x, router_logits, correction_bias, self.up_weight, self.down_weight, **routing)


class Moe(nn.Module):
    """Router, sparse experts (in a latent width where there is one) and the shared expert added to them."""

    def __init__(self, spec: MoeSpec, hidden: int) -> None:
        super().__init__()
        self.spec = spec
        self.load: Tensor | None = None
        """Tokens per expert in the last forward pass of training."""
        self.gate = Router(hidden, spec.experts)
        gated = spec.activation == "silu_gated"
        self.experts = Experts(spec.experts, spec.latent or hidden, spec.intermediate, gated=gated)
        shared = MlpSpec(intermediate=spec.shared_intermediate, activation=spec.activation)
        self.shared_experts = Mlp(shared, hidden)
        self.fc1_latent_proj = nn.Linear(hidden, spec.latent, bias=False) if spec.latent else nn.Identity()
        self.fc2_latent_proj = nn.Linear(spec.latent, hidden, bias=False) if spec.latent else nn.Identity()

    def routing(self) -> dict[str, Any]:
        """How experts are chosen and weighted: the operator's attributes but for the activation."""
        names = ("top_k", "n_group", "topk_group", "norm_topk_prob", "routed_scaling_factor", "scoring")
        return {name: getattr(self.spec, name) for name in names}

    def forward(
        self, x: Tensor, past_length: Tensor | None = None, states: States = (), documents: Tensor | None = None
    ) -> tuple[Tensor, States]:
        bias, router_logits = self.gate.e_score_correction_bias, self.gate(x)
        if self.training and self.spec.scoring == "sigmoid":  # others have no correction that could balance them
            chosen, _ = torch_ops.route(router_logits.detach().flatten(0, -2), bias, **self.routing())
            self.load = torch.bincount(chosen.flatten(), minlength=self.spec.experts)
        attributes = self.routing() | {"activation": self.spec.activation}
        routed = self.experts(self.fc1_latent_proj(x), router_logits, bias, **attributes)
        return self.fc2_latent_proj(routed) + self.shared_experts(x)[0], ()


class Parallel(nn.Module):
    """Mamba-2 and attention side by side."""

    def __init__(self, spec: ParallelSpec, hidden: int, eps: float) -> None:
        super().__init__()
        self.spec = spec
        self.mamba = Mamba2Mixer(spec.mamba, hidden, eps)
        self.attention = Attention(spec.attention, hidden, eps)

    def forward(
        self, x: Tensor, past_length: Tensor | None = None, states: States = (), documents: Tensor | None = None
    ) -> tuple[Tensor, States]:
        scanned, mamba_states = mix(self.mamba, x, past_length, states[:MAMBA2_STATES], documents)
        attended, attention_states = mix(self.attention, x, past_length, states[MAMBA2_STATES:], documents)
        return scanned + attended, (*mamba_states, *attention_states)


MAMBA2_STATES = 2
"""How many states a Mamba-2 mixer has (``Mamba2Spec.states``)."""


def mix(
    mixer: Any, x: Tensor, past_length: Tensor | None, states: States, documents: Tensor | None
) -> tuple[Tensor, States]:
    """A mixer's output for the normed x, its input and output multiplied as the spec says, and the new states."""
    mixed, present = mixer(times(x, mixer.spec.input_multiplier), past_length, states, documents)
    return times(mixed, mixer.spec.output_multiplier), present


def make_mixer(spec: LayerSpec, hidden: int, eps: float) -> nn.Module:
    """The mixer that a layer spec describes."""
    if isinstance(spec, Mamba2Spec):
        return Mamba2Mixer(spec, hidden, eps)
    if isinstance(spec, AttentionSpec):
        return Attention(spec, hidden, eps)
    if isinstance(spec, MlpSpec):
        return Mlp(spec, hidden)
    if isinstance(spec, ParallelSpec):
        return Parallel(spec, hidden, eps)
    return Moe(spec, hidden)
