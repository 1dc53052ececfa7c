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
BUNDLES = {"teacher": ("teacher", "float32"), "student": ("student", "float32"), "student-int4": ("student", "int4")}

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


class Stage:
    """A command whose result is kept in OUT and not made again while nothing it depends on changes."""

    def __init__(self, name: str, command: Sequence[object], *, capture: bool = False) -> None:
        self.name, self.command, self.capture = name, [str(part) for part in command], capture
        self._stamp = OUT / "stages" / name
        self._key = SOURCES + shlex.join(self.command)
        self._process: subprocess.Popen[str] | None = None

    def start(self) -> Stage:
        """Starts the command, unless it has been run."""
        console.print(
            f"  $ {relative(shlex.join(map(relative, self.command)))}", style="dim", highlight=False, soft_wrap=True
        )
        if self._read() is None:
            output = subprocess.PIPE if self.capture else None
            self._process = subprocess.Popen(self.command, cwd=ROOT, stdout=output, text=True)
        return self

    def wait(self) -> str:
        """Waits for its end and returns what it printed; a failure ends the demo."""
        if self._process is not None:
            output, _ = self._process.communicate()
            if self._process.returncode != 0:
                sys.exit(f"demo: {self.name} failed with status {self._process.returncode}")
            self._stamp.parent.mkdir(parents=True, exist_ok=True)
            self._stamp.write_text(json.dumps({"key": self._key, "output": output or ""}))
        return self._read() or ""

    def _read(self) -> str | None:
        if not self._stamp.exists():
            return None
        kept = json.loads(self._stamp.read_text())
        return str(kept["output"]) if kept["key"] == self._key else None


def run(name: str, *command: object, capture: bool = False) -> str:
    """One stage, start to end."""
    return Stage(name, command, capture=capture).start().wait()


def distil() -> None:
    """Student and baseline, side by side: each keeps one core busy."""
    common = (TEACHER, HERE / "student.yaml", "--data", SCAN / "train.jsonl", "--test", SCAN / "test.jsonl")
    started = [
        Stage(name, (EXPORT, "distil", *common, "--threads", 1, "--out", RUNS / name, *flags)).start()
        for name, flags in {"student": (), "scratch": ("--from-scratch",)}.items()
    ]
    for stage in started:
        stage.wait()
    logs = [RUNS / name / "log.csv" for name in ("student", "scratch")]
    run("plot", EXPORT, "plot", *logs, "--out", OUT / "loss.png")


def export() -> None:
    """Graphs and bundles of the teacher and of the student in two precisions."""
    checkpoints = {"teacher": TEACHER, "student": RUNS / "student" / "model"}
    graphs = [
        Stage(
            f"onnx-{name}",
            (EXPORT, "onnx", checkpoints[model], "--weights", weights, "--out", OUT / "onnx" / name),
        ).start()
        for name, (model, weights) in BUNDLES.items()
    ]
    for stage in graphs:
        stage.wait()
    for name, (model, _) in BUNDLES.items():
        run(f"bundle-{name}", EXPORT, "bundle", checkpoints[model], "--graph", OUT / "onnx" / name, "--out", OUT / name)


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
    say("Distil: the teacher pruned to a quarter and taught, beside the same size from scratch")
    distil()
    say("ONNX and bundles: one graph each for prefill and decode")
    export()
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
    console.print(f"  $ {shlex.join(map(relative, command))}", style="dim", highlight=False, soft_wrap=True)
    if subprocess.run(list(map(str, command)), cwd=ROOT, check=False).returncode != 0:
        sys.exit("demo: driving failed")
    subprocess.run([WORKSTATION_PYTHON, HERE / "draw.py", drive, picture], cwd=ROOT, check=True)
    show(measured, read_json(drive), picture)
    say("done")


if __name__ == "__main__":
    main()
