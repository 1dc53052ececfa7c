"""What the launch files share: a node whose parameters are those of a file, but where an argument is given."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ament_index_python.packages import get_package_share_directory
from launch.actions import DeclareLaunchArgument, OpaqueFunction
from launch.substitutions import LaunchConfiguration
from launch_ros.actions import LifecycleNode
from launch_ros.parameter_descriptions import ParameterValue

PACKAGE = "edge_ros_bridge"
CONFIG = f"{get_package_share_directory(PACKAGE)}/config"

COMMON = (
    DeclareLaunchArgument("namespace", default_value="", description="namespace of all names but /diagnostics"),
    DeclareLaunchArgument("autostart", default_value="", description="true or false; none: as the parameters say"),
    DeclareLaunchArgument("use_sim_time", default_value="", description="true: time is that of /clock"),
)
"""Arguments of every launch file."""

BOOLEANS = ("autostart", "use_sim_time")
"""Parameters that are no strings."""


def argument(name: str, description: str) -> DeclareLaunchArgument:
    """One that need not be given: then the file of parameters says it, or the node's default holds."""
    return DeclareLaunchArgument(name, default_value="", description=description)


def lifecycle_node(
    name: str,
    arguments: Sequence[str],
    *,
    params_file: str = "params_file",
    defaults: Mapping[str, object] | None = None,
    remap: Sequence[str] = (),
) -> OpaqueFunction:
    """A node, by the name of its program.

    ``arguments``: those of the launch file that are parameters of the node by the same name; ``params_file``: the
    argument that is a file of parameters; ``defaults``: what holds unless that file says something else; ``remap``:
    arguments that are names of topics.
    """

    def make(context: Any) -> list[LifecycleNode]:
        # A default that came after the file would silently win over it. And unless the type is said, launch reads YAML.
        given = {
            each: ParameterValue(LaunchConfiguration(each), value_type=bool if each in BOOLEANS else str)
            for each in (*arguments, *BOOLEANS)
            if context.launch_configurations[each]
        }
        node = LifecycleNode(
            package=PACKAGE,
            executable=name,
            name=name,
            namespace=LaunchConfiguration("namespace"),
            parameters=[*([dict(defaults)] if defaults else []), LaunchConfiguration(params_file), given],
            remappings=[(topic, LaunchConfiguration(topic)) for topic in remap],
            output="screen",
        )
        return [node]

    return OpaqueFunction(function=make)
