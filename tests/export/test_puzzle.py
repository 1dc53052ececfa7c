"""Puzzle checkpoints, whose layers differ, against transformers' NemotronH with the same layers put into it."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel
from transformers.models.nemotron_h.modeling_nemotron_h import NemotronHBlock

from edge_export.checkpoint import load_model, read_config, save_model
from edge_export.families import FAMILIES
from edge_sdk.errors import CheckpointError
from edge_sdk.model import MoeSpec
from test_families import LENGTH, NO_TIME, TOLERANCE, logits_of_graph, randomise
from tiny import BASE, relative_error

EXPERTS = {1: {"moe_intermediate_size": 48, "num_experts_per_tok": 3}, 5: {"moe_intermediate_size": 24}}
"""By layer, where it is not what the config says of all."""
BLOCKS = [{"block_type": kind} | EXPERTS.get(layer, {}) for layer, kind in enumerate(BASE["layers_block_type"])]
CONFIG = BASE | {"model_type": "nemotron_h_puzzle", "block_configs": BLOCKS}


def make_theirs(folder: Path) -> PreTrainedModel:
    """A model of transformers' own blocks, saved as a Puzzle checkpoint."""
    config = AutoConfig.for_model(**BASE | {"time_step_min": NO_TIME})
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    for layer, sizes in EXPERTS.items():
        own = copy.deepcopy(config)
        own.update(sizes)
        model.model.layers[layer] = NemotronHBlock(own, layer).eval()
    randomise(model)
    model.save_pretrained(folder)
    (folder / "config.json").write_text(json.dumps(CONFIG))
    return model


def test_layers_of_different_sizes_agree(tmp_path: Path) -> None:
    theirs = make_theirs(tmp_path / "checkpoint")
    ids = torch.randint(0, 48, (2, LENGTH), generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        expected = theirs(ids).logits
        assert relative_error(load_model(tmp_path / "checkpoint")(ids), expected) <= TOLERANCE
    assert relative_error(logits_of_graph(tmp_path / "checkpoint", ids, tmp_path), expected) <= TOLERANCE


def test_what_we_write_is_what_we_read(tmp_path: Path) -> None:
    make_theirs(tmp_path / "theirs")
    model = load_model(tmp_path / "theirs")
    sizes = [(spec.intermediate, spec.top_k) for spec in model.config.layers if isinstance(spec, MoeSpec)]
    assert sizes == [(48, 3), (24, 2)]
    save_model(model, tmp_path / "ours")
    assert read_config(tmp_path / "ours") == model.config
    again = load_model(tmp_path / "ours").state_dict()
    assert all(torch.equal(again[name], tensor) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"block_configs": [{"block_type": "moe", "moe_shared_expert_intermediate_size": 8}]}, "moe_shared_expert"),
        ({"block_configs": [{"block_type": "sliding"}]}, "sliding"),
        ({"num_hidden_layers": 5}, "num_hidden_layers"),
        ({"softcap": 30.0}, "softcap"),
    ],
)
def test_what_is_not_implemented_is_refused_by_name(changes: dict[str, Any], named: str) -> None:
    with pytest.raises(CheckpointError, match=named):
        FAMILIES["nemotron_h_puzzle"].parse_config(CONFIG | changes)


def test_nemotron_h_cannot_hold_layers_that_differ(tmp_path: Path) -> None:
    config = FAMILIES["nemotron_h_puzzle"].parse_config(CONFIG)
    with pytest.raises(CheckpointError, match="different ones"):
        FAMILIES["nemotron_h"].format_config(config)
