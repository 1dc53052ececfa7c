"""The operators as ONNX nodes: what ``torch.export`` records in place of ``torch_ops`` while it traces.

The nodes' meaning is the function body that ``edge_plugins`` supplies; only shapes and dtypes stand here.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

OPSET_VERSION = 1


def mamba2_mixer(
    proj: Tensor, *parameters_and_states: Tensor, groups: int, eps: float, dt_min: float, dt_max: float
) -> tuple[Tensor, Tensor, Tensor]:
    """An ``edge::Mamba2Mixer`` node."""
    inner = parameters_and_states[5].shape[0]  # norm_weight
    past_conv, past_ssm = parameters_and_states[-2:]
    conv_dim = parameters_and_states[0].shape[0]  # conv_weight
    attributes: dict[str, Any] = {
        "groups": groups,
        "conv_dim": conv_dim,
        "eps": eps,
        "dt_min": dt_min,
        "dt_max": min(dt_max, _MAX_FLOAT),
    }
    y, conv, ssm = torch.onnx.ops.symbolic_multi_out(
        "edge::Mamba2Mixer",
        (proj, *parameters_and_states),
        attributes,
        dtypes=(proj.dtype, past_conv.dtype, past_ssm.dtype),
        shapes=((*proj.shape[:2], inner), tuple(past_conv.shape), tuple(past_ssm.shape)),
        version=OPSET_VERSION,
    )
    return y, conv, ssm


_MAX_FLOAT = torch.finfo(torch.float32).max
"""Stands for an unbounded time step: a limit that float32 cannot exceed, in a file that every parser reads."""


def cached_attention(
    query: Tensor, key: Tensor, value: Tensor, past_length: Tensor, *caches: Tensor, scale: float, window: int
) -> tuple[Tensor, ...]:
    """An ``edge::CachedAttention`` node; the caches are key and value and, of int8 ones, their scales."""
    return tuple(
        torch.onnx.ops.symbolic_multi_out(
            "edge::CachedAttention",
            (query, key, value, past_length, *caches),
            {"scale": scale, "window": window},
            dtypes=(query.dtype, *(cache.dtype for cache in caches)),
            shapes=(tuple(query.shape), *(tuple(cache.shape) for cache in caches)),
            version=OPSET_VERSION,
        )
    )


def moe(
    x: Tensor,
    router_logits: Tensor,
    correction_bias: Tensor,
    *weights: Tensor,
    norm_topk_prob: bool,
    activation: str = "relu2",
    block_size: int | None = None,
    **attributes: Any,
) -> Tensor:
    """An ``edge::MoE`` node; with ``block_size`` the weights are up, down, up_scales, down_scales."""
    attributes["activation"] = activation
    attributes["norm_topk_prob"] = int(norm_topk_prob)
    attributes["routed_scaling_factor"] = float(attributes["routed_scaling_factor"])
    if block_size is not None:
        attributes["block_size"] = block_size
    inputs = (x, router_logits, correction_bias, *weights)
    return torch.onnx.ops.symbolic(
        "edge::MoE", inputs, attributes, dtype=x.dtype, shape=tuple(x.shape), version=OPSET_VERSION
    )


def qlinear(x: Tensor, weight: Tensor, scales: Tensor | None = None, *, block_size: int = 0) -> Tensor:
    """An ``edge::QLinear`` node; without scales the weight is bfloat16."""
    return torch.onnx.ops.symbolic(
        "edge::QLinear",
        (x, weight) if scales is None else (x, weight, scales),
        {} if scales is None else {"block_size": block_size},
        dtype=x.dtype,
        shape=(*x.shape[:-1], (weight if scales is None else scales).shape[-1]),
        version=OPSET_VERSION,
    )
