"""Where things lie in the checkout."""

from __future__ import annotations

from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
ROVER = ROOT / "samples" / "scan_rover"
TEACHER = ROVER / "teacher"
PLANNER = ROVER / "planner"
POLICIES = ROOT / "samples" / "policies"
WORKSTATION = ROOT / ".venvs" / "workstation" / "bin"
ROBOT = ROOT / ".venvs" / "robot" / "bin"
