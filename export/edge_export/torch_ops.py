"""The operators in differentiable torch: what training runs and what the traced graph is compared with.

Each function has the signature of the operator of the same name in ``edge_plugins``, where its meaning,
its shapes and its source are written down.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from edge_export.packed_rows import PADDING, together

CHUNK = 128
"""Positions that one block of the quadratic SSD form covers."""


def without_autocast(x: Tensor) -> AbstractContextManager[None]:
    """Keeps types as they are while training in mixed precision; a trace, which would note it, has none."""
    return nullcontext() if torch.compiler.is_exporting() else torch.autocast(x.device.type, enabled=False)


def mamba2_mixer(
    proj: Tensor,
    conv_weight: Tensor,
    conv_bias: Tensor,
    dt_bias: Tensor,
    a_log: Tensor,
    d: Tensor,
    norm_weight: Tensor,
    past_conv: Tensor,
    past_ssm: Tensor,
    *,
    groups: int,
    eps: float,
    dt_min: float = 0.0,
    dt_max: float = float("inf"),
    documents: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """``edge::Mamba2Mixer``: (batch, length, proj_dim) -> (batch, length, inner) and the two new states.

    With ``documents`` (batch, length), which the operator does not have, rows are packed (:mod:`packed_rows`): each
    document begins from nothing, and the new states are to be forgotten.
    """
    batch, length, _ = proj.shape
    _, heads, head_dim, state = past_ssm.shape
    inner, conv_dim = heads * head_dim, conv_weight.shape[0]
    z, xbc, dt = proj.split([inner, conv_dim, heads], dim=-1)
    xbc, present_conv = _causal_conv(xbc, conv_weight, conv_bias, past_conv, documents)
    x, b, c = F.silu(xbc).float().split([inner, groups * state, groups * state], dim=-1)
    dt = F.softplus(dt.float() + dt_bias).clamp(dt_min, dt_max)
    with without_autocast(proj):  # the states stay in float32
        y, present_ssm = _scan(
            x.view(batch, length, groups, heads // groups, head_dim),
            dt.view(batch, length, groups, heads // groups),
            -a_log.float().exp().view(groups, heads // groups),
            b.view(batch, length, groups, state),
            c.view(batch, length, groups, state),
            past_ssm.float().view(batch, groups, heads // groups, head_dim, state),
            documents,
        )
    y = y.reshape(batch, length, heads, head_dim) + d[:, None] * x.view(batch, length, heads, head_dim)
    y = y.reshape(batch, length, inner) * F.silu(z.float())
    y = F.rms_norm(y.view(batch, length, groups, inner // groups), (inner // groups,), eps=eps)
    y = (y.reshape(batch, length, inner) * norm_weight).to(proj.dtype)
    return y, present_conv, present_ssm.reshape(past_ssm.shape).to(past_ssm.dtype)


def _causal_conv(
    x: Tensor, weight: Tensor, bias: Tensor, past: Tensor, documents: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Depthwise convolution over time of x (batch, length, channels), continued from past inputs."""
    length, kernel = x.shape[1], weight.shape[1]
    window = torch.cat([past.transpose(1, 2), x], dim=1)
    seen = [window[:, tap : tap + length] for tap in range(kernel)]
    if documents is not None:
        held = F.pad(documents, (kernel - 1, 0), value=PADDING)
        for tap in range(kernel - 1):
            seen[tap] = seen[tap] * (held[:, tap : tap + length] == documents)[..., None]
    taps = sum(part * weight[:, tap] for tap, part in enumerate(seen))
    return taps + bias, window[:, length:].transpose(1, 2)


def _scan(
    x: Tensor, dt: Tensor, a: Tensor, b: Tensor, c: Tensor, ssm: Tensor, documents: Tensor | None
) -> tuple[Tensor, Tensor]:
    """State-space duality (arXiv 2405.21060, section 6) by chunks; heads stand as (groups, heads per group)."""
    outputs = []
    for start in range(0, x.shape[1], CHUNK):
        part = slice(start, start + CHUNK)
        cuts = None if documents is None else _cuts(documents, part)
        y, ssm = _scan_chunk(x[:, part], dt[:, part], a, b[:, part], c[:, part], ssm, cuts)
        outputs.append(y)
    return torch.cat(outputs, dim=1), ssm


