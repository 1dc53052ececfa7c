"""Chains of commands: checked before anything runs, and only what changed runs again."""

from __future__ import annotations

from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from edge_export import chain, cli
from edge_export.chain import Step, StepError, describe_chain, read_chain, run_chain
from edge_export.checkpoint import save_model
from edge_sdk.errors import ConfigError
from tiny import make

CHAIN = """
variables: {out: pictures}
stages:
  - one: plot a.csv --out {out}/one.png
    two: plot a.csv b.csv --out {out}/two.png
  - three: plot b.csv --out {out}/three.png
"""
LOG = "step,loss,seconds\n1,2.0,0.1\n2,1.0,0.2\n"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with two logs and a chain that draws them."""
    monkeypatch.chdir(tmp_path)
    for name in ("a", "b"):
        (tmp_path / f"{name}.csv").write_text(LOG)
    (tmp_path / "pictures").mkdir()
    (tmp_path / "chain.yaml").write_text(CHAIN)
    return tmp_path


def read(text: str | None = None) -> list[list[Step]]:
    if text is not None:
        Path("chain.yaml").write_text(text)
    return read_chain(Path("chain.yaml"), typer.main.get_group(cli.app))


def times() -> dict[str, int]:
    return {path.stem: path.stat().st_mtime_ns for path in Path("pictures").iterdir()}


def changed(before: dict[str, int]) -> set[str]:
    return {name for name, time in times().items() if before.get(name) != time}


def test_steps_know_what_they_read_and_make(folder: Path) -> None:
    (one, two), (three,) = read()
    assert (two.reads, two.makes) == ((Path("a.csv"), Path("b.csv")), Path("pictures/two.png"))
    assert [one.plans, three.plans] == [False, False]


def test_only_what_changed_runs_again(folder: Path) -> None:
    run_chain(read())
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in Path("pictures").iterdir())
    before = times()
    run_chain(read())
    assert changed(before) == set()
    (folder / "b.csv").write_text(LOG.replace("1.0", "0.5"))
    run_chain(read())
    assert changed(before) == {"two", "three"}
    before = times()
    (folder / "pictures" / "one.png").unlink()
    run_chain(read())
    assert changed(before) == {"one"}


def test_new_code_makes_everything_stale(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (one, _), _ = read()
    before = one.key()
    monkeypatch.setattr(chain, "_sources", lambda: "another")
    assert one.key() != before


def test_a_failed_step_ends_the_chain_after_those_beside_it(folder: Path) -> None:
    (folder / "a.csv").unlink()
    stages = read(CHAIN.replace("two: plot a.csv b.csv", "two: plot b.csv"))
    with pytest.raises(StepError, match="one: expected success"):
        run_chain(stages)
    assert set(times()) == {"two"}
    (folder / "a.csv").write_text(LOG)
    before = times()
    run_chain(stages)
    assert changed(before) == {"one", "three"}


def test_a_dry_run_runs_nothing_that_does_not_plan(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = set(folder.rglob("*"))
    describe_chain(read())
    assert set(folder.rglob("*")) == before
    assert "plot b.csv --out pictures/three.png" in capsys.readouterr().err


def test_a_dry_run_says_what_each_step_takes_as_far_as_its_files_exist(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save_model(make("no-experts"), folder / "checkpoint")
    text = """
stages:
  - copy: import checkpoint --out copy
  - graph: onnx copy --out graph
"""
    describe_chain(read(text))
    shown = capsys.readouterr().err
    assert shown.count("GB to copy;") == 1
    assert "no estimate yet, without copy" in shown
    (folder / "checkpoint" / "config.json").write_text("{}")
    with pytest.raises(StepError, match="copy: expected success"):
        describe_chain(read(text))
    assert "model_type" in capsys.readouterr().err
    assert not (folder / "copy").exists()


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("plot a.csv --out", "paint a.csv --out", "The step one: .*found 'paint'"),
        ("plot b.csv --out", "plot b.csv --outt", "The step three: .*--outt"),
        ("plot b.csv --out {out}/three.png", "plot b.csv", "The step three: .*--out"),
        ("{out}/one.png", "{nowhere}/one.png", "The step one: .*found 'nowhere'"),
        ("three: plot b.csv --out {out}/three.png", 'three: ""', "The step three"),
        ("plot b.csv --out", "plot 'b.csv --out", "The step three: .*No closing quotation"),
        ("three:", "one:", "a name of its own"),
        ("stages:", "steps:", "stages of commands"),
        ("- three: plot b.csv", "- plot b.csv", "stages of commands"),
    ],
)
def test_a_wrong_chain_is_refused_before_anything_runs(folder: Path, old: str, new: str, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        read(CHAIN.replace(old, new))


def test_variables_can_be_set(folder: Path) -> None:
    group = typer.main.get_group(cli.app)
    (one, _), _ = read_chain(Path("chain.yaml"), group, {"out": "elsewhere"})
    assert one.makes == Path("elsewhere/one.png")
    with pytest.raises(ConfigError, match=r"expected out, found \['other'\]"):
        read_chain(Path("chain.yaml"), group, {"other": "elsewhere"})
    result = CliRunner().invoke(cli.app, ["run", "chain.yaml", "--set", "out=elsewhere", "--dry-run"])
    assert result.exit_code == 0, result.output
