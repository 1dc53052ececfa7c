"""Contexts of any length: caches that are mapped whole and paid by the page, memory that runs out, late answers."""

from __future__ import annotations

import subprocess
import sys
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import edge_sdk
from edge_sdk import Bundle, LanguageModel, memory_budget, prefix_cache
from edge_sdk.backends import Snapshot, host_memory, ort
from edge_sdk.backends.host_memory import BLOCK, buffers, can_map, fill, mapped
from edge_sdk.backends.ort import OrtEngine
from edge_sdk.errors import MemoryLimitError, StateError
from edge_sdk.memory_budget import HUGE_PAGE, KEPT_FREE_BYTES, MemoryBudget
from edge_sdk.model import AttentionSpec, ModelConfig
from edge_sdk.prefix_cache import PrefixCache
from edge_sdk.state_file import Conversation, read_state, write_state
from edge_sdk.telemetry import read_memory
from edge_sdk.tensor_spec import TensorSpec

MIB = 1 << 20
CACHES = (
    TensorSpec("key", "float16", ("batch", 2, "capacity", 64)),
    TensorSpec("key_scale", "float32", ("batch", 2, "capacity")),
)


@pytest.fixture(scope="module")
def engine(scan_bundle: Path) -> OrtEngine:
    engine = OrtEngine(Bundle.open(scan_bundle), threads=1)
    if not engine.native:
        pytest.skip("needs the native kernels")
    return engine


