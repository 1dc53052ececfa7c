"""Writes episodes as a LeRobot v3.0 dataset, which ``lerobot`` itself reads too."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from edge_export.episodes import Episode
from edge_export.lerobot.checks import import_pyarrow, require
from edge_export.lerobot.info import ACTION, INFO, OBSERVATION
from edge_export.lerobot.metadata import EPISODES, STATS, TASKS
from edge_export.lerobot.schema import POLICY, features_of, with_statistics
from edge_export.lerobot.statistics import Statistics, aggregate, describe_images, describe_vector
from edge_export.lerobot.video import CODEC, PIXELS, encode_frames
from edge_sdk.control.policy import PolicyConfig
from edge_sdk.files import new_directory

DATA_PATH = "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"
VIDEO_PATH = "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4"
EPISODES_PATH = EPISODES + "/chunk-000/file-000.parquet"
CHUNK_FILES, DATA_MB, VIDEO_MB = 1000, 100, 200
"""Files in a folder, and what LeRobot lets a file grow to."""


@contextmanager
def new_dataset(path: Path, schema: PolicyConfig, *, robot_type: str = "unknown") -> Iterator[DatasetWriter]:
    """A dataset to add episodes to; it appears whole when the block ends without an error, in place of an older one.

    Raises ConfigError where no episode was added.
    """
    with new_directory(path) as folder:
        writer = DatasetWriter(folder, schema, robot_type)
        try:
            yield writer
        finally:
            writer.close_table()
        writer.finish()


class DatasetWriter:
    """What :func:`new_dataset` hands out."""

    def __init__(self, folder: Path, schema: PolicyConfig, robot_type: str) -> None:
        self._folder, self._schema, self._robot_type = folder, schema, robot_type
        self._tasks: dict[str, int] = {}
        self._rows: list[dict[str, Any]] = []
        self._stats: list[dict[str, Statistics]] = []
        self._frames = 0
        self._table: Any = None
        self._table_bytes, self._table_number = 0, 0

    def add(self, episode: Episode) -> None:
        """Appends an episode. Raises ConfigError where it does not fit the schema, or has numbers like NaN."""
        episode.check(self._schema)
        number, length = len(self._rows), len(episode)
        columns = self._columns(episode)
        stats: dict[str, Statistics] = {}
        row: dict[str, Any] = {"episode_index": number, "tasks": [episode.instruction], "length": length}
        row |= {f"data/{name}": value for name, value in self._append(columns).items()}
        row |= {"dataset_from_index": self._frames, "dataset_to_index": self._frames + length}
        for spec in self._schema.observations:
            key, values = OBSERVATION + spec.name, episode.observations[spec.name]
            if spec.kind == "image":
                row |= self._write_video(key, number, values)
                stats[key] = describe_images(values)
            else:
                stats[key] = describe_vector(values)
        stats[ACTION] = describe_vector(episode.actions)
        self._rows.append(row)
        self._stats.append(stats)
        self._frames += length

    def _columns(self, episode: Episode) -> dict[str, np.ndarray]:
        """By name (steps, size) or (steps,)."""
        steps = np.arange(len(episode))
        vectors = {
            spec.name: episode.observations[spec.name] for spec in self._schema.observations if len(spec.shape) == 1
        }
        columns = {OBSERVATION + name: values for name, values in vectors.items()} | {ACTION: episode.actions}
        for name, values in columns.items():
            finite = bool(np.isfinite(values).all())
            require(finite, f"{name} of episode {len(self._rows)}", "finite numbers", "others")
        task = self._tasks.setdefault(episode.instruction, len(self._tasks))
        return columns | {
            "timestamp": (steps / self._schema.action.rate_hz).astype(np.float32),
            "frame_index": steps,
            "episode_index": np.full_like(steps, len(self._rows)),
            "index": self._frames + steps,
            "task_index": np.full_like(steps, task),
        }

    def _append(self, columns: dict[str, np.ndarray]) -> dict[str, int]:
        """Writes rows to the open table, or to a new one where that is full; says which."""
        pyarrow = import_pyarrow()
        arrays = {}
        for name, values in columns.items():
            flat = pyarrow.array(values.ravel())
            wide = values.ndim == 2 and values.shape[1] > 1  # LeRobot keeps vectors of one number as numbers
            arrays[name] = pyarrow.FixedSizeListArray.from_arrays(flat, values.shape[1]) if wide else flat
        table = pyarrow.table(arrays)
        if self._table is not None and self._table_bytes + table.nbytes > DATA_MB << 20:
            self.close_table()
            self._table_number, self._table_bytes = self._table_number + 1, 0
        place = _place(self._table_number)
        if self._table is None:
            path = self._new_path(DATA_PATH.format(**place))
            self._table = pyarrow.parquet.ParquetWriter(path, table.schema)
        self._table.write_table(table)
        self._table_bytes += table.nbytes
        return place

    def _write_video(self, key: str, number: int, frames: np.ndarray) -> dict[str, Any]:
        """One file for an episode; the format lets them be shared but does not ask for it."""
        place, rate_hz = _place(number), self._schema.action.rate_hz
        encode_frames(self._new_path(VIDEO_PATH.format(video_key=key, **place)), frames, rate_hz)
        row = {**place, "from_timestamp": 0.0, "to_timestamp": len(frames) / rate_hz}
        return {f"videos/{key}/{name}": value for name, value in row.items()}

    def _new_path(self, relative: str) -> Path:
        path = self._folder / relative
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def close_table(self) -> None:
        """Ends the open table."""
        if self._table is not None:
            self._table.close()
            self._table = None

    def finish(self) -> None:
        """Writes what goes into meta/."""
        require(len(self._rows) > 0, "A dataset", "one or more episodes", "none")
        total = {key: aggregate([stats[key] for stats in self._stats]) for key in self._stats[0]}
        self._write_json(STATS, {key: self._as_lists(key, values) for key, values in total.items()})
        self._write_json(INFO, self._info())
        self._write_tasks()
        self._write_episodes()
        with_statistics(self._schema, total).write(self._folder / POLICY)

    def _info(self) -> dict[str, Any]:
        rate_hz = self._schema.action.rate_hz
        fps = int(rate_hz) if rate_hz == int(rate_hz) else rate_hz
        features = {key: _feature(feature, fps) for key, feature in features_of(self._schema).items()}
        videos = any(feature["dtype"] == "video" for feature in features.values())
        return {
            "codebase_version": "v3.0",
            "robot_type": self._robot_type,
            "total_episodes": len(self._rows),
            "total_frames": self._frames,
            "total_tasks": len(self._tasks),
            "chunks_size": CHUNK_FILES,
            "data_files_size_in_mb": DATA_MB,
            "video_files_size_in_mb": VIDEO_MB,
            "fps": fps,
            "splits": {"train": f"0:{len(self._rows)}"},
            "data_path": DATA_PATH,
            "video_path": VIDEO_PATH if videos else None,
            "features": features,
        }

    def _write_json(self, relative: str, content: dict[str, Any]) -> None:
        self._new_path(relative).write_text(json.dumps(content, indent=4) + "\n", encoding="utf-8")

    def _write_tasks(self) -> None:
        """As pandas would, with the tasks as the index: so LeRobot reads it."""
        pyarrow = import_pyarrow()
        table = pyarrow.table({"task_index": list(self._tasks.values()), "task": list(self._tasks)})
        kinds = {"task_index": ("int64", "int64"), "task": ("unicode", "object")}
        columns = [
            {"name": name, "field_name": name, "pandas_type": kind, "numpy_type": numpy_kind, "metadata": None}
            for name, (kind, numpy_kind) in kinds.items()
        ]
        about = {"index_columns": ["task"], "columns": columns, "column_indexes": []}
        table = table.replace_schema_metadata({"pandas": json.dumps(about)})
        pyarrow.parquet.write_table(table, self._new_path(f"{TASKS}.parquet"))

    def _write_episodes(self) -> None:
        pyarrow = import_pyarrow()
        rows = []
        for row, stats in zip(self._rows, self._stats):
            listed = {key: self._as_lists(key, values) for key, values in stats.items()}
            flat = {f"stats/{key}/{name}": value for key, part in listed.items() for name, value in part.items()}
            rows.append({**row, **flat, "meta/episodes/chunk_index": 0, "meta/episodes/file_index": 0})
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), self._new_path(EPISODES_PATH))

    def _as_lists(self, key: str, stats: Statistics) -> dict[str, list[Any]]:
        """An image's channels as LeRobot has them, (channels, 1, 1)."""
        image = features_of(self._schema)[key].is_image
        listed: dict[str, list[Any]] = {}
        for name, values in stats.items():
            if name == "count":
                listed[name] = values.astype(np.int64).tolist()
            else:
                listed[name] = (values[:, None, None] if image else values).tolist()
        return listed


def _place(number: int) -> dict[str, int]:
    """Of a file, by its number."""
    return {"chunk_index": number // CHUNK_FILES, "file_index": number % CHUNK_FILES}


def _feature(feature: Any, fps: float) -> dict[str, Any]:
    values: dict[str, Any] = msgspec.to_builtins(feature)
    del values["info"]
    if feature.dtype == "video":
        height, width, channels = feature.shape
        about = {"height": height, "width": width, "channels": channels, "fps": fps, "codec": CODEC}
        about |= {"pix_fmt": PIXELS, "is_depth_map": False}
        values["info"] = {f"video.{name}": value for name, value in about.items()} | {"has_audio": False}
    return values
