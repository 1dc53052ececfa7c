"""The firmware's header, compiled, and a simulated robot on a faulty line."""

from __future__ import annotations

import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from edge_sdk.control.frames import Field, WireSchema
from places import ROOT
from serial_faults import FaultyLine

FIRMWARE = ROOT / "edge_sdk" / "control" / "firmware"
FLAGS = ("-std=c99", "-Wall", "-Wextra", "-Werror", "-pedantic", f"-I{FIRMWARE}")
SANITIZE = ("-O1", "-fsanitize=address,undefined", "-fno-sanitize-recover=all")
FUZZ = Path(__file__).with_name("frames_fuzz.c")

SCHEMA = WireSchema(
    action=(Field("left", "rad/s"), Field("right", "rad/s")),
    observation=(Field("position", "rad", 2), Field("velocity", "rad/s", 2)),
)


@pytest.fixture(scope="session")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Compiles a C99 file with every warning as an error, once for each set of flags."""
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("there is no C compiler: install gcc")
    folder = tmp_path_factory.mktemp("firmware")
    done: dict[tuple[Path, tuple[str, ...]], Path] = {}

    def compile_it(source: Path, *flags: str) -> Path:
        if (source, flags) not in done:
            program = folder / f"{source.stem}{len(done)}"
            subprocess.run([compiler, *FLAGS, *flags, source, "-o", program], check=True)
            done[source, flags] = program
        return done[source, flags]

    return compile_it


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


@pytest.fixture
def line(tmp_path: Path) -> Iterator[FaultyLine]:
    line = FaultyLine(tmp_path, seed=7)
    yield line
    line.close()


@pytest.fixture
def firmware(line: FaultyLine, tmp_path: Path, compiled: Callable[..., Path]) -> Iterator[Callable[..., Firmware]]:
    """Starts the simulated robot on the line."""
    started = []

    def start(schema: WireSchema = SCHEMA, heartbeat_limit_ms: int = 1000) -> Firmware:
        program = compiled(FIRMWARE / "simulator.c", *SANITIZE)
        started.append(Firmware(program, line, tmp_path / f"log{len(started)}", schema, heartbeat_limit_ms))
        return started[-1]

    yield start
    for one in started:
        one.close()
