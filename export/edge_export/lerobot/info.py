"""``meta/info.json``: the features of a dataset, its rate, and where its files lie."""

from __future__ import annotations

import math
import re
import string
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any

import msgspec

from edge_export.lerobot.checks import refused, require

INFO = "meta/info.json"
VERSIONS = ("v2.0", "v2.1", "v3.0")

ACTION = "action"
OBSERVATION = "observation."
"""How the keys of observations begin; what follows is the observation's name in our schema."""

VECTOR_DTYPES = ("float32", "float64", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64", "bool")
IMAGE_DTYPES = ("image", "video")
PLACES = ("episode_chunk", "episode_index", "chunk_index", "file_index", "video_key")
CHANNELS = (1, 3)


class Feature(msgspec.Struct, frozen=True):
    """One column or camera."""

    dtype: str
    shape: tuple[int, ...]
    names: Any = None
    """Of the elements, as a list or a dict that holds one; of an image's axes."""
    info: dict[str, Any] | None = None
    """What is known of a video."""

    @property
    def is_image(self) -> bool:
        """Whether it is a camera, however its frames are stored."""
        return self.dtype in IMAGE_DTYPES

    @property
    def image_shape(self) -> tuple[int, int, int] | None:
        """(height, width, channels) whatever the order in the file; None where it is no picture."""
        depth = any((self.info or {}).get(key) for key in ("video.is_depth_map", "is_depth_map"))
        if not self.is_image or len(self.shape) != 3 or depth:
            return None
        names = [str(name) for name in self.names] if isinstance(self.names, (list, tuple)) else []
        first = names[0].startswith("channel") if len(names) == 3 else self.shape[2] not in CHANNELS
        channels, height, width = self.shape if first else (self.shape[2], *self.shape[:2])
        return (height, width, channels) if channels in CHANNELS else None

    @property
    def vector_size(self) -> int | None:
        """Its numbers; None where it is no vector."""
        return self.shape[0] if self.dtype in VECTOR_DTYPES and len(self.shape) == 1 else None

    def element_names(self) -> list[str] | None:
        """One for each element of a vector, each once; None where the dataset has no such names."""
        names = self.names
        if isinstance(names, Mapping) and len(names) == 1:
            names = next(iter(names.values()))
        if not isinstance(names, (list, tuple)) or len(names) != self.vector_size:
            return None
        texts = [str(name) for name in names]
        return texts if len(set(texts)) == len(texts) and all(texts) else None


class Info(msgspec.Struct, frozen=True, kw_only=True):
    """What is read of meta/info.json. Raises ConfigError for values that no dataset has."""

    codebase_version: str
    fps: float
    features: dict[str, Feature]
    total_episodes: int
    total_frames: int
    data_path: str
    video_path: str | None = None
    chunks_size: int = 1000
    robot_type: str | None = None

    def __post_init__(self) -> None:
        require(self.codebase_version in VERSIONS, "codebase_version", " or ".join(VERSIONS), self.codebase_version)
        require(math.isfinite(self.fps) and self.fps > 0, "fps", "more than 0", self.fps)
        for name in ("total_episodes", "total_frames", "chunks_size"):
            require(getattr(self, name) > 0, name, "more than 0", getattr(self, name))
        for key, feature in self.features.items():
            require(all(size > 0 for size in feature.shape), f"shape of {key}", "positive sizes", list(feature.shape))
        action = self.features.get(ACTION)
        require(action is not None and action.vector_size is not None, "features", "a vector of actions", action)
        for name in ("data_path", "video_path"):
            check_template(name, getattr(self, name) or "")
        videos = [key for key, feature in self.features.items() if feature.dtype == "video"]
        require(not videos or bool(self.video_path), "video_path", f"where the videos of {videos} lie", self.video_path)

    @property
    def is_v3(self) -> bool:
        """Whether a file holds many episodes, and tables replace lines of JSON."""
        return self.codebase_version == "v3.0"

    def observations(self) -> dict[str, Feature]:
        """The features that a policy's schema can hold, by key."""
        return {
            key: feature
            for key, feature in self.features.items()
            if key.startswith(OBSERVATION)
            and len(key) > len(OBSERVATION)
            and (feature.vector_size is not None or feature.image_shape is not None)
        }


def check_template(name: str, template: str) -> None:
    """Raises ConfigError unless a path's template has only known places, whole numbers among them, and stays inside."""
    with refused(Path(INFO), f"{name}, a template of a path"):
        parts = list(string.Formatter().parse(template))
    for literal, field, spec, conversion in parts:
        plain = field is None or (field in PLACES and not conversion and re.fullmatch(r"(0?\d{1,2}d?)?", spec or ""))
        require(bool(plain), name, f"places out of {', '.join(PLACES)}", f"{literal}{{{field}:{spec}}}")
    path = PurePosixPath(template)
    require(not path.is_absolute() and ".." not in path.parts, name, "a path inside the dataset", template)


def read_info(folder: Path) -> Info:
    """Raises ConfigError that names what is wrong."""
    path = folder / INFO
    with refused(path, "the description of a LeRobot dataset", msgspec.DecodeError):
        return msgspec.json.decode(path.read_bytes(), type=Info)
