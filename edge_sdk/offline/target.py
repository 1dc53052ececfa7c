"""What a board's wheels must fit: its Python, its processor and its C library."""

from __future__ import annotations

import platform
import re
import sys
from typing import Literal, get_args

import msgspec

from edge_sdk.errors import ConfigError, explain

Machine = Literal["aarch64", "x86_64"]

OLDEST_PYTHON = 10
"""Of Python 3, the oldest that Edge SDK runs on."""

GLIBC_LIMITS = (28, 40)
"""Of glibc 2, the oldest that is offered and the newest that uv knows a name of; newer ones run the wheels of 40."""


class Target(msgspec.Struct, frozen=True):
    """A kind of board."""

    python: int
    """Of CPython 3: 10 is Python 3.10."""
    machine: Machine
    glibc: int
    """Of glibc 2: 35 is glibc 2.35."""

    def __str__(self) -> str:
        return f"Python 3.{self.python} on {self.machine} with glibc 2.{self.glibc}"

    @property
    def uv_platform(self) -> str:
        """As ``uv --python-platform`` names it."""
        return f"{self.machine}-manylinux_2_{min(self.glibc, GLIBC_LIMITS[1])}"

    @property
    def wheel_platform(self) -> str:
        """The platform tag (PEP 600) of a wheel that needs all of this glibc."""
        return f"manylinux_2_{self.glibc}_{self.machine}"

    def pip_options(self) -> list[str]:
        """What makes ``pip download`` take wheels for the target: to pip no manylinux level includes older ones."""
        levels = [f"2_{minor}" for minor in range(self.glibc, 4, -1)]
        legacy = ["2014", "2010", "1"] if self.machine == "x86_64" else ["2014"]
        platforms = [*(f"manylinux_{level}" for level in levels), *(f"manylinux{name}" for name in legacy), "linux"]
        options = ["--implementation", "cp", "--python-version", f"3.{self.python}"]
        for abi in (f"cp3{self.python}", "abi3", "none"):
            options += ["--abi", abi]
        for name in platforms:
            options += ["--platform", f"{name}_{self.machine}"]
        return options


TARGETS = {"jetpack6": Target(10, "aarch64", 35), "jetpack7": Target(12, "aarch64", 39)}
"""By what ``edge-sdk pack-wheels --target`` calls them: Ubuntu 22.04 and 24.04."""


def target_named(name: str) -> Target:
    """A name of :data:`TARGETS`, ``this`` for this machine's own, or as ``3.11-aarch64-2.36``. Raises ConfigError."""
    if name in TARGETS:
        return TARGETS[name]
    if name == "this":
        name = f"3.{sys.version_info.minor}-{platform.machine()}-{platform.libc_ver()[1]}"
    match = re.fullmatch(rf"3\.(\d+)-({'|'.join(get_args(Machine))})-2\.(\d+)", name)
    if match is None:
        expected = f"{', '.join(TARGETS)}, this, or a Python, processor and glibc such as 3.11-aarch64-2.36"
        raise ConfigError(explain("The target", expected=expected, found=repr(name), todo="Choose one."))
    target = Target(int(match[1]), "aarch64" if match[2] == "aarch64" else "x86_64", int(match[3]))
    if target.python < OLDEST_PYTHON or target.glibc < GLIBC_LIMITS[0]:
        expected = f"Python 3.{OLDEST_PYTHON} or newer and glibc 2.{GLIBC_LIMITS[0]} or newer"
        raise ConfigError(explain("The target", expected=expected, found=target, todo="Update the board's system."))
    return target
