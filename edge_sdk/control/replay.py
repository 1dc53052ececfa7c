"""Replays a recording through a policy and compares what comes out with what was recorded, byte for byte."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import msgspec
import numpy as np

from edge_sdk.control.observers import InferenceRecord
from edge_sdk.control.policy import Policy, PolicyConfig
from edge_sdk.control.recording_reader import Recording
from edge_sdk.control.robot import FloatArray
from edge_sdk.errors import RecordingError, explain


class Difference(msgspec.Struct, frozen=True, kw_only=True):
    """The first inference whose chunk is another."""

    inference: int
    step: int
    """Of the chunk: the first element that differs, by step and then by dimension of the action."""
    dimension: int
    recorded: float
    replayed: float
    elements: int
    """How many of the chunk's elements differ."""
    largest: float
    """Of the absolute differences; NaN where one of the two has a NaN."""

    def __str__(self) -> str:
        return (
            f"inference {self.inference}, step {self.step}, dimension {self.dimension}: recorded {self.recorded!r}, "
            f"replayed {self.replayed!r}; {self.elements} elements of the chunk differ, by up to {self.largest:g}"
        )


class ReplayReport(msgspec.Struct, frozen=True, kw_only=True):
    """How far a replay came, and what it found."""

    inferences: int
    """Compared, the one that differs included."""
    difference: Difference | None
    missing: int | None
    """The first inference that the recording lacks, where the replay had to end: the policy's state is unknown then."""
    truncated: bool
    """Whether the recording was never completed; what it has was replayed."""

    @property
    def identical(self) -> bool:
        """Whether all that the recording has of inferences was replayed, bit for bit."""
        return self.difference is None and self.missing is None


def replay(recording: Recording | str | Path, policy: Policy) -> ReplayReport:
    """Feeds the recorded observations and committed actions to the policy, in their order.

    The policy is reset where it was reset, at the beginning of an episode. The replay ends at the first difference.
    Raises RecordingError where the recording is damaged or is of a policy with another configuration.
    """
    if not isinstance(recording, Recording):
        recording = Recording(recording)
    config = msgspec.json.decode(msgspec.json.encode(policy.config), type=PolicyConfig)  # as the recorded one was
    if recording.header.policy != config:
        todo = "Replay through the policy that was recorded, or another of the same policy.json."
        raise RecordingError(
            explain(str(recording.path), expected="the policy's configuration", found="another", todo=todo)
        )
    inferences = (record for record in recording if isinstance(record, InferenceRecord))
    compared, difference, missing = _compare(inferences, policy)
    return ReplayReport(inferences=compared, difference=difference, missing=missing, truncated=recording.truncated)


def _compare(records: Iterable[InferenceRecord], policy: Policy) -> tuple[int, Difference | None, int | None]:
    """Number compared, the first difference, and the first number that is missing."""
    compared, expected = 0, 0
    for record in records:
        begins_run = record.inference == 0 and record.begins_episode
        if record.inference != expected and not begins_run:
            return compared, None, expected
        if record.begins_episode:
            policy.reset()
        replayed = policy.infer(record.observation, record.committed)
        compared, expected = compared + 1, record.inference + 1
        if difference := find_difference(record, replayed):
            return compared, difference, None
    return compared, None, None


def find_difference(record: InferenceRecord, replayed: FloatArray) -> Difference | None:
    """Between the recorded chunk and another, both (chunk_length, action_dim); None where their bytes are the same.

    Raises RecordingError where shape or dtype differ, which one policy's configuration excludes.
    """
    recorded = record.chunk
    if (recorded.shape, recorded.dtype) != (replayed.shape, replayed.dtype):
        raise RecordingError(
            explain(
                f"The chunk of inference {record.inference}",
                expected=f"{recorded.dtype} {recorded.shape}",
                found=f"{replayed.dtype} {replayed.shape}",
                todo="Correct the policy.",
            )
        )
    bits = np.dtype(f"u{recorded.dtype.itemsize}")
    differs = np.ascontiguousarray(recorded).view(bits) != np.ascontiguousarray(replayed).view(bits)
    if not differs.any():
        return None
    step, dimension = (int(index) for index in np.argwhere(differs)[0])
    return Difference(
        inference=record.inference,
        step=step,
        dimension=dimension,
        recorded=float(recorded[step, dimension]),
        replayed=float(replayed[step, dimension]),
        elements=int(differs.sum()),
        largest=float(np.abs(recorded.astype(np.float64) - replayed)[differs].max()),
    )
