"""The CPU engine: states that it owns, their growth and copies, and how native kernels are offered to it."""

from __future__ import annotations

import logging
from pathlib import Path

import msgspec
import numpy as np
import pytest
from numpy.random import _generator

import edge_plugins.native
from edge_sdk import Bundle
from edge_sdk.backends import capacity_for, ort
from edge_sdk.backends.ort import OrtEngine
from edge_sdk.errors import BackendError, PromptError

CLOSE = 5e-3
"""Of logits around 8: sums of another order may round a cached number to float16's neighbouring value."""


@pytest.fixture(scope="module")
def engine(scan_bundle: Path) -> OrtEngine:
    return OrtEngine(Bundle.open(scan_bundle), threads=1, kernels="none")


def token_ids(batch: int, length: int) -> np.ndarray:
    return np.random.default_rng(length).integers(5, 24, (batch, length))


def whole(engine: OrtEngine, ids: np.ndarray) -> np.ndarray:
    return engine.step(ids, engine.empty_states(len(ids)), logits="all").copy()


def test_logits_are_those_that_were_asked_for(engine: OrtEngine) -> None:
    ids = token_ids(3, 20)
    expected, states = whole(engine, ids), engine.empty_states(3)
    assert engine.step(ids[:, :7], states, logits="none").shape == (3, 0, engine.config.vocab_size)
    np.testing.assert_allclose(engine.step(ids[:, 7:11], states, logits="all"), expected[:, 7:11], atol=CLOSE)
    np.testing.assert_allclose(engine.step(ids[:, 11:20], states), expected[:, -1:], atol=CLOSE)
    assert states.past_length.tolist() == [20, 20, 20]


def test_repeated_steps_use_the_same_memory(engine: OrtEngine) -> None:
    states = engine.empty_states(1)
    first = engine.step(token_ids(1, 1), states)
    buffers = [id(buffer) for buffers in states.sets for buffer in buffers]
    call = states.call
    for _ in range(5):
        assert engine.step(token_ids(1, 1), states) is first
    assert states.call is call
    assert buffers == [id(buffer) for buffers in states.sets for buffer in buffers]


def test_a_copy_goes_its_own_way(engine: OrtEngine) -> None:
    ids, other_ids = token_ids(2, 15), token_ids(2, 9)
    states = engine.empty_states(2)
    engine.step(ids[:, :10], states, logits="none")
    other = states.copy()
    engine.step(other_ids, other, logits="none")
    found = engine.step(ids[:, 10:], states).copy()
    assert (states.past_length == 15).all()
    assert (other.past_length == 19).all()
    np.testing.assert_allclose(found, whole(engine, ids)[:, -1:], atol=CLOSE)
    np.testing.assert_allclose(
        engine.step(other_ids[:, :1], other),
        whole(engine, np.concatenate([ids[:, :10], other_ids, other_ids[:, :1]], axis=1))[:, -1:],
        atol=CLOSE,
    )


def test_rows_may_hold_different_lengths(engine: OrtEngine) -> None:
    ids, next_ids = token_ids(2, 12), token_ids(2, 4)
    both, lengths = engine.empty_states(2), (5, 12)
    expected = []
    for row, length in enumerate(lengths):
        one = engine.empty_states(1)
        engine.step(ids[row : row + 1, :length], one, logits="none")
        for alone, together in zip(one.sets[one.turn], both.sets[both.turn]):
            together[row] = alone[0]
        expected.append(engine.step(next_ids[row : row + 1], one, logits="all").copy())
    both.past_length[:] = lengths
    np.testing.assert_allclose(engine.step(next_ids, both, logits="all"), np.concatenate(expected), atol=CLOSE)
    assert both.past_length.tolist() == [9, 16]


