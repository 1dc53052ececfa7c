"""Packs as this machine makes them, and places without internet to install them in."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from places import ROOT

WITHOUT_NETWORK = ("unshare", "--user", "--map-root-user", "--net")


def pack_wheels(*arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
    """What ``edge-sdk pack-wheels`` says."""
    command = [sys.executable, "-m", "edge_sdk.cli", "pack-wheels", "--source", ROOT, *arguments]
    return subprocess.run(
        list(map(str, command)), env=os.environ | environment, capture_output=True, text=True, check=False, timeout=1800
    )


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
