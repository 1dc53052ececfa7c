"""The rover of the demo: text in, velocities out. ``ros2 launch edge_ros_bridge rover.launch.py bundle:=...``."""

from launch.actions import DeclareLaunchArgument

from edge_ros_bridge.launching import COMMON, CONFIG, argument, lifecycle_node
from launch import LaunchDescription

TOPICS = {"cmd_vel": "the robot's topic of velocities", "odom": "the robot's topic of odometry"}
FILES = {
    "policy": ("rover_policy.json", "speeds"),
    "params_file": ("instruct.yaml", "parameters of instruct: its steps"),
}
FILES |= {"control_params_file": ("control.yaml", "parameters of control")}


def generate_launch_description() -> LaunchDescription:
    """The node that plans, and in a process of its own the one that drives; both begin unless told otherwise."""
    follower = {"policy_entry": "edge_ros_bridge.following:make", "autostart": True}
    files = {
        name: DeclareLaunchArgument(name, default_value=f"{CONFIG}/{path}", description=what)
        for name, (path, what) in FILES.items()
    }
    return LaunchDescription(
        [
            DeclareLaunchArgument("bundle", description="path of the bundle of SCAN"),
            *files.values(),
            argument("command", "twist or twist_stamped"),
            *(DeclareLaunchArgument(name, default_value=name, description=what) for name, what in TOPICS.items()),
            *COMMON,
            lifecycle_node("instruct", ["bundle"], defaults={"autostart": True}),
            lifecycle_node(
                "control",
                ["policy", "command"],
                params_file="control_params_file",
                defaults=follower,
                remap=list(TOPICS),
            ),
        ]
    )
