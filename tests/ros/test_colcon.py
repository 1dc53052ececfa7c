"""What colcon makes of the package, and whether its manifests are valid."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from places import ROOT, WORKSTATION
from processes import Ros

BRIDGE = ROOT / "ros_bridge"
VALID = """
import sys
from catkin_pkg.package import parse_package
for path in sys.argv[1:]:
    warnings = []
    package = parse_package(path, warnings=warnings)
    package.validate(warnings=warnings)
    print(package.name, package.get_build_type(), warnings)
"""


def install(folder: Path) -> Path:
    """What colcon installs of the bridge, in a workspace in a folder."""
    colcon = shutil.which("colcon", path=os.pathsep.join((str(WORKSTATION), os.environ["PATH"])))
    assert colcon, "colcon is not installed: run `make envs`"
    command = [colcon, "--log-base", "log", "build", "--base-paths", BRIDGE, "--packages-select", "edge_ros_bridge"]
    found = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120, check=False)
    assert found.returncode == 0, found.stdout + found.stderr
    return folder / "install" / "edge_ros_bridge"


def test_colcon_installs_programs_where_ros2_run_and_launch_look(tmp_path: Path) -> None:
    installed = install(tmp_path)
    programs = installed / "lib" / "edge_ros_bridge"
    assert {path.name for path in programs.iterdir()} >= {"language", "control", "container", "record"}
    assert all(os.access(path, os.X_OK) for path in programs.iterdir())
    share = installed / "share"
    assert (share / "ament_index" / "resource_index" / "packages" / "edge_ros_bridge").exists()
    for folder in ("launch", "config"):
        names = {path.name for path in (BRIDGE / folder).iterdir() if path.is_file()}
        assert {path.name for path in (share / "edge_ros_bridge" / folder).iterdir()} == names
    assert (share / "edge_ros_bridge" / "package.xml").read_bytes() == (BRIDGE / "package.xml").read_bytes()


@pytest.mark.parametrize(
    ("folder", "said"), [(BRIDGE, "edge_ros_bridge ament_python []"), (BRIDGE / "msgs", "edge_sdk_msgs ament_cmake []")]
)
def test_the_manifests_are_valid(ros: Ros, folder: Path, said: str) -> None:
    result = ros.run("-c", VALID, folder / "package.xml")
    assert (result.returncode, result.stdout.strip()) == (0, said), result.stderr
