"""Starts the language node and the tests' second process in the ROS environment, each test in its own ROS domain."""

from __future__ import annotations

import itertools
import json
import os
import select
import signal
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edge_ros_bridge.motion import Velocity
from places import ROOT
from places import ROVER as SCAN_ROVER

GO_HOME = ROOT / "samples" / "ros_control"
ROVER = Path(__file__).with_name("rover.py")
INSTRUCTED = Path(__file__).with_name("instructed.py")
PEER = Path(__file__).with_name("peer.py")
WHEELS_VARIABLES = ("LD_LIBRARY_PATH", "_ROS_WHEELS_BOOTSTRAP_COMPLETE")
"""What the ROS wheels leave in the environment of their children, who may belong to another environment."""
ROS2 = "import sys; from ros2cli.cli import main; sys.argv[0] = 'ros2'; sys.exit(main())"
"""The program of that name, by the interpreter of the ROS environment."""
_domain_ids = itertools.count(os.getpid() % 60 + 1)
END_TIMEOUT_S = 15
REPLY_TIMEOUT_S = 60


class Peer:
    """The other end of peer.py."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    def call(self, call: str, **request: Any) -> Any:
        """Asks for one thing and returns its result; an error fails the test."""
        assert self._process.stdin
        assert self._process.stdout
        self._process.stdin.write(json.dumps({"call": call, **request}) + "\n")
        self._process.stdin.flush()
        ready, _, _ = select.select([self._process.stdout], [], [], REPLY_TIMEOUT_S)
        assert ready, f"peer.py did not answer {call} within {REPLY_TIMEOUT_S} s"
        answer = json.loads(self._process.stdout.readline())
        assert "error" not in answer, answer["error"]
        return answer["result"]

    def events(self, call: str, **request: Any) -> dict[str, list[Any]]:
        """As ``call`` for ``wait`` and ``listen``: what arrived, by topic."""
        found: dict[str, list[Any]] = {"tokens": [], "text": [], "error": [], "cmd_vel": []}
        for event in self.call(call, **request):
            data = event["data"]
            found[event["topic"]].append(Velocity(**data) if isinstance(data, dict) else data)
        return found

    def start_node(self) -> None:
        """Configures and activates."""
        self.call("match")
        for transition in ("configure", "activate"):
            assert self.call("change_state", transition=transition)
        assert self.call("state") == "active"


@dataclass(frozen=True)
class Ros:
    """One ROS domain for one test."""

    python: Path
    domain_id: int
    folder: Path
    """For log files."""
    prefix: Path | None = None
    """Where colcon installed the bridge, for what finds it there."""

    @classmethod
    def new(cls, python: Path, folder: Path) -> Ros:
        """In a domain that no other test of this run has."""
        return cls(python, next(_domain_ids), folder)

    @contextmanager
    def node(
        self,
        kind: str = "language_node",
        namespace: str = "",
        *,
        before: str = "",
        names: Sequence[str] = (),
        files: Sequence[Path] = (),
        remap: Mapping[str, str] | None = None,
        **parameters: object,
    ) -> Iterator[subprocess.Popen[str]]:
        """A node; what it says goes to standard output, for ``end`` to return.

        ``before``: Python code run first; ``names``: arguments of the program's own, such as a container's nodes;
        ``files``: of parameters.
        """
        arguments = [item for name, value in parameters.items() for item in ("-p", f"{name}:={_literal(value)}")]
        arguments = [item for path in files for item in ("--params-file", str(path))] + arguments
        renamed = dict(remap or {}) | ({"__ns": namespace} if namespace else {})
        arguments += [item for name, value in renamed.items() for item in ("-r", f"{name}:={value}")]
        code = f"import sys; {before or 'pass'}\nfrom edge_ros_bridge import {kind} as it\nsys.exit(it.main())"
        with self._run("-c", code, *names, "--ros-args", *arguments, stderr=subprocess.STDOUT) as node:
            yield node

    @contextmanager
    def peer(self, program: Path = PEER, namespace: str = "") -> Iterator[Peer]:
        """The second process."""
        with self._run(str(program), "--namespace", namespace, stdin=subprocess.PIPE) as process:
            yield Peer(process)

    @contextmanager
    def launch(self, file: str, **arguments: object) -> Iterator[subprocess.Popen[str]]:
        """A launch file of the bridge by ``ros2 launch``, as the leader of the group of its processes."""
        given = [f"{name}:={_literal(value)}" for name, value in arguments.items()]
        command = ("-c", ROS2, "launch", "edge_ros_bridge", file, *given)
        with self._run(*command, stderr=subprocess.STDOUT, start_new_session=True) as launch:
            try:
                yield launch
            finally:
                with suppress(ProcessLookupError):  # the usual case: all of them have ended
                    os.killpg(launch.pid, signal.SIGKILL)

    def run(self, *arguments: object, timeout_s: float = 60) -> subprocess.CompletedProcess[str]:
        """Another program of the ROS environment, from start to end."""
        command = [str(self.python), *map(str, arguments)]
        return subprocess.run(
            command, env=self._environment(), capture_output=True, text=True, timeout=timeout_s, check=False
        )

    @contextmanager
    def _run(self, *arguments: str, **streams: Any) -> Iterator[subprocess.Popen[str]]:
        command, environment = [str(self.python), *arguments], self._environment()
        with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True, **streams) as process:
            try:
                yield process
            finally:
                process.kill()

    def _environment(self) -> dict[str, str]:
        kept = {name: value for name, value in os.environ.items() if name not in WHEELS_VARIABLES}
        # this checkout, whatever is installed
        rooms = (ROOT, ROOT / "plugins", ROOT / "ros_bridge", GO_HOME, SCAN_ROVER)
        paths = [*map(str, rooms), *filter(None, [os.environ.get("PYTHONPATH")])]
        if self.prefix is not None:
            found = filter(None, [os.environ.get("AMENT_PREFIX_PATH")])
            kept["AMENT_PREFIX_PATH"] = os.pathsep.join([str(self.prefix), str(self.python.parent.parent), *found])
        return kept | {
            "PYTHONPATH": os.pathsep.join(paths),
            "ROS_AUTOMATIC_DISCOVERY_RANGE": "LOCALHOST",
            "ROS_DOMAIN_ID": str(self.domain_id),
            "ROS_LOG_DIR": str(self.folder),
        }


def end(process: subprocess.Popen[str], number: int | None = signal.SIGINT) -> tuple[int, str]:
    """Sends a signal, unless it is None, waits for the end; returns exit code and everything that was said."""
    if number is not None:
        process.send_signal(number)
    output, _ = process.communicate(timeout=END_TIMEOUT_S)
    return process.returncode, output


def _literal(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
