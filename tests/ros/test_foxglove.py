"""The Foxglove layout names topics and fields that there are."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import pytest
from rosbags.interfaces import Nodetype
from rosbags.typesys import Stores, get_typestore

from edge_ros_bridge.commands import COMMANDS
from edge_ros_bridge.counting import Answers, Ticks
from edge_ros_bridge.interface import CONTROL, LANGUAGE
from edge_ros_bridge.sensors import SENSORS
from places import ROOT

LAYOUT = json.loads((ROOT / "ros_bridge" / "config" / "foxglove.json").read_text())
TYPES = {f"/{each.topic}": each.message for each in SENSORS.values()}
TYPES["/cmd_vel"] = COMMANDS["twist"].message
for node in (LANGUAGE, CONTROL):
    TYPES |= {topic.name.replace("~", f"/{node.node}"): topic.type for topic in node.topics}


def panels(layout: Any) -> Iterator[str]:
    """The names of an arrangement's panels."""
    if isinstance(layout, str):
        yield layout
    else:
        assert layout["direction"] in ("row", "column")
        assert 0 < layout["splitPercentage"] < 100
        yield from panels(layout["first"])
        yield from panels(layout["second"])


def paths() -> Iterator[str]:
    """Every topic, with a path into its messages where there is one."""
    for config in LAYOUT["configById"].values():
        yield from (path["value"] for path in config.get("paths", ()))
        yield from (config[name] for name in ("topicPath", "topicToRender") if name in config)
        yield from config.get("imageMode", {}).values()


def check(path: str) -> None:
    """Follows ``/topic.field[:].field{key=="value"}.field`` into the message. Raises KeyError."""
    store = get_typestore(Stores.ROS2_JAZZY)
    topic, *fields = path.split(".")
    package, name = TYPES[topic].split("/")
    kind: Any = (Nodetype.NAME, f"{package}/msg/{name}")
    for field in fields:
        plain, slice_, condition = re.fullmatch(r"(\w+)(\[:\])?(\{.*\})?", field).groups()
        kind = dict(store.fielddefs[kind[1]][1])[plain]
        if slice_:
            assert kind[0] in (Nodetype.ARRAY, Nodetype.SEQUENCE), field
            kind = kind[1][0]
        if condition:
            key, _ = re.fullmatch(r'\{(\w+)=="(\w+)"\}', condition).groups()
            assert key in dict(store.fielddefs[kind[1]][1])
    assert kind[0] == (Nodetype.BASE if fields else Nodetype.NAME), path


def test_every_panel_is_placed_once() -> None:
    assert sorted(panels(LAYOUT["layout"])) == sorted(LAYOUT["configById"])
    known = {"Image", "Plot", "StateTransitions", "RawMessages", "DiagnosticSummary", "DiagnosticStatusPanel", "RosOut"}
    assert {name.split("!")[0] for name in LAYOUT["configById"]} <= known


def test_topics_and_fields_exist() -> None:
    found = list(paths())
    assert len(found) >= 10
    for path in found:
        check(path)
    for wrong in ("/nowhere", "/cmd_vel.linear.w", "/diagnostics.status[:].value"):
        with pytest.raises(KeyError):
            check(wrong)


def test_diagnostics_that_are_plotted_are_said() -> None:
    said = set(Ticks().values()) | set(Answers().values())
    keys = {key for path in paths() for key in re.findall(r'key=="(\w+)"', path)}
    assert keys
    assert keys <= said
