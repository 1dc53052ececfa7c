"""The graph that others see is the one that the tables describe."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from edge_ros_bridge.interface import COMMAND_QOS, CONTROL, LANGUAGE, SENSOR_QOS, Interface, Qos
from places import ROOT
from processes import Ros, end

GRAPH = Path(__file__).with_name("graph.py")
SHARED_MEMORY = """
import os, re, sys
from pathlib import Path
import rclpy
if len(sys.argv) > 1:
    os.environ |= dict.fromkeys(("FASTRTPS_DEFAULT_PROFILES_FILE", "FASTDDS_DEFAULT_PROFILES_FILE"), sys.argv[1])
rclpy.init()
node = rclpy.create_node("anybody")
mapped = re.findall(r"^([0-9a-f]+)-([0-9a-f]+) .* /dev/shm/fast", Path("/proc/self/maps").read_text(), re.MULTILINE)
print(max(int(end, 16) - int(begin, 16) for begin, end in mapped))
"""
FAST_DDS = ROOT / "ros_bridge" / "config" / "fastdds.xml"
USUAL = {"/parameter_events", "/rosout"}


def described(interface: Interface, direction: str, *others: tuple[str, str, str, Qos]) -> dict[str, Any]:
    """As graph.py says it; ``others``: topic, type and direction that parameters choose, and QoS."""
    found = [
        (topic.name.replace("~", f"/{interface.node}"), topic.type, topic.direction, topic.qos)
        for topic in interface.topics
    ]
    return {
        (name if name.startswith("/") else f"/{name}"): [kind.replace("/", "/msg/"), qos.reliability, qos.durability]
        for name, kind, way, qos in (*found, *others)
        if way == direction
    }


@pytest.mark.kilted
def test_names_types_and_qos_are_those_of_the_tables(ros: Ros, scan_bundle: Path) -> None:
    control = {"policy_entry": "go_home:make", "sources.odometry.type": "odometry", "autostart": True}
    control |= {"sources.odometry.fields": "[pose.pose.position.x, pose.pose.position.y, yaw]"}
    speak = ros.node(bundle=scan_bundle, autostart=True)
    with speak as language, ros.node("control_node", **control) as driver:
        result = ros.run(GRAPH, "language", "control", "/odom")  # which control hears once it is configured
        assert result.returncode == 0, result.stderr
        for node in (language, driver):
            assert end(node)[0] == 0
    graph = json.loads(result.stdout)
    assert graph["incompatible"] == []
    chosen = (("odom", "nav_msgs/Odometry", "in", SENSOR_QOS), ("cmd_vel", "geometry_msgs/Twist", "out", COMMAND_QOS))
    for interface, others in ((LANGUAGE, ()), (CONTROL, chosen)):
        seen = graph["nodes"][interface.node]
        for direction in ("in", "out"):
            topics = {
                name: found
                for name, found in seen[direction].items()
                if name not in USUAL and "/_action/" not in name and not name.endswith("/transition_event")
            }
            assert topics == described(interface, direction, *others)
        services = {name: kinds[0] for name, kinds in seen["services"].items()}
        for service in interface.services:
            if "/srv/" in service.type or service.type.startswith("std_srvs"):
                kind = service.type if "/srv/" in service.type else service.type.replace("/", "/srv/")
                assert services[service.name.replace("~", f"/{interface.node}")] == kind
    assert "/language/generate/_action/send_goal" in graph["nodes"]["language"]["services"]


def test_the_profile_for_large_images_gives_a_process_more_shared_memory_than_usual(ros: Ros) -> None:
    without, profiled = ros.run("-c", SHARED_MEMORY), ros.run("-c", SHARED_MEMORY, FAST_DDS)
    assert 2**19 <= int(without.stdout) < 2**20, without.stderr
    assert int(profiled.stdout) >= 2**24, profiled.stderr
    assert "XMLPARSER" not in profiled.stdout + profiled.stderr
