"""The tables of docs/ros.md, made from what the nodes are made of: ``python -m edge_ros_bridge.tables docs/ros.md``.

Writes what is between the page's markers anew. No ROS in it.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable
from pathlib import Path

from edge_ros_bridge.commands import COMMANDS
from edge_ros_bridge.interface import (
    COMMAND_QOS,
    CONTROL,
    INSTRUCT,
    LANGUAGE,
    RECORD,
    SENSOR_QOS,
    SOURCE_PARAMETERS,
    STEP_PARAMETERS,
    Interface,
    Parameter,
    Value,
)
from edge_ros_bridge.sensors import IMU_FIELDS, ODOMETRY_FIELDS, SENSORS
from edge_sdk.errors import ConfigError, explain
from edge_sdk.files import new_file

USUAL_FIELDS = {"joint_state": ("<joint>.position of the action's dimensions",), "imu": IMU_FIELDS}
USUAL_FIELDS |= {"odometry": ODOMETRY_FIELDS}


def table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """A table of Markdown."""
    lines = [list(head), *(list(row) for row in rows)]
    lines.insert(1, ["---"] * len(lines[0]))
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _code(text: str) -> str:
    return f"`{text}`" if text else ""


def _default(value: Value) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return "none" if value in ("", []) else f"{value:.5g}" if isinstance(value, float) else str(value)


def _limits(parameter: Parameter) -> str:
    return "" if parameter.low is None else f"{parameter.low:g} to {parameter.high:g}"


def parameters(of: Iterable[Parameter]) -> str:
    """A table of parameters."""
    rows = (
        (_code(each.name), _default(each.default), _limits(each), "any time" if each.live else "", each.what)
        for each in of
    )
    return table(("parameter", "default", "limits", "changes", "what"), rows)


def node(interface: Interface) -> str:
    """The tables of one node."""
    topics = ((_code(each.name), each.type, each.direction, str(each.qos), each.what) for each in interface.topics)
    services = ((_code(each.name), each.type, each.what) for each in interface.services)
    tables = [table(("topic", "type", "", "QoS", "what"), topics)]
    if interface.services:
        tables.append(table(("service or action", "type", "what"), services))
    return "\n\n".join((*tables, parameters(interface.parameters)))


def sensors() -> str:
    """What can be observed."""
    rows = (
        (_code(name), each.message, _code(each.topic), ", ".join(_code(field) for field in USUAL_FIELDS.get(name, ())))
        for name, each in SENSORS.items()
    )
    return table(("type", "message", "usual topic", "usual fields"), rows) + f"\n\nQoS: {SENSOR_QOS}."


def commands() -> str:
    """What can be commanded."""
    rows = ((_code(name), each.message, _code(each.topic)) for name, each in COMMANDS.items())
    return table(("command", "message", "usual topic"), rows) + f"\n\nQoS: {COMMAND_QOS}."


def sections() -> dict[str, str]:
    """All tables, by the names that the page's markers have."""
    return {
        "language": node(LANGUAGE),
        "control": node(CONTROL),
        "record": node(RECORD),
        "sources": parameters(SOURCE_PARAMETERS),
        "sensors": sensors(),
        "commands": commands(),
        "instruct": node(INSTRUCT),
        "steps": parameters(STEP_PARAMETERS),
    }


def filled(page: str) -> str:
    """The page with its tables written anew. Raises ConfigError for a table that it has no markers for."""
    for name, text in sections().items():
        pattern = re.compile(rf"(<!-- {name} -->\n).*?(<!-- end -->)", re.DOTALL)
        if len(pattern.findall(page)) != 1:
            raise ConfigError(explain("The page", expected=f"<!-- {name} --> once", found="another", todo="Add it."))
        page = pattern.sub(lambda found, text=text: f"{found[1]}{text}\n{found[2]}", page)  # type: ignore[misc]
    return page


def main() -> None:
    """Command line."""
    path = Path(sys.argv[1])
    text = filled(path.read_text(encoding="utf-8"))
    with new_file(path) as new:
        new.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
