"""Chunks by absolute tick: switching, ensembling, soft masks."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_sdk.control.chunks import Blending, Chunk, ChunkQueue, Mode, soft_mask
from edge_sdk.errors import ConfigError


def chunk(inference: int, first_tick: int, values: Any) -> Chunk:
    actions = np.asarray(values, dtype=np.float32).reshape(-1, 1)
    return Chunk(first_tick, actions, observation_ns=1000 + inference, inference=inference)


def queue_of(mode: Mode, **settings: float) -> ChunkQueue:
    return ChunkQueue(Blending(mode=mode, **settings))


@pytest.mark.parametrize("mode", ["switch", "committed"])
def test_a_new_chunk_takes_over_at_its_own_ticks(mode: Mode) -> None:
    queue = queue_of(mode)
    assert queue.at(0) is None
    queue.add(chunk(0, 0, range(10)), next_tick=0)
    assert [float(queue.at(tick).action[0]) for tick in range(3)] == [0, 1, 2]  # type: ignore[union-attr]
    queue.add(chunk(1, 2, range(100, 104)), next_tick=4)  # made for ticks 2 to 5, ready before 4
    assert queue.end_tick == 6
    planned = [queue.at(tick) for tick in range(4, 8)]
    assert [float(one.action[0]) for one in planned[:2] if one] == [102, 103]
    assert planned[0] is not None
    assert (planned[0].observation_ns, planned[0].inference) == (1001, 1)
    assert planned[2:] == [None, None]


def test_ensembling_is_acts_algorithm() -> None:
    m, length = 0.3, 4
    chunks = [chunk(index, index, np.random.default_rng(index).normal(size=length)) for index in range(12)]
    queue = queue_of("ensemble", ensemble_m=m)
    for tick in range(12):
        queue.add(chunks[tick], next_tick=tick)
        planned = queue.at(tick)
        # Algorithm 2 of arXiv 2304.13705: A_t = buffer[t], sum of w_i A_t[i] / sum of w_i, w_0 for the oldest
        buffer = [one.actions[tick - one.first_tick, 0] for one in chunks[max(0, tick - length + 1) : tick + 1]]
        weights = [math.exp(-m * index) for index in range(len(buffer))]
        expected = sum(w * a for w, a in zip(weights, buffer)) / sum(weights)
        assert planned is not None
        assert planned.action[0] == pytest.approx(expected, rel=1e-6)
        assert planned.inference == tick
    assert queue.at(15) is None


def test_the_soft_mask_is_the_papers() -> None:
    horizon, executed, delay = 8, 3, 2  # H, s and d of arXiv 2506.07339
    weights = soft_mask(delay, horizon - executed)
    for i in range(horizon - executed):
        c = (horizon - executed - i) / (horizon - executed - delay + 1)
        assert weights[i] == pytest.approx(1.0 if i < delay else c * (math.e**c - 1) / (math.e - 1))


@given(frozen=st.integers(0, 30), overlap=st.integers(0, 30))
def test_a_soft_mask_begins_at_one_and_falls(frozen: int, overlap: int) -> None:
    weights = soft_mask(frozen, overlap)
    assert weights.shape == (overlap,)
    assert (weights[:frozen] == 1).all()
    assert (np.diff(weights[max(0, frozen - 1) :]) < 0).all()
    assert ((weights > 0) & (weights <= 1)).all()


def test_a_masked_chunk_goes_over_from_the_old_one_to_the_new() -> None:
    queue = queue_of("soft_mask")
    queue.add(chunk(0, 0, np.zeros(8)), next_tick=0)
    for tick in range(5):
        queue.at(tick)
    queue.add(chunk(1, 3, np.ones(8)), next_tick=5)
    found = [float(queue.at(tick).action[0]) for tick in range(5, 11)]  # type: ignore[union-attr]
    assert found[:3] == pytest.approx(1 - soft_mask(2, 5)[2:])
    assert found[3:] == [1, 1, 1]
    assert queue.at(11) is None


def test_what_is_committed_is_what_is_planned() -> None:
    queue = queue_of("committed")
    assert queue.committed(0, 3) is None
    queue.add(chunk(0, 0, range(6)), next_tick=0)
    committed = queue.committed(2, 3)
    assert committed is not None
    assert committed[:, 0].tolist() == [2, 3, 4]
    assert np.shape(queue.committed(4, 10)) == (2, 1)
    assert queue.committed(6, 1) is None


@pytest.mark.parametrize("mode", ["switch", "ensemble", "soft_mask", "committed"])
def test_chunks_from_before_an_emergency_stop_are_not_taken(mode: Mode) -> None:
    queue = queue_of(mode)
    queue.add(chunk(0, 0, range(10)), next_tick=0)
    queue.clear(from_tick=5)
    assert queue.at(3) is None
    assert queue.end_tick == 0
    queue.add(chunk(1, 4, range(10)), next_tick=6)
    assert queue.at(6) is None
    queue.add(chunk(2, 5, range(10)), next_tick=6)
    assert queue.at(6) is not None


def test_a_weight_that_makes_no_sense_is_refused() -> None:
    with pytest.raises(ConfigError, match="ensemble_m: expected a finite number, found nan"):
        Blending(ensemble_m=math.nan)
