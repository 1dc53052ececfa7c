"""Starts the control node: ``ros2 launch edge_ros_bridge control.launch.py policy:=/path/to/bundle``."""

from ament_index_python.packages import get_package_share_directory
from launch.actions import DeclareLaunchArgument
from launch.substitutions import LaunchConfiguration
from launch_ros.actions import LifecycleNode

from launch import LaunchDescription

SHARE = get_package_share_directory("edge_ros_bridge")


def generate_launch_description() -> LaunchDescription:
    """The node, which waits for a lifecycle manager unless told otherwise: it moves a robot."""
    names = ("policy", "policy_entry", "instruction", "command", "autostart")
    return LaunchDescription(
        [
            DeclareLaunchArgument("policy", default_value="", description="path of the policy's bundle"),
            DeclareLaunchArgument("policy_entry", default_value="", description="module:function instead of a bundle"),
            DeclareLaunchArgument("instruction", default_value="", description="what to do, for policies that read"),
            DeclareLaunchArgument("command", default_value="twist"),
            DeclareLaunchArgument("namespace", default_value=""),
            DeclareLaunchArgument("params_file", default_value=f"{SHARE}/config/control.yaml"),
            DeclareLaunchArgument("autostart", default_value="false"),
            LifecycleNode(
                package="edge_ros_bridge",
                executable="control",
                name="control",
                namespace=LaunchConfiguration("namespace"),
                parameters=[LaunchConfiguration("params_file"), {name: LaunchConfiguration(name) for name in names}],
                output="screen",
            ),
        ]
    )
