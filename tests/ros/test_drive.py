"""The sample's drive in the ROS environment and its picture in this one."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest
from matplotlib import image

from draw import draw
from places import ROVER
from processes import Ros
from scan import interpret, write_pairs

COMMANDS = ("walk left twice", "run right and walk left", "jump", "walk around left thrice")
"""Two that can be chosen, one that goes nowhere and one that takes too long."""


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    """A small file of held-out commands."""
    write_pairs(tmp_path / "pairs.jsonl", [(command, " ".join(interpret(command))) for command in COMMANDS])
    return tmp_path / "pairs.jsonl"


def drive(ros: Ros, bundle: Path, pairs: Path, out: Path, count: int = 2) -> subprocess.CompletedProcess[str]:
    """Runs drive.py to its end."""
    options = {"--bundle": bundle, "--pairs": pairs, "--out": out, "--count": count, "--domain-id": ros.domain_id}
    return ros.run(ROVER / "drive.py", *(item for option in options.items() for item in option))


def test_commands_are_driven_as_answered_and_drawn(ros: Ros, scan_bundle: Path, pairs: Path, tmp_path: Path) -> None:
    result = drive(ros, scan_bundle, pairs, tmp_path / "drive.json")
    assert result.returncode == 0, result.stdout + result.stderr
    record = json.loads((tmp_path / "drive.json").read_text(encoding="utf-8"))
    assert record["node_exit_code"] == 0
    assert {command["prompt"] for command in record["commands"]} == set(COMMANDS[:2])
    for command in record["commands"]:
        assert command["faithful"]
        assert command["correct"] == (command["answer"] == command["expected"])
        assert (command["largest_deviation_m"] < 1e-6) or not command["correct"]
        assert 0 < command["first_token_ms"] <= command["text_ms"]
    draw(tmp_path / "drive.json", tmp_path / "drive.png")
    height, width, _ = image.imread(tmp_path / "drive.png").shape
    assert width > 2 * height > 1000


def test_drive_says_why_it_cannot(ros: Ros, pairs: Path, tmp_path: Path) -> None:
    result = drive(ros, tmp_path / "nowhere", pairs, tmp_path / "drive.json")
    assert result.returncode == 1
    assert "nowhere: expected a bundle" in result.stderr
    assert "drive: The node's answer to 'configure': expected yes, found no" in result.stderr
    result = drive(ros, tmp_path / "nowhere", pairs, tmp_path / "drive.json", count=3)
    assert "expected 3 that last up to 4 s and are no straight line, found 2" in result.stderr
    assert not (tmp_path / "drive.json").exists()
