"""Chooses how each leaf is stored under a budget of bytes, by how much its rounding changes the logits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from edge_export.calibration import Sequences, compare
from edge_export.plan import BITS, Level, leaf_bytes, levels, other_bytes, quantizable, round_leaf
from edge_export.torch_model import HybridLM
from edge_export.weights import Progress, silent
from edge_sdk.errors import ConfigError, explain
from edge_sdk.model import ModelConfig

Sensitivity = Mapping[str, Mapping[Level, float]]
"""By leaf and level: the KL divergence, in nats per token, that storing this leaf alone so brings."""


def measure(
    model: HybridLM, reference: HybridLM, batches: Sequence[Sequences], block_size: int, progress: Progress = silent
) -> dict[str, dict[Level, float]]:
    """The sensitivity of every leaf of ``model``, rounded to nearest one at a time, against its equal ``reference``."""
    names = quantizable(model.config)
    found: dict[str, dict[Level, float]] = {}
    for done, name in enumerate(names):
        parent, _, last = name.rpartition(".")
        owner, leaf = model.get_submodule(parent), model.get_submodule(name)
        found[name] = {"float32": 0.0}
        for level in ("int4", "int8"):
            setattr(owner, last, round_leaf(leaf, BITS[level], block_size))  # type: ignore[arg-type]
            found[name][level] = max(0.0, compare(model, reference, batches).kl)
        setattr(owner, last, leaf)
        progress(done + 1, len(names))
    return found


def choose(config: ModelConfig, sensitivity: Sensitivity, block_size: int, budget_bytes: int) -> dict[str, Level]:
    """The levels by leaf that bring a small sum of divergences within ``budget_bytes`` of weights in all.

    Greedy: all leaves begin with int4, and the step up that takes away most divergence per byte added is taken as
    long as one fits. This is the knapsack problem's usual approximation, at most one step away from the optimum where
    a leaf's gains per byte fall from level to level, as they do here. That divergences of single leaves add up is an
    assumption. Raises ConfigError for a budget that is too small for int4.
    """
    leaves = quantizable(config)
    chosen: dict[str, Level] = dict.fromkeys(leaves, "int4")

    def size(name: str, level: Level) -> int:
        return leaf_bytes(leaves[name], level, block_size)

    left = budget_bytes - other_bytes(config) - sum(size(name, "int4") for name in leaves)
    if left < 0:
        raise ConfigError(
            explain(
                "--budget-gb",
                expected=f"at least {(budget_bytes - left) / 1e9:.6f}, for int4 throughout",
                found=f"{budget_bytes / 1e9:.6f}",
                todo="Allow more bytes, or prune the model.",
            )
        )
    while True:
        steps = [
            ((sensitivity[name][old] - sensitivity[name][new]) / added, added, name, new)
            for name, old in chosen.items()
            for new in levels(leaves[name])
            if 0 < (added := size(name, new) - size(name, old)) <= left
        ]
        gain, added, name, new = max(steps, default=(0.0, 0, "", "int4"))
        if gain <= 0:
            return chosen
        chosen[name] = new
        left -= added
