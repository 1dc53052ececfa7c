"""A policy that does the steps of a plan, one after another as they are ordered, by the robot's odometry. No ROS in it.

    python -m edge_ros_bridge.control_node --ros-args -p policy_entry:=edge_ros_bridge.following:make \
        -p policy:=ros_bridge/config/rover_policy.json

The control loop around it limits, holds, stops and watches as it does for any policy.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np

from edge_ros_bridge.motion import Pose, Velocity, advance
from edge_ros_bridge.plans import Order, Progress, Step
from edge_sdk.control.policy import ActionDim, PolicyConfig
from edge_sdk.control.robot import TIME_KEY, FloatArray
from edge_sdk.errors import ConfigError, explain

GAIN_PER_S = 4.0
"""The speed at a distance from where a step ends, as far as the limits allow: 0.4 m/s at 0.1 m."""

LATERAL_GAIN = 4.0
"""In rad/m: how much the robot turns towards the line that it is to follow, for each metre that it goes."""

NEAR_M, NEAR_RAD = 0.01, 0.02
"""A step has ended this close to its end."""

GESTURES = {"jump": "linear.z", "look": "angular.y"}
"""Motions that end where they began: the dimension whose upper bound they use up, and then its negative."""


@runtime_checkable
class TakesOrders(Protocol):
    """A policy that is told step by step what to do."""

    @property
    def progress(self) -> Progress:
        """What became of the last order; from any thread."""
        ...

    def take(self, order: Order | None) -> None:
        """What to do from the next inference on, None is to stand; from any thread.

        The same order again renews its lease; one that has ended is not begun again.
        """
        ...


@dataclass
class _Run:
    """An order that is being carried out."""

    order: Order
    goal: Pose
    """Where it ends; of a gesture and a wait, where it began."""
    began_ns: int
    renewed_ns: int


class Follower:
    """Implements :class:`edge_sdk.control.policy.Policy` and :class:`TakesOrders`.

    The observation ``odometry`` is the pose (x, y, yaw) in m and rad. Each step of a plan begins where the one before
    it was to end, so what is missed of one is made up for in the next. The bounds of the action's dimensions are the
    speeds of forward and turn. Where nothing is ordered, it stands.
    """

    def __init__(self, config: PolicyConfig) -> None:
        """Raises ConfigError where the schema is not that of a robot that can be driven so."""
        self.config = config
        self._names = tuple(dim.name for dim in config.action.dims)
        self._top = {dim.name: _top_speed(dim) for dim in config.action.dims}
        self._gains = {dim.name: _gain(dim) for dim in config.action.dims}
        shapes = {spec.name: spec.shape for spec in config.observations}
        if shapes != {"odometry": (3,)} or not {"linear.x", "angular.z"} <= set(self._names):
            expected = "odometry of 3 numbers, and actions linear.x and angular.z"
            found = f"{shapes} and {', '.join(self._names)}"
            raise ConfigError(explain("The policy of a follower", expected=expected, found=found, todo="Correct it."))
        self._lock = threading.Lock()
        self._progress = Progress(state="standing")
        self._inbox: Order | None = None
        """Taken since the last inference."""
        self._run: _Run | None = None
        self._pose: Pose | None = None
        """Where the robot was seen last; the heading counts on beyond a full turn."""
        self._last: _Run | None = None
        """The last order that was done: the next step of its plan begins at its goal."""

    @property
    def progress(self) -> Progress:
        """See :class:`TakesOrders`."""
        with self._lock:
            return self._progress

    def take(self, order: Order | None) -> None:
        """See :class:`TakesOrders`."""
        with self._lock:
            if order is None:
                self._drop("asked to stand")
            else:
                self._inbox = order

    def reset(self) -> None:
        """Begins an episode: what was ordered before it is not done any more."""
        with self._lock:
            self._drop("a new episode began")
            self._last = None

    def infer(self, observation: Mapping[str, np.ndarray], committed: FloatArray | None) -> FloatArray:
        """(chunk_length, action_dim): towards the end of the step that is ordered, or all zeros."""
        del committed  # the pose says what came of it
        with self._lock:
            now_ns, pose = int(observation[TIME_KEY]), self._seen(observation["odometry"])
            self._receive(pose, now_ns)
            self._judge(pose, now_ns)
            run = self._run
            plan = [] if run is None else self._velocities(run, pose, (now_ns - run.began_ns) / 1e9)
        plan += [{}] * (self.config.chunk_length - len(plan))
        return np.array([[each.get(name, 0.0) for name in self._names] for each in plan], dtype=np.float32)

    def snapshot(self) -> None:
        """What was ordered is no state of an episode that could be gone back to."""

    def restore(self, snapshot: None) -> None:
        """See :meth:`snapshot`."""

    def _drop(self, reason: str) -> None:
        """Stands; whatever had not ended is stopped."""
        dropped = self._inbox or (None if self._run is None else self._run.order)
        self._inbox = self._run = None
        if dropped is not None and not self._ended(dropped):
            self._progress = Progress(state="stopped", order=dropped.id, reason=reason)

    def _ended(self, order: Order) -> bool:
        return self._progress.order == order.id and self._progress.state != "moving"

    def _seen(self, odometry: np.ndarray) -> Pose:
        x_m, y_m, yaw_rad = odometry.tolist()
        heading_rad = 0.0 if self._pose is None else self._pose.heading_rad
        self._pose = Pose(x_m, y_m, heading_rad + math.remainder(yaw_rad - heading_rad, math.tau))
        return self._pose

    def _receive(self, pose: Pose, now_ns: int) -> None:
        order, self._inbox = self._inbox, None
        if order is None or self._ended(order):
            return
        if self._run is not None and self._run.order.id == order.id:
            self._run.renewed_ns = now_ns
            return
        last = self._last
        goes_on = last is not None and (last.order.plan, last.order.index + 1) == (order.plan, order.index)
        begin = last.goal if last is not None and goes_on else pose
        self._run = _Run(order, _goal(begin, order.step), now_ns, now_ns)
        self._progress = Progress(state="moving", order=order.id)

    def _judge(self, pose: Pose, now_ns: int) -> None:
        """Ends the run where it is done, cannot be done, or is not wanted any more."""
        run = self._run
        if run is None:
            return
        step, elapsed_s = run.order.step, (now_ns - run.began_ns) / 1e9
        needed = GESTURES.get(step.motion)
        if needed is not None and needed not in self._names:
            self._end(run, "failed", f"the robot has no {needed}")
        elif _is_done(step, run.goal, pose, elapsed_s):
            self._last = run
            self._end(run, "done")
        elif elapsed_s > step.timeout_s:
            self._end(run, "failed", f"{step.name} has not ended within {step.timeout_s:g} s")
        elif now_ns - run.renewed_ns > run.order.lease_s * 1e9:
            self._end(run, "stopped", f"it was not ordered again for {run.order.lease_s:g} s")

    def _end(self, run: _Run, state: str, reason: str = "") -> None:
        self._progress = Progress(state=state, order=run.order.id, reason=reason)  # type: ignore[arg-type]
        self._run = None

    def _velocities(self, run: _Run, pose: Pose, elapsed_s: float) -> list[dict[str, float]]:
        """By dimension, for each tick of the chunk until the step is done, as far as the model of a unicycle tells."""
        period_s, velocities = 1 / self.config.action.rate_hz, list[dict[str, float]]()
        while len(velocities) < self.config.chunk_length and not _is_done(run.order.step, run.goal, pose, elapsed_s):
            velocity = self._velocity(run, pose, elapsed_s)
            velocities.append(velocity)
            moved = Velocity(linear_x=velocity.get("linear.x", 0.0), angular_z=velocity.get("angular.z", 0.0))
            pose, elapsed_s = advance(pose, moved, period_s), elapsed_s + period_s
        return velocities

    def _velocity(self, run: _Run, pose: Pose, elapsed_s: float) -> dict[str, float]:
        step = run.order.step
        if step.motion in GESTURES:
            name = GESTURES[step.motion]
            # the tiny number gives both halves as many ticks in spite of rounding
            return {name: self._top[name] if elapsed_s < step.amount / 2 - 1e-6 else -self._top[name]}
        if step.motion == "wait":
            return {}
        turn_rad_s = self._gains["angular.z"] * (run.goal.heading_rad - pose.heading_rad)
        if step.motion == "turn":
            return {"angular.z": self._within("angular.z", turn_rad_s)}
        along_m, left_m = _offset(run.goal, pose)
        forward_m_s = self._within("linear.x", self._gains["linear.x"] * along_m)
        turn_rad_s += LATERAL_GAIN * left_m * forward_m_s
        return {"linear.x": forward_m_s, "angular.z": self._within("angular.z", turn_rad_s)}

    def _within(self, name: str, speed: float) -> float:
        return max(-self._top[name], min(self._top[name], speed))


def _goal(begin: Pose, step: Step) -> Pose:
    """Where a step ends that begins at a pose."""
    if step.motion == "turn":
        return Pose(begin.x_m, begin.y_m, begin.heading_rad + step.amount)
    return advance(begin, Velocity(linear_x=step.amount if step.motion == "forward" else 0.0), 1.0)


def _is_done(step: Step, goal: Pose, pose: Pose, elapsed_s: float) -> bool:
    if step.motion == "forward":
        return abs(_offset(goal, pose)[0]) < NEAR_M
    if step.motion == "turn":
        return abs(goal.heading_rad - pose.heading_rad) < NEAR_RAD
    return elapsed_s >= step.amount


def _offset(goal: Pose, pose: Pose) -> tuple[float, float]:
    """Metres from a pose to the goal, along the goal's heading and to its left."""
    seen = pose.seen_from(goal)
    return -seen.x_m, -seen.y_m


def _top_speed(dim: ActionDim) -> float:
    """The speed that is allowed both ways."""
    low, high = dim.bounds
    top = min(-low, high)
    if not 0 < top < math.inf or dim.rest != 0:
        expected, found = "a lower below 0, an upper above 0 and rest 0", f"{dim.lower}, {dim.upper} and {dim.rest}"
        raise ConfigError(explain(f"A follower's {dim.name}", expected=expected, found=found, todo="Correct it."))
    return top


def _gain(dim: ActionDim) -> float:
    """GAIN_PER_S, or less where braking so would be more than ``max_speed``, which of speeds is an acceleration."""
    return GAIN_PER_S if dim.max_speed is None else min(GAIN_PER_S, dim.max_speed / _top_speed(dim))


def make(path: str) -> Follower:
    """For the parameter ``policy_entry``: a follower of a ``policy.json``. Raises ConfigError."""
    return Follower(PolicyConfig.read(Path(path)))
