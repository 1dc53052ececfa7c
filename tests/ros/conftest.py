"""A ROS domain of its own for every test or module that asks for one."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from places import ROOT
from processes import Peer, Ros

sys.path.insert(0, str(ROOT / "tests" / "export"))  # tiny policies


@pytest.fixture
def ros(ros_python: Path, tmp_path: Path) -> Ros:
    """A domain for one test."""
    return Ros.new(ros_python, tmp_path)


@pytest.fixture(scope="module")
def peer(ros_python: Path, scan_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Peer]:
    """The second process of a module whose tests share one active node; each test leaves the node active."""
    room = Ros.new(ros_python, tmp_path_factory.mktemp("ros"))
    speeds = {"linear_speed": 5.0, "angular_speed": 15.0}  # fast, so that the tests are
    with room.node(bundle=scan_bundle, queue_size=2, **speeds), room.peer() as peer:
        peer.start_node()
        yield peer
