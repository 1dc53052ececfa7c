"""LeRobot datasets of every version, written with pyarrow and PyAV by what LeRobot documents, not by our writer."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import av
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

VERSIONS = ("v2.0", "v2.1", "v3.0")
FPS = 10
HEIGHT, WIDTH = 32, 48
CAMERA = "observation.images.front"
CHUNKS_SIZE = 2
"""Of version 2: episodes in a folder."""

FEATURES: dict[str, dict[str, Any]] = {
    "observation.state": {"dtype": "float32", "shape": [3], "names": {"motors": ["a", "b", "c"]}},
    "observation.speed": {"dtype": "float64", "shape": [1], "names": None},
    CAMERA: {"dtype": "video", "shape": [HEIGHT, WIDTH, 3], "names": ["height", "width", "channels"]},
    "observation.note": {"dtype": "string", "shape": [1], "names": None},
    "action": {"dtype": "float32", "shape": [2], "names": ["shoulder", "grip"]},
    "next.reward": {"dtype": "float32", "shape": [1], "names": None},
    "timestamp": {"dtype": "float32", "shape": [1], "names": None},
    **{
        name: {"dtype": "int64", "shape": [1], "names": None}
        for name in ("frame_index", "episode_index", "index", "task_index")
    },
}


@dataclass
class Dataset:
    """What was written."""

    folder: Path
    version: str
    lengths: tuple[int, ...] = (5, 3, 7)
    tasks: tuple[str, ...] = ("push", "pull", "push")
    state: list[np.ndarray] = field(default_factory=list)
    speed: list[np.ndarray] = field(default_factory=list)
    action: list[np.ndarray] = field(default_factory=list)

    @property
    def task_numbers(self) -> list[int]:
        return [sorted(set(self.tasks)).index(task) for task in self.tasks]


def write_dataset(folder: Path, version: str, *, video: bool = True) -> Dataset:
    """Three episodes; without ``video`` there is no camera."""
    rng = np.random.default_rng(7)
    made = Dataset(folder, version)
    for length in made.lengths:
        made.state.append(rng.normal(2.0, 3.0, (length, 3)).astype(np.float32))
        made.speed.append(rng.normal(size=length))
        made.action.append(rng.normal(size=(length, 2)).astype(np.float32))
    (folder / "meta").mkdir(parents=True)
    features = {key: feature for key, feature in FEATURES.items() if video or key != CAMERA}
    write_info(made, features)
    (write_v3 if version == "v3.0" else write_v2)(made, video=video)
    return made


def write_info(made: Dataset, features: dict[str, Any]) -> None:
    third = made.version == "v3.0"
    info = {
        "codebase_version": made.version,
        "robot_type": "toy",
        "total_episodes": 3,
        "total_frames": sum(made.lengths),
        "total_tasks": 2,
        "total_videos": 3,
        "total_chunks": 2,
        "chunks_size": 1000 if third else CHUNKS_SIZE,
        "fps": FPS,
        "splits": {"train": "0:3"},
        "data_path": "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"
        if third
        else "data/chunk-{episode_chunk:03d}/episode_{episode_index:06d}.parquet",
        "video_path": "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4"
        if third
        else "videos/chunk-{episode_chunk:03d}/{video_key}/episode_{episode_index:06d}.mp4",
        "features": features,
    }
    (made.folder / "meta" / "info.json").write_text(json.dumps(info))


def table(made: Dataset, number: int) -> pa.Table:
    """The rows of one episode."""
    length, before = made.lengths[number], sum(made.lengths[:number])
    steps = np.arange(length)
    columns = {
        "observation.state": pa.array(list(made.state[number]), pa.list_(pa.float32(), 3)),
        "observation.speed": pa.array(made.speed[number]),
        "observation.note": pa.array(["-"] * length),
        "action": pa.array(list(made.action[number]), pa.list_(pa.float32())),  # some writers leave the size open
        "next.reward": pa.array(np.zeros(length, np.float32)),
        "timestamp": pa.array((steps / FPS).astype(np.float32)),
        "frame_index": pa.array(steps),
        "episode_index": pa.array(np.full(length, number)),
        "index": pa.array(before + steps),
        "task_index": pa.array(np.full(length, made.task_numbers[number])),
    }
    return pa.table(columns)


def level(number: int, step: int) -> int:
    """How bright a frame is."""
    return 20 + 70 * number + 8 * step


def write_video(path: Path, levels: list[int]) -> None:
    """Frames whose left half is black."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=FPS, options={"g": "3", "crf": "10"})
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        for value in levels:
            pixels = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
            pixels[:, WIDTH // 2 :] = value
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode())


