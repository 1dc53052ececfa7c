"""Packs as this machine makes them, and places without internet to install them in."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from edge_sdk.offline.own_wheel import LIBRARY
from places import ROOT

WITHOUT_NETWORK = ("unshare", "--user", "--map-root-user", "--net")


def pack_wheels(*arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
    """What ``edge-sdk pack-wheels`` says."""
    command = [sys.executable, "-m", "edge_sdk.cli", "pack-wheels", "--source", ROOT, *arguments]
    return subprocess.run(
        list(map(str, command)), env=os.environ | environment, capture_output=True, text=True, check=False, timeout=1800
    )


def with_kernels(wheel: Path, library: Path, folder: Path) -> Path:
    """A copy of a wheel without kernels, with them; what reads wheels goes by their list of files."""
    with zipfile.ZipFile(wheel) as old, zipfile.ZipFile(folder / wheel.name, "w") as new:
        for entry in old.infolist():
            content = old.read(entry)
            if entry.filename.endswith("/RECORD"):
                content += f"{LIBRARY},,\n".encode()
            new.writestr(entry, content)
        new.write(library, LIBRARY)
    return folder / wheel.name


def install(pack: Path, *arguments: object, timeout_s: float = 300) -> subprocess.CompletedProcess[str]:
    """What a pack's install.sh says where there is no network at all, not even a loopback."""
    if shutil.which("unshare") is None or subprocess.run([*WITHOUT_NETWORK, "true"], check=False).returncode:
        pytest.skip("needs unshare for a place without network")
    command = [*WITHOUT_NETWORK, "sh", pack / "install.sh", *arguments]
    return subprocess.run(
        list(map(str, command)),
        capture_output=True,
        text=True,
        check=False,
        timeout=timeout_s,
        stdin=subprocess.DEVNULL,
    )