class Cuts(NamedTuple):
    """How documents share a chunk of packed rows."""

    together: Tensor
    """Whether two positions are of the same document (batch, length, length)."""
    arriving: Tensor
    """Whether a position's document began before the chunk (batch, length)."""
    leaving: Tensor
    """Whether a position's document is the chunk's last (batch, length)."""


def _cuts(documents: Tensor, part: slice) -> Cuts:
    here, before = documents[:, part], documents[:, max(part.start - 1, 0), None]
    return Cuts(together(here), here == before, here == here[:, -1:])


def _scan_chunk(
    x: Tensor, dt: Tensor, a: Tensor, b: Tensor, c: Tensor, ssm: Tensor, cuts: Cuts | None
) -> tuple[Tensor, Tensor]:
    causal = torch.ones((x.shape[1],) * 2, dtype=torch.bool, device=x.device).tril()
    if cuts is None:
        decay = (dt * a).cumsum(dim=1)
    else:  # each document's own sum, so that one's magnitude does not round another's
        causal = causal & cuts.together
        decay = (causal.float() @ (dt * a).flatten(2)).view_as(dt)
        causal = causal[:, None, None]
    decay = decay.permute(0, 2, 3, 1)  # (batch, groups, heads per group, length)
    between = decay[..., :, None] - decay[..., None, :]
    between = between.masked_fill(~causal, float("-inf")).exp()
    x_dt = (x * dt[..., None]).permute(0, 2, 3, 1, 4)  # (batch, groups, heads per group, length, head_dim)
    b = b.transpose(1, 2)  # (batch, groups, length, state)
    c = c.transpose(1, 2)
    scores = (c @ b.transpose(2, 3))[:, :, None] * between
    from_start, to_end = decay, decay[..., -1:] - decay
    if cuts is not None:
        from_start = from_start.masked_fill(~cuts.arriving[:, None, None], float("-inf"))
        to_end = to_end.masked_fill(~cuts.leaving[:, None, None], float("-inf"))
    from_start, to_end = from_start.exp(), to_end.exp()
    y = scores @ x_dt + (c[:, :, None] @ ssm.transpose(3, 4)) * from_start[..., None]
    ssm = ssm * from_start[..., -1, None, None] + (x_dt * to_end[..., None]).transpose(3, 4) @ b[:, :, None]
    return y.permute(0, 3, 1, 2, 4), ssm


def route(
    router_logits: Tensor,
    correction_bias: Tensor,
    *,
    top_k: int,
    n_group: int,
    topk_group: int,
    norm_topk_prob: bool,
    routed_scaling_factor: float,
    scoring: str = "sigmoid",
) -> tuple[Tensor, Tensor]:
    """Chosen experts and their weights, each (tokens, top_k), from router logits (tokens, experts)."""
    scores = router_logits.sigmoid() if scoring == "sigmoid" else router_logits.softmax(-1)
    choice = scores.detach() + correction_bias
    if topk_group < n_group:
        grouped = choice.view(-1, n_group, choice.shape[-1] // n_group)
        rank = grouped.topk(min(2, grouped.shape[-1]), dim=-1).values.sum(-1)
        kept = torch.zeros_like(rank, dtype=torch.bool).scatter(1, rank.topk(topk_group, dim=-1).indices, True)
        choice = grouped.masked_fill(~kept[..., None], float("-inf")).view_as(choice)
    experts = choice.topk(top_k, dim=-1).indices
    weights = scores.gather(-1, experts)
    if norm_topk_prob:
        weights = weights / (weights.sum(-1, keepdim=True) + 1e-20)
    return experts, weights * routed_scaling_factor


def _silu_gated(risen: Tensor) -> Tensor:
    gate, straight = risen.chunk(2, dim=-1)
    return F.silu(gate) * straight


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu2": lambda risen: F.relu(risen).square(),
    "gelu": F.gelu,
    "silu_gated": _silu_gated,
}


