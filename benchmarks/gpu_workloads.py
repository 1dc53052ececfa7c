"""What benchmarks/gpu_ops.py runs: operators with the tensors of published models' sizes, and what they must move."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]
Tensors = Mapping[str, Array]

TYPE = "bfloat16"
"""Of all activations."""


@dataclass(frozen=True)
class Workload:
    """One operator on tensors of one size."""

    name: str
    operator: str
    """The function of the test module."""
    decode: bool
    make: Callable[[np.random.Generator], Tensors]
    """Fresh tensors, by the names of the operator's inputs; activations as float32, which the module rounds."""
    attributes: Mapping[str, Any]
    bytes: int
    """That a call must read and write at least: weights (of the chosen experts alone), states and activations."""
    flops: int
    """Multiplications and additions that the operator's definition asks for; 0 where only bytes count."""


def _normal(rng: np.random.Generator, *shape: int) -> Array:
    return rng.standard_normal(shape, dtype=np.float32)


def mamba2(batch: int, length: int, *, heads: int, head_dim: int, groups: int, state: int) -> Workload:
    """A Mamba-2 mixer with states in float32.

    Of its work the recurrence alone is counted: per head and token h += x B^T and h C, two multiplications and
    additions of each of the head_dim * state numbers. How a kernel arranges it is its own affair.
    """
    inner, kernel = heads * head_dim, 4
    conv_dim = inner + 2 * groups * state

    def make(rng: np.random.Generator) -> Tensors:
        return {
            "proj": _normal(rng, batch, length, inner + conv_dim + heads),
            "conv_weight": rng.uniform(-0.5, 0.5, (conv_dim, kernel)).astype(np.float32),
            "conv_bias": rng.uniform(-0.1, 0.1, conv_dim).astype(np.float32),
            "dt_bias": rng.uniform(-4, -2, heads).astype(np.float32),
            "a_log": np.log(rng.uniform(1, 16, heads)).astype(np.float32),
            "d": np.ones(heads, np.float32),
            "norm_weight": np.ones(inner, np.float32),
            "past_conv": _normal(rng, batch, conv_dim, kernel - 1),
            "past_ssm": _normal(rng, batch, heads, head_dim, state),
        }

    states = 2 * 4 * batch * (inner * state + conv_dim * (kernel - 1))
    activations = 2 * batch * length * (2 * inner + conv_dim + heads)
    weights = 4 * (conv_dim * (kernel + 1) + 3 * heads + inner)
    return Workload(
        name=f"Mamba2Mixer {heads}x{head_dim}, state {state}, {_size(batch, length)}",
        operator="mamba2_mixer",
        decode=length == 1,
        make=make,
        attributes={
            "groups": groups, "conv_dim": conv_dim, "eps": 1e-5, "dt_min": 0.0, "dt_max": 3.4e38, "inplace": True
        },
        bytes=states + activations + weights,
        flops=4 * batch * length * inner * state,
    )  # fmt: skip


