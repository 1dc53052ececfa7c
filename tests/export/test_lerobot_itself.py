"""What we write, read by lerobot, whose pinned packages do not go with ours: run it in an environment of its own.

python -m venv lerobot && lerobot/bin/pip install lerobot pytest msgspec rich typer
PYTHONPATH=.:export:plugins:tests/export lerobot/bin/python -m pytest --noconftest tests/export/test_lerobot_itself.py
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("lerobot", reason="lerobot pins older packages than ours")
from lerobot.datasets.lerobot_dataset import LeRobotDataset

from edge_export.episodes import open_episodes
from test_lerobot_writer import BLIND, write


def test_lerobot_reads_it(tmp_path: Path) -> None:
    made = write(tmp_path / "set", BLIND)
    found = LeRobotDataset("ours/set", root=tmp_path / "set")
    assert (len(found), found.num_episodes, found.fps) == (20, 4, 25)
    first = 0
    for episode in made:
        for step in range(len(episode)):
            row = found[first + step]
            np.testing.assert_array_equal(row["observation.state"].numpy(), episode.observations["state"][step])
            np.testing.assert_array_equal(row["action"].numpy().reshape(-1), episode.actions[step])
            assert row["task"] == episode.instruction
        first += len(episode)
    stats = open_episodes(tmp_path / "set").schema.observations[0].normalization.stats
    np.testing.assert_allclose(found.meta.stats["observation.state"]["mean"], stats["mean"])
