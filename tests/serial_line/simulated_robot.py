"""The robot that the tests drive: what is on its wire, and the firmware that simulates it."""

from __future__ import annotations

import subprocess
import time
from pathlib import Path

from edge_sdk.control.frames import Field, WireSchema
from serial_faults import FaultyLine

SCHEMA = WireSchema(
    action=(Field("left", "rad/s"), Field("right", "rad/s")),
    observation=(Field("position", "rad", 2), Field("velocity", "rad/s", 2)),
)


class Firmware:
    """The simulated microcontroller, and what it says."""

    def __init__(self, program: Path, line: FaultyLine, log: Path, schema: WireSchema, heartbeat_limit_ms: int) -> None:
        self.log = log
        command = [program, line.robot_path, hex(schema.hash), schema.action_dim, heartbeat_limit_ms]
        with log.open("w") as output:
            self.process = subprocess.Popen([*map(str, command)], stdout=output, stderr=subprocess.PIPE)
        self.wait_for("ready")

    def said(self, word: str) -> list[list[str]]:
        """The rest of each whole line that begins with ``word``."""
        lines = self.log.read_text().split("\n")[:-1]
        return [line.split()[1:] for line in lines if line.split()[0] == word]

    def wait_for(self, word: str, times: int = 1, timeout_s: float = 10.0) -> None:
        end = time.monotonic() + timeout_s
        while len(self.said(word)) < times:
            assert time.monotonic() < end, f"no {word!r} in {self.log.read_text()[-500:]}"
            assert self.process.poll() is None
            time.sleep(0.002)

    def close(self) -> None:
        """Ends it; a sanitizer would have ended it before, with words on stderr."""
        assert self.process.poll() is None, self.process.stderr.read() if self.process.stderr else ""
        self.process.kill()
        _, said = self.process.communicate()
        assert said == b""
