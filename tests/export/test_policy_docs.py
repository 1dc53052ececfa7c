"""The examples of docs/policies.md are what they say."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from edge_export.learning import described_model
from edge_export.recipes import TrainRecipe, read_recipe
from places import ROOT

PAGE = (ROOT / "docs" / "policies.md").read_text(encoding="utf-8")
BLOCKS = dict(re.findall(r"^```(python|yaml)\n(.*?)^```", PAGE, flags=re.MULTILINE | re.DOTALL))


def test_the_recipe_describes_a_policy_of_the_written_episodes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    exec(BLOCKS["python"], {})
    Path("policy.yaml").write_text(BLOCKS["yaml"])
    recipe = read_recipe(Path("policy.yaml"), TrainRecipe)
    config = described_model(recipe.model, Path("episodes"))
    assert config.policy.schema.chunk_length == 16
    assert [dim.name for dim in config.policy.schema.action.dims] == ["torque"]
    assert config.pattern == "M-M-"


def test_the_table_names_the_graphs_inputs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    exec(BLOCKS["python"], {})
    Path("policy.yaml").write_text(BLOCKS["yaml"])
    raw = read_recipe(Path("policy.yaml"), TrainRecipe).model
    raw |= {"vocab_size": 8, "policy": raw["policy"] | {"instruction": True}}
    inputs = described_model(raw, Path("episodes")).policy.inputs()
    section = PAGE[PAGE.index("| input |") : PAGE.index("Outputs:")]
    named = re.findall(r"^\| `([\w.<>]+)` \| (\w+)[^(]*\(([^)]*)\)", section, flags=re.MULTILINE)
    expected = [(spec.name.replace("state", "<name>"), spec.dtype, len(spec.shape)) for spec in inputs]
    found = [(name, dtype, shape.count(",") + 1) for name, dtype, shape in named if "..." not in name]
    assert found == expected
