"""pip, uv and auditwheel as programs: what they say when they fail becomes an error that says what to do."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from edge_sdk.errors import ConfigError, DeployError, explain
from edge_sdk.offline.target import Target

TIMEOUT_S = 3600
"""For one command: a slow line, or a compiler on a slow machine."""

UNREACHABLE = re.compile(r"error sending request|Failed to fetch|dns error|NewConnectionError|ConnectTimeout", re.I)
DISK_FULL = re.compile(r"No space left on device|os error 28|Errno 28|Disk quota exceeded", re.I)

ELSEWHERE = {
    "onnxruntime-gpu": "PyPI has none of it for Arm: take the extra cpu or jetson, or give a wheel of NVIDIA's "
    "(https://pypi.jetson-ai-lab.io) with --find-links.",
    "tensorrt-rtx": "It is for workstations. On a Jetson take the extra jetson: TensorRT is JetPack's.",
    "tensorrt": "It comes with JetPack: take the extra jetson, and give install.sh --system-site-packages.",
    "ros-": "Robots have their own ROS: source it, and give install.sh --system-site-packages.",
}
"""What to do where a package whose name begins so has no wheel."""


def require_packages() -> None:
    """Raises ConfigError where the programs are not installed."""
    missing = [name for name in ("auditwheel", "pip", "uv") if importlib.util.find_spec(name) is None]
    if missing:
        todo = "pip install 'edge-sdk[pack]'"
        found = f"no {' and no '.join(missing)}"
        raise ConfigError(explain("Packing wheels", expected="its packages", found=found, todo=todo))


def run_module(*command: object, target: Target, environment: Mapping[str, str] | None = None) -> str:
    """What ``python -m COMMAND`` prints. Raises DeployError where it fails."""
    done = subprocess.run(
        [sys.executable, "-m", *map(str, command)],
        env={**os.environ, **(environment or {})},
        capture_output=True,
        text=True,
        check=False,
        timeout=TIMEOUT_S,
    )
    if done.returncode:
        raise _failure(str(command[0]), done.stderr.strip() or done.stdout.strip(), target)
    return done.stdout


def find_checkout() -> Path | None:
    """The sources that this very package is run from, if it is."""
    folder = Path(__file__).resolve().parents[2]
    return folder if (folder / "plugins" / "CMakeLists.txt").is_file() else None


def _failure(program: str, said: str, target: Target) -> DeployError:
    """What a program said, in the form of the house's errors."""
    if DISK_FULL.search(said):
        todo = "Make room, or choose another folder with --out; nothing was written."
        return DeployError(explain("The disk", expected="room for the wheels", found="none left", todo=todo))
    if UNREACHABLE.search(said):
        todo = "Packing needs internet, or a mirror by --index-url; only the board needs none."
        return DeployError(explain("The package index", expected="an answer", found=said, todo=todo))
    if "No solution found" in said or "No matching distribution" in said:
        todo = next((todo for name, todo in ELSEWHERE.items() if re.search(rf"\b{name}", said)), "")
        todo = todo or "Leave out what needs it, or give a wheel of it with --find-links."
        return DeployError(explain("The packages", expected=f"wheels for {target}", found=said, todo=todo))
    last = "\n".join(said.splitlines()[-20:])
    return DeployError(explain(program, expected="success", found=last, todo="Mend what it says."))
