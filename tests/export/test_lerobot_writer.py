"""Datasets that we write: what comes back, what lerobot itself makes of them, and the commands."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import msgspec
import numpy as np
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from edge_export import cli
from edge_export.episodes import Episode, open_episodes
from edge_export.lerobot import writer
from edge_export.lerobot.reader import LeRobotEpisodes
from edge_export.lerobot.writer import new_dataset
from edge_sdk.control.normalization import Normalization
from edge_sdk.control.policy import ActionDim, ActionSpec, ObservationSpec, PolicyConfig
from edge_sdk.errors import ConfigError
from lerobot_files import write_dataset

SCHEMA = PolicyConfig(
    observations=(
        ObservationSpec(name="state", shape=(3,), units=("rad", "rad/s", "m")),
        ObservationSpec(name="load", shape=(1,), units=("N",)),
        ObservationSpec(name="images.wrist", shape=(32, 48, 3), kind="image"),
    ),
    action=ActionSpec(
        dims=(ActionDim(name="elbow", unit="rad", lower=-2.0, upper=2.0, max_speed=3.0, rest=None),),
        rate_hz=25,
        normalization=Normalization(mode="MIN_MAX", stats={"min": (-2.0,), "max": (2.0,)}),
    ),
    chunk_length=4,
    budget_ms=30,
)
BLIND = msgspec.structs.replace(SCHEMA, observations=SCHEMA.observations[:2])


def episodes(schema: PolicyConfig = SCHEMA, seed: int = 0) -> Iterator[Episode]:
    rng = np.random.default_rng(seed)
    for length, instruction in ((6, "left"), (1, ""), (9, "right"), (4, "left")):
        observations = {
            "state": rng.normal(size=(length, 3)).astype(np.float32),
            "load": rng.normal(size=(length, 1)).astype(np.float32),
        }
        if len(schema.observations) == 3:
            shades = rng.integers(30, 220, (length, 4, 6, 3), dtype=np.uint8)
            observations["images.wrist"] = shades.repeat(8, axis=1).repeat(8, axis=2)
        actions = rng.uniform(-1, 1, (length, 1)).astype(np.float32)
        yield Episode(observations, actions, instruction)


def write(folder: Path, schema: PolicyConfig = SCHEMA) -> list[Episode]:
    made = list(episodes(schema))
    with new_dataset(folder, schema, robot_type="toy") as dataset:
        for episode in made:
            dataset.add(episode)
    return made


def test_what_is_written_comes_back(tmp_path: Path) -> None:
    made = write(tmp_path / "set")
    source = open_episodes(tmp_path / "set")
    assert source.lengths.tolist() == [6, 1, 9, 4]
    for number, episode in enumerate(made):
        found = source[number]
        found.check(source.schema)
        assert found.instruction == episode.instruction
        np.testing.assert_array_equal(found.actions, episode.actions)
        for name in ("state", "load"):
            np.testing.assert_array_equal(found.observations[name], episode.observations[name])
        error = found.observations["images.wrist"].astype(int) - episode.observations["images.wrist"]
        assert np.abs(error).mean() < 12  # H.264 halves the resolution of colours


def test_units_limits_and_modes_come_back_with_the_statistics_of_the_data(tmp_path: Path) -> None:
    made = write(tmp_path / "set")
    schema = open_episodes(tmp_path / "set").schema
    assert schema.action.dims == SCHEMA.action.dims
    assert (schema.chunk_length, schema.budget_ms) == (4, 30)
    assert [spec.units for spec in schema.observations] == [spec.units for spec in SCHEMA.observations]
    actions = np.concatenate([episode.actions for episode in made])
    assert schema.action.normalization.mode == "MIN_MAX"
    np.testing.assert_allclose(schema.action.normalization.stats["max"], actions.max(0))
    pixels = np.concatenate([episode.observations["images.wrist"].reshape(-1, 3) for episode in made]) / 255
    np.testing.assert_allclose(schema.observations[2].normalization.stats["mean"], pixels.mean(0))


def test_tables_grow_to_a_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writer, "DATA_MB", 0)
    made = write(tmp_path / "set", BLIND)
    assert len(list((tmp_path / "set" / "data").rglob("*.parquet"))) == 4
    source = open_episodes(tmp_path / "set")
    for number, episode in enumerate(made):
        np.testing.assert_array_equal(source[number].actions, episode.actions)


def test_nothing_appears_when_an_episode_is_refused(tmp_path: Path) -> None:
    made = write(tmp_path / "set", BLIND)
    before = sorted(path.relative_to(tmp_path) for path in tmp_path.rglob("*"))
    wrong = next(episodes(BLIND))
    wrong.observations["state"][2, 1] = np.nan
    with (  # noqa: PT012  # the error has to pass through the dataset's block
        pytest.raises(ConfigError, match="state of episode 1"),
        new_dataset(tmp_path / "set", BLIND) as dataset,
    ):
        dataset.add(made[0])
        dataset.add(wrong)
    with pytest.raises(ConfigError, match="one or more episodes"), new_dataset(tmp_path / "other", BLIND):
        pass
    assert sorted(path.relative_to(tmp_path) for path in tmp_path.rglob("*")) == before
    assert len(open_episodes(tmp_path / "set")) == 4


def test_odd_sizes_of_images_are_refused(tmp_path: Path) -> None:
    image = msgspec.structs.replace(SCHEMA.observations[2], shape=(31, 48, 3))
    schema = msgspec.structs.replace(SCHEMA, observations=(image,))
    episode = Episode({image.name: np.zeros((2, 31, 48, 3), np.uint8)}, np.zeros((2, 1), np.float32))
    with pytest.raises(ConfigError, match="31 x 48"), new_dataset(tmp_path / "set", schema) as dataset:
        dataset.add(episode)


def test_tables_are_those_that_lerobot_documents(tmp_path: Path) -> None:
    write(tmp_path / "set")
    info = json.loads((tmp_path / "set" / "meta" / "info.json").read_text())
    counts = {name: info[name] for name in ("total_episodes", "total_frames", "total_tasks", "fps", "codebase_version")}
    assert counts == {
        "total_episodes": 4,
        "total_frames": 20,
        "total_tasks": 3,
        "fps": 25,
        "codebase_version": "v3.0",
    }
    rows = pq.read_table(tmp_path / "set" / "data" / "chunk-000" / "file-000.parquet")
    assert set(rows.column_names) == {key for key, feature in info["features"].items() if feature["dtype"] != "video"}
    assert rows["index"].to_pylist() == list(range(20))
    assert rows["task_index"].to_pylist() == [0] * 6 + [1] + [2] * 9 + [0] * 4
    np.testing.assert_allclose(rows["timestamp"].to_numpy()[7:16], np.arange(9) / 25, rtol=1e-6)
    meta = pq.read_table(tmp_path / "set" / "meta" / "episodes").to_pylist()
    assert [(row["dataset_from_index"], row["dataset_to_index"]) for row in meta] == [(0, 6), (6, 7), (7, 16), (16, 20)]
    ours = set(meta[0])
    theirs = pq.read_table(Path(__file__).parent / "lerobot_0_4_4" / "meta" / "episodes").column_names
    other = ("observation.images", "timestamp", "index", "frame_index", "episode_index", "task_index")
    known = {name for name in theirs if not any(part in name for part in other)} | {"episode_index"}
    assert known <= ours


def test_converting_an_old_dataset(tmp_path: Path) -> None:
    made = write_dataset(tmp_path / "old", "v2.1")
    command = ["episodes", "convert", str(tmp_path / "old"), "--out", str(tmp_path / "new")]
    dry = CliRunner().invoke(cli.app, [*command, "--dry-run"])
    assert dry.exit_code == 0
    assert not (tmp_path / "new").exists()
    result = CliRunner().invoke(cli.app, command)
    assert result.exit_code == 0, result.output
    old, new = open_episodes(tmp_path / "old"), open_episodes(tmp_path / "new")
    assert isinstance(new, LeRobotEpisodes)
    assert new.metadata.info.codebase_version == "v3.0"
    for number in range(3):
        assert new[number].instruction == made.tasks[number]
        for name in ("state", "speed"):
            np.testing.assert_array_equal(new[number].observations[name], old[number].observations[name])
        error = new[number].observations["images.front"].astype(int) - old[number].observations["images.front"]
        assert np.abs(error).mean() < 3


def test_inspecting(tmp_path: Path) -> None:
    write(tmp_path / "set", BLIND)
    shown = CliRunner().invoke(cli.app, ["episodes", "inspect", str(tmp_path / "set"), "--read"])
    assert shown.exit_code == 0, shown.output
    assert "'left': 2 episodes" in shown.output
    as_json = CliRunner().invoke(cli.app, ["episodes", "inspect", str(tmp_path / "set"), "--json"])
    report = json.loads(as_json.stdout)
    assert (report["episodes"], report["steps"], report["longest"], report["seconds"]) == (4, 20, 9, 0.8)
    assert report["schema"]["action"]["dims"][0]["name"] == "elbow"
