"""Boards as accounts of this machine: each with its own home, and its own SSH server that runs as it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import cache
from pathlib import Path

from links import Server, sshd_program
from places import ROOT

PATHS = ":".join([*map(str, (ROOT, ROOT / "plugins", ROOT / "export")), sysconfig.get_paths()["purelib"]])
"""Where another interpreter of the same version finds what this one has."""
SAME_VERSION = f"/usr/bin/python{sys.version_info.major}.{sys.version_info.minor}"
"""The system's, where this environment's lies in a home that others may not enter."""


@cache
def python_for_all() -> str:
    """An interpreter that other accounts can run the agent with; empty where there is none."""
    for program in (sys.executable, SAME_VERSION):
        command = [program, "-c", "import edge_sdk.deploy.agent"]
        with suppress(OSError):
            tried = subprocess.run(
                command, user="nobody", env={"PYTHONPATH": PATHS}, cwd="/", stderr=subprocess.DEVNULL, check=False
            )
            if tried.returncode == 0:
                return program
    return ""


def why_not() -> str:
    """Why there can be no accounts; empty where there can."""
    if os.geteuid() != 0:
        return "only root makes accounts"
    if sshd_program() is None or shutil.which("useradd") is None or shutil.which("pkill") is None:
        return "needs sshd, useradd and pkill"
    return "" if python_for_all() else "other accounts can run no Python that has this environment's packages"


@contextmanager
def account(name: str) -> Iterator[tuple[Server, Path]]:
    """A new account's server and home; both are gone afterwards, with all of its processes.

    Programs are looked for in the home's ``bin`` first.
    """
    home = Path(tempfile.mkdtemp(prefix=f"{name}."))
    with ExitStack() as ending:
        ending.callback(shutil.rmtree, home)
        # `*` is no password, which sshd, unlike a locked account's `!`, lets in by a key
        create = ["useradd", "--system", "--password", "*", "--shell", "/bin/sh", "--home-dir", str(home), name]
        subprocess.run(create, check=True)
        # by force: what was killed may not be cleared away yet
        ending.callback(subprocess.run, ["userdel", "--force", name], check=True, capture_output=True)
        ending.callback(subprocess.run, ["pkill", "-KILL", "--uid", name], check=False)
        shutil.chown(home, name)
        home.chmod(0o700)
        server = Server(home / "ssh", name, PYTHONPATH=PATHS, PATH=f"{home / 'bin'}:{os.environ['PATH']}")
        ending.callback(server.close)
        yield server, home
