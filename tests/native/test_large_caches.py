"""The attention kernel on caches of more than 2**32 numbers, and over a million positions."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from edge_plugins.cached_attention.op import quantize_rows
from edge_plugins.native import _native
from edge_sdk.backends.host_memory import mapped
from edge_sdk.memory_budget import MemoryBudget
from edge_sdk.model import AttentionSpec, ModelConfig, state_specs

Arrays = dict[str, Any]


def caches(cache: str, capacity: int, spec: AttentionSpec) -> Arrays:
    """Empty ones of one row, as the operator's inputs."""
    config = ModelConfig(
        family="none",
        vocab_size=1,
        hidden=1,
        layers=(spec,),
        cache_dtype=cache,  # type: ignore[arg-type]
    )
    specs = state_specs("past", config.layers, config)
    arrays, _ = mapped(specs, MemoryBudget(), capacity, np.zeros(1, dtype=np.int64))
    return {f"past_{spec.name.split('.')[-1]}": array for spec, array in zip(specs, arrays)}


def tokens(rng: np.random.Generator, length: int, spec: AttentionSpec) -> Arrays:
    """A block's queries, keys and values."""
    widths = {"query": spec.heads, "key": spec.kv_heads, "value": spec.kv_heads}
    return {
        name: rng.standard_normal((1, length, heads * spec.head_dim), dtype=np.float32)
        for name, heads in widths.items()
    }


def fill(into: Arrays, places: slice, rng: np.random.Generator) -> None:
    """Writes random rows to some positions of the caches."""
    for part in ("key", "value"):
        cache = into[f"past_{part}"][:, :, places]
        rows = rng.standard_normal(cache.shape, dtype=np.float32)
        if cache.dtype == np.int8:
            cache[...], into[f"past_{part}_scale"][:, :, places] = quantize_rows(rows)
        else:
            cache[...] = rows


@pytest.mark.parametrize("length", [1, 40])
@pytest.mark.parametrize("cache", ["float32", "float16", "int8"])
def test_places_beyond_32_bits_are_found(cache: str, length: int) -> None:
    spec, window, capacity = AttentionSpec(heads=6, kv_heads=3, head_dim=128), 100, 1 << 24
    assert spec.kv_heads * spec.head_dim * capacity > 2**32
    large, small = (caches(cache, size, spec) for size in (capacity, window + length))
    for each, size in ((large, capacity), (small, window + length)):
        fill(each, slice(size - window - length, size - length), np.random.default_rng(0))
    block = tokens(np.random.default_rng(1), length, spec)
    results = []
    for each, past in ((large, capacity - length), (small, window)):
        settings = {"scale": 0.1, "window": window, "inplace": True, "threads": 2}
        results.append(_native.cached_attention(**each, **block, past_length=np.array([past]), **settings)[0])
    np.testing.assert_allclose(results[0], results[1], atol=1e-5)
    for name, array in large.items():
        assert np.array_equal(array[:, :, -window - length :], small[name]), name
        assert not array[:, :, window : 2 * window].any()


@pytest.mark.parametrize("length", [1, 3])
@pytest.mark.parametrize("cache", ["float16", "int8"])
def test_a_million_positions_are_summed_as_float64_says(cache: str, length: int) -> None:
    spec, past = AttentionSpec(heads=1, kv_heads=1, head_dim=16), 1_000_000
    each = caches(cache, past + length, spec)
    fill(each, slice(0, past), np.random.default_rng(2))
    block = tokens(np.random.default_rng(3), length, spec)
    settings = {"scale": 0.25, "window": 0, "inplace": True, "threads": 2}
    y = _native.cached_attention(**each, **block, past_length=np.array([past]), **settings)[0]
    keys, values = (
        each[f"past_{part}"][0, 0].astype(np.float64)
        * (each[f"past_{part}_scale"][0, 0, :, None] if cache == "int8" else 1)
        for part in ("key", "value")
    )
    for step in range(length):
        end = past + step + 1
        shares = np.exp(0.25 * keys[:end] @ block["query"][0, step].astype(np.float64))
        expected = shares @ values[:end] / shares.sum()
        np.testing.assert_allclose(y[0, step], expected, atol=1e-3 * np.abs(expected).max())
