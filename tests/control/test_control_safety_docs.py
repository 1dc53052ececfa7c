"""The Python examples of docs/control_safety.md run, in their order."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from places import ROOT

PAGE = (ROOT / "docs" / "control_safety.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```python\n(.*?)^```", PAGE, flags=re.MULTILINE | re.DOTALL)


def test_the_examples_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {"__name__": "example"}
    assert len(BLOCKS) == 4
    for block in BLOCKS:
        exec(block, names)
    printed = capsys.readouterr().out.splitlines()
    assert [*printed[:2], printed[3]] == ["finished", "cpus True runs on [0]", "True True"]
    assert 0 < int(printed[2]) <= 50  # a busy machine skips ticks
    assert (tmp_path / "stopped").read_text() == ""
