"""The README's promises: every block runs, in order, and the demo does what its table says."""

from __future__ import annotations

import json
import os
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest

from places import ROBOT, ROOT

README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```", README, flags=re.MULTILINE | re.DOTALL)
DEMO = ROOT / "build" / "demo"


def run(command: list[str], timeout_s: float = 1200) -> str:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MAKE")}
    result = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=timeout_s, check=False
    )
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


@pytest.fixture(scope="module")
def demo() -> str:
    return run(["make", "demo"])


def blocks(language: str) -> list[str]:
    return [text for kind, text in BLOCKS if kind == language]


def test_the_readme_has_the_blocks_that_are_run_here() -> None:
    assert {kind for kind, _ in BLOCKS} == {"text", "bash", "python"}
    assert "make demo\n" in blocks("bash")
    assert "make test\n" in blocks("bash")  # this run is it; .ci/run calls it


def test_the_demo_drives(demo: str) -> None:
    drive: dict[str, Any] = json.loads((DEMO / "drive.json").read_text())
    assert len(drive["commands"]) == 10
    assert all(command["faithful"] for command in drive["commands"])
    correct = sum(command["correct"] for command in drive["commands"])
    assert correct >= 8
    assert f"commands driven correctly: {correct} of 10" in demo
    for picture in ("drive.png", "loss.png"):
        assert (DEMO / picture).read_bytes().startswith(b"\x89PNG")


def test_the_demos_table_is_what_was_measured(demo: str) -> None:
    rows = dict(re.findall(r"│ (teacher float32|student float32|student int4|same size from scratch)\s*│(.*)│", demo))
    measured = {
        name: json.loads(json.loads((DEMO / "stages" / f"measure-{name}").read_text())["output"])
        for name in ("teacher", "student", "student-int4")
    }
    assert measured["teacher"]["exact_match"] >= 0.995
    assert measured["student"]["exact_match"] >= 0.9
    assert measured["student"]["parameters"] <= measured["teacher"]["parameters"] / 4
    assert measured["student-int4"]["bytes"] < measured["student"]["bytes"]
    for title, name in (
        ("teacher float32", "teacher"),
        ("student float32", "student"),
        ("student int4", "student-int4"),
    ):
        assert f"{measured[name]['exact_match']:.2%}" in rows[title]
        assert f"{measured[name]['parameters']:,}" in rows[title]
    scratch = json.loads((DEMO / "runs" / "scratch" / "report.json").read_text())
    student = json.loads((DEMO / "runs" / "student" / "report.json").read_text())
    assert scratch["parameters"] == student["parameters"]
    assert scratch["steps"] == student["steps"]
    assert f"{scratch['exact_match']:.2%}" in rows["same size from scratch"]


@pytest.mark.parametrize("block", [text for text in blocks("bash") if not text.startswith("make ")])
def test_shell_blocks_run(demo: str, block: str) -> None:
    output = run(["bash", "-euc", block])
    assert "I_TURN_LEFT" in output


@pytest.mark.parametrize("block", blocks("python"))
def test_python_blocks_run_where_there_is_no_torch(demo: str, block: str, tmp_path: Path) -> None:
    script = tmp_path / "block.py"
    script.write_text(block, encoding="utf-8")
    assert run([str(ROBOT / "python"), str(script)]) == "I_RUN I_RUN I_TURN_LEFT I_LOOK"


def test_the_robots_environment_has_no_torch() -> None:
    code = "import importlib.util as u; print([n for n in ('torch', 'onnx', 'rclpy') if u.find_spec(n)])"
    assert run([str(ROBOT / "python"), "-c", code]).strip() == "[]"
