"""What benchmarks/gpu_ops.py compares with: mamba_ssm's Triton kernels and torch's grouped products, same tensors.

A peer that is not installed, or that a workload is none of, is left out, and the report says why.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from gpu_workloads import Tensors, Workload

Start = Callable[[], object]
"""Queues the work on torch's current stream."""


def peer_of(work: Workload) -> tuple[str, Callable[[Tensors], Start]] | None:
    """The peer's name, and what makes its call of the workload's tensors. Raises ImportError if it is missing."""
    if work.operator == "mamba2_mixer":
        return _scan_step(work) if work.decode else _chunk_scan(work)
    if work.operator == "moe" and work.attributes["bits"] != 4:
        return "torch._grouped_mm", lambda tensors: _grouped_products(work, tensors)
    return None


def _on_gpu(array: np.ndarray[Any, Any], dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
    return torch.from_numpy(array).to("cuda", dtype)


def _scan_inputs(work: Workload, tensors: Tensors) -> dict[str, torch.Tensor]:
    """x (batch, length, heads, head_dim), B and C (batch, length, groups, state), dt (batch, length, heads): as if
    the convolution had been done."""
    batch, heads, head_dim, state = tensors["past_ssm"].shape
    length = tensors["proj"].shape[1]
    groups, inner = work.attributes["groups"], heads * head_dim
    widths = [inner, inner, groups * state, groups * state, heads]
    _, x, b, c, dt = torch.split(_on_gpu(tensors["proj"]), widths, dim=2)
    return {
        "x": x.reshape(batch, length, heads, head_dim),
        "dt": dt.contiguous(),
        "B": b.reshape(batch, length, groups, state),
        "C": c.reshape(batch, length, groups, state),
    }


def _scan_step(work: Workload) -> tuple[str, Callable[[Tensors], Start]]:
    from mamba_ssm.ops.triton.selective_state_update import selective_state_update

    def make(tensors: Tensors) -> Start:
        _, heads, head_dim, state = tensors["past_ssm"].shape
        inputs = {name: tensor[:, 0] for name, tensor in _scan_inputs(work, tensors).items()}
        wide = (heads, head_dim)
        a = -_on_gpu(np.exp(tensors["a_log"]), torch.float32)[:, None, None].expand(heads, head_dim, state)
        d = _on_gpu(tensors["d"], torch.float32)[:, None].expand(wide)
        dt_bias = _on_gpu(tensors["dt_bias"], torch.float32)[:, None].expand(wide)
        dt = inputs["dt"][:, :, None].expand(-1, *wide)
        past = _on_gpu(tensors["past_ssm"], torch.float32)
        return lambda: selective_state_update(
            past, inputs["x"], dt, a, inputs["B"], inputs["C"], D=d, dt_bias=dt_bias, dt_softplus=True
        )

    return "selective_state_update (no convolution, no norm)", make


def _chunk_scan(work: Workload) -> tuple[str, Callable[[Tensors], Start]]:
    from mamba_ssm.ops.triton.ssd_combined import mamba_chunk_scan_combined

    def make(tensors: Tensors) -> Start:
        inputs = _scan_inputs(work, tensors)
        a = -_on_gpu(np.exp(tensors["a_log"]), torch.float32)
        d, dt_bias = (_on_gpu(tensors[name], torch.float32) for name in ("d", "dt_bias"))
        past = _on_gpu(tensors["past_ssm"], torch.float32)
        return lambda: mamba_chunk_scan_combined(
            inputs["x"], inputs["dt"], a, inputs["B"], inputs["C"], chunk_size=256, D=d, dt_bias=dt_bias,
            initial_states=past, dt_softplus=True, return_final_states=True,
        )  # fmt: skip

    return "mamba_chunk_scan_combined (no convolution, no norm)", make


def _grouped_products(work: Workload, tensors: Tensors) -> Start:
    """Routing, rows sorted by expert, two grouped products and the weighted sum, all in torch."""
    x, logits = _on_gpu(tensors["x"]).flatten(0, 1), _on_gpu(tensors["router_logits"], torch.float32).flatten(0, 1)
    bias = _on_gpu(tensors["correction_bias"], torch.float32)
    up, down = (
        torch.from_numpy(tensors[name].view(np.int16)).cuda().view(torch.bfloat16)
        for name in ("up_weight", "down_weight")
    )
    experts, top_k = len(up), work.attributes["top_k"]

    def start() -> torch.Tensor:
        scores = logits.sigmoid()
        chosen = (scores + bias).topk(top_k, dim=1).indices
        shares = scores.gather(1, chosen)
        shares = shares / shares.sum(1, keepdim=True)
        order = chosen.flatten().argsort(stable=True)
        ends = torch.zeros(experts, dtype=torch.int32, device=x.device)
        ends = ends.scatter_add_(0, chosen.flatten(), torch.ones_like(order, dtype=torch.int32)).cumsum(0)
        rows = x[order // top_k]
        hidden = torch._grouped_mm(rows, up, offs=ends.int()).relu().square()
        products = torch._grouped_mm(hidden, down, offs=ends.int())
        weighted = products * shares.flatten()[order, None].to(products.dtype)
        return torch.zeros_like(x).index_add_(0, order // top_k, weighted)

    return start
