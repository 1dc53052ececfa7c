"""Between physical units and what a network sees, by the modes and statistics that LeRobot names."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Literal

import msgspec
import numpy as np
from numpy.typing import ArrayLike

from edge_sdk.control.robot import FloatArray
from edge_sdk.errors import ConfigError, explain

Mode = Literal["IDENTITY", "MEAN_STD", "MIN_MAX", "QUANTILES", "QUANTILE10"]

STATS: Mapping[Mode, tuple[str, ...]] = {
    "IDENTITY": (),
    "MEAN_STD": ("mean", "std"),
    "MIN_MAX": ("min", "max"),
    "QUANTILES": ("q01", "q99"),
    "QUANTILE10": ("q10", "q90"),
}
"""What a mode reads of a dataset's statistics (LeRobot's ``meta/stats.json``)."""

EPSILON = 1e-8
"""LeRobot's: added to a standard deviation, and in place of a range that is zero."""


def require(condition: bool, what: str, expected: object, found: object) -> None:
    """Raises ConfigError where the condition does not hold."""
    if not condition:
        raise ConfigError(explain(what, expected=expected, found=found, todo="Correct the policy's configuration."))


class Normalization(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How one observation, or the action, is normalised.

    MEAN_STD is (x - mean) / std. The others take a range to [-1, 1]: MIN_MAX that of the data, QUANTILES that of 1 %
    to 99 % of it, QUANTILE10 that of 10 % to 90 %; what lies outside is not clipped.
    """

    mode: Mode = "IDENTITY"
    stats: dict[str, tuple[float, ...]] = {}
    """By name, those that the mode reads: one number for all, or one for each element of a vector or image channel."""

    def __post_init__(self) -> None:
        names = STATS.get(self.mode)
        require(names is not None, "normalization.mode", f"one of {', '.join(STATS)}", self.mode)
        expected = " and ".join(names or ()) or "none"
        found = ", ".join(sorted(self.stats)) or "none"
        require(set(self.stats) == set(names or ()), f"normalization.stats of {self.mode}", expected, found)
        for name, values in self.stats.items():
            finite = len(values) > 0 and all(math.isfinite(value) for value in values)
            require(finite, f"normalization.stats.{name}", "finite numbers", list(values))
        if self.mode == "MEAN_STD":
            require(min(self.stats["std"]) >= 0, "normalization.stats.std", "no negative one", min(self.stats["std"]))
        elif names:
            low, high = (np.asarray(self.stats[name]) for name in names)
            require(low.size == high.size, f"normalization.stats.{names[1]}", f"{low.size} numbers", high.size)
            require(bool(np.all(low <= high)), f"normalization.stats.{names[1]}", f"at least {names[0]}", high.tolist())

    def check_size(self, size: int, what: str) -> None:
        """Raises ConfigError unless every statistic has one number, or so many."""
        for name, values in self.stats.items():
            found = f"{len(values)} numbers"
            require(len(values) in (1, size), f"{what}: normalization.stats.{name}", f"1 or {size} numbers", found)

    def scaling(self) -> Scaling:
        """The arithmetic of it."""
        if self.mode == "IDENTITY":
            return Scaling(0.0, 1.0, 0.0)
        first, second = (np.asarray(self.stats[name], dtype=np.float64) for name in STATS[self.mode])
        if self.mode == "MEAN_STD":
            return Scaling(first, second + EPSILON, 0.0)
        width = second - first
        return Scaling(first, np.where(width == 0, EPSILON, width) / 2, -1.0)


class Scaling:
    """normalised = (physical - offset) / scale + shift, along the last axis."""

    def __init__(self, offset: ArrayLike, scale: ArrayLike, shift: float) -> None:
        self.offset, self.scale = np.asarray(offset, dtype=np.float32), np.asarray(scale, dtype=np.float32)
        self.shift = np.float32(shift)

    def normalize(self, physical: ArrayLike) -> FloatArray:
        """(..., size) in physical units to what the network sees."""
        values = np.asarray(physical, dtype=np.float32)
        return np.asarray((values - self.offset) / self.scale + self.shift, dtype=np.float32)

    def unnormalize(self, normalized: ArrayLike) -> FloatArray:
        """(..., size) from the network to physical units; the inverse of :meth:`normalize`."""
        values = np.asarray(normalized, dtype=np.float32)
        return np.asarray((values - self.shift) * self.scale + self.offset, dtype=np.float32)
