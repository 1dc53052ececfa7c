"""GPTQ (Frantar et al. 2022, arXiv 2210.17323): rounds a weight so that its products with given inputs change little.

The result has the same blocks and scales as rounding to nearest, so whatever reads one reads the other.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from edge_export.quantize import QuantExperts, QuantLinear, block_scales, quantize_blocks, round_to
from edge_export.torch_layers import Experts
from edge_export.torch_ops import ACTIVATIONS, route

DAMPING = 0.01
"""Of the Hessian's mean diagonal, added to its diagonal (section 3.3, step 3)."""

MIN_TOKENS = 64
"""An expert that fewer calibration tokens reach is rounded to nearest: its Hessian would say too little."""


def gptq(weight: Tensor, hessian: Tensor, bits: int, block_size: int) -> tuple[Tensor, Tensor]:
    """Quantises weight (in, out) by the Hessian (in, in) of its inputs, X Xᵀ up to a factor.

    Algorithm 1 of the paper with blocks of ``block_size`` inputs, in their order: each input's rounding error is
    compensated by those after it, and the scales of a block are chosen from what it holds when its turn comes
    (section 4, "Additional Tricks"). Inputs that are always zero are rounded to nearest.
    Returns int8 values (in, out) and float32 scales (in / block_size, out).
    """
    weight, factor = weight.detach().float().clone(), _inverse_factor(hessian)
    width = len(weight)
    values, scales = torch.empty(weight.shape, dtype=torch.int8), torch.empty(width // block_size, weight.shape[1])
    for start in range(0, width, block_size):
        end = start + block_size
        block, errors = weight[start:end], torch.empty(block_size, weight.shape[1])
        scale = scales[start // block_size] = block_scales(block, bits)
        for row in range(block_size):
            at = start + row
            rounded = round_to(block[row], scale, bits)
            errors[row] = (block[row] - rounded * scale) / factor[at, at]
            values[at] = rounded.to(torch.int8)
            block[row + 1 :] -= torch.outer(factor[at, at + 1 : end], errors[row])
        weight[end:] -= factor[start:end, end:].T @ errors
    return values, scales


def _inverse_factor(hessian: Tensor) -> Tensor:
    """The upper Cholesky factor of the damped Hessian's inverse."""
    damped, diagonal = hessian.clone(), hessian.diagonal()
    added = torch.where(diagonal == 0, torch.ones_like(diagonal), DAMPING * diagonal.mean().expand_as(diagonal))
    damped.diagonal().add_(added)
    return torch.linalg.cholesky(torch.cholesky_inverse(torch.linalg.cholesky(damped)), upper=True)


class Observed:
    """What reached the projections and experts of one layer: Hessians by name, and the experts' tokens with routing."""

    def __init__(self) -> None:
        self.hessians: dict[str, Tensor] = {}
        self.tokens: dict[str, list[Tensor]] = {}
        self.experts: dict[str, list[Tensor]] = {}
        self.activations: dict[str, str] = {}
        self.present: Tensor | None = None
        """Where the batch that is under way has tokens, (batch, length) of bool."""

    @contextmanager
    def watching(self, module: nn.Module) -> Iterator[None]:
        """Takes note of whatever passes through the module meanwhile."""
        hooks = []
        for name, leaf in module.named_modules():
            if isinstance(leaf, (nn.Linear, Experts)):
                note = self._note_experts if isinstance(leaf, Experts) else self._note_linear
                hooks.append(leaf.register_forward_pre_hook(_named(note, name), with_kwargs=True))
        yield
        for hook in hooks:
            hook.remove()

    def _note_linear(self, name: str, x: Tensor) -> None:
        rows = x[self.present].float()
        self.hessians[name] = self.hessians.get(name, torch.zeros(())) + rows.T @ rows

    def _note_experts(self, name: str, x: Tensor, logits: Tensor, bias: Tensor, **routing: Any) -> None:
        self.activations[name] = routing.pop("activation", "relu2")
        chosen, _ = route(logits[self.present].float(), bias, **routing)
        self.tokens.setdefault(name, []).append(x[self.present])
        self.experts.setdefault(name, []).append(chosen)


def _named(note: Any, name: str) -> Any:
    return lambda _, args, kwargs: note(name, *args, **kwargs)


def solve_linear(linear: nn.Linear, hessian: Tensor, bits: int, block_size: int) -> QuantLinear:
    """The projection with GPTQ's integers."""
    made = QuantLinear(linear, bits, block_size)
    made.weight.hold(*gptq(linear.weight.T, hessian, bits, block_size))
    return made


def solve_experts(experts: Experts, observed: Observed, name: str, bits: int, block_size: int) -> QuantExperts:
    """The experts with GPTQ's integers, each from its own tokens; the second product sees the first one's error."""
    made = QuantExperts(experts, bits, block_size)
    tokens, chosen = torch.cat(observed.tokens[name]), torch.cat(observed.experts[name])
    activate = ACTIVATIONS[observed.activations[name]]
    solved: dict[str, list[tuple[Tensor, Tensor]]] = {"up": [], "down": []}
    for index, (up, down) in enumerate(zip(experts.up_weight.detach(), experts.down_weight.detach())):
        rows = tokens[(chosen == index).any(-1)].float()
        for part, weight in (("up", up), ("down", down)):
            found = (
                gptq(weight, rows.T @ rows, bits, block_size)
                if len(rows) >= MIN_TOKENS
                else quantize_blocks(weight, bits, block_size)
            )
            solved[part].append(found)
            if part == "up":
                values, scales = found
                rows = activate(rows @ (values * scales.repeat_interleave(block_size, 0)))
    made.up.hold(*_stacked(solved["up"]))
    made.down.hold(*_stacked(solved["down"]))
    return made


def _stacked(parts: Sequence[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    values, scales = zip(*parts)
    return torch.stack(values), torch.stack(scales)
