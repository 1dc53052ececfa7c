"""The whole road once: teacher, distillation, ONNX, bundle, generation without torch, a ROS 2 rover that drives.

    make demo        # sets up the environments and runs this; finished stages are not run again

Every stage is a command that you could type yourself; it is printed before it runs.
"""

from __future__ import annotations

import hashlib
import json
import shlex
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
TEACHER = HERE / "teacher"
OUT = ROOT / "build" / "demo"
SCAN = OUT / "scan"
RUNS = OUT / "runs"
EXPORT = ROOT / ".venvs" / "workstation" / "bin" / "edge-export"
WORKSTATION_PYTHON = ROOT / ".venvs" / "workstation" / "bin" / "python"
ROBOT_PYTHON = ROOT / ".venvs" / "robot" / "bin" / "python"
EDGE_SDK = ROOT / ".venvs" / "robot" / "bin" / "edge-sdk"
ROS_PYTHON = ROOT / ".venvs" / "ros" / "bin" / "python"
EXAMPLE = "walk around left twice"
BUNDLES = ("teacher", "student", "student-int4")

console = Console()
began = time.perf_counter()


def relative(argument: object) -> str:
    """A path as it looks from the checkout's root."""
    text = str(argument)
    return text.removeprefix(f"{ROOT}/")


def say(title: str) -> None:
    """A heading with the time since the start."""
    console.print(f"\n[bold cyan]\\[{time.perf_counter() - began:5.1f} s][/] [bold]{title}[/]", highlight=False)


def sources_digest() -> str:
    """Hash of everything whose change makes earlier results stale: our code, the recipes and the teacher."""
    digest = hashlib.sha256()
    folders = (ROOT / "edge_sdk", ROOT / "plugins", ROOT / "export", HERE)
    for folder in folders:
        for path in sorted(folder.rglob("*")):
            if path.suffix in {".py", ".yaml", ".safetensors", ".json"} and "egg-info" not in str(path):
                digest.update(path.read_bytes())
    return digest.hexdigest()


SOURCES = sources_digest()


def show_command(command: Sequence[object]) -> None:
    """A command as one would type it."""
    console.print(f"  $ {shlex.join(map(relative, command))}", style="dim", highlight=False, soft_wrap=True)


def run(name: str, *command: object, capture: bool = False) -> str:
    """Runs a command, unless it was run and nothing it depends on has changed; returns what it printed, if captured.

    A failure ends the demo.
    """
    show_command(command)
    stamp, key = OUT / "stages" / name, SOURCES + shlex.join(map(str, command))
    if stamp.exists() and (kept := read_json(stamp))["key"] == key:
        return str(kept["output"])
    output = call(command, subprocess.PIPE if capture else None)
    stamp.parent.mkdir(parents=True, exist_ok=True)
    stamp.write_text(json.dumps({"key": key, "output": output}))
    return output


def call(command: Sequence[object], stdout: int | None = None) -> str:
    """Runs a command from the checkout's root; a failure ends the demo."""
    result = subprocess.run(list(map(str, command)), cwd=ROOT, stdout=stdout, text=True, check=False)
    if result.returncode != 0:
        sys.exit(f"demo: {relative(command[0])} failed with status {result.returncode}")
    return result.stdout or ""


def workstation() -> None:
    """From the teacher to three bundles, by one chain of commands; it knows itself what is done."""
    command = (EXPORT, "run", HERE / "chain.yaml")
    show_command(command)
    call(command)


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file."""
    return dict(json.loads(path.read_text()))


def show(measured: dict[str, dict[str, float]], drive: dict[str, Any], picture: Path) -> None:
    """The closing table."""
    table = Table(title="SCAN on this machine's CPU, without torch", title_justify="left")
    for heading in ("", "parameters", "bundle bytes", "exact match", "tokens/s"):
        table.add_column(heading, justify="left" if not heading else "right")
    titles = {"teacher": "teacher float32", "student": "student float32", "student-int4": "student int4"}
    for name, title in titles.items():
        row = measured[name]
        table.add_row(
            title,
            f"{row['parameters']:,}",
            f"{row['bytes']:,}",
            f"{row['exact_match']:.2%}",
            f"{row['tokens_per_second']:,.0f}",
        )
    scratch = read_json(RUNS / "scratch" / "report.json")
    table.add_row("same size from scratch", f"{scratch['parameters']:,}", "", f"{scratch['exact_match']:.2%}", "")
    console.print()
    console.print(table)
    correct = sum(item["correct"] for item in drive["commands"])
    console.print(f"commands driven correctly: [bold]{correct} of {len(drive['commands'])}[/]", highlight=False)
    console.print(f"paths:   {relative(picture)}", highlight=False)
    console.print(f"losses:  {relative(OUT / 'loss.png')}", highlight=False)
    console.print(f"bundles: {', '.join(relative(OUT / name) for name in BUNDLES)}", highlight=False)


def main() -> None:
    """All stages in order."""
    OUT.mkdir(parents=True, exist_ok=True)
    say("SCAN: every command and its actions, from the paper's grammar")
    run("scan", WORKSTATION_PYTHON, HERE / "scan.py", SCAN)
    say("Distil the teacher, pruned to a quarter, beside the same size from scratch; trace and pack all of them")
    workstation()
    say("Run on the robot's environment, which has no torch")
    run("run", EDGE_SDK, "run", OUT / "student-int4", EXAMPLE)
    measured = {
        name: json.loads(
            run(f"measure-{name}", ROBOT_PYTHON, HERE / "measure.py", OUT / name, SCAN / "test.jsonl", capture=True)
        )
        for name in BUNDLES
    }
    say("ROS 2: ten held-out commands drive a rover")
    drive, picture = OUT / "drive.json", OUT / "drive.png"
    command = (
        ROS_PYTHON,
        HERE / "drive.py",
        "--bundle",
        OUT / "student-int4",
        "--pairs",
        SCAN / "test.jsonl",
        "--out",
        drive,
    )
    show_command(command)
    call(command)
    call((WORKSTATION_PYTHON, HERE / "draw.py", drive, picture))
    show(measured, read_json(drive), picture)
    say("done")


if __name__ == "__main__":
    main()
