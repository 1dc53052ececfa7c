"""Packaging of the ROS 2 room, an ament_python package: colcon builds it, and so does pip."""

from glob import glob
from pathlib import Path

from setuptools import setup

PACKAGE = "edge_ros_bridge"
HERE = Path(__file__).parent

setup(
    name=PACKAGE,
    version="0.1.0",
    description="Lifecycle nodes around Edge SDK: prompts, instructions and sensors in; text, plans and commands out",
    license="Apache-2.0",
    python_requires=">=3.10",
    packages=[PACKAGE],
    package_data={PACKAGE: ["py.typed"]},
    data_files=[
        ("share/ament_index/resource_index/packages", [f"resource/{PACKAGE}"]),
        (f"share/{PACKAGE}", ["package.xml"]),
        (f"share/{PACKAGE}/launch", sorted(glob("launch/*.launch.py", root_dir=HERE))),
        (f"share/{PACKAGE}/config", sorted(glob("config/*", root_dir=HERE))),
    ],
    # neither rclpy nor edge-sdk: a ROS install brings the one, and the other comes from this checkout
    install_requires=["setuptools"],
    extras_require={"record": ["mcap>=1.6,<2", "rosbags>=0.11.9,<0.12"]},
    entry_points={
        "console_scripts": [
            "language = edge_ros_bridge.language_node:main",
            "control = edge_ros_bridge.control_node:main",
            "instruct = edge_ros_bridge.instruct_node:main",
            "container = edge_ros_bridge.container:main",
            "record = edge_ros_bridge.record_node:main",
        ]
    },
)
