"""What ``meta/`` says of the episodes: lengths, tasks, files and statistics, the same whatever the version."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import numpy as np

from edge_export.lerobot.checks import import_pyarrow, refuse, refused, require
from edge_export.lerobot.info import Info, read_info
from edge_export.lerobot.statistics import Statistics, aggregate, as_statistics

STATS, TASKS, EPISODES = "meta/stats.json", "meta/tasks", "meta/episodes"

Line = TypeVar("Line")


class TaskLine(msgspec.Struct, frozen=True):
    """A line of tasks.jsonl."""

    task_index: int
    task: str


class EpisodeLine(msgspec.Struct, frozen=True):
    """A line of episodes.jsonl."""

    episode_index: int
    length: int
    tasks: list[str] = []


class StatsLine(msgspec.Struct, frozen=True):
    """A line of episodes_stats.jsonl."""

    episode_index: int
    stats: dict[str, Any]


@dataclass(frozen=True)
class Clip:
    """Where an episode's frames of one camera are."""

    path: Path
    from_s: float
    """When they begin in the video."""


@dataclass(frozen=True)
class Entry:
    """One episode."""

    length: int
    tasks: tuple[str, ...]
    data: Path
    clips: Mapping[str, Clip]
    """By the video's key."""


@dataclass(frozen=True)
class Metadata:
    """All of it, checked: every file that it names exists."""

    folder: Path
    info: Info
    tasks: Mapping[int, str]
    entries: tuple[Entry, ...]
    stats: Mapping[str, Statistics]
    """Of all episodes, by key of the feature."""


def read_metadata(folder: Path) -> Metadata:
    """Raises ConfigError that names the file and what is wrong with it."""
    info = read_info(folder)
    tasks, entries, per_episode = _read_v3(folder, info) if info.is_v3 else _read_v2(folder, info)
    require(len(entries) == info.total_episodes, folder, f"{info.total_episodes} episodes", len(entries))
    frames = sum(entry.length for entry in entries)
    require(frames == info.total_frames, folder, f"{info.total_frames} frames", frames)
    files = {entry.data for entry in entries} | {clip.path for entry in entries for clip in entry.clips.values()}
    for path in sorted(files):
        require(path.is_file(), path, "a file of the dataset", "none")
    return Metadata(folder, info, tasks, entries, _stats(folder, per_episode))


def _stats(folder: Path, per_episode: list[Mapping[str, Any]]) -> dict[str, Statistics]:
    path = folder / STATS
    if path.exists():
        with refused(path, "statistics by feature", msgspec.DecodeError):
            found = msgspec.json.decode(path.read_bytes(), type=dict[str, dict[str, Any]])
            return {key: as_statistics(values) for key, values in found.items()}
    with refused(folder / EPISODES, "statistics of each episode"):
        parts = [{key: as_statistics(values) for key, values in stats.items()} for stats in per_episode]
        keys = sorted({key for part in parts for key in part})
        return {key: aggregate([part[key] for part in parts]) for key in keys}


