"""Starts the language node: ``ros2 launch edge_ros_bridge language.launch.py bundle:=/path/to/bundle``."""

from ament_index_python.packages import get_package_share_directory
from launch.actions import DeclareLaunchArgument
from launch.substitutions import LaunchConfiguration
from launch_ros.actions import LifecycleNode

from launch import LaunchDescription

SHARE = get_package_share_directory("edge_ros_bridge")


def generate_launch_description() -> LaunchDescription:
    """The node, which configures and activates itself unless told otherwise."""
    return LaunchDescription(
        [
            DeclareLaunchArgument("bundle", description="path of the bundle"),
            DeclareLaunchArgument("namespace", default_value=""),
            DeclareLaunchArgument("params_file", default_value=f"{SHARE}/config/language.yaml"),
            DeclareLaunchArgument("autostart", default_value="true"),
            LifecycleNode(
                package="edge_ros_bridge",
                executable="language",
                name="language",
                namespace=LaunchConfiguration("namespace"),
                parameters=[
                    LaunchConfiguration("params_file"),
                    {"bundle": LaunchConfiguration("bundle"), "autostart": LaunchConfiguration("autostart")},
                ],
                output="screen",
            ),
        ]
    )
