"""Episodes out of recordings of the control loop (MCAP), as far as every tick had an observation of its own."""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import NoReturn

import numpy as np

from edge_export.episodes import Episode
from edge_export.lerobot.info import ACTION, OBSERVATION
from edge_export.lerobot.schema import with_statistics
from edge_export.lerobot.statistics import Statistics, aggregate, describe_images, describe_vector
from edge_sdk.control.observers import InferenceRecord, TickRecord
from edge_sdk.control.policy import PolicyConfig
from edge_sdk.control.recording_reader import Recording
from edge_sdk.errors import ConfigError, explain

SUFFIX = ".mcap"


class RecordedEpisodes:
    """An EpisodeSource over a folder of recordings of one schema.

    A step is an observation and the action that was sent in the first tick after it. An episode goes on while each
    tick has its own observation: the loop has to replan in every tick (``replan_ticks=1``). It ends where the policy
    was reset, where a tick has none or was missed, and where the loop held, braked or stopped in the policy's place. A
    step without a neighbour is left out.

    All recordings are read once to count and describe what they hold; later a whole recording is read for an episode
    of it, of which the last stays in memory. ``edge-export episodes convert`` makes a dataset that is read faster.

    Raises ConfigError where the schemas differ or there is no step, RecordingError for a damaged recording.
    """

    def __init__(self, folder: Path) -> None:
        self._load = lru_cache(1)(read_recording)
        self._places: list[tuple[Path, int]] = []
        lengths: list[int] = []
        stats: list[dict[str, Statistics]] = []
        schema: PolicyConfig | None = None
        for path in sorted(folder.glob(f"*{SUFFIX}")):
            found, episodes = self._load(path)
            if schema is not None and found != schema:
                _refuse(path, "the policy's configuration of the recordings before it", "another one")
            schema = found
            for number, episode in enumerate(episodes):
                episode.check(schema)
                self._places.append((path, number))
                lengths.append(len(episode))
                stats.append(_describe(episode, schema))
        if schema is None or not lengths:
            _refuse(folder, "recordings with an observation for every tick (replan_ticks=1)", "none")
        total = {key: aggregate([part[key] for part in stats]) for key in stats[0]}
        self.schema = with_statistics(schema, total)
        self.lengths = np.array(lengths, dtype=np.int64)

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, index: int) -> Episode:
        path, number = self._places[index]
        return self._load(path)[1][number]


def read_recording(path: Path) -> tuple[PolicyConfig, list[Episode]]:
    """The schema of one recording and its episodes. Raises RecordingError where it is damaged."""
    recording = Recording(path)
    seen: dict[int, InferenceRecord] = {}
    ticks: dict[int, TickRecord] = {}
    for record in recording:
        if isinstance(record, TickRecord):
            ticks[record.tick] = record
        else:
            seen[record.first_tick] = record  # of two for one tick the later one is the newer
    header = recording.header
    return header.policy, [_episode(steps, header.instruction) for steps in _runs(seen, ticks) if len(steps) > 1]


def _runs(
    seen: dict[int, InferenceRecord], ticks: dict[int, TickRecord]
) -> Iterator[list[tuple[InferenceRecord, TickRecord]]]:
    """Observations with the actions of their ticks, cut where a step has no neighbour."""
    run: list[tuple[InferenceRecord, TickRecord]] = []
    for number in sorted(ticks):
        tick, inference = ticks[number], seen.get(number)
        whole = inference is not None and tick.stage == "policy" and tick.action is not None
        follows = bool(run) and number == run[-1][1].tick + 1 and inference is not None and not inference.begins_episode
        if run and not (whole and follows):
            yield run
            run = []
        if whole and inference is not None:
            run.append((inference, tick))
    if run:
        yield run


def _episode(steps: list[tuple[InferenceRecord, TickRecord]], instruction: str) -> Episode:
    names = steps[0][0].observation
    observations = {name: np.stack([inference.observation[name] for inference, _ in steps]) for name in names}
    actions = np.stack([np.asarray(tick.action, dtype=np.float32) for _, tick in steps])
    return Episode(observations, actions, instruction)


def _describe(episode: Episode, schema: PolicyConfig) -> dict[str, Statistics]:
    stats: dict[str, Statistics] = {ACTION: describe_vector(episode.actions)}
    for spec in schema.observations:
        describe = describe_images if spec.kind == "image" else describe_vector
        stats[OBSERVATION + spec.name] = describe(episode.observations[spec.name])
    return stats


def _refuse(where: Path, expected: str, found: str) -> NoReturn:
    todo = "Record with replan_ticks=1, and one policy to a folder."
    raise ConfigError(explain(str(where), expected=expected, found=found, todo=todo))