def _read_v2(folder: Path, info: Info) -> tuple[dict[int, str], tuple[Entry, ...], list[Mapping[str, Any]]]:
    tasks = {line.task_index: line.task for line in _lines(folder / f"{TASKS}.jsonl", TaskLine)}
    lines = _lines(folder / f"{EPISODES}.jsonl", EpisodeLine)
    _require_numbered([line.episode_index for line in lines], folder / f"{EPISODES}.jsonl")
    stats_path = folder / f"{EPISODES}_stats.jsonl"
    stats = _lines(stats_path, StatsLine) if stats_path.exists() else []
    if stats:
        _require_numbered([line.episode_index for line in stats], stats_path)
        require(len(stats) == len(lines), stats_path, f"{len(lines)} lines", len(stats))
    entries = []
    for line in sorted(lines, key=lambda line: line.episode_index):
        places = {"episode_index": line.episode_index, "episode_chunk": line.episode_index // info.chunks_size}
        locate = _locator(folder, info, places)
        clips = {key: Clip(locate(info.video_path or "", key), 0.0) for key in _videos(info)}
        entries.append(_entry(line.length, line.tasks, locate(info.data_path, ""), clips))
    return tasks, tuple(entries), [line.stats for line in stats]


def _read_v3(folder: Path, info: Info) -> tuple[dict[int, str], tuple[Entry, ...], list[Mapping[str, Any]]]:
    path = folder / f"{TASKS}.parquet"
    tasks: dict[int, str] = {}
    for row in _rows(path):
        # pandas' index: it has a name in newer datasets only
        task, number = row.get("task", row.get("__index_level_0__")), row.get("task_index")
        if not isinstance(task, str) or not isinstance(number, int):
            refuse(path, "a task and its task_index", row)
        tasks[number] = task
    paths = sorted((folder / EPISODES).glob("*/*.parquet"))
    require(len(paths) > 0, folder / EPISODES, "tables of the episodes", "none")
    entries, stats = {}, {}
    for path in paths:
        for row in _rows(path):
            with refused(path, "a whole row for each episode"):
                number = int(row["episode_index"])
                require(number not in entries, path, "each episode once", f"{number} twice")
                entries[number] = _entry_v3(folder, info, row)
                stats[number] = _nested_stats(row)
    _require_numbered(list(entries), folder / EPISODES)
    return tasks, tuple(entries[number] for number in sorted(entries)), [stats[number] for number in sorted(stats)]


def _entry_v3(folder: Path, info: Info, row: Mapping[str, Any]) -> Entry:
    def place(prefix: str) -> dict[str, int]:
        return {name: int(row[f"{prefix}/{name}"]) for name in ("chunk_index", "file_index")}

    clips = {}
    for key in _videos(info):
        prefix = f"videos/{key}"
        path = _locator(folder, info, place(prefix))(info.video_path or "", key)
        clips[key] = Clip(path, float(row[f"{prefix}/from_timestamp"]))
    data = _locator(folder, info, place("data"))(info.data_path, "")
    return _entry(int(row["length"]), row.get("tasks") or [], data, clips)


def _entry(length: int, tasks: list[str], data: Path, clips: Mapping[str, Clip]) -> Entry:
    require(length > 0, "An episode's length", "at least 1", length)
    finite = all(np.isfinite(clip.from_s) and clip.from_s >= 0 for clip in clips.values())
    require(finite, "An episode's from_timestamp", "seconds", [clip.from_s for clip in clips.values()])
    return Entry(length, tuple(tasks), data, clips)


def _nested_stats(row: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """From columns ``stats/FEATURE/STATISTIC``; a feature's name has no slash."""
    nested: dict[str, dict[str, Any]] = {}
    for column, value in row.items():
        if column.startswith("stats/") and column.count("/") == 2:
            _, feature, statistic = column.split("/")
            nested.setdefault(feature, {})[statistic] = value
    return nested


def _videos(info: Info) -> list[str]:
    return [key for key, feature in info.observations().items() if feature.dtype == "video"]


def _locator(folder: Path, info: Info, places: Mapping[str, int]) -> Callable[[str, str], Path]:
    def locate(template: str, video_key: str) -> Path:
        require("/" not in video_key and video_key != "..", "A feature's name", "no slash", video_key)
        with refused(folder, f"a path like {template}"):
            return folder / template.format(video_key=video_key, **places)
        raise AssertionError

    return locate


def _lines(path: Path, kind: type[Line]) -> list[Line]:
    with refused(path, "a JSON object in every line", msgspec.DecodeError):
        return [msgspec.json.decode(line, type=kind) for line in path.read_bytes().splitlines() if line.strip()]
    raise AssertionError


def _rows(path: Path) -> list[dict[str, Any]]:
    pyarrow = import_pyarrow()
    with refused(path, "a parquet table", pyarrow.ArrowException):
        rows: list[dict[str, Any]] = pyarrow.parquet.ParquetFile(path).read().to_pylist()
        return rows
    raise AssertionError


def _require_numbered(numbers: list[int], path: Path) -> None:
    if sorted(numbers) != list(range(len(numbers))):
        refuse(path, f"episodes 0 to {len(numbers) - 1}, each once", sorted(numbers)[:20])
