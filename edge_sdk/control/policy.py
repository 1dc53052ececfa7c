"""What a policy sees and does, at which rate and within which time: ``policy.json``, and what computes it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, Protocol

import msgspec
import numpy as np

from edge_sdk.control.normalization import Normalization, require
from edge_sdk.control.robot import TIME_KEY, FloatArray
from edge_sdk.errors import ConfigError, explain
from edge_sdk.files import new_file

POLICY_FILE = "policy.json"


class _Part(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A part of policy.json."""


class ObservationSpec(_Part, frozen=True):
    """One entry of an observation.

    A vector has shape (size,) and is float32 in ``units``. An image has shape (height, width, channels) and is uint8,
    red first; it is divided by 255 before it is normalised, as in LeRobot.
    """

    name: str
    shape: tuple[int, ...]
    kind: Literal["vector", "image"] = "vector"
    units: tuple[str, ...] = ()
    """Of a vector: one for all elements, or one for each."""
    normalization: Normalization = Normalization()

    def __post_init__(self) -> None:
        require(self.name not in ("", TIME_KEY), "observation.name", f"a name other than {TIME_KEY}", repr(self.name))
        what = f"observation {self.name!r}"
        axes = {"vector": 1, "image": 3}.get(self.kind)
        require(axes is not None, f"{what}: kind", "vector or image", self.kind)
        sizes = len(self.shape) == axes and all(size > 0 for size in self.shape)
        require(sizes, f"{what}: shape of a {self.kind}", f"{axes} positive sizes", list(self.shape))
        units = (0, 1, self.shape[-1]) if self.kind == "vector" else (0,)
        require(len(self.units) in units, f"{what}: units", f"{' or '.join(map(str, units))} units", len(self.units))
        self.normalization.check_size(self.shape[-1], what)

    @property
    def dtype(self) -> np.dtype[Any]:
        """Of the array that a robot hands over."""
        return np.dtype(np.uint8 if self.kind == "image" else np.float32)


class ActionDim(_Part, frozen=True):
    """One dimension of an action and its limits, None where it has none.

    Speed, acceleration and jerk are the action's first three differences over the ticks of ``rate_hz``, in units per
    second, per second squared and per second cubed: for commanded positions what the names say, for torques their
    rates.
    """

    name: str
    unit: str
    lower: float | None = None
    upper: float | None = None
    max_speed: float | None = None
    max_acceleration: float | None = None
    max_jerk: float | None = None
    rest: float | None = 0.0
    """Where an action decays to when no policy commands it: 0 for speeds and torques; None stays where it is, which
    suits positions."""

    def __post_init__(self) -> None:
        require(self.name != "", "action.dims.name", "a name", "none")
        what = f"action {self.name!r}"
        for name in ("lower", "upper", "max_speed", "max_acceleration", "max_jerk", "rest"):
            value = getattr(self, name)
            require(value is None or math.isfinite(value), f"{what}: {name}", "a finite number or null", value)
            if name.startswith("max_"):
                require(value is None or value > 0, f"{what}: {name}", "more than 0", value)
        low, high = self.bounds
        require(low < high, f"{what}: upper", f"more than lower, {self.lower}", self.upper)
        require(
            self.rest is None or low <= self.rest <= high,
            f"{what}: rest",
            f"null or between {self.lower} and {self.upper}",
            self.rest,
        )

    @property
    def bounds(self) -> tuple[float, float]:
        """Lower and upper, infinite where there is none."""
        return (
            -math.inf if self.lower is None else self.lower,
            math.inf if self.upper is None else self.upper,
        )


class ActionSpec(_Part, frozen=True):
    """What an action is, and how often one is due."""

    dims: tuple[ActionDim, ...]
    rate_hz: float
    normalization: Normalization = Normalization()

    def __post_init__(self) -> None:
        require(math.isfinite(self.rate_hz) and self.rate_hz > 0, "action.rate_hz", "more than 0", self.rate_hz)
        require(len(self.dims) > 0, "action.dims", "at least one", "none")
        _require_unique([dim.name for dim in self.dims], "action.dims")
        self.normalization.check_size(len(self.dims), "action")


class PolicyConfig(_Part, frozen=True):
    """The content of policy.json. Raises ConfigError for a value that makes no sense."""

    observations: tuple[ObservationSpec, ...]
    action: ActionSpec
    chunk_length: int
    """Actions that one inference makes, one for each tick of the action's rate."""
    budget_ms: float
    """The longest that an inference may take, from asking the robot for an observation to the chunk."""
    head: Literal["regression", "flow_matching"] = "regression"

    def __post_init__(self) -> None:
        require(len(self.observations) > 0, "observations", "at least one", "none")
        _require_unique([spec.name for spec in self.observations], "observations")
        require(self.chunk_length >= 1, "chunk_length", "at least 1", self.chunk_length)
        require(math.isfinite(self.budget_ms) and self.budget_ms > 0, "budget_ms", "more than 0", self.budget_ms)
        require(self.head in ("regression", "flow_matching"), "head", "regression or flow_matching", self.head)

    @property
    def action_dim(self) -> int:
        """Size of an action."""
        return len(self.action.dims)

    def check_observation(self, observation: Mapping[str, np.ndarray]) -> None:
        """Raises ConfigError unless every entry of the schema is there, with its shape and dtype."""
        for spec in self.observations:
            array = observation.get(spec.name)
            found = "none" if array is None else f"{array.dtype} {array.shape}"
            right = array is not None and array.shape == spec.shape and array.dtype == spec.dtype
            require(right, f"observation {spec.name!r}", f"{spec.dtype} {spec.shape}", found)

    @classmethod
    def read(cls, path: Path) -> PolicyConfig:
        """From a policy.json. Raises ConfigError that names the file and the value."""
        try:
            return msgspec.json.decode(path.read_bytes(), type=cls)
        except OSError as error:
            found: object = error.strerror
        except msgspec.DecodeError as error:  # ValidationError, which wraps the ConfigError of a part, is one
            found = error
        raise ConfigError(explain(str(path), expected="a policy's configuration", found=found, todo="Correct it."))

    def write(self, path: Path) -> None:
        """As policy.json; the file appears whole or not at all."""
        with new_file(path) as new:
            new.write_bytes(msgspec.json.format(msgspec.json.encode(self), indent=2) + b"\n")


def _require_unique(names: list[str], what: str) -> None:
    doubled = {name for name in names if names.count(name) > 1}
    require(not doubled, f"{what}: names", "each once", ", ".join(sorted(doubled)))


class Policy(Protocol):
    """What computes actions from observations, with a state from one inference to the next within an episode."""

    @property
    def config(self) -> PolicyConfig:
        """What it sees and does."""
        ...

    def reset(self) -> None:
        """Begins an episode: forgets the state."""
        ...

    def infer(self, observation: Mapping[str, np.ndarray], committed: FloatArray | None) -> FloatArray:
        """The next actions, of shape (chunk_length, action_dim), in physical units.

        The first is for the first tick after the observation was asked for. ``committed`` of shape (n, action_dim)
        are the actions from that tick on that will have been executed by the time the chunk is ready (real-time
        chunking, arXiv 2506.07339); None where the loop does not say.
        """
        ...

    def snapshot(self) -> Any:
        """The state, which later inferences leave as it is; what it is made of is the policy's own."""
        ...

    def restore(self, snapshot: Any) -> None:
        """Back to a state that :meth:`snapshot` of this policy returned."""
        ...
