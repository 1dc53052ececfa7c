"""Statistics of a feature as LeRobot keeps them: of one episode, and of many from those of each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Statistics = Mapping[str, NDArray[np.float64]]
"""By name: ``min``, ``max``, ``mean``, ``std`` and quantiles ``q01`` to ``q99``, each (size,); ``count`` (1,)."""

QUANTILES = {"q01": 0.01, "q10": 0.1, "q50": 0.5, "q90": 0.9, "q99": 0.99}
LEVELS = 256


def describe_vector(values: np.ndarray) -> dict[str, NDArray[np.float64]]:
    """Of (steps, size)."""
    exact = np.asarray(values, dtype=np.float64)
    stats = {"min": exact.min(0), "max": exact.max(0), "mean": exact.mean(0), "std": exact.std(0)}
    stats |= dict(zip(QUANTILES, np.quantile(exact, list(QUANTILES.values()), axis=0)))
    return stats | {"count": np.array([len(exact)], dtype=np.float64)}


def describe_images(frames: np.ndarray) -> dict[str, NDArray[np.float64]]:
    """Of (steps, height, width, channels) uint8, per channel, divided by 255; exact, from a histogram."""
    counts = [np.bincount(frames[..., channel].ravel(), minlength=LEVELS) for channel in range(frames.shape[-1])]
    levels = np.arange(LEVELS) / 255
    stats: dict[str, list[float]] = {}
    for count in counts:
        mean = float(count @ levels / count.sum())
        seen = np.flatnonzero(count)
        values = {"min": levels[seen[0]], "max": levels[seen[-1]], "mean": mean}
        values["std"] = float(np.sqrt(count @ (levels - mean) ** 2 / count.sum()))
        reached = np.cumsum(count) / count.sum()
        values |= {name: levels[np.searchsorted(reached, share)] for name, share in QUANTILES.items()}
        for name, value in values.items():
            stats.setdefault(name, []).append(float(value))
    arrays = {name: np.array(values) for name, values in stats.items()}
    return arrays | {"count": np.array([len(frames)], dtype=np.float64)}


def aggregate(parts: Sequence[Statistics]) -> dict[str, NDArray[np.float64]]:
    """Of all episodes, from those of each, weighted by their counts.

    Mean, deviation and extremes are those of all the data. A quantile of the whole does not follow from those of the
    parts: it is the outermost of them, which is what LeRobot takes. Raises KeyError where one lacks a statistic.
    """
    weights = np.concatenate([part["count"] for part in parts])[:, None]
    weights = weights / weights.sum()
    means = np.stack([part["mean"] for part in parts])
    mean = (weights * means).sum(0)
    variance = (weights * (np.stack([part["std"] for part in parts]) ** 2 + (means - mean) ** 2)).sum(0)
    total = {
        "min": np.min([part["min"] for part in parts], axis=0),
        "max": np.max([part["max"] for part in parts], axis=0),
        "mean": mean,
        "std": np.sqrt(variance),
        "count": np.sum([part["count"] for part in parts], axis=0),
    }
    for name, share in QUANTILES.items():
        if all(name in part for part in parts):
            outermost = np.min if share <= 0.5 else np.max
            total[name] = outermost([part[name] for part in parts], axis=0)
    return total


def as_statistics(values: Mapping[str, Any]) -> dict[str, NDArray[np.float64]]:
    """From JSON or parquet; an image's channels, (channels, 1, 1) there, become (channels,).

    Raises ValueError or TypeError for what is not finite numbers.
    """
    stats = {name: np.asarray(value, dtype=np.float64).reshape(-1) for name, value in values.items()}
    for name, array in stats.items():
        if not np.isfinite(array).all():
            raise ValueError(f"{name} that is not finite")
    return stats
