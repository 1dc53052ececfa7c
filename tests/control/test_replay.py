"""A recording is replayed bit for bit, and what differs, or is missing, is named."""

from __future__ import annotations

from pathlib import Path

import msgspec
import numpy as np
import pytest

from edge_sdk.control.observers import InferenceRecord
from edge_sdk.control.policy import PolicyConfig
from edge_sdk.control.recording import Recorder
from edge_sdk.control.recording_reader import Recording
from edge_sdk.control.replay import find_difference, replay
from edge_sdk.errors import RecordingError
from recorded import CONFIG, RecurrentPolicy, record, run, tell


def changed(policy: RecurrentPolicy, name: str) -> RecurrentPolicy:
    """The policy with one weight changed by the smallest step that float32 has."""
    weights = getattr(policy, name)
    weights[0, 0] = np.nextafter(weights[0, 0], np.float32(np.inf))
    return policy


def an_inference(chunk: np.ndarray) -> InferenceRecord:
    """With this chunk, (chunk_length, action_dim)."""
    return msgspec.structs.replace(next(run(RecurrentPolicy(), 1)), chunk=chunk)


def test_a_run_is_replayed_bit_for_bit_by_a_fresh_policy(tmp_path: Path) -> None:
    path = record(tmp_path / "run.mcap", *run(RecurrentPolicy(), 40))
    report = replay(path, RecurrentPolicy())
    assert (report.inferences, report.identical, report.truncated) == (40, True, False)


def test_each_run_of_a_recording_begins_with_a_reset(tmp_path: Path) -> None:
    policy = RecurrentPolicy()
    path = record(tmp_path / "runs.mcap", *run(policy, 5, seed=1), *run(policy, 7, seed=2))
    used = RecurrentPolicy()
    list(run(used, 3, seed=3))  # has a state already
    assert replay(path, used) == replay(Recording(path), RecurrentPolicy())
    assert replay(path, used).inferences == 12
    assert replay(path, used).identical


@pytest.mark.parametrize("weights", ["a", "b", "c"])
def test_a_change_of_the_last_bit_is_found(weights: str, tmp_path: Path) -> None:
    path = record(tmp_path / "run.mcap", *run(RecurrentPolicy(), 40))
    report = replay(path, changed(RecurrentPolicy(), weights))
    assert report.difference is not None
    assert not report.identical
    assert report.inferences == report.difference.inference + 1 <= 40
    assert 0 < report.difference.largest < 1
    assert f"inference {report.difference.inference}, step" in str(report.difference)


def test_a_policy_that_ignores_the_committed_actions_differs_where_they_begin(tmp_path: Path) -> None:
    class Deaf(RecurrentPolicy):
        def infer(self, observation, committed):  # type: ignore[no-untyped-def]
            return super().infer(observation, None)

    path = record(tmp_path / "run.mcap", *run(RecurrentPolicy(), 10))
    report = replay(path, Deaf())
    assert report.difference is not None
    assert report.difference.inference == 2  # inference 1 is the first after which some were committed


def test_the_difference_is_described_exactly() -> None:
    recorded = np.arange(10, dtype=np.float32).reshape(5, 2)
    replayed = recorded.copy()
    replayed[2, 1], replayed[4, 0] = 5.5, 8.25
    found = find_difference(an_inference(recorded), replayed)
    assert found is not None
    assert msgspec.structs.astuple(found) == (0, 2, 1, 5.0, 5.5, 2, 0.5)


def test_bits_are_compared_and_not_numbers() -> None:
    zeros = np.zeros((5, 2), np.float32)
    assert find_difference(an_inference(zeros), zeros) is None
    negative = zeros.copy()
    negative[0, 1] = -0.0
    found = find_difference(an_inference(zeros), negative)
    assert found is not None
    assert (found.step, found.dimension, found.largest) == (0, 1, 0)
    nans = np.full((5, 2), np.nan, np.float32)
    assert find_difference(an_inference(nans), nans.copy()) is None
    assert find_difference(an_inference(nans), zeros) is not None
    assert find_difference(an_inference(zeros), np.zeros((2, 5), np.float32).T) is None  # wherever they lie in memory


def test_chunks_of_another_shape_or_dtype_are_refused() -> None:
    zeros = np.zeros((5, 2), np.float32)
    for other in (zeros[:4], zeros.astype(np.float64)):
        with pytest.raises(RecordingError, match=r"expected float32 \(5, 2\)"):
            find_difference(an_inference(zeros), other)


def test_the_replay_ends_where_an_inference_is_missing(tmp_path: Path) -> None:
    records = list(run(RecurrentPolicy(), 6))
    with Recorder(tmp_path / "run.mcap", CONFIG) as recorder:
        tell(recorder, tuple(records[:6] + records[8:]))
    report = replay(tmp_path / "run.mcap", RecurrentPolicy())
    assert (report.inferences, report.missing, report.identical) == (3, 3, False)


def test_a_recording_that_was_cut_is_replayed_as_far_as_it_goes(tmp_path: Path) -> None:
    path = record(tmp_path / "run.mcap", *run(RecurrentPolicy(), 10))
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) - 100])
    report = replay(path, RecurrentPolicy())
    assert (report.inferences, report.identical, report.truncated) == (10, True, True)
    path.write_bytes(whole[:2000])
    assert replay(path, RecurrentPolicy()).inferences == 0


def test_another_policy_is_refused(tmp_path: Path) -> None:
    path = record(tmp_path / "run.mcap", *run(RecurrentPolicy(), 2))
    other = RecurrentPolicy()
    other.config = msgspec.structs.replace(CONFIG, budget_ms=11)
    with pytest.raises(RecordingError, match=r"run\.mcap: expected the policy's configuration, found another"):
        replay(path, other)
    other.config = PolicyConfig(
        observations=list(CONFIG.observations), action=CONFIG.action, chunk_length=5, budget_ms=10.0
    )
    assert replay(path, other).identical  # a list, which JSON does not tell from a tuple
