"""A small recurrent policy, its runs and their recordings, for the tests of recording and replay.

As a program it records without end: PATH LIMIT_BYTES, where a limit other than 0 is the longest file it may write.
"""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np

from edge_sdk.control import recording
from edge_sdk.control.observers import InferenceRecord, TickRecord
from edge_sdk.control.policy import ActionDim, ActionSpec, ObservationSpec, PolicyConfig
from edge_sdk.control.recording import Recorder
from edge_sdk.control.robot import FloatArray

CONFIG = PolicyConfig(
    observations=(
        ObservationSpec(name="joints", shape=(3,), units=("rad",)),
        ObservationSpec(name="camera", shape=(4, 6, 3), kind="image"),
    ),
    action=ActionSpec(dims=(ActionDim(name="elbow", unit="N m"), ActionDim(name="wrist", unit="N m")), rate_hz=50),
    chunk_length=5,
    budget_ms=10,
)


class RecurrentPolicy:
    """h = tanh(A h + B x), a chunk of outputs C h that starts from the last committed action."""

    def __init__(self, seed: int = 0) -> None:
        rng = np.random.default_rng(seed)
        self.config = CONFIG
        self.a, self.b = rng.normal(size=(8, 8)).astype(np.float32), rng.normal(size=(8, 75)).astype(np.float32)
        self.c = rng.normal(size=(10, 8)).astype(np.float32)
        self.reset()

    def reset(self) -> None:
        self.state = np.zeros(8, dtype=np.float32)

    def infer(self, observation: Mapping[str, np.ndarray], committed: FloatArray | None) -> FloatArray:
        seen = np.concatenate([observation["joints"], observation["camera"].ravel() / np.float32(255)])
        self.state = np.tanh(self.a @ self.state + self.b @ seen)
        chunk = (self.c @ self.state).reshape(5, 2)
        return chunk if committed is None else chunk + committed[-1]

    def snapshot(self) -> FloatArray:
        return self.state.copy()

    def restore(self, snapshot: FloatArray) -> None:
        self.state = snapshot.copy()


def run(policy: RecurrentPolicy, inferences: int, seed: int = 0) -> Iterator[InferenceRecord | TickRecord]:
    """What a loop would tell of a run: after each inference a tick."""
    rng = np.random.default_rng(seed)
    policy.reset()
    committed = None
    for number in range(inferences):
        now = time.monotonic_ns()
        observation = {
            "joints": rng.normal(size=3).astype(np.float32),
            "camera": rng.integers(0, 256, (4, 6, 3), dtype=np.uint8),
            "time_ns": np.array(now),
        }
        chunk = policy.infer(observation, committed)
        yield InferenceRecord(
            inference=number,
            begins_episode=number == 0,
            first_tick=number,
            observation_ns=now,
            started_ns=now + 1,
            observed_ns=now + 2,
            done_ns=now + 3,
            observation=observation,
            committed=committed,
            chunk=chunk,
        )
        yield TickRecord(
            tick=number,
            planned_ns=now,
            woken_ns=now + 4,
            done_ns=now + 5,
            timing="on_time",
            skipped=0,
            stage="policy",
            action=chunk[0],
            wanted=chunk[0] * 2,
            violations=2,
            observation_ns=now,
            inference=number,
        )
        committed = chunk[: number % 4] if number % 4 else None


def record(path: Path, *records: InferenceRecord | TickRecord) -> Path:
    """A complete recording of these records."""
    with Recorder(path, CONFIG, bundle="abc") as recorder:
        tell(recorder, records)
    return path


def tell(recorder: Recorder, records: Iterator[InferenceRecord | TickRecord] | tuple[object, ...]) -> None:
    """Hands them over as the loop does."""
    for one in records:
        if isinstance(one, TickRecord):
            recorder.tick(one)
        else:
            assert isinstance(one, InferenceRecord)
            recorder.inference(one)


def main(path: str, limit_bytes: int) -> None:
    """Says how many records are on the disk once some are; with a limit, what became of the recording."""
    if limit_bytes:
        recording.FLUSH_S = 0.05  # so that many flushes go well
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit_bytes, limit_bytes))
    recorder = Recorder(path, CONFIG)
    records = run(RecurrentPolicy(), 10**9)
    empty_bytes = Path(path).stat().st_size
    for count, one in enumerate(records):
        tell(recorder, (one,))
        if count == 199 and not limit_bytes:
            deadline = time.monotonic() + 30
            while Path(path).stat().st_size == empty_bytes:
                if time.monotonic() > deadline:
                    raise TimeoutError("nothing was flushed for 30 s")
                time.sleep(0.01)
            print(count + 1, flush=True)
        if limit_bytes and recorder.error:
            report = recorder.close()
            print(report.written["ticks"], report.dropped["ticks"], report.error, flush=True)
            return
        time.sleep(0.0005)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
