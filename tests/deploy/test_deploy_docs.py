"""The commands and files that docs/deploy.md shows are ones that the command line and the boards take."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import msgspec
import pytest

from edge_sdk.cli import parse
from edge_sdk.deploy.boards import Board, read_group
from edge_sdk.deploy.record import BoardSettings
from places import ROOT

PAGE = (ROOT / "docs" / "deploy.md").read_text(encoding="utf-8")


def block(language: str) -> str:
    (found,) = re.findall(rf"^```{language}\n(.*?)^```", PAGE, flags=re.MULTILINE | re.DOTALL)
    return found


def test_the_commands_are_ones_that_there_are() -> None:
    lines = re.findall(r"^    edge-sdk (.*)$", PAGE, flags=re.MULTILINE)
    assert [line.split()[0] for line in lines] == ["keys", "sign", "deploy", "slots"]
    for line in lines:
        assert callable(parse(shlex.split(line)).command)


def test_boards_may_stand_behind_options(capsys: pytest.CaptureFixture[str]) -> None:
    options = parse(["deploy", "bundle", "a@one", "--install", "b@two", "--store", "/data", "c@three"])
    assert (options.bundle, options.store) == (Path("bundle"), "/data")
    assert options.hosts == ["a@one", "b@two", "c@three"]
    for wrong in (["deploy", "bundle", "--instead", "a@one"], ["run", "bundle", "--prompt", "walk", "twice"]):
        with pytest.raises(SystemExit):
            parse(wrong)
        assert "unrecognized arguments" in capsys.readouterr().err


def test_the_settings_are_read() -> None:
    settings = msgspec.json.decode(block("json"), type=BoardSettings)
    assert settings == BoardSettings(
        require_signature=True,
        require_acceptance=True,
        minimum_version="1.2",
        step_budget_ms=50,
        prepare=("edge-export", "engine"),
    )


def test_the_group_is_read(tmp_path: Path) -> None:
    (tmp_path / "arms.yaml").write_text(block("yaml"))
    boards = read_group(tmp_path / "arms.yaml")
    assert boards["cart"] == Board(host="cart")
    assert boards["right-arm"].address() == ("jetson", "10.0.0.12", 2222)
