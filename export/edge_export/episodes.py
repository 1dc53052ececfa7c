"""Episodes: what was observed and done from a beginning to an end, which is what policies learn from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from edge_sdk.control.normalization import require
from edge_sdk.control.policy import POLICY_FILE, PolicyConfig
from edge_sdk.deploy.policy_vectors import EPISODES, STEPS, Recorded
from edge_sdk.errors import CheckpointError, ConfigError, explain
from edge_sdk.policy_spec import PolicySpec


@dataclass(frozen=True)
class Episode:
    """One run of a task. Raises CheckpointError for arrays of different lengths."""

    observations: Mapping[str, np.ndarray]
    """By name (steps, *shape), in physical units, dtypes as ``ObservationSpec.dtype``."""
    actions: np.ndarray
    """(steps, action_dim) float32, physical units; actions[t] is executed in the tick after observation t."""
    instruction: str = ""

    def __post_init__(self) -> None:
        steps = {name: len(values) for name, values in self.observations.items()} | {"action": len(self.actions)}
        if len(set(steps.values())) != 1 or len(self.actions) == 0:
            raise CheckpointError(
                explain("An episode", expected="one or more steps of everything", found=steps, todo="Repair the data.")
            )

    def __len__(self) -> int:
        return len(self.actions)

    def check(self, schema: PolicyConfig) -> None:
        """Raises ConfigError unless it has every observation of a schema and its actions, by shape and dtype."""
        for spec in schema.observations:
            values = self.observations.get(spec.name)
            found = "none" if values is None else f"{values.dtype} {values.shape[1:]}"
            right = values is not None and values.shape[1:] == spec.shape and values.dtype == spec.dtype
            require(right, f"An episode's {spec.name!r}", f"{spec.dtype} {spec.shape} in every step", found)
        found = f"{self.actions.dtype} {self.actions.shape[1:]}"
        right = self.actions.shape[1:] == (schema.action_dim,) and self.actions.dtype == np.float32
        require(right, "An episode's actions", f"float32 ({schema.action_dim},) in every step", found)


class EpisodeSource(Protocol):
    """Episodes that are decoded as they are asked for."""

    @property
    def schema(self) -> PolicyConfig:
        """Names, shapes, units, rate and the statistics to normalise by."""
        ...

    @property
    def lengths(self) -> np.ndarray:
        """Steps of each episode (episodes) int64."""
        ...

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Episode: ...


def open_episodes(path: Path) -> EpisodeSource:
    """The episodes of a folder: ours, a LeRobot dataset (v2.0, v2.1, v3.0), or MCAP recordings of the control loop.

    Raises ConfigError for a folder of no such kind, and for a dataset that is damaged; RecordingError for a damaged
    recording.
    """
    # which know this module
    from edge_export.episode_folder import EpisodeFolder
    from edge_export.lerobot.info import INFO
    from edge_export.lerobot.reader import LeRobotEpisodes
    from edge_export.recorded_episodes import SUFFIX, RecordedEpisodes

    if (path / POLICY_FILE).exists():
        return EpisodeFolder(path)
    if (path / INFO).exists():
        return LeRobotEpisodes(path)
    if any(path.glob(f"*{SUFFIX}")):
        return RecordedEpisodes(path)
    expected = f"a {POLICY_FILE} and episodes, a LeRobot dataset with its {INFO}, or recordings ending in {SUFFIX}"
    raise ConfigError(explain(str(path), expected=expected, found="none of them", todo="Name another folder."))


def recorded_parts(path: Path, spec: PolicySpec) -> list[Recorded]:
    """Parts of some episodes of a folder, for a bundle's acceptance check, in the policy's rhythm.

    The first part is the beginning of an episode, the others lie later and later within theirs. Raises as
    :func:`open_episodes`, and ConfigError where the episodes are not of the policy's schema.
    """
    source, parts = open_episodes(path), []
    for number, index in enumerate(np.linspace(0, len(source) - 1, min(EPISODES, len(source))).astype(int)):
        episode = source[index]
        episode.check(spec.schema)
        start = number * max(0, len(episode) - STEPS * spec.stride) // EPISODES
        window = slice(start, start + STEPS * spec.stride, spec.stride)
        seen = {one.name: episode.observations[one.name][window] for one in spec.schema.observations}
        parts.append(Recorded(episode.instruction, seen))
    return parts
