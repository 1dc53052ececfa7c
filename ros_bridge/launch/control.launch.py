"""Starts the control node: ``ros2 launch edge_ros_bridge control.launch.py policy:=/path/to/bundle``."""

from launch.actions import DeclareLaunchArgument

from edge_ros_bridge.launching import COMMON, CONFIG, argument, lifecycle_node
from launch import LaunchDescription

ARGUMENTS = {
    "policy": "path of the policy's bundle",
    "policy_entry": "module:function instead of a bundle",
    "instruction": "what to do, for policies that read",
    "command": "twist, twist_stamped, joint_trajectory or float64_multi_array",
    "command_topic": "its topic",
}


def generate_launch_description() -> LaunchDescription:
    """The node, which waits for a lifecycle manager unless told otherwise: it moves a robot."""
    return LaunchDescription(
        [
            *(argument(name, description) for name, description in ARGUMENTS.items()),
            DeclareLaunchArgument(
                "params_file", default_value=f"{CONFIG}/control.yaml", description="parameters of the node"
            ),
            *COMMON,
            lifecycle_node("control", list(ARGUMENTS)),
        ]
    )
