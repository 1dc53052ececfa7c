"""The commands that docs/offline.md shows are ones that the command line takes."""

from __future__ import annotations

import re
import shlex

from edge_sdk.cli import _parser
from edge_sdk.offline.pack import SCRIPT
from edge_sdk.offline.target import TARGETS
from places import ROOT

PAGE = (ROOT / "docs" / "offline.md").read_text(encoding="utf-8")


def test_the_command_is_one_that_there_is() -> None:
    (line,) = re.findall(r"^    edge-sdk (.*)$", PAGE, flags=re.MULTILINE)
    options = _parser().parse_args(shlex.split(line))
    assert callable(options.command)
    assert options.target in TARGETS


def test_its_options_are_described() -> None:
    shown = set(re.findall(r"--[a-z-]+", PAGE))
    assert {"--target", "--extras", "--with", "--out", "--find-links", "--index-url", "--wheel"} <= shown
    script = SCRIPT.read_text(encoding="utf-8")
    assert all(f"{option})" in script for option in ("--python", "--system-site-packages"))


def test_targets_are_described_as_they_are() -> None:
    for name, target in TARGETS.items():
        match = re.search(rf"`{name}` \((?:Python )?3\.(\d+), (\w+), (?:glibc )?2\.(\d+)\)", PAGE)
        assert match is not None
        assert (int(match[1]), match[2], int(match[3])) == (target.python, target.machine, target.glibc)
