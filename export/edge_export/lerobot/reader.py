"""Episodes of a LeRobot dataset, each read and decoded when it is asked for."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import numpy as np

from edge_export.episodes import Episode
from edge_export.lerobot.checks import import_pyarrow, refuse, refused, require
from edge_export.lerobot.info import ACTION, OBSERVATION
from edge_export.lerobot.metadata import Entry, Metadata, read_metadata
from edge_export.lerobot.schema import schema_of
from edge_export.lerobot.video import decode_frames, decode_picture

OPEN_TABLES = 8


class LeRobotEpisodes:
    """An EpisodeSource over a dataset folder of version 2.0, 2.1 or 3.0.

    What ``meta/`` says is read and checked at once; an episode's rows and frames are read by indexing. Both raise
    ConfigError, which names the file, where something is missing, damaged or contradicts the metadata.
    """

    def __init__(self, folder: Path) -> None:
        self.metadata: Metadata = read_metadata(folder)
        self.schema = schema_of(self.metadata.info, self.metadata.stats, folder)
        self.lengths = np.array([entry.length for entry in self.metadata.entries], dtype=np.int64)
        features = self.metadata.info.observations()
        self._vectors = [key for key, feature in features.items() if feature.vector_size is not None]
        self._cameras = {key: feature for key, feature in features.items() if feature.is_image}
        self._table = lru_cache(OPEN_TABLES)(self._read_table)

    def __len__(self) -> int:
        return len(self.metadata.entries)

    def __getitem__(self, index: int) -> Episode:
        if not -len(self) <= index < len(self):
            raise IndexError(f"episode {index} of {len(self)}")
        number = index % len(self)
        entry = self.metadata.entries[number]
        rows = self._rows_of(number, entry)
        observations = {}
        for spec in self.schema.observations:
            key = OBSERVATION + spec.name
            observations[spec.name] = rows[key] if key in rows else self._frames(number, entry, key, rows["timestamp"])
        return Episode(observations, rows[ACTION], self._instruction(entry, rows["task_index"]))

    def _instruction(self, entry: Entry, numbers: np.ndarray) -> str:
        """The task of the first frame: an episode of ours has one."""
        number = int(numbers[0])
        found = sorted(self.metadata.tasks)
        require(number in self.metadata.tasks, entry.data, f"a task_index out of {found[:20]}", number)
        return self.metadata.tasks[number]

    def _rows_of(self, number: int, entry: Entry) -> dict[str, np.ndarray]:
        """The episode's rows of its table, by column: vectors (steps, size) float32, others (steps,)."""
        table = self._table(entry.data)
        mine = np.flatnonzero(table["episode_index"] == number)
        require(len(mine) == entry.length, entry.data, f"{entry.length} rows of episode {number}", len(mine))
        rows = {name: values[mine] for name, values in table.items()}
        in_order = np.array_equal(rows["frame_index"], np.arange(entry.length))
        require(in_order, entry.data, f"frames 0 to {entry.length - 1} of episode {number}", rows["frame_index"][:20])
        for name in (*self._vectors, ACTION):
            require(bool(np.isfinite(rows[name]).all()), entry.data, f"finite numbers of {name}", "others")
        return rows

    def _read_table(self, path: Path) -> dict[str, np.ndarray]:
        """What is not pictures, whole: rows of one episode are cut out of it."""
        pyarrow = import_pyarrow()
        features = self.metadata.info.features
        whole = ("episode_index", "frame_index", "task_index")
        columns = [*self._vectors, ACTION, "timestamp", *whole]
        with refused(path, f"a parquet table with {', '.join(columns)}", pyarrow.ArrowException):
            table = pyarrow.parquet.ParquetFile(path).read(columns)
            found = {}
            for name in columns:
                column = table.column(name).combine_chunks()
                vector = pyarrow.types.is_list(column.type) or pyarrow.types.is_fixed_size_list(column.type)
                require(column.null_count == 0, path, f"a value of {name} in every row", f"{column.null_count} nulls")
                values = column.flatten() if vector else column
                dtype = np.int64 if name in whole else np.float64 if name == "timestamp" else np.float32
                numbers = np.asarray(values.to_numpy(zero_copy_only=False)).astype(dtype)
                shape = features[name].shape if name in self._vectors or name == ACTION else ()
                found[name] = numbers.reshape(len(column), *shape)
            return found
        raise AssertionError

    def _frames(self, number: int, entry: Entry, key: str, times_s: np.ndarray) -> np.ndarray:
        """(steps, height, width, channels) uint8 of one camera."""
        shape = self._cameras[key].image_shape
        assert shape is not None
        if clip := entry.clips.get(key):
            return decode_frames(clip.path, clip.from_s + times_s, shape, self.metadata.info.fps)
        pyarrow = import_pyarrow()
        with refused(entry.data, f"pictures of {key}", pyarrow.ArrowException):
            filters = [("episode_index", "==", number)]
            stored = pyarrow.parquet.read_table(entry.data, columns=[key], filters=filters)[key].to_pylist()
        pictures = [picture["bytes"] for picture in stored if isinstance(picture, dict) and picture.get("bytes")]
        if len(pictures) < len(stored):
            refuse(entry.data, f"pictures of {key} inside the table", "paths or nulls")
        return np.stack([decode_picture(data, shape, entry.data) for data in pictures])