def moe(batch: int, length: int, *, experts: int, top_k: int, width: int, intermediate: int, bits: int) -> Workload:
    """Experts with squared ReLU, in int4 of blocks of 32 or (16 bits) bfloat16; tokens choose evenly at random."""
    tokens = batch * length
    logits = _normal(np.random.default_rng(0), batch, length, experts)
    chosen = len(np.unique(np.argsort(logits, axis=-1)[..., -top_k:]))
    block = 32

    def matrices(rng: np.random.Generator, name: str, rows: int, columns: int) -> dict[str, Array]:
        if bits == 4:
            weight = rng.integers(-8, 8, (experts, rows, columns), dtype=np.int8)
            scales = np.full((experts, rows // block, columns), 0.2 * rows**-0.5, np.float32)
            return {f"{name}_weight": weight, f"{name}_scales": scales}
        few = (_normal(rng, 1 << 20) * rows**-0.5).view(np.uint32) >> 16  # bfloat16, truncated
        return {f"{name}_weight": np.resize(few.astype(np.uint16), (experts, rows, columns))}

    def make(rng: np.random.Generator) -> Tensors:
        return {
            "x": _normal(rng, batch, length, width),
            "router_logits": logits,
            "correction_bias": np.zeros(experts, np.float32),
            **matrices(rng, "up", width, intermediate),
            **matrices(rng, "down", intermediate, width),
        }

    numbers = 2 * width * intermediate
    weights = chosen * (numbers * bits // 8 + (4 * numbers // block if bits == 4 else 0))
    attributes: dict[str, Any] = {
        "top_k": top_k, "n_group": 1, "topk_group": 1, "norm_topk_prob": True, "routed_scaling_factor": 1.0,
        "bits": 4 if bits == 4 else 8, "block_size": block if bits == 4 else 0,
    }  # fmt: skip
    return Workload(
        name=f"MoE {top_k} of {experts}, {width}x{intermediate}, "
        f"{'int4' if bits == 4 else 'bfloat16'}, {_size(batch, length)}",
        operator="moe",
        decode=length == 1,
        make=make,
        attributes=attributes,
        bytes=weights + 2 * 2 * tokens * width + 4 * tokens * experts,
        flops=2 * tokens * top_k * numbers,
    )


def qlinear(batch: int, length: int, *, width: int, out: int) -> Workload:
    """An int4 matrix of blocks of 32."""
    block, tokens = 32, batch * length

    def make(rng: np.random.Generator) -> Tensors:
        return {
            "x": _normal(rng, batch, length, width),
            "weight": rng.integers(-8, 8, (width, out), dtype=np.int8),
            "scales": np.full((width // block, out), 0.2 * width**-0.5, np.float32),
        }

    return Workload(
        name=f"QLinear {width}x{out}, int4, {_size(batch, length)}",
        operator="qlinear",
        decode=length == 1,
        make=make,
        attributes={"block_size": block, "bits": 4},
        bytes=width * out // 2 + 4 * width * out // block + 2 * tokens * (width + out),
        flops=2 * tokens * width * out,
    )


def attention(batch: int, length: int, *, past: int, heads: int, kv_heads: int, head_dim: int) -> Workload:
    """Attention over a float16 cache that has ``past`` positions and room for these."""

    def make(rng: np.random.Generator) -> Tensors:
        cache = (batch, kv_heads, past + length, head_dim)
        few = _normal(rng, 1 << 20).astype(np.float16)
        return {
            "query": _normal(rng, batch, length, heads * head_dim),
            "key": _normal(rng, batch, length, kv_heads * head_dim),
            "value": _normal(rng, batch, length, kv_heads * head_dim),
            "past_length": np.full(batch, past, np.int64),
            "past_key": np.resize(few, cache),
            "past_value": np.resize(few[::-1], cache),
        }

    pairs = batch * heads * (length * past + length * (length + 1) // 2)
    return Workload(
        name=f"CachedAttention {heads}:{kv_heads} x {head_dim}, after {past}, {_size(batch, length)}",
        operator="cached_attention",
        decode=length == 1,
        make=make,
        attributes={"scale": head_dim**-0.5, "window": 0, "inplace": True},
        bytes=2 * batch * (2 * kv_heads * head_dim * (past + length) + length * (2 * heads + 2 * kv_heads) * head_dim),
        flops=4 * pairs * head_dim,
    )


def _size(batch: int, length: int) -> str:
    return f"batch {batch}" if length == 1 else f"{batch} x {length} tokens"


def workloads() -> list[Workload]:
    """Decoding at batch 1, 8 and 32, prefill of 2048 tokens at the three published head sizes."""
    sizes = (
        {"heads": 64, "head_dim": 64, "groups": 8, "state": 128},
        {"heads": 96, "head_dim": 80, "groups": 8, "state": 128},
        {"heads": 32, "head_dim": 128, "groups": 8, "state": 128},
    )
    experts = {"experts": 64, "top_k": 6, "width": 2048, "intermediate": 1024}
    cache = {"heads": 32, "kv_heads": 8, "head_dim": 128}
    decode = [
        work
        for batch in (1, 8, 32)
        for work in (
            mamba2(batch, 1, **sizes[0]),
            mamba2(batch, 1, **sizes[1]),
            *(moe(batch, 1, **experts, bits=bits) for bits in (4, 16)),
            qlinear(batch, 1, width=4096, out=14336),
            attention(batch, 1, past=4095, **cache),
        )
    ]
    prefill = [mamba2(1, 2048, **size) for size in sizes]
    others = [*(moe(1, 2048, **experts, bits=bits) for bits in (4, 16)), attention(1, 2048, past=0, **cache)]
    return [*decode, *prefill, *others, qlinear(1, 2048, width=4096, out=14336)]


def tiny_workloads() -> list[Workload]:
    """One of each kind, small enough for the model of a GPU."""
    size = {"heads": 2, "head_dim": 16, "groups": 1, "state": 16}
    experts = {"experts": 4, "top_k": 2, "width": 32, "intermediate": 64}
    return [
        mamba2(2, 1, **size),
        mamba2(1, 40, **size),
        *(moe(1, 3, **experts, bits=bits) for bits in (4, 16)),
        qlinear(2, 1, width=64, out=32),
        attention(1, 1, past=20, heads=4, kv_heads=2, head_dim=16),
    ]
