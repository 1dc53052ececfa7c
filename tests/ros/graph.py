"""What ``ros2 doctor`` and ``ros2 node info`` would show, as JSON: the graph as an outsider sees it.

Runs in the ROS environment: ``graph.py NODE... /TOPIC...`` waits until each node is there, and who hears each topic.
"""

from __future__ import annotations

import json
import sys
import time
from typing import Any

import rclpy
from rclpy.qos import QoSCompatibility, qos_check_compatible

SETTLE_S = 1.0


def main() -> None:
    """See the module."""
    rclpy.init()
    watcher = rclpy.create_node("watcher")
    topics = {name for name in sys.argv[1:] if name.startswith("/")}
    wanted, deadline_s = set(sys.argv[1:]) - topics, time.monotonic() + 30
    while time.monotonic() < deadline_s and not (
        wanted <= set(watcher.get_node_names()) and all(map(watcher.count_subscribers, topics))
    ):
        time.sleep(0.1)
    time.sleep(SETTLE_S)
    print(json.dumps({"nodes": {name: node(watcher, name) for name in wanted}, "incompatible": mismatches(watcher)}))
    watcher.destroy_node()
    rclpy.shutdown()


def node(watcher: Any, name: str) -> dict[str, Any]:
    """Its topics, each with type and QoS, and the types of its services."""
    endpoints = {"out": watcher.get_publishers_info_by_topic, "in": watcher.get_subscriptions_info_by_topic}
    topics = {
        "out": watcher.get_publisher_names_and_types_by_node,
        "in": watcher.get_subscriber_names_and_types_by_node,
    }
    found: dict[str, Any] = {"services": dict(watcher.get_service_names_and_types_by_node(name, "/"))}
    for direction, list_topics in topics.items():
        found[direction] = {}
        for topic, kinds in list_topics(name, "/"):
            (own,) = (info for info in endpoints[direction](topic) if info.node_name == name)
            qos = own.qos_profile
            found[direction][topic] = [*kinds, qos.reliability.name.lower(), qos.durability.name.lower()]
    return found


def mismatches(watcher: Any) -> list[str]:
    """Topics on which some publisher and some subscription cannot talk."""
    return [
        topic
        for topic, _ in watcher.get_topic_names_and_types()
        for publisher in watcher.get_publishers_info_by_topic(topic)
        for subscription in watcher.get_subscriptions_info_by_topic(topic)
        if qos_check_compatible(publisher.qos_profile, subscription.qos_profile)[0] == QoSCompatibility.ERROR
    ]


if __name__ == "__main__":
    main()
