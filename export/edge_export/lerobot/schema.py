"""Between a dataset's features and a policy's schema."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from edge_export.lerobot.checks import refuse, require
from edge_export.lerobot.info import ACTION, OBSERVATION, Feature, Info
from edge_export.lerobot.statistics import Statistics
from edge_sdk.control.normalization import STATS, Mode, Normalization
from edge_sdk.control.policy import ActionDim, ActionSpec, ObservationSpec, PolicyConfig

POLICY = "meta/policy.json"
"""Our own addition to a dataset: units, limits and what else a dataset of LeRobot does not say."""

CHUNK_S = 0.5
"""What a chunk lasts where nobody has said."""
UNIT = "1"

BOOKKEEPING = {
    "timestamp": Feature("float32", (1,)),
    "frame_index": Feature("int64", (1,)),
    "episode_index": Feature("int64", (1,)),
    "index": Feature("int64", (1,)),
    "task_index": Feature("int64", (1,)),
}


def features_of(schema: PolicyConfig) -> dict[str, Feature]:
    """What info.json says of a dataset with a policy's observations and actions."""
    features = {}
    for spec in schema.observations:
        if spec.kind == "image":
            feature = Feature("video", spec.shape, ["height", "width", "channels"])
        else:
            feature = Feature("float32", spec.shape)
        features[OBSERVATION + spec.name] = feature
    names = [dim.name for dim in schema.action.dims]
    return {**features, ACTION: Feature("float32", (schema.action_dim,), names), **BOOKKEEPING}


def schema_of(info: Info, stats: Mapping[str, Statistics], folder: Path) -> PolicyConfig:
    """The schema of a dataset: that in ``meta/policy.json`` where we wrote it, else what its features tell.

    A dataset of others says nothing of units, limits, chunks and budget: units are 1, there are no limits, a chunk
    lasts half a second and the budget half of that. Raises ConfigError where policy.json is for other features.
    """
    path = folder / POLICY
    bare = PolicyConfig.read(path) if path.exists() else _bare_schema(info)
    expected = {key: _shape(feature) for key, feature in info.observations().items()}
    found = {OBSERVATION + spec.name: spec.shape for spec in bare.observations}
    size = info.features[ACTION].vector_size
    require(expected == found and bare.action_dim == size, path, f"{expected} and {size} actions", found)
    require(bare.action.rate_hz == info.fps, path, f"a rate of {info.fps} Hz", bare.action.rate_hz)
    return with_statistics(bare, stats)


def _shape(feature: Feature) -> tuple[int, ...]:
    return feature.image_shape or feature.shape


def _bare_schema(info: Info) -> PolicyConfig:
    """Raises ConfigError for a dataset without observations."""
    observations = []
    for key, feature in info.observations().items():
        kind: Any = "image" if feature.is_image else "vector"
        observations.append(ObservationSpec(name=key.removeprefix(OBSERVATION), shape=_shape(feature), kind=kind))
    require(len(observations) > 0, "features", "observations", sorted(info.features))
    action = info.features[ACTION]
    names = action.element_names() or [f"{ACTION}_{index}" for index in range(action.shape[0])]
    chunk_length = max(1, round(CHUNK_S * info.fps))
    return PolicyConfig(
        observations=tuple(observations),
        action=ActionSpec(dims=tuple(ActionDim(name=name, unit=UNIT, rest=None) for name in names), rate_hz=info.fps),
        chunk_length=chunk_length,
        budget_ms=1e3 * chunk_length / info.fps / 2,
    )


def with_statistics(schema: PolicyConfig, stats: Mapping[str, Statistics]) -> PolicyConfig:
    """The schema with statistics of the data, by LeRobot's keys, in place of its own; IDENTITY becomes MEAN_STD.

    An image without statistics stays as it is. Raises ConfigError for a vector or an action without them.
    """

    def normalized(key: str, size: int, old: Normalization, optional: bool) -> Normalization:
        mode: Mode = "MEAN_STD" if old.mode == "IDENTITY" else old.mode
        found = stats.get(key, {})
        if optional and not found:
            return old
        values = {}
        for name in STATS[mode]:
            if name not in found or found[name].size not in (1, size):
                refuse(f"Statistics of {key}", f"{size} numbers of {name}", {n: v.size for n, v in found.items()})
            values[name] = found[name]
        if mode == "MEAN_STD":
            values["std"] = _without_zeros(values["mean"], values["std"])
        return Normalization(mode=mode, stats={name: tuple(value.tolist()) for name, value in values.items()})

    observations = tuple(
        msgspec.structs.replace(
            spec,
            normalization=normalized(OBSERVATION + spec.name, spec.shape[-1], spec.normalization, spec.kind == "image"),
        )
        for spec in schema.observations
    )
    action = msgspec.structs.replace(
        schema.action, normalization=normalized(ACTION, schema.action_dim, schema.action.normalization, False)
    )
    return msgspec.structs.replace(schema, observations=observations, action=action)


def _without_zeros(mean: np.ndarray, deviation: np.ndarray) -> np.ndarray:
    """What never changed in the data is not scaled: dividing by its rounding errors would blow up whatever comes."""
    return np.where(deviation <= 1e-6 * np.abs(mean), 1.0, deviation)
