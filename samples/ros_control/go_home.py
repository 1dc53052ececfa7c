"""A small real policy: drives a robot with two wheels to the origin, by its odometry alone.

    python -m edge_ros_bridge.control_node --ros-args -p policy_entry:=go_home:make -p autostart:=true

with this folder on PYTHONPATH. It has no state and no bundle: a speed that falls with the distance, a turn in
proportion to the bearing, and the model of a unicycle to plan a chunk with.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from edge_sdk.control.policy import ActionDim, ActionSpec, ObservationSpec, PolicyConfig
from edge_sdk.control.robot import FloatArray

RATE_HZ = 25.0
CONFIG = PolicyConfig(
    observations=(ObservationSpec(name="odometry", shape=(3,), units=("m", "m", "rad")),),
    action=ActionSpec(
        dims=(
            ActionDim(name="linear.x", unit="m/s", lower=-0.5, upper=0.5),
            ActionDim(name="angular.z", unit="rad/s", lower=-2.0, upper=2.0),
        ),
        rate_hz=RATE_HZ,
    ),
    chunk_length=8,
    budget_ms=150.0,
)


class GoHome:
    """See the module."""

    config = CONFIG

    def reset(self) -> None:
        """There is no state."""

    def infer(self, observation: Mapping[str, np.ndarray], committed: FloatArray | None) -> FloatArray:
        """(chunk_length, 2): speeds for the pose (x, y, yaw), and for those that will follow."""
        x, y, yaw = observation["odometry"].tolist()
        actions = []
        for _ in range(self.config.chunk_length):
            distance = math.hypot(x, y)
            bearing = math.remainder(math.atan2(-y, -x) - yaw, math.tau)
            linear = min(0.5, distance) * math.cos(bearing)
            angular = max(-2.0, min(2.0, 2.0 * bearing)) if distance > 0.02 else 0.0
            actions.append((linear, angular))
            x += linear * math.cos(yaw) / RATE_HZ
            y += linear * math.sin(yaw) / RATE_HZ
            yaw += angular / RATE_HZ
        return np.array(actions, dtype=np.float32)

    def snapshot(self) -> None:
        """There is no state."""

    def restore(self, snapshot: None) -> None:
        """There is no state."""


def make(path: str) -> GoHome:
    """For the parameter ``policy_entry``; the path is not used."""
    del path
    return GoHome()
