"""docs/ros.md and the package's files say what the code does."""

from __future__ import annotations

import ast
from xml.etree import ElementTree

import pytest
import yaml

from edge_ros_bridge.interface import CONTROL, INSTRUCT, LANGUAGE, RECORD, SOURCE_PARAMETERS, STEP_PARAMETERS
from edge_ros_bridge.tables import filled, sections
from edge_sdk.errors import ConfigError
from places import ROOT

NODES = (LANGUAGE, CONTROL, INSTRUCT, RECORD)
PAGE, BRIDGE = ROOT / "docs" / "ros.md", ROOT / "ros_bridge"


def test_the_pages_tables_are_those_of_the_code() -> None:
    page = PAGE.read_text(encoding="utf-8")
    assert filled(page) == page, "run: python -m edge_ros_bridge.tables docs/ros.md"
    assert filled(page.replace("`~/cancel`", "`~/halt`")) == page
    with pytest.raises(ConfigError, match="<!-- language -->"):
        filled("nothing")
    assert all(name in page for name in sections())


def test_a_parameter_has_limits_that_its_default_keeps() -> None:
    for parameter in (*(each for node in NODES for each in node.parameters), *SOURCE_PARAMETERS, *STEP_PARAMETERS):
        assert (parameter.low is None) == (parameter.high is None)
        if parameter.low is not None:
            assert parameter.low <= parameter.default <= parameter.high


def test_the_package_depends_on_every_message_package_that_the_nodes_use() -> None:
    depends = {element.text for element in ElementTree.parse(BRIDGE / "package.xml").iter("exec_depend")}
    types = {topic.type for interface in NODES for topic in interface.topics}
    used = {name.split("/")[0] for name in types}
    for path in (BRIDGE / "edge_ros_bridge").glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and node.module and node.module.endswith((".msg", ".srv", ".action")):
                used.add(node.module.split(".")[0])
    assert used <= depends


@pytest.mark.parametrize("interface", NODES, ids=[node.node for node in NODES])
def test_the_yaml_files_name_parameters_that_exist(interface) -> None:
    content = yaml.safe_load((BRIDGE / "config" / f"{interface.node}.yaml").read_text())
    ((name, section),) = content.items()
    assert name == f"/**/{interface.node}"
    known = {parameter.name for parameter in interface.parameters} | {"use_sim_time"}
    assert {key for key in section["ros__parameters"] if key not in ("sources", "steps", "qos_overrides")} <= known


def test_launch_files_are_python_that_describes_a_launch() -> None:
    paths = sorted((BRIDGE / "launch").glob("*.launch.py"))
    assert [path.name for path in paths] == ["control.launch.py", "language.launch.py", "rover.launch.py"]
    for path in paths:
        functions = [node.name for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.FunctionDef)]
        assert "generate_launch_description" in functions
