"""A robot with two wheels in a simulation of its own, without ROS, and the control loop around it."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator

import msgspec
import numpy as np

from edge_ros_bridge.following import Follower
from edge_ros_bridge.motion import Pose, Velocity, advance
from edge_sdk.control.clock import SimulatedClock
from edge_sdk.control.loop import ControlLoop
from edge_sdk.control.policy import PolicyConfig
from edge_sdk.control.robot import FloatArray
from places import ROOT

POLICY = ROOT / "ros_bridge" / "config" / "rover_policy.json"
DIMS = ("linear.x", "linear.z", "angular.y", "angular.z")
"""Of POLICY's action, in order."""


def changed(**dims: dict[str, float | None] | None) -> PolicyConfig:
    """The rover's policy with dimensions changed, by their names with an underscore; None takes one away."""
    content = json.loads(POLICY.read_text())
    names = {dim["name"]: dim["name"].replace(".", "_") for dim in content["action"]["dims"]}
    content["action"]["dims"] = [
        dim | (dims.get(names[dim["name"]]) or {})
        for dim in content["action"]["dims"]
        if dims.get(names[dim["name"]], {}) is not None
    ]
    return msgspec.json.decode(json.dumps(content), type=PolicyConfig)


class World:
    """A follower on a rover that starts somewhere, with a clock whose time costs nothing."""

    def __init__(self, policy: PolicyConfig | None = None, heading_rad: float = 3.0) -> None:
        self.clock = SimulatedClock()
        self.follower = Follower(policy or PolicyConfig.read(POLICY))
        self.loop = ControlLoop(self.follower, self, clock=self.clock)
        self.start = self.pose = Pose(1.0, 2.0, heading_rad)
        self.velocity, self._since_ns = Velocity(), 0
        self.sent: list[Velocity] = []
        self.blocked = False
        """Whether the wheels turn on the spot."""

    def play(self, script: Iterator[None], most_s: float = 60.0) -> None:
        """One run of the loop, in which the script goes on after every tick; it ends when the script does."""

        def over() -> bool:
            return next(script, over) is over

        report = self.loop.run(round(most_s * 1e9 / self.loop.period_ns), until=over)
        assert (report.ended, report.error, script.gi_frame) == ("finished", None, None), report  # type: ignore[attr-defined]

    def ticks(self, seconds: float) -> Iterator[None]:
        """Of a script: so long."""
        end_s = self.now_s + seconds
        while self.now_s < end_s:
            yield

    def until(self, done: Callable[[], bool]) -> Iterator[None]:
        """Of a script: until a condition holds."""
        while not done():
            yield

    @property
    def now_s(self) -> float:
        """Since the beginning."""
        return self.clock.now_ns() / 1e9

    def observe(self) -> dict[str, np.ndarray]:
        """The pose; of the heading, what a quaternion tells."""
        self._go()
        yaw_rad = math.remainder(self.pose.heading_rad, math.tau)
        odometry = np.array([self.pose.x_m, self.pose.y_m, yaw_rad], np.float32)
        return {"odometry": odometry, "time_ns": np.asarray(self.clock.now_ns(), np.int64)}

    def act(self, action: FloatArray) -> None:
        """Goes at this speed from now on."""
        self._go()
        speeds = dict(zip(DIMS, action.tolist()))
        self.velocity = Velocity(**{name.replace(".", "_"): speed for name, speed in speeds.items()})
        self.sent.append(self.velocity)

    def stop(self) -> None:
        """Stands."""
        self._go()
        self.velocity = Velocity()

    def _go(self) -> None:
        now_ns = self.clock.now_ns()
        if not self.blocked:
            self.pose = advance(self.pose, self.velocity, (now_ns - self._since_ns) / 1e9)
        self._since_ns = now_ns