def statistics(made: Dataset, numbers: list[int]) -> dict[str, dict[str, list[float]]]:
    """Of some episodes."""
    found = {}
    for key, parts in (("observation.state", made.state), ("observation.speed", made.speed), ("action", made.action)):
        values = np.concatenate([parts[number].reshape(len(parts[number]), -1) for number in numbers])
        found[key] = {
            name: getattr(values, name)(0).astype(float).tolist() for name in ("min", "max", "mean", "std")
        } | {"count": [len(values)]}
    return found


def write_v2(made: Dataset, *, video: bool) -> None:
    meta = made.folder / "meta"
    write_lines(meta / "tasks.jsonl", [{"task_index": i, "task": t} for i, t in enumerate(sorted(set(made.tasks)))])
    episodes = [
        {"episode_index": number, "tasks": [task], "length": length}
        for number, (task, length) in enumerate(zip(made.tasks, made.lengths))
    ]
    write_lines(meta / "episodes.jsonl", episodes)
    if made.version == "v2.0":
        (meta / "stats.json").write_text(json.dumps(statistics(made, [0, 1, 2])))
    else:
        lines = [{"episode_index": number, "stats": statistics(made, [number])} for number in range(3)]
        write_lines(meta / "episodes_stats.jsonl", lines)
    for number in range(3):
        chunk = f"chunk-{number // CHUNKS_SIZE:03d}"
        path = made.folder / "data" / chunk / f"episode_{number:06d}.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(table(made, number), path)
        if video:
            levels = [level(number, step) for step in range(made.lengths[number])]
            write_video(made.folder / "videos" / chunk / CAMERA / f"episode_{number:06d}.mp4", levels)


def write_v3(made: Dataset, *, video: bool) -> None:
    """The first two episodes share a table and a video."""
    meta, places = made.folder / "meta", (0, 0, 1)
    names = sorted(set(made.tasks))
    tasks = pa.table({"task_index": list(range(len(names))), "__index_level_0__": names})
    pq.write_table(tasks, meta / "tasks.parquet")
    (meta / "stats.json").write_text(json.dumps(statistics(made, [0, 1, 2])))
    rows = []
    for number, place in enumerate(places):
        before = sum(made.lengths[:number])
        first = sum(length for length, other in zip(made.lengths[:number], places) if other == place)
        row: dict[str, Any] = {"episode_index": number, "tasks": [made.tasks[number]], "length": made.lengths[number]}
        row |= {"data/chunk_index": 0, "data/file_index": place}
        row |= {"dataset_from_index": before, "dataset_to_index": before + made.lengths[number]}
        if video:
            row |= {f"videos/{CAMERA}/chunk_index": 0, f"videos/{CAMERA}/file_index": place}
            row |= {f"videos/{CAMERA}/from_timestamp": first / FPS}
            row |= {f"videos/{CAMERA}/to_timestamp": (first + made.lengths[number]) / FPS}
        for key, values in statistics(made, [number]).items():
            row |= {f"stats/{key}/{name}": value for name, value in values.items()}
        rows.append(row)
    path = meta / "episodes" / "chunk-000" / "file-000.parquet"
    path.parent.mkdir(parents=True)
    pq.write_table(pa.Table.from_pylist(rows), path)
    for place in (0, 1):
        mine = [number for number in range(3) if places[number] == place]
        path = made.folder / "data" / "chunk-000" / f"file-{place:03d}.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.concat_tables([table(made, number) for number in mine]), path)
        if video:
            levels = [level(number, step) for number in mine for step in range(made.lengths[number])]
            write_video(made.folder / "videos" / CAMERA / "chunk-000" / f"file-{place:03d}.mp4", levels)


def write_lines(path: Path, lines: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
