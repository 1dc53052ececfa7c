"""Starts the language node: ``ros2 launch edge_ros_bridge language.launch.py bundle:=/path/to/bundle``."""

from launch.actions import DeclareLaunchArgument

from edge_ros_bridge.launching import COMMON, CONFIG, lifecycle_node
from launch import LaunchDescription


def generate_launch_description() -> LaunchDescription:
    """The node, which configures and activates itself unless its parameters or the argument say otherwise."""
    return LaunchDescription(
        [
            DeclareLaunchArgument("bundle", description="path of the bundle"),
            DeclareLaunchArgument(
                "params_file", default_value=f"{CONFIG}/language.yaml", description="parameters of the node"
            ),
            *COMMON,
            lifecycle_node("language", ["bundle"], defaults={"autostart": True}),
        ]
    )
