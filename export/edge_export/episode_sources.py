"""Episodes from wherever they are: a LeRobot dataset, or recordings of ours."""

from __future__ import annotations

from pathlib import Path

from edge_export.episodes import EpisodeSource
from edge_export.lerobot.info import INFO
from edge_export.lerobot.reader import LeRobotEpisodes
from edge_export.recorded_episodes import SUFFIX, RecordedEpisodes
from edge_sdk.errors import ConfigError, explain


def open_episodes(path: Path) -> EpisodeSource:
    """A LeRobot dataset folder of version 2.0, 2.1 or 3.0, or a folder of MCAP recordings of the control loop.

    Raises ConfigError for anything else and for a dataset that is damaged, RecordingError for a damaged recording.
    """
    if (path / INFO).exists():
        return LeRobotEpisodes(path)
    if any(path.glob(f"*{SUFFIX}")):
        return RecordedEpisodes(path)
    expected = f"a LeRobot dataset, which has a {INFO}, or recordings ending in {SUFFIX}"
    found = "neither" if path.is_dir() else "no such folder"
    raise ConfigError(explain(str(path), expected=expected, found=found, todo="Name another folder."))
