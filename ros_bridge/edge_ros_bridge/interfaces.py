"""The messages of our own, where they are generated: colcon builds edge_sdk_msgs from ``ros_bridge/msgs``."""

from __future__ import annotations

try:
    from edge_sdk_msgs.action import Generate
    from edge_sdk_msgs.msg import Piece
    from edge_sdk_msgs.srv import ManageSession
except ImportError as error:
    Generate = ManageSession = Piece = None
    MISSING = f"~/generate, ~/session and ~/pieces are off: {error}. Build ros_bridge/msgs to have them."
else:
    MISSING = ""

__all__ = ["MISSING", "Generate", "ManageSession", "Piece"]
