"""The firmware's header, compiled, and a simulated robot on a faulty line."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from edge_sdk.control.frames import WireSchema
from places import ROOT
from serial_faults import FaultyLine
from simulated_robot import SCHEMA, Firmware

FIRMWARE = ROOT / "edge_sdk" / "control" / "firmware"
FLAGS = ("-std=c99", "-Wall", "-Wextra", "-Werror", "-pedantic", f"-I{FIRMWARE}")
SANITIZE = ("-O1", "-fsanitize=address,undefined", "-fno-sanitize-recover=all")


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
