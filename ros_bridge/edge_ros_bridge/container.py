"""Several of the bridge's nodes in one process: ``container instruct control --ros-args ...``.

Parameters of one of them begin with its name, as ``-p control:policy:=/path/to/bundle``.
"""

from __future__ import annotations

import sys

from edge_ros_bridge.control_node import ControlNode
from edge_ros_bridge.instruct_node import InstructNode
from edge_ros_bridge.language_node import LanguageNode
from edge_ros_bridge.node import BridgeNode, run

NODES: dict[str, type[BridgeNode]] = {"language": LanguageNode, "control": ControlNode, "instruct": InstructNode}


def main(args: list[str] | None = None) -> int:
    """Runs the nodes that are named before ``--ros-args`` until SIGINT or SIGTERM. Exit code 2 for unknown names."""
    arguments = sys.argv[1:] if args is None else args
    names = arguments[: arguments.index("--ros-args")] if "--ros-args" in arguments else arguments
    if not names or not set(names) <= set(NODES):
        print(f"container: expected some of {', '.join(NODES)}, found {names}.", file=sys.stderr)
        return 2
    return run([NODES[name] for name in dict.fromkeys(names)], [sys.argv[0], *arguments])


if __name__ == "__main__":
    sys.exit(main())
