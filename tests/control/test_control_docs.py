"""The examples of docs/control.md are what they say."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from edge_sdk.control.policy import POLICY_FILE, PolicyConfig
from places import ROOT

PAGE = (ROOT / "docs" / "control.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```", PAGE, flags=re.MULTILINE | re.DOTALL)


def test_the_example_runs(capsys: pytest.CaptureFixture[str]) -> None:
    example = next(text for kind, text in BLOCKS if kind == "python")
    names: dict[str, object] = {}
    exec(example, names)
    printed = capsys.readouterr().out
    assert "200 ticks at 20 Hz: 200 on_time; 0 never begun" in printed
    assert "stages: 200 policy; 0 emergency stops" in printed
    assert "ended: finished" in printed


def test_the_policy_of_the_page_is_one(tmp_path: Path) -> None:
    (text,) = (text for kind, text in BLOCKS if kind == "json")
    (tmp_path / POLICY_FILE).write_text(text)
    config = PolicyConfig.read(tmp_path / POLICY_FILE)
    assert (config.chunk_length, config.action.dims[0].rest) == (16, None)
