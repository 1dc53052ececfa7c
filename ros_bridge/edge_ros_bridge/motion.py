"""Actions to velocities and velocities to a path: pure functions, no ROS in them.

A plan is one velocity per tick of ``rate_hz``. Every action is slowed down just enough to fill whole ticks, so its
distance is met exactly and not only to the nearest tick.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from edge_sdk.errors import ConfigError, EdgeError, explain

WALK_M = 0.5
RUN_M = 1.0
TURN_RAD = math.pi / 2
JUMP_M_S = 0.5
"""Vertical speed of a jump's two ticks: one up, one down, so that the height ends where it was."""
LOOK_RAD_S = 0.5
"""Pitch rate of a look's two ticks: one down, one up."""

FORWARD_M = {"I_WALK": WALK_M, "I_RUN": RUN_M}
TURN_SIGN = {"I_TURN_LEFT": 1.0, "I_TURN_RIGHT": -1.0}
MARKER_NAMES = ("I_JUMP", "I_LOOK")
ACTIONS = (*FORWARD_M, *TURN_SIGN, *MARKER_NAMES)


class ActionError(EdgeError, ValueError):
    """A text is not a sequence of actions, so nothing may move."""


@dataclass(frozen=True)
class Speeds:
    """The robot's speeds, which are upper limits: an action is slowed down to fill whole ticks."""

    linear_m_s: float = 0.5
    angular_rad_s: float = math.pi / 2
    rate_hz: float = 20.0

    def __post_init__(self) -> None:
        _require_between("linear_m_s", self.linear_m_s, 0.01, 10.0)
        _require_between("angular_rad_s", self.angular_rad_s, 0.01, 20.0)
        _require_between("rate_hz", self.rate_hz, 1.0, 200.0)


def _require_between(name: str, value: float, low: float, high: float) -> None:
    if not low <= value <= high:  # false for a NaN too
        raise ConfigError(
            explain(f"Speeds.{name}", expected=f"{low} to {high}", found=value, todo="Set it within these limits.")
        )


@dataclass(frozen=True)
class Velocity:
    """The six numbers of a geometry_msgs/Twist: linear in m/s, angular in rad/s."""

    linear_x: float = 0.0
    linear_y: float = 0.0
    linear_z: float = 0.0
    angular_x: float = 0.0
    angular_y: float = 0.0
    angular_z: float = 0.0

    @property
    def is_stop(self) -> bool:
        """True when all six numbers are zero: how a listener sees the end of a motion."""
        return self == STOP


STOP = Velocity()


def actions_of(text: str) -> list[str]:
    """The actions that an answer consists of. Raises ActionError when any of its words is not an action."""
    words = text.split()
    _refuse_unknown(words)
    return words


def _refuse_unknown(words: Sequence[str]) -> None:
    unknown = sorted(set(words) - set(ACTIONS))
    if unknown:
        raise ActionError(
            explain(
                "The answer",
                expected=f"only the actions {', '.join(ACTIONS)}",
                found=", ".join(unknown[:5]) + (", ..." if len(unknown) > 5 else ""),
                todo="Nothing moves. Set the parameter drive to false for a model that does not drive.",
            )
        )


def plan(actions: Sequence[str], speeds: Speeds) -> list[Velocity]:
    """One velocity per tick, and a stop at the end; nothing at all for no actions.

    Raises ActionError for a word that is not an action.
    """
    _refuse_unknown(actions)
    motion = [velocity for action in actions for velocity in _ticks(action, speeds)]
    return [*motion, STOP] if motion else []


def _ticks(action: str, speeds: Speeds) -> list[Velocity]:
    if action in FORWARD_M:
        count, speed_m_s = _whole_ticks(FORWARD_M[action], speeds.linear_m_s, speeds.rate_hz)
        return [Velocity(linear_x=speed_m_s)] * count
    if action in TURN_SIGN:
        count, speed_rad_s = _whole_ticks(TURN_RAD, speeds.angular_rad_s, speeds.rate_hz)
        return [Velocity(angular_z=TURN_SIGN[action] * speed_rad_s)] * count
    if action == "I_JUMP":
        return [Velocity(linear_z=JUMP_M_S), Velocity(linear_z=-JUMP_M_S)]
    return [Velocity(angular_y=LOOK_RAD_S), Velocity(angular_y=-LOOK_RAD_S)]