def moe(
    x: Tensor,
    router_logits: Tensor,
    correction_bias: Tensor,
    up_weight: Tensor,
    down_weight: Tensor,
    *,
    activation: str = "relu2",
    **routing: Any,
) -> Tensor:
    """``edge::MoE``: x (batch, length, width) through its top_k experts, weights (experts, in, out)."""
    tokens, activate = x.reshape(-1, x.shape[-1]), ACTIVATIONS[activation]
    experts, weights = route(router_logits.reshape(len(tokens), -1).float(), correction_bias, **routing)
    order = experts.flatten().argsort(stable=True)
    counts = torch.bincount(experts.flatten(), minlength=up_weight.shape[0]).tolist()
    source = order // experts.shape[-1]
    parts = [
        activate(part @ up_weight[expert].to(x.dtype)) @ down_weight[expert].to(x.dtype)
        for expert, part in enumerate(tokens[source].split(counts))
        if len(part)
    ]
    weighted = torch.cat(parts) * weights.flatten()[order, None].to(x.dtype)
    return torch.zeros_like(tokens).index_add(0, source, weighted).view_as(x)


def dequantize(weight: Tensor, scales: Tensor, block_size: int) -> Tensor:
    """Integers (..., in, out) times their block's scale (..., in / block_size, out)."""
    blocks = weight.unflatten(-2, (scales.shape[-2], block_size)).to(scales.dtype)
    return (blocks * scales.unsqueeze(-2)).flatten(-3, -2)


def qlinear(x: Tensor, weight: Tensor, scales: Tensor | None = None, *, block_size: int = 0) -> Tensor:
    """``edge::QLinear``: x (..., in) times a matrix (in, out), block-quantised or bfloat16."""
    return x @ (weight if scales is None else dequantize(weight, scales, block_size)).to(x.dtype)


def cached_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    past_length: Tensor,
    past_key: Tensor,
    past_value: Tensor,
    *past_scales: Tensor,
    scale: float,
    window: int = 0,
) -> tuple[Tensor, ...]:
    """``edge::CachedAttention``: y (batch, length, heads * head_dim) and the caches with the new positions in them."""
    batch, length, _ = query.shape
    _, kv_heads, _, head_dim = past_key.shape
    place = past_length[:, None] + torch.arange(length, device=query.device)  # (batch, length)
    caches = ((past_key, *past_scales[:1]), (past_value, *past_scales[1:]))
    stored = [
        _store(new.view(batch, length, kv_heads, head_dim).transpose(1, 2), cache, place)
        for new, cache in zip((key, value), caches)
    ]
    keys, values = (_read(cache, past_length + length) for cache in stored)
    queries = query.float().view(batch, length, kv_heads, -1, head_dim).permute(0, 2, 3, 1, 4)
    distance = place[:, :, None] - torch.arange(keys.shape[2], device=query.device)
    visible = (distance >= 0) & (distance < (window or keys.shape[2]))
    scores = queries @ keys[:, :, None].transpose(-1, -2) * scale
    scores = scores.masked_fill(~visible[:, None, None], torch.finfo(torch.float32).min)
    mixed = (scores.softmax(-1) @ values[:, :, None]).permute(0, 3, 1, 2, 4).reshape(query.shape)
    return (mixed.to(query.dtype), *(part for parts in zip(*stored) for part in parts))


def _store(rows: Tensor, cache: tuple[Tensor, ...], place: Tensor) -> tuple[Tensor, ...]:
    """The cache, and its scales if it is int8, with rows (batch, kv_heads, length, head_dim) at ``place``."""
    values = quantize_rows(rows) if len(cache) > 1 else (rows,)
    at = place[:, None, :, None].expand(rows.shape)
    return tuple(
        past.scatter(2, at if past.ndim > 3 else at[..., 0], new.to(past.dtype)) for past, new in zip(cache, values)
    )


def quantize_rows(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Rows (..., head_dim) as int8 and their scales (...), as ``edge::CachedAttention`` stores them."""
    ratio = rows.float().abs().amax(-1, keepdim=True) / 127
    scale = torch.where(ratio == 0, torch.ones_like(ratio), ratio)
    return (rows / scale).round().clamp(-127, 127).to(torch.int8), scale[..., 0]


def _read(cache: tuple[Tensor, ...], held: Tensor) -> Tensor:
    """What is stored, in float32, up to the longest row; zeros behind the ``held`` positions of each row (batch)."""
    end = int(held.max())
    values = cache[0][:, :, :end].float()
    if len(cache) > 1:
        values = values * cache[1][:, :, :end, None]
    unused = torch.arange(end, device=held.device) >= held[:, None]
    return values.masked_fill(unused[:, None, :, None], 0.0)
