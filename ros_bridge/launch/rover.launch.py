"""The rover of the demo: answers become motion. ``ros2 launch edge_ros_bridge rover.launch.py bundle:=...``."""

from launch.actions import DeclareLaunchArgument
from launch.substitutions import LaunchConfiguration
from launch_ros.actions import LifecycleNode

from launch import LaunchDescription


def generate_launch_description() -> LaunchDescription:
    """The language node, which drives, with the speeds of samples/scan_rover/drive.py."""
    speeds = {"linear_speed": 1.5, "angular_speed": 4.5, "rate_hz": 20.0}
    return LaunchDescription(
        [
            DeclareLaunchArgument("bundle", description="path of the bundle of SCAN"),
            DeclareLaunchArgument("cmd_vel", default_value="cmd_vel", description="the robot's topic of velocities"),
            LifecycleNode(
                package="edge_ros_bridge",
                executable="language",
                name="language",
                namespace="",
                parameters=[{"bundle": LaunchConfiguration("bundle"), "drive": True, "autostart": True, **speeds}],
                remappings=[("cmd_vel", LaunchConfiguration("cmd_vel"))],
                output="screen",
            ),
        ]
    )
