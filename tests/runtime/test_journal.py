"""What programs say on stderr: with priorities where systemd's journal reads it, and as it is elsewhere."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

PROGRAM = """
import logging
from edge_sdk.journal import configure_logging, say_error
configure_logging()
log = logging.getLogger("edge_sdk.test")
log.debug("unseen")
log.info("ready")
log.warning("two\\nlines")
try:
    raise ValueError("wrong")
except ValueError:
    log.exception("failed")
say_error(OSError("the end"))
"""


def said(path: Path, **environment: str) -> list[str]:
    """Lines that the program writes to a file that is its stderr."""
    with path.open("w") as file:
        subprocess.run([sys.executable, "-c", PROGRAM], stderr=file, env=os.environ | environment, check=True)
    return path.read_text().splitlines()


def test_every_line_has_its_priority_for_the_journal(tmp_path: Path) -> None:
    (tmp_path / "log").touch()
    file = (tmp_path / "log").stat()
    lines = said(tmp_path / "log", JOURNAL_STREAM=f"{file.st_dev}:{file.st_ino}")
    assert lines[:4] == ["<6>edge_sdk.test: ready", "<4>edge_sdk.test: two", "<4>lines", "<3>edge_sdk.test: failed"]
    assert {line[:3] for line in lines[3:]} == {"<3>"}
    assert lines[-2:] == ["<3>ValueError: wrong", "<3>error: the end"]


def test_others_read_plain_lines(tmp_path: Path) -> None:
    """Also where a service's stderr goes elsewhere than the stream that systemd speaks of."""
    for environment in ({}, {"JOURNAL_STREAM": "1:2"}):
        lines = said(tmp_path / "log", **environment)
        assert lines[:3] == ["edge_sdk.test: ready", "edge_sdk.test: two", "lines"]
        assert lines[-1] == "error: the end"
