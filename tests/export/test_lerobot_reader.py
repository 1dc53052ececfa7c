"""LeRobot datasets of each version, read back against what was written and against PyAV's own decoding."""

from __future__ import annotations

import json
from pathlib import Path

import av
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from edge_export.episodes import open_episodes
from edge_export.lerobot.reader import LeRobotEpisodes
from edge_export.lerobot.statistics import aggregate, describe_images, describe_vector
from edge_sdk.errors import ConfigError
from lerobot_files import CAMERA, FPS, HEIGHT, VERSIONS, WIDTH, Dataset, write_dataset

MADE_BY_LEROBOT = Path(__file__).parent / "lerobot_0_4_4"
"""By lerobot 0.4.4 itself: LeRobotDataset.create, add_frame, save_episode and finalize, with its default AV1."""


@pytest.fixture(scope="module", params=VERSIONS)
def dataset(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return write_dataset(tmp_path_factory.mktemp("lerobot") / "set", request.param)


def test_vectors_actions_and_instructions(dataset: Dataset) -> None:
    source = open_episodes(dataset.folder)
    assert isinstance(source, LeRobotEpisodes)
    assert source.lengths.tolist() == list(dataset.lengths)
    for number in (2, 0, 1, -1):
        episode = source[number]
        episode.check(source.schema)
        np.testing.assert_array_equal(episode.observations["state"], dataset.state[number])
        np.testing.assert_array_equal(episode.observations["speed"], dataset.speed[number][:, None].astype(np.float32))
        np.testing.assert_array_equal(episode.actions, dataset.action[number])
        assert episode.instruction == dataset.tasks[number]
    with pytest.raises(IndexError):
        source[3]


def test_schema(dataset: Dataset) -> None:
    schema = open_episodes(dataset.folder).schema
    assert [(spec.name, spec.shape, spec.kind) for spec in schema.observations] == [
        ("state", (3,), "vector"),
        ("speed", (1,), "vector"),
        ("images.front", (HEIGHT, WIDTH, 3), "image"),
    ]
    assert ([dim.name for dim in schema.action.dims], schema.action.rate_hz) == (["shoulder", "grip"], FPS)
    every = np.concatenate(dataset.state).astype(np.float64)
    found = schema.observations[0].normalization
    assert found.mode == "MEAN_STD"
    np.testing.assert_allclose(found.stats["mean"], every.mean(0), rtol=1e-5)
    np.testing.assert_allclose(found.stats["std"], every.std(0), rtol=1e-5)
    actions = np.concatenate(dataset.action).astype(np.float64)
    np.testing.assert_allclose(schema.action.normalization.stats["std"], actions.std(0), rtol=1e-5)


def test_frames_are_those_of_av(dataset: Dataset) -> None:
    source = LeRobotEpisodes(dataset.folder)
    for number, length in enumerate(dataset.lengths):
        found = source[number].observations["images.front"]
        entry = source.metadata.entries[number].clips[CAMERA]
        with av.open(str(entry.path)) as container:
            frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
        first = round(entry.from_s * FPS)
        np.testing.assert_array_equal(found, frames[first : first + length])
        assert len(np.unique(found[:, HEIGHT // 2, -2, 0])) == length  # no frame twice


def test_videos_are_opened_only_when_asked_for(tmp_path: Path) -> None:
    made = write_dataset(tmp_path / "set", "v3.0")
    video = tmp_path / "set" / "videos" / CAMERA / "chunk-000" / "file-001.mp4"
    video.write_bytes(video.read_bytes()[:-200] + bytes(200))
    source = open_episodes(made.folder)
    assert source[0].observations["images.front"].shape == (5, HEIGHT, WIDTH, 3)
    with pytest.raises(ConfigError, match=r"file-001\.mp4"):
        source[2]


def test_a_dataset_that_lerobot_made() -> None:
    source = open_episodes(MADE_BY_LEROBOT)
    rng = np.random.default_rng(0)
    assert source.lengths.tolist() == [7, 5, 9]
    for number, length in enumerate((7, 5, 9)):
        episode = source[number]
        assert episode.instruction == ("right" if number == 1 else "left")
        for step in range(length):
            np.testing.assert_array_equal(episode.observations["state"][step], rng.normal(size=3).astype(np.float32))
            np.testing.assert_array_equal(episode.actions[step], rng.normal(size=2).astype(np.float32))
            shade = episode.observations["images.front"][step].astype(int)
            assert np.abs(shade - (10 * step + 60 * number)).max() <= 3  # AV1 loses a little
    state = source.schema.observations[0].normalization.stats
    every = np.concatenate([source[number].observations["state"] for number in range(3)]).astype(np.float64)
    np.testing.assert_allclose(state["mean"], every.mean(0), rtol=1e-6)
    np.testing.assert_allclose(state["std"], every.std(0), rtol=1e-6)


def test_pictures_in_the_table(tmp_path: Path) -> None:
    made = write_dataset(tmp_path / "set", "v3.0")
    info = made.folder / "meta" / "info.json"
    info.write_text(info.read_text().replace('"video", "shape"', '"image", "shape"'))
    rng = np.random.default_rng(1)
    pixels = {
        number: rng.integers(256, size=(n, HEIGHT, WIDTH, 3), dtype=np.uint8) for number, n in enumerate((5, 3, 7))
    }
    for path in (made.folder / "data" / "chunk-000").iterdir():
        rows = pq.read_table(path)
        places = zip(rows["episode_index"].to_pylist(), rows["frame_index"].to_pylist())
        stored = [{"bytes": png(pixels[episode][frame]), "path": None} for episode, frame in places]
        pq.write_table(rows.append_column(CAMERA, pa.array(stored)), path)
    source = open_episodes(made.folder)
    for number in range(3):
        np.testing.assert_array_equal(source[number].observations["images.front"], pixels[number])


def png(pixels: np.ndarray) -> bytes:
    codec = av.CodecContext.create("png", "w")
    codec.width, codec.height, codec.pix_fmt, codec.time_base = WIDTH, HEIGHT, "rgb24", 1
    frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
    return b"".join(bytes(packet) for packet in (*codec.encode(frame), *codec.encode()))


def test_statistics_of_episodes_are_those_of_all_data() -> None:
    rng = np.random.default_rng(0)
    parts = [rng.normal(index, index + 1, (length, 4)) for index, length in enumerate((3, 50, 1, 20))]
    total, every = aggregate([describe_vector(part) for part in parts]), np.concatenate(parts)
    for name in ("min", "max", "mean", "std"):
        np.testing.assert_allclose(total[name], getattr(every, name)(0), rtol=1e-12)
    assert total["count"].tolist() == [74]
    assert (total["q10"] <= np.quantile(every, 0.1, axis=0)).all()
    assert (total["q90"] >= np.quantile(every, 0.9, axis=0)).all()


def test_statistics_of_images_are_those_of_their_pixels() -> None:
    frames = np.random.default_rng(0).integers(10, 200, (4, 8, 6, 3), dtype=np.uint8)
    found, pixels = describe_images(frames), frames.reshape(-1, 3) / 255
    for name in ("min", "max", "mean", "std"):
        np.testing.assert_allclose(found[name], getattr(pixels, name)(0), rtol=1e-12)
    expected = np.quantile(pixels, 0.9, axis=0, method="inverted_cdf")
    np.testing.assert_allclose(found["q90"], expected, rtol=1e-12)


def test_what_never_changes_is_not_scaled(tmp_path: Path) -> None:
    made = write_dataset(tmp_path / "set", "v2.0", video=False)
    stats = made.folder / "meta" / "stats.json"
    values = json.loads(stats.read_text())
    values["observation.speed"] |= {"mean": [3.0], "std": [1e-9]}
    stats.write_text(json.dumps(values))
    assert open_episodes(made.folder).schema.observations[1].normalization.stats["std"] == (1.0,)
