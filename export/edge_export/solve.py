"""Runs GPTQ through a checkpoint layer by layer; no more of the model is in memory than one layer."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from edge_export.calibration import Sequences
from edge_export.checkpoint import Checkpoint
from edge_export.gptq import Observed, solve_experts, solve_linear
from edge_export.plan import BITS, LEAVES, Plan, leaf_path, round_leaf
from edge_export.quantize import QuantExperts, QuantLinear
from edge_export.torch_layers import Experts
from edge_export.torch_model import HybridLM
from edge_export.weights import Progress, silent
from edge_sdk.files import new_file


class _Head(nn.Module):
    """The output head as a layer."""

    def __init__(self, head: nn.Module) -> None:
        super().__init__()
        self.lm_head = head

    def forward(self, x: Tensor) -> None:
        self.lm_head(x)


@torch.no_grad()
def solve(
    source: Checkpoint, plan: Plan, batches: Sequence[Sequences], folder: Path, progress: Progress = silent
) -> None:
    """Writes the integers of every leaf that the plan quantises to ``folder``; leaves that are there are taken from it.

    A layer sees what the quantised layers before it give. In memory: one layer in float32, the Hessians of its
    projections (input width squared each) and the hidden states of the calibration data (tokens x hidden).
    """
    (folder / LEAVES).mkdir(exist_ok=True)
    with torch.device("meta"):
        model = HybridLM(source.config).eval()
    table = source.tensor("embeddings.weight")
    hidden = [table[batch.ids].float() for batch in batches]
    del table
    for index in range(len(model.layers)):
        layer = model.layers[index]
        _load(layer, f"layers.{index}.", source)
        _solve_module(layer, f"layers.{index}.", plan, batches, hidden, folder)
        hidden = [layer(x)[0] for x in hidden]
        model.layers[index] = nn.Identity()  # frees it
        progress(index + 1, len(model.layers) + 1)
    _load(model.norm_f, "norm_f.", source)
    _load(model.lm_head, "lm_head.", source)
    _solve_module(_Head(model.lm_head), "", plan, batches, [model.norm_f(x) for x in hidden], folder)
    progress(len(model.layers) + 1, len(model.layers) + 1)


def _load(module: nn.Module, prefix: str, source: Checkpoint) -> None:
    state = {name: source.tensor(f"{prefix}{name}").float() for name in module.state_dict()}
    module.load_state_dict(state, assign=True)


def _solve_module(
    module: nn.Module, prefix: str, plan: Plan, batches: Sequence[Sequences], hidden: list[Tensor], folder: Path
) -> None:
    """Quantises a module's leaves in place, by the hidden states that enter it, batch by batch."""
    leaves = {name: leaf for name, leaf in module.named_modules() if isinstance(leaf, (nn.Linear, Experts))}
    leaves = {name: leaf for name, leaf in leaves.items() if plan.leaves[f"{prefix}{name}"] != "float32"}
    observed = Observed()
    if not all(leaf_path(folder, f"{prefix}{name}").exists() for name in leaves):
        with observed.watching(module):
            for batch, x in zip(batches, hidden):
                observed.present = batch.present()
                module(x)
    for name, leaf in leaves.items():
        parent, _, last = name.rpartition(".")
        made = _solve_leaf(
            leaf, name, plan, BITS[plan.leaves[f"{prefix}{name}"]], observed, leaf_path(folder, f"{prefix}{name}")
        )
        setattr(module.get_submodule(parent), last, made)


def _solve_leaf(
    leaf: nn.Linear | Experts, name: str, plan: Plan, bits: int, observed: Observed, path: Path
) -> QuantLinear | QuantExperts:
    if path.exists():
        made = round_leaf(leaf, bits, plan.block_size)
        made.load_state_dict(load_file(path), strict=False)
        return made
    if isinstance(leaf, Experts):
        made = solve_experts(leaf, observed, name, bits, plan.block_size)
    else:
        made = solve_linear(leaf, observed.hessians[name], bits, plan.block_size)
    with new_file(path) as temporary:
        save_file({part: tensor.contiguous() for part, tensor in made.named_buffers()}, temporary)
    return made
