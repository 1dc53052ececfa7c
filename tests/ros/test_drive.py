"""The sample's drive in the ROS environment and its picture in this one."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest
from matplotlib import image

from draw import draw
from processes import Ros
from scan import interpret, write_pairs

COMMANDS = ("walk left twice", "run right twice and jump", "jump", "walk around left thrice")
"""Two that can be chosen, one that goes nowhere and one that takes too long."""
NEAR_M = 0.1


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    """A small file of held-out commands."""
    write_pairs(tmp_path / "pairs.jsonl", [(command, " ".join(interpret(command))) for command in COMMANDS])
    return tmp_path / "pairs.jsonl"


def drive(
    ros: Ros, bundle: Path, pairs: Path, out: Path, count: int = 2, before: str = "pass"
) -> subprocess.CompletedProcess[str]:
    """Runs drive.py to its end; ``before``: Python code that changes its module first."""
    options = {"--bundle": bundle, "--pairs": pairs, "--out": out, "--count": count, "--domain-id": ros.domain_id}
    code = f"import sys, drive\n{before}\nsys.exit(drive.main())"
    return ros.run("-c", code, *(item for option in options.items() for item in option))


def test_commands_are_driven_as_answered_and_drawn(ros: Ros, scan_bundle: Path, pairs: Path, tmp_path: Path) -> None:
    result = drive(ros, scan_bundle, pairs, tmp_path / "drive.json")
    assert result.returncode == 0, result.stdout + result.stderr
    record = json.loads((tmp_path / "drive.json").read_text(encoding="utf-8"))
    assert record["exit_code"] == 0
    assert {command["prompt"] for command in record["commands"]} == set(COMMANDS[:2])
    for command in record["commands"]:
        assert command["faithful"]
        assert command["correct"] == (command["answer"] == command["expected"])
        assert (command["largest_deviation_m"] < NEAR_M) or not command["correct"]
        assert 0 < command["plan_ms"] < 1e3 * command["motion_s"]
        assert command["errors"] == []
        gestures = [word for word in command["answer"].split() if word == "I_JUMP"]
        assert [marker["action"] for marker in command["driven"]["markers"]] == gestures
        assert len(command["step_ends"]) == 1 + len(command["answer"].split()) + 1
    draw(tmp_path / "drive.json", tmp_path / "drive.png")
    height, width, _ = image.imread(tmp_path / "drive.png").shape
    assert width > 2 * height > 1000


MIRRORED = "true = drive.interpret; drive.interpret = lambda command: true(command.replace('right', 'left'))"
"""What the commands mean, so that the model is wrong about one of them."""
UNREADABLE = """
say = drive.InstructedRover.instruct
drive.InstructedRover.instruct = lambda rover, text: say(rover, "make me a coffee")
"""
"""What no plan is made of: refused, and nothing moves."""
SLIPPING = """
class Slipping(drive.InstructedRover):
    def send_odometry(self, stamp_ns):
        pose = self.pose
        self.pose = drive.Pose(1.2 * pose.x_m, 1.2 * pose.y_m, pose.heading_rad)
        super().send_odometry(stamp_ns)
        self.pose = pose
drive.InstructedRover = Slipping
"""
"""Wheels that turn on the spot now and then: the odometry says more than there is."""


@pytest.mark.parametrize(
    ("before", "faithful"),
    [(MIRRORED, True), (UNREADABLE, True), (SLIPPING, False)],
    ids=["answer", "refusal", "drive"],
)
def test_a_wrong_answer_is_told_from_a_wrong_drive(
    ros: Ros, scan_bundle: Path, pairs: Path, tmp_path: Path, before: str, faithful: bool
) -> None:
    write_pairs(pairs, [("run right twice", "")])
    result = drive(ros, scan_bundle, pairs, tmp_path / "drive.json", count=1, before=before)
    assert result.returncode == (0 if faithful else 1), result.stdout + result.stderr
    assert "0 of 1 correct; the nodes ended with code 0" in result.stdout
    (command,) = json.loads((tmp_path / "drive.json").read_text(encoding="utf-8"))["commands"]
    assert (command["answer"] != command["expected"]) == faithful
    assert (command["correct"], command["faithful"]) == (False, faithful)
    assert command["largest_deviation_m"] > NEAR_M
    assert (command["plan_ms"] is None) == (command["answer"] == "") == bool(command["errors"])


def test_drive_says_why_it_cannot(ros: Ros, pairs: Path, tmp_path: Path) -> None:
    result = drive(ros, tmp_path / "nowhere", pairs, tmp_path / "drive.json")
    assert result.returncode == 1
    assert "nowhere: expected a bundle" in result.stderr
    assert "drive: The answer of the node instruct to 'configure': expected yes, found no" in result.stderr
    result = drive(ros, tmp_path / "nowhere", pairs, tmp_path / "drive.json", count=3)
    assert "expected 3 that last up to 5.5 s and are no straight line, found 2" in result.stderr
    assert not (tmp_path / "drive.json").exists()
