"""The Python examples of docs/runtime.md run, in their order."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from places import ROOT

PAGE = (ROOT / "docs" / "runtime.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```python\n(.*?)^```", PAGE, flags=re.MULTILINE | re.DOTALL)


def test_the_examples_run(
    chat_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "bundle").symlink_to(chat_bundle)
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    examples = [block for block in BLOCKS if "openai" not in block]  # tests/runtime/test_server.py is that client
    assert len(examples) == len(BLOCKS) - 1 == 3
    for block in examples:
        exec(block, names)
    printed = capsys.readouterr().out.splitlines()
    assert printed[0].startswith("I_TURN_LEFT I_WALK I_TURN_LEFT I_WALK")
    assert printed[-1] == printed[-2] == "I_TURN_LEFT I_WALK I_TURN_LEFT"
