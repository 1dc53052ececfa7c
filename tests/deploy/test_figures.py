"""How what runs on a board is doing, from the loops and servers that say it to the fleet's table."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest
from rich.console import Console

from edge_sdk.deploy.agent import status_of
from edge_sdk.deploy.fleet import table
from edge_sdk.deploy.store import Store
from edge_sdk.errors import ConfigError
from edge_sdk.figures import STALE_S, FigureFile, Figures, LoopFigures, loop_figures, read_figures

LOOP = LoopFigures(ticks=500, missed=3, late=9, inferences=50, over_budget=1)


def test_figures_are_there_while_the_process_runs_and_gone_afterwards(tmp_path: Path) -> None:
    counted = [LOOP]
    with loop_figures(tmp_path / "figures", "arm", lambda: counted[0]) as written:
        assert read_figures(tmp_path / "figures") == [Figures(name="arm", loop=LOOP)]
        counted[0] = LoopFigures(ticks=600, missed=3, late=9, inferences=60, over_budget=1)
        before = written.path.stat().st_mtime_ns
        while written.path.stat().st_mtime_ns == before:
            time.sleep(0.05)
        assert read_figures(tmp_path / "figures") == [Figures(name="arm", loop=counted[0])]
    assert list((tmp_path / "figures").iterdir()) == []


def test_what_a_process_left_behind_is_passed_over(tmp_path: Path) -> None:
    with FigureFile(tmp_path, "service", lambda: Figures(name="service", tokens_per_second=21.4)) as written:
        content = written.path.read_bytes()
    (tmp_path / "killed-1.json").write_bytes(content)
    os.utime(tmp_path / "killed-1.json", (time.time() - STALE_S - 1,) * 2)
    (tmp_path / "cut-2.json").write_bytes(content[:9])
    assert read_figures(tmp_path) == []
    assert read_figures(tmp_path / "none") == []


def test_a_folder_that_cannot_be_written_to_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="expected a folder for figures"):
        loop_figures(tmp_path / "file", "arm", lambda: LOOP)


def test_the_fleets_table_has_missed_ticks_and_the_rate_as_served(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    store.configure(f'{{"figures": "{tmp_path / "elsewhere"}"}}'.encode(), None)
    assert store.figures == tmp_path / "elsewhere"
    with (
        loop_figures(store.figures, "arm", lambda: LOOP),
        FigureFile(store.figures, "edge", lambda: Figures(name="edge", tokens_per_second=21.4)),
    ):
        status = status_of(store)
    console = Console(width=200, record=True, file=open(os.devnull, "w"))  # noqa: SIM115
    console.print(table({"left": status}))
    shown = console.export_text()
    assert "arm: 3 of 500" in shown
    assert "21.4" in shown
