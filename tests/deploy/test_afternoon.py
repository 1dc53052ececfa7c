"""docs/afternoon.md from its first command to its last, as far as that needs no Jetson."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import scan
from accounts import account, python_for_all, why_not
from links import Server, free_port
from places import ROOT, TEACHER

PAGE = (ROOT / "docs" / "afternoon.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```", PAGE, flags=re.MULTILINE | re.DOTALL)

SYSTEMCTL = """#!/bin/sh
# No systemd runs here: this starts what the unit starts, in its place.
case "$*" in *restart*)
    line=$(sed -n 's/^ExecStart=//p' "$HOME/.config/systemd/user/edge-sdk.service")
    eval "setsid $line > $HOME/service.log 2>&1 &"
esac
"""


def block(kind: str, beginning: str) -> str:
    (found,) = [text for language, text in BLOCKS if language == kind and text.startswith(beginning)]
    return found


@pytest.fixture(scope="module")
def board() -> Iterator[Server]:
    """An account of its own."""
    if reason := why_not():
        pytest.skip(reason)
    with account(f"edge-{os.getpid()}-robot") as (server, home):
        (home / "bin").mkdir()
        for name in ("systemctl", "loginctl"):
            (home / "bin" / name).write_text(SYSTEMCTL)
            (home / "bin" / name).chmod(0o755)
        (home / "bin").chmod(0o755)
        yield server


@pytest.fixture(scope="module")
def folder(board: Server, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the reader has before the first command, and the files that the page has him write."""
    made = tmp_path_factory.mktemp("afternoon")
    shutil.copytree(TEACHER, made / "model")
    scan.write_pairs(made / "data.jsonl", scan.simple_split()[0][:64])
    (made / "recipe.yaml").write_text(block("yaml", "schedule:"))
    (made / "board.json").write_text(block("json", "{"))
    group = block("yaml", "boards").replace("edge/bin/python", python_for_all())
    (made / "robot.yaml").write_text(group)
    ssh = made / "home" / ".ssh"
    ssh.mkdir(parents=True)
    shutil.copy(board.folder / "user", ssh / "key")
    key = " ".join((board.folder / "host.pub").read_text().split()[:2])
    (ssh / "known_hosts").write_text(f"[127.0.0.1]:{board.port} {key}\n")
    (ssh / "config").write_text(
        f"Host robot\n HostName 127.0.0.1\n Port {board.port}\n User {board.user}\n IdentityFile {ssh / 'key'}\n"
        f" UserKnownHostsFile {ssh / 'known_hosts'}\n"
    )
    (made / "bin").mkdir()
    (made / "bin" / "ssh").write_text(f'#!/bin/sh\nexec /usr/bin/ssh -F {ssh / "config"} "$@"\n')
    (made / "bin" / "ssh").chmod(0o755)
    return made


def commands() -> Iterator[tuple[str, list[str]]]:
    """Each command of the page and the lines that it prints."""
    for kind, text in BLOCKS:
        for part in re.split(r"^\$ ", text, flags=re.MULTILINE)[1:] if kind == "console" else ():
            command, *lines = part.rstrip("\n").split("\n")
            yield command, lines


def shape(text: str) -> str:
    """What stays the same from run to run: numbers, hashes and widths of tables do not."""
    return re.sub(r"\s+", " ", re.sub(r"\d[\d.,]*(e[-+]?\d+)?", "0", re.sub(r"\b(?=\w*\d)[0-9a-f]{8,}\b", "0", text)))


def as_shown(found: list[str], shown: list[str]) -> bool:
    """Whether the page's lines are among those found, in their order; `...` stands for anything."""
    rest = iter(map(shape, found))
    patterns = [re.escape(shape(line)).replace(re.escape("..."), ".*") for line in shown]
    return all(any(re.fullmatch(f"{pattern}.*", line) for line in rest) for pattern in patterns if pattern != ".*")


def test_every_command_prints_what_the_page_says(folder: Path) -> None:
    port = str(free_port())
    programs = f"{folder / 'bin'}:{Path(sys.executable).parent}:{os.environ['PATH']}"
    environment = os.environ | {
        "HOME": str(folder / "home"),
        "PATH": programs,
        "COLUMNS": "200",
        "OMP_NUM_THREADS": "1",
    }
    for command, shown in commands():
        changed = command.replace(":8000", f":{port}").replace(
            "--install", f"--install --serve '--port {port} --threads 1'"
        )
        done = subprocess.run(
            ["bash", "-c", changed],
            cwd=folder,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=900,
            check=False,
        )
        found = [line for line in done.stdout.splitlines() if line.strip()]
        refused = any("refused" in line for line in shown)
        assert done.returncode == int(refused), f"{command}\n{done.stdout}"
        assert as_shown(found, shown), f"{command}\nprinted\n{done.stdout}"


def test_what_is_not_run_is_said_to_be_so() -> None:
    kinds = {kind for kind, _ in BLOCKS}
    assert kinds == {"console", "json", "yaml"}
    assert "have never run on a Jetson" in re.sub(r"\s+", " ", PAGE)
    assert len(list(commands())) >= 15


def test_the_comparison_sees_other_lines() -> None:
    assert as_shown(["robot: version 1.0, 3.1 ms"], ["robot: version 9.9, 0.5 ms"])
    assert as_shown(["a", "b", "key 0a1b2c3d"], ["...", "key 9f8e7d6c"])
    assert not as_shown(["robot: refused"], ["robot: version 1.0"])
    assert not as_shown(["one", "two"], ["two", "one"])