def test_caches_grow_without_changing_the_answer(engine: OrtEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    ids = token_ids(2, 60)
    expected = whole(engine, ids)
    monkeypatch.setattr(engine, "first_capacity", 4)
    states, capacities = engine.empty_states(2), []
    for start, end in ((0, 3), (3, 4), (4, 5), (5, 6), (6, 20), (20, 59), (59, 60)):
        found = engine.step(ids[:, start:end], states, logits="all")
        np.testing.assert_allclose(found, expected[:, start:end], atol=CLOSE)
        capacities.append(states.capacity)
    assert capacities == [4, 4, 8, 8, 32, 64, 64]
    used = [buffer for buffer, spec in zip(states.sets[states.turn], states.specs) if "capacity" in spec.shape]
    assert used
    assert all(buffer.shape[2] == 64 for buffer in used)


def test_a_capacity_doubles_up_to_the_context() -> None:
    assert [capacity_for(positions, 256, 1000) for positions in (1, 256, 257, 513, 1000)] == [256, 256, 512, 1000, 1000]
    with pytest.raises(PromptError, match="at most 1000 tokens, found 1001"):
        capacity_for(1001, 256, 1000)


def test_a_step_beyond_the_context_is_refused_and_changes_nothing(engine: OrtEngine) -> None:
    states, limit = engine.empty_states(1), engine.config.max_length
    engine.step(token_ids(1, limit), states, logits="none")
    with pytest.raises(PromptError, match="Open a new session"):
        engine.step(token_ids(1, 1), states)
    assert states.past_length.tolist() == [limit]


def test_one_line_says_what_runs(
    scan_bundle: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ort, "native_library", lambda: None)
    bundle = Bundle.open(scan_bundle)
    for kernels, expected in (("auto", "no native kernels are installed"), ("none", "switched off")):
        caplog.clear()
        with caplog.at_level(logging.INFO, logger="edge_sdk"):
            engine = OrtEngine(bundle, kernels=kernels)
        assert not engine.native
        assert engine.prefill_block == 128
        (record,) = caplog.records
        assert expected in record.message
        assert "function bodies" in record.message
    with pytest.raises(BackendError, match="an installed kernel library"):
        OrtEngine(bundle, kernels="avx2")


class Options:
    """Notes what an engine tells onnxruntime's SessionOptions."""

    def __init__(self) -> None:
        self.entries: dict[str, str] = {}
        self.entries_at_registration: dict[str, str] = {}
        self.library = ""

    def add_session_config_entry(self, key: str, value: str) -> None:
        self.entries[key] = value

    def register_custom_ops_library(self, path: str) -> None:
        self.library, self.entries_at_registration = path, dict(self.entries)


def test_the_kernels_are_told_everything_before_they_are_registered(
    scan_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ort, "native_library", lambda: Path("/kernels.so"))
    manifest = msgspec.structs.replace(Bundle.open(scan_bundle).manifest)
    bundle, options = Bundle(tmp_path, manifest), Options()
    assert ort._add_kernels(options, bundle, exact=True, kernels="avx2")
    assert options.library == "/kernels.so"
    assert options.entries_at_registration == {
        "edge.exact": "1",
        "edge.isa": "avx2",
        "edge.packed_weights": str(tmp_path.resolve() / "engines" / "cpu-packed.bin"),
        "edge.packed_key": manifest.files["model.onnx.data"].sha256,
    }
    (tmp_path / "engines").rmdir()
    (tmp_path / "engines").write_text("where the folder cannot be made, nothing is packed")
    options = Options()
    assert ort._add_kernels(options, bundle, exact=False, kernels="auto")
    assert options.entries_at_registration == {"edge.exact": "0"}


def test_a_library_that_onnxruntime_refuses_is_left_aside(
    scan_bundle: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    library = tmp_path / "libedge_plugins_ort.so"
    library.write_text("not a library")
    monkeypatch.setattr(ort, "native_library", lambda: library)
    monkeypatch.setattr(ort, "_packed_weights", lambda bundle: None)
    bundle = Bundle.open(scan_bundle)
    with caplog.at_level(logging.WARNING, logger="edge_sdk"):
        engine = OrtEngine(bundle)
    assert not engine.native
    assert "left aside" in caplog.text
    with pytest.raises(BackendError, match="kernels for avx2"):
        OrtEngine(bundle, kernels="avx2")


def test_a_native_library_is_found_only_if_it_loads(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "libedge_plugins_ort.so"
    monkeypatch.setattr(edge_plugins.native, "LIBRARY", path)
    assert edge_plugins.native_library() is None
    path.write_text("not a library")
    with caplog.at_level(logging.WARNING, logger="edge_plugins"):
        assert edge_plugins.native_library() is None
    assert "does not load" in caplog.text
    some_library = Path(_generator.__file__)
    monkeypatch.setattr(edge_plugins.native, "LIBRARY", some_library)
    assert edge_plugins.native_library() == some_library
