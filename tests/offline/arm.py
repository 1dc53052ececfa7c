"""An Arm board without a board: Debian's Python for arm64, run by qemu's user mode.

Nothing is installed into this machine's system and no privilege is needed. What starts Python is a script: the
``python`` of a virtual environment links to it, so that the environment's commands run as on a board.
"""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from builds import need, one_at_a_time
from places import ROOT

FOLDER = ROOT / "build" / "arm64"
DEBIAN = "bookworm"
KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
PACKAGES = ("python3.11", "libstdc++6", "libgomp1")

CPU = "cortex-a76"
"""The nearest to Orin's Cortex-A78AE that qemu 7.2 has; its kernels are those of ``dotprod``."""

CPUINFO = """processor\t: {index}
BogoMIPS\t: 62.50
Features\t: fp asimd evtstrm aes pmull sha1 sha2 crc32 atomics fphp asimdhp cpuid asimdrdm lrcpc dcpop asimddp
CPU implementer\t: 0x41
CPU architecture: 8
CPU variant\t: 0x0
CPU part\t: 0xd0b
CPU revision\t: 1

"""
"""ONNX Runtime reads the processor here, and ends by SIGSEGV where it finds that of an x86 machine."""

START = """#!/bin/sh
QEMU_CPU={cpu} exec qemu-aarch64-static -L {system} -0 "$0" {system}/usr/bin/python3.11 "$@"
"""


def arm_python() -> Path:
    """The program. Skips the test where it cannot be had; it is kept in build/."""
    need("qemu-aarch64-static", "apt-get", "dpkg-deb")
    if not KEYRING.exists():
        pytest.skip("needs Debian's packages for arm64, of which this system has no keys")
    python = FOLDER / "python3.11"
    with one_at_a_time(FOLDER):
        if not python.exists():
            system = FOLDER / "system"
            for package in _download():
                subprocess.run(["dpkg-deb", "-x", package, system], check=True)
            (system / "proc").mkdir(exist_ok=True)
            (system / "proc" / "cpuinfo").write_text("".join(CPUINFO.format(index=index) for index in range(2)))
            python.write_text(START.format(cpu=CPU, system=system))
            python.chmod(0o755)
    return python


def _download() -> list[Path]:
    """Packages and all that they need, by apt, which checks their signatures, in folders of its own."""
    apt = FOLDER / "apt"
    shutil.rmtree(apt, ignore_errors=True)
    for folder in ("lists/partial", "cache/archives/partial"):
        (apt / folder).mkdir(parents=True)
    (apt / "status").touch()
    (apt / "sources.list").write_text(f"deb [signed-by={KEYRING}] http://deb.debian.org/debian {DEBIAN} main\n")
    settings = {
        "APT::Architecture": "arm64",
        "APT::Architectures": "arm64",
        "APT::Sandbox::User": "",
        "Acquire::Languages": "none",
        "Dir::Cache": apt / "cache",
        "Dir::Etc::sourcelist": apt / "sources.list",
        "Dir::Etc::sourceparts": "-",
        "Dir::State": apt,
        "Dir::State::lists": apt / "lists",
        "Dir::State::status": apt / "status",
    }
    options = [part for name, value in settings.items() for part in ("-o", f"{name}={value}")]
    for command in (["update"], ["install", "-y", "--download-only", "--no-install-recommends", *PACKAGES]):
        done = subprocess.run(["apt-get", *options, *command], capture_output=True, text=True, check=False, timeout=900)
        if done.returncode:
            pytest.skip(f"Debian's packages for arm64 cannot be had: {done.stderr.strip().splitlines()[-1:]}")
    return sorted((apt / "cache" / "archives").glob("*.deb"))
