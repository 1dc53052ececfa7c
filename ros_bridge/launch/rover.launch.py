"""The rover of the demo: text in, velocities out. ``ros2 launch edge_ros_bridge rover.launch.py bundle:=...``."""

from ament_index_python.packages import get_package_share_directory
from launch.actions import DeclareLaunchArgument
from launch.substitutions import LaunchConfiguration
from launch_ros.actions import LifecycleNode

from launch import LaunchDescription

SHARE = get_package_share_directory("edge_ros_bridge")


def generate_launch_description() -> LaunchDescription:
    """The node that plans and, in a process of its own, the one that drives; both begin by themselves."""
    instruct = {"bundle": LaunchConfiguration("bundle"), "autostart": True}
    control = {
        "policy_entry": "edge_ros_bridge.following:make",
        "policy": LaunchConfiguration("policy"),
        "command": LaunchConfiguration("command"),
        "autostart": True,
    }
    files = {"instruct": LaunchConfiguration("params_file"), "control": f"{SHARE}/config/control.yaml"}
    return LaunchDescription(
        [
            DeclareLaunchArgument("bundle", description="path of the bundle of SCAN"),
            DeclareLaunchArgument("policy", default_value=f"{SHARE}/config/rover_policy.json", description="speeds"),
            DeclareLaunchArgument("params_file", default_value=f"{SHARE}/config/instruct.yaml", description="steps"),
            DeclareLaunchArgument("command", default_value="twist", description="twist or twist_stamped"),
            DeclareLaunchArgument("cmd_vel", default_value="cmd_vel", description="the robot's topic of velocities"),
            DeclareLaunchArgument("odom", default_value="odom", description="the robot's topic of odometry"),
            DeclareLaunchArgument("namespace", default_value=""),
            *(
                LifecycleNode(
                    package="edge_ros_bridge",
                    executable=name,
                    name=name,
                    namespace=LaunchConfiguration("namespace"),
                    parameters=[files[name], parameters],
                    remappings=[(topic, LaunchConfiguration(topic)) for topic in ("cmd_vel", "odom")],
                    output="screen",
                )
                for name, parameters in (("instruct", instruct), ("control", control))
            ),
        ]
    )