def _whole_ticks(distance: float, limit_per_s: float, rate_hz: float) -> tuple[int, float]:
    """How many ticks a distance takes, and the speed at which they cover it exactly."""
    # the tiny number keeps 0.5 m at 0.5 m/s from becoming 21 ticks by rounding
    count = max(1, math.ceil(distance * rate_hz / limit_per_s - 1e-9))
    return count, distance * rate_hz / count


@dataclass(frozen=True)
class Pose:
    """Where the robot is on the plane; the heading counts on beyond a full turn."""

    x_m: float = 0.0
    y_m: float = 0.0
    heading_rad: float = 0.0

    def seen_from(self, origin: Pose) -> Pose:
        """This pose in the frame of another, whose x axis is where that one looks."""
        cos, sin = math.cos(origin.heading_rad), math.sin(origin.heading_rad)
        x_m, y_m = self.x_m - origin.x_m, self.y_m - origin.y_m
        return Pose(cos * x_m + sin * y_m, cos * y_m - sin * x_m, self.heading_rad - origin.heading_rad)


@dataclass(frozen=True)
class Marker:
    """A jump or a look that was seen, and where."""

    action: str
    pose: Pose


@dataclass(frozen=True)
class Path:
    """The poses of a motion, the start first and then one after each tick, and the markers seen on the way."""

    poses: tuple[Pose, ...]
    markers: tuple[Marker, ...]

    @property
    def end(self) -> Pose:
        """The last pose."""
        return self.poses[-1]


def integrate(velocities: Iterable[Velocity], rate_hz: float) -> Path:
    """The path of a robot that starts at the origin and holds each velocity for one tick."""
    poses, markers = [Pose()], []
    for velocity in velocities:
        if velocity.linear_z > 0:  # the tick up; the tick down belongs to the same jump
            markers.append(Marker("I_JUMP", poses[-1]))
        if velocity.angular_y > 0:
            markers.append(Marker("I_LOOK", poses[-1]))
        poses.append(advance(poses[-1], velocity, 1 / rate_hz))
    return Path(tuple(poses), tuple(markers))


def advance(pose: Pose, velocity: Velocity, seconds: float) -> Pose:
    """Where a velocity leads, exactly: an arc, in the middle of which the robot looks along the chord."""
    half_turn = velocity.angular_z * seconds / 2
    chord_s = seconds * (math.sin(half_turn) / half_turn if half_turn else 1.0)
    cos, sin = math.cos(pose.heading_rad + half_turn), math.sin(pose.heading_rad + half_turn)
    return Pose(
        pose.x_m + chord_s * (velocity.linear_x * cos - velocity.linear_y * sin),
        pose.y_m + chord_s * (velocity.linear_x * sin + velocity.linear_y * cos),
        pose.heading_rad + 2 * half_turn,
    )


@dataclass(frozen=True)
class Deviation:
    """How far a path is from the one it should be."""

    largest_m: float
    """Largest distance between the two paths' poses after the same tick; a shorter path waits at its end."""
    largest_rad: float
    """Largest difference between the two paths' headings, likewise."""
    same_markers: bool
    """Whether the same jumps and looks came in the same order."""

    def within(self, tolerance_m: float = 1e-6, tolerance_rad: float = 1e-6) -> bool:
        """Whether the paths are equal up to a tolerance."""
        return self.largest_m <= tolerance_m and self.largest_rad <= tolerance_rad and self.same_markers


def compare(path: Path, expected: Path) -> Deviation:
    """Compares a path with the one that it should be, tick by tick."""
    ticks = max(len(path.poses), len(expected.poses))
    pairs = list(zip(_waiting(path, ticks), _waiting(expected, ticks)))
    return Deviation(
        largest_m=max(math.hypot(one.x_m - other.x_m, one.y_m - other.y_m) for one, other in pairs),
        largest_rad=max(abs(one.heading_rad - other.heading_rad) for one, other in pairs),
        same_markers=[one.action for one in path.markers] == [other.action for other in expected.markers],
    )


def _waiting(path: Path, ticks: int) -> list[Pose]:
    return [*path.poses, *[path.end] * (ticks - len(path.poses))]
