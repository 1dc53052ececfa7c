"""From a policy's action to the message that commands a robot: one function for each message, in one table.

What an action's dimensions mean is settled once, when the policy is loaded (:func:`layout_of`, no ROS in it); the
functions of COMMANDS only fill messages in.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import numpy as np

from edge_sdk.control.policy import ActionSpec
from edge_sdk.control.robot import FloatArray
from edge_sdk.errors import ConfigError, explain

TWIST_UNITS = {f"{part}.{axis}": unit for part, unit in (("linear", "m/s"), ("angular", "rad/s")) for axis in "xyz"}
"""The six numbers of a Twist and their units (REP 103)."""

JOINT_UNITS = {"rad": "positions", "m": "positions", "rad/s": "velocities", "m/s": "velocities"}
"""Where in a trajectory's point a joint's number belongs, by its unit."""


@dataclass(frozen=True)
class Layout:
    """What the numbers of an action are in a message."""

    names: tuple[str, ...]
    """Of the dimensions: fields of a Twist, or joints."""
    part: str = ""
    """Of a trajectory's points: ``positions`` or ``velocities``."""


@dataclass(frozen=True)
class Moment:
    """When and for how long an action holds."""

    stamp: Any
    """builtin_interfaces/Time"""
    frame_id: str
    period_ns: int
    """Until the next action."""


def layout_of(kind: str, spec: ActionSpec) -> Layout:
    """How actions become messages of a kind, one of COMMANDS. Raises ConfigError where they cannot."""
    if kind not in COMMANDS:
        known = f"one of {', '.join(COMMANDS)}"
        raise ConfigError(explain("The command", expected=known, found=kind, todo="Set the parameter command."))
    return COMMANDS[kind].layout(spec)


def _twist_layout(spec: ActionSpec) -> Layout:
    """Dimensions named as a Twist's numbers, in their units."""
    for dim in spec.dims:
        unit = TWIST_UNITS.get(dim.name)
        if dim.unit != unit:
            expected = "dimensions such as linear.x in m/s and angular.z in rad/s"
            todo = "Choose another command, or correct the policy's action."
            raise ConfigError(explain("A Twist", expected=expected, found=f"{dim.name} in {dim.unit}", todo=todo))
    return Layout(tuple(dim.name for dim in spec.dims))


def _joint_layout(spec: ActionSpec) -> Layout:
    """Dimensions named as joints, all in one of the units of JOINT_UNITS."""
    parts = {JOINT_UNITS.get(dim.unit) for dim in spec.dims}
    if len(parts) != 1 or None in parts:
        expected, found = "all joints in rad or m, or all in rad/s or m/s", sorted({dim.unit for dim in spec.dims})
        todo = "Choose another command, or correct the policy's action."
        raise ConfigError(explain("A JointTrajectory", expected=expected, found=", ".join(found), todo=todo))
    return Layout(tuple(dim.name for dim in spec.dims), part=str(parts.pop()))


def _any_layout(spec: ActionSpec) -> Layout:
    return Layout(tuple(dim.name for dim in spec.dims))


def message_class(name: str) -> Any:
    """The class of ``package/Name``; imported when it is asked for, so that only what is used must be installed."""
    package, _, kind = name.partition("/")
    return getattr(import_module(f"{package}.msg"), kind)


def twist(action: FloatArray, layout: Layout, moment: Moment) -> Any:
    """geometry_msgs/Twist of an action (action_dim,); numbers that it has no dimension for are 0."""
    del moment
    message = message_class("geometry_msgs/Twist")()
    for name, value in zip(layout.names, action.tolist()):
        part, _, axis = name.partition(".")
        setattr(getattr(message, part), axis, value)
    return message


def twist_stamped(action: FloatArray, layout: Layout, moment: Moment) -> Any:
    """geometry_msgs/TwistStamped of an action (action_dim,)."""
    message = message_class("geometry_msgs/TwistStamped")()
    message.header.stamp, message.header.frame_id = moment.stamp, moment.frame_id
    message.twist = twist(action, layout, moment)
    return message


def joint_trajectory(action: FloatArray, layout: Layout, moment: Moment) -> Any:
    """trajectory_msgs/JointTrajectory of an action (action_dim,): one point, to be reached when the next one comes.

    Its stamp is 0, which trajectory controllers take for now.
    """
    message = message_class("trajectory_msgs/JointTrajectory")()
    message.header.frame_id = moment.frame_id
    message.joint_names = list(layout.names)
    point = message_class("trajectory_msgs/JointTrajectoryPoint")()
    setattr(point, layout.part, action.tolist())
    point.time_from_start.sec, point.time_from_start.nanosec = divmod(moment.period_ns, 10**9)
    message.points = [point]
    return message


def float_array(action: FloatArray, layout: Layout, moment: Moment) -> Any:
    """std_msgs/Float64MultiArray of an action (action_dim,), in the order of its dimensions."""
    del layout, moment
    return message_class("std_msgs/Float64MultiArray")(data=action.tolist())


@dataclass(frozen=True)
class Command:
    """One kind of message that commands a robot."""

    message: str
    """``package/Name``"""
    topic: str
    """Its usual name."""
    layout: Callable[[ActionSpec], Layout]
    make: Callable[[FloatArray, Layout, Moment], Any]


COMMANDS: Mapping[str, Command] = {
    "twist": Command("geometry_msgs/Twist", "cmd_vel", _twist_layout, twist),
    "twist_stamped": Command("geometry_msgs/TwistStamped", "cmd_vel", _twist_layout, twist_stamped),
    "joint_trajectory": Command("trajectory_msgs/JointTrajectory", "joint_trajectory", _joint_layout, joint_trajectory),
    "float64_multi_array": Command("std_msgs/Float64MultiArray", "commands", _any_layout, float_array),
}


def resting(spec: ActionSpec) -> FloatArray | None:
    """The action (action_dim,) that a stop is commanded by: every dimension's ``rest``; None where one has none.

    Positions have none: a controller that hears nothing more holds the last one.
    """
    rests = [dim.rest for dim in spec.dims]
    return None if None in rests else np.array(rests, dtype=np.float32)