@pytest.fixture
def free(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """What the machine says is free beside what is kept for others, in bytes: the list's only number."""
    found = [1 << 60]
    monkeypatch.setattr(memory_budget, "read_available_memory", lambda root: found[0] + KEPT_FREE_BYTES)
    monkeypatch.setattr(memory_budget, "LOOK_FROM_BYTES", 0)
    return found


def test_only_what_is_written_takes_memory() -> None:
    before = read_memory().resident_bytes
    (key, scale), backing = mapped(CACHES, MemoryBudget(), 1 << 24, np.zeros(3, dtype=np.int64))
    assert backing.positions.tolist() == [BLOCK] * 3
    assert (key.shape, scale.shape, key.dtype) == ((3, 2, 1 << 24, 64), (3, 2, 1 << 24), np.float16)
    assert key.nbytes == 12 << 30
    assert read_memory().resident_bytes - before < 8 * MIB
    key[1, 1, 1 << 23 : (1 << 23) + 2**17] = 1  # 16 MiB, 4 GiB into a head
    assert 16 * MIB <= read_memory().resident_bytes - before < 24 * MIB
    assert not key[1, 0, :1000].any()
    del key, scale, backing
    assert read_memory().resident_bytes - before < 8 * MIB


@pytest.mark.skipif(not Path("/sys/kernel/mm/transparent_hugepage").exists(), reason="a kernel without huge pages")
def test_long_contents_are_written_to_huge_pages_and_what_follows_is_not() -> None:
    length = 3 * HUGE_PAGE // 128
    content = [np.ones((1, 2, length, 64), np.float16), np.full((1, 2, length), 2, np.float32)]
    caches, _ = mapped(CACHES, MemoryBudget(), 10 * length, np.array([length]))
    fill(CACHES, caches, content, length, behind=False)
    assert all((cache[:, :, :length] == one).all() for cache, one in zip(caches, content))
    for head in caches[0][0]:
        assert "hg" in flags_at(head[length // 2].ctypes.data)
        assert "hg" not in flags_at(head[5 * length].ctypes.data)


def flags_at(address: int) -> set[str]:
    """The kernel's flags of the mapping with this address (proc(5), VmFlags)."""
    found = False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        first, *rest = line.split()
        if "-" in first:
            start, end = (int(part, 16) for part in first.split("-"))
            found = start <= address < end
        elif found and first == "VmFlags:":
            return set(rest)
    raise AssertionError("no mapping has this address")


def test_arrays_begin_at_cache_lines_and_do_not_overlap() -> None:
    budget, one = MemoryBudget(), np.ones(1, dtype=np.int64)
    for arrays in (buffers(CACHES, budget, batch=1, capacity=3), mapped(CACHES, budget, 3, one)[0]):
        assert all(array.ctypes.data % host_memory.CACHE_LINE == 0 for array in arrays)
        for value, array in enumerate(arrays, start=1):
            array[...] = value
        assert [set(array.ravel().tolist()) for array in arrays] == [{1}, {2}]


def test_a_limit_on_addresses_is_noticed(caplog: pytest.LogCaptureFixture) -> None:
    code = (
        "import resource, sys; from edge_sdk.backends import host_memory\n"
        "resource.setrlimit(resource.RLIMIT_AS, (4 << 30, 4 << 30))\n"
        "sys.exit(host_memory.can_map(1 << 20) and not host_memory.can_map(8 << 30))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 1
    assert can_map(1 << 40)
    assert not can_map(1 << 60)
    assert "grow by copying" in caplog.text


def test_caches_neither_move_nor_grow(engine: OrtEngine) -> None:
    states = engine.empty_states(1)
    addresses = [buffer.ctypes.data for buffer in states.sets[0]]
    ids = np.random.default_rng(0).integers(5, 24, (1, engine.max_length))
    engine.step(ids[:, :-1], states, "none")
    call = states.call
    engine.step(ids[:, -1:], states)
    assert states.capacity == engine.max_length
    assert addresses == [buffer.ctypes.data for buffer in states.sets[0]]
    assert call is not states.call  # another length
    assert len(states.snapshot().arrays) == len(states.specs)


def test_mapped_caches_answer_as_growing_ones(engine: OrtEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    ids = np.random.default_rng(1).integers(5, 24, (2, 60))
    expected = engine.step(ids, engine.empty_states(2), "all").copy()
    with monkeypatch.context() as patch:
        patch.setattr(ort, "can_map", lambda size: False)
        patch.setattr(ort, "FIRST_CAPACITY", 8)
        growing = OrtEngine(engine.bundle, threads=1)
    states = growing.empty_states(2)
    assert states.capacity == 8
    found = [growing.step(ids[:, start : start + 6], states, "all").copy() for start in range(0, 60, 6)]
    assert states.capacity == 64
    np.testing.assert_allclose(np.concatenate(found, axis=1), expected, atol=5e-3)


def test_memory_is_charged_for_block_by_block(free: list[int]) -> None:
    budget, size = MemoryBudget(), 2 * (64 * 2 + 4)
    free[0] = 3 * BLOCK * size
    arrays, backing = mapped(CACHES, budget, 3 * BLOCK + 1, np.array([1, 0, 0]))
    assert budget.used_bytes == 3 * BLOCK * size
    free[0] = 0
    backing.extend(np.array([BLOCK, 0, 0]))  # charged for already
    with pytest.raises(MemoryLimitError, match="of which stay free"):
        backing.extend(np.array([BLOCK + 1, 0, 0]))
    free[0] = 2 * BLOCK * size - 1
    with pytest.raises(MemoryLimitError):
        backing.rows(1, 3).extend(np.array([BLOCK + 5, BLOCK + 5]))
    assert backing.positions.tolist() == [BLOCK] * 3
    free[0] += 1
    backing.rows(1, 3).extend(np.array([BLOCK + 5, BLOCK + 5]))
    assert backing.positions.tolist() == [BLOCK, 2 * BLOCK, 2 * BLOCK]
    free[0] = (2 * BLOCK + 1) * size  # the last block is what is left of the capacity
    backing.extend(np.array([3 * BLOCK + 1, 0, 0]))
    assert backing.positions.tolist() == [3 * BLOCK + 1, 2 * BLOCK, 2 * BLOCK]
    assert budget.used_bytes == (7 * BLOCK + 1) * size
    del arrays
    assert budget.used_bytes == 0


def test_a_limit_holds_for_what_is_mapped() -> None:
    budget, size = MemoryBudget(), 2 * (64 * 2 + 4)
    budget.limit_bytes = 2 * BLOCK * size
    arrays, backing = mapped(CACHES, budget, 1 << 20, np.array([0]))
    with pytest.raises(MemoryLimitError, match="bytes in use"):
        backing.extend(np.array([2 * BLOCK + 1]))
    backing.extend(np.array([2 * BLOCK]))
    with pytest.raises(MemoryLimitError, match="bytes in use"):
        mapped(CACHES, budget, 1 << 20, np.array([0]))
    assert budget.used_bytes == budget.limit_bytes
    del arrays
    assert budget.used_bytes == 0


def test_a_mapping_that_was_given_back_is_taken_again() -> None:
    budget, size = MemoryBudget(), 2 * (64 * 2 + 4)
    small, big = (mapped(CACHES, budget, 1 << 20, np.array([length])) for length in (5, 5000))
    addresses = [arrays[0].ctypes.data for arrays, _ in (small, big)]
    for cache in big[0]:
        cache[:, :, :5000] = 1
    counted = int(big[1].positions[0]) * size
    del small, big, cache
    assert budget.used_bytes == 0
    arrays, backing = mapped(CACHES, budget, 1 << 20, np.array([4000]))
    assert arrays[0].ctypes.data == addresses[1]
    assert budget.used_bytes == counted  # what it was written of is still there
    before = read_memory().resident_bytes
    arrays[0][:, :, :5000] = 1
    assert read_memory().resident_bytes - before < MIB
    budget.limit_bytes = counted + BLOCK * size
    other, _ = mapped(CACHES, budget, 1 << 20, np.array([0]))
    assert other[0].ctypes.data == addresses[0]
    backing.extend(np.array([5000]))
    with pytest.raises(MemoryLimitError):
        backing.extend(np.array([6000]))


def test_a_long_mapping_that_was_given_back_is_let_go(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory_budget, "SPARE_BYTES", MIB)
    budget, before = MemoryBudget(), read_memory().resident_bytes
    arrays, backing = mapped(CACHES, budget, 1 << 20, np.array([1 << 17]))
    arrays[0][:, :, : 1 << 17] = 1
    assert read_memory().resident_bytes - before > 32 * MIB
    del arrays, backing
    assert read_memory().resident_bytes - before < 2 * MIB
    assert budget._spare == {}


def test_a_step_without_memory_changes_nothing(
    engine: OrtEngine, free: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(host_memory, "BLOCK", 16)
    ids = np.random.default_rng(2).integers(5, 24, (1, 40))
    expected = engine.step(ids, engine.empty_states(1)).copy()
    engine.budget._spare.clear()  # or what has grown is taken over
    states = engine.empty_states(1)
    engine.step(ids[:, :30], states, "none")
    free[0] = 0
    engine.step(ids[:, 30:32], states, "none")
    with pytest.raises(MemoryLimitError):
        engine.step(ids[:, 32:], states)
    with pytest.raises(MemoryLimitError):
        states.copy()
    assert states.past_length.tolist() == [32]
    free[0] = 1 << 40
    np.testing.assert_allclose(engine.step(ids[:, 32:], states), expected, atol=5e-3)


def test_a_session_goes_on_when_there_is_memory_again(
    chat_bundle: Path, free: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = edge_sdk.load(chat_bundle, threads=1, prefix_cache_bytes=0)
    if not model.engine.maps_caches:  # type: ignore[attr-defined]
        pytest.skip("needs the native kernels")
    monkeypatch.setattr(host_memory, "BLOCK", 8)
    expected = model.generate("walk around left thrice")
    model.engine.budget._spare.clear()  # type: ignore[attr-defined]
    with model.session() as session:
        stream = session.stream("walk around left thrice")
        first = [next(stream), next(stream)]
        free[0] = 0
        with pytest.raises(MemoryLimitError, match="--cache-dtype int8"):
            first.extend(stream)
        free[0] = 1 << 40
        rest = session.generate()
    assert [token.token_id for token in first] + list(rest.token_ids) == list(expected.token_ids)


def test_a_context_that_is_asked_for_must_fit(chat_model: LanguageModel, free: list[int]) -> None:
    config = chat_model.config
    free[0] = (1 if chat_model.engine.native else 2) * config.state_bytes(1, 100)  # type: ignore[attr-defined]
    with chat_model.session(max_context=100) as session:
        session.fork().close()
    with pytest.raises(MemoryLimitError):
        chat_model.session(max_context=101)
    assert chat_model.session().max_context == config.max_length


def test_addresses_that_are_not_there_are_refused() -> None:
    with pytest.raises(MemoryLimitError, match="Cannot allocate memory"):
        mapped(CACHES, MemoryBudget(), 1 << 24, np.zeros(1 << 20, dtype=np.int64))


def test_a_token_costs_no_copy_of_what_was_said(chat_model: LanguageModel) -> None:
    text = "x" * 32 * MIB
    with chat_model.session() as session:
        session.resume([], chat_model.engine.empty_states(1), Conversation(text=text))
        session.begin_answer()
        peak = peak_of(lambda: [session.add_answered(5, "y") for _ in range(10)])
        assert session.text == text + 10 * "y"
    assert peak < MIB


def test_a_saved_state_is_not_read_into_memory(tmp_path: Path) -> None:
    spec = AttentionSpec(heads=8, kv_heads=8, head_dim=128)
    config = ModelConfig(family="none", vocab_size=1, hidden=1, layers=(spec,))
    rng = np.random.default_rng(0)
    arrays = tuple(rng.integers(0, 9, (1, 8, 4096, 128)).astype(np.float16) for _ in range(2))
    write_state(tmp_path / "long.state", "model", [0] * 4096, Snapshot(4096, arrays), Conversation())
    read: list[Snapshot] = []
    peak = peak_of(lambda: read.append(read_state(tmp_path / "long.state", "model", config)[2]))
    assert peak < 2 * MIB < read[0].nbytes == 16 * MIB
    for found, expected in zip(read[0].arrays, arrays):
        assert np.array_equal(found, expected)
    (tmp_path / "long.state").write_bytes(b"")
    with pytest.raises(StateError, match="something else"):
        read_state(tmp_path / "long.state", "model", config)


def peak_of(work: Callable[[], object]) -> int:
    """Bytes that Python and numpy held at most, beyond those before."""
    tracemalloc.start()
    try:
        work()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_few_long_prompts_are_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prefix_cache, "PROMPTS_TOKENS", 25)
    cache = PrefixCache(1 << 20, least=2)
    for first in (10, 20, 30):
        assert cache.plan([first] * 10, 0) == []
    assert cache.plan([10] * 5 + [0] * 5, 0) == []  # forgotten
    assert cache.plan([30] * 5 + [0] * 5, 0) == [5]
    assert cache.plan([7] * 100, 0) == []
    assert cache.plan([7] * 50 + [8], 0) == [50]  # the last one, however long
