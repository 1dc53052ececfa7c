"""What ``pip install .`` would put on a machine."""

from __future__ import annotations

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

from places import ROOT


def test_the_wheel_holds_the_three_rooms_and_both_commands(tmp_path: Path) -> None:
    ignored = shutil.ignore_patterns(".venvs", "build", ".git", "*.egg-info", "__pycache__", ".*_cache")
    source = shutil.copytree(ROOT, tmp_path / "source", ignore=ignored)
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(tmp_path), str(source)]
    subprocess.run(command, check=True, timeout=300)
    (wheel,) = tmp_path.glob("edge_sdk-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        (entry_points,) = (name for name in names if name.endswith("entry_points.txt"))
        commands = archive.read(entry_points).decode()
        (metadata,) = (name for name in names if name.endswith("METADATA"))
        extras = archive.read(metadata).decode()
    modules = [
        path.relative_to(folder).as_posix()
        for folder in (ROOT, ROOT / "plugins", ROOT / "export")
        for room in ("edge_sdk", "edge_plugins", "edge_export")
        for path in (folder / room).rglob("*.py")
    ]
    assert len(modules) > 30
    assert set(modules) <= names
    assert "edge-sdk = edge_sdk.cli:main" in commands
    assert "edge-export = edge_export.cli:main" in commands
    assert not any(name.startswith(("tests", "samples", "ros_bridge")) for name in names)
    for extra in ("cpu", "gpu", "jetson", "export", "serial", "vision", "server", "control"):
        assert f"Provides-Extra: {extra}" in extras
