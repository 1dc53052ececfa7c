"""The messages of our own, where they are generated: the package edge_sdk_msgs, built by colcon from ``ros_msgs/``."""

from __future__ import annotations

try:
    from edge_sdk_msgs.action import Generate
    from edge_sdk_msgs.srv import ManageSession
except ImportError as error:
    Generate = ManageSession = None
    MISSING = f"~/generate and ~/session are off: {error}. Build the package in ros_msgs/ to have them."
else:
    MISSING = ""

__all__ = ["MISSING", "Generate", "ManageSession"]
