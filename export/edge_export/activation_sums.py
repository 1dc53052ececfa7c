"""What the parts of a model are ranked by: sums of activations over positions, and scores of a layer's parts."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass
class LayerImportance:
    """Scores of one layer's parts; an entry is missing where the layer has no such part."""

    norm_input: Tensor
    """Mean square of the layer's input per hidden channel (hidden), each position's scaled to a mean of 1."""
    removal: float = 0.0
    """How far the model's predictions move without the layer, per target; of logits the KL divergence, in nats."""
    parts: dict[str, Tensor] = field(default_factory=dict)
    """Mean squares: Mamba ``channels`` (heads, head_dim); ``kv_heads`` (kv_heads); ``intermediate`` and
    ``shared_intermediate``, one per channel; ``experts`` (experts); ``expert_intermediate`` (experts, intermediate).
    Mamba ``norm_input`` (heads, head_dim): that of the gated norm's input, as above, within each group."""


class Sums:
    """Sums over positions by name."""

    def __init__(self) -> None:
        self.totals: dict[str, Tensor] = defaultdict(lambda: torch.zeros(()))

    def add(self, name: str, per_position: Tensor) -> None:
        """Adds (positions, ...) up over the positions."""
        self.totals[name] = self.totals[name] + per_position.sum(0, dtype=torch.float32).cpu()

    def means(self, positions: int) -> dict[str, Tensor]:
        """By name, over so many positions."""
        return {name: total / max(1, positions) for name, total in self.totals.items()}


def add_norm(sums: Sums, counted: Tensor) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], None]:
    """A forward hook on a norm: adds what leaves it, and what enters it scaled to a mean square of 1."""

    def hook(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        entering = inputs[0][counted].float()
        sums.add("hidden", output[counted].square())
        sums.add("input", F.rms_norm(entering, entering.shape[-1:]).square())

    return hook
