"""How much each part of a model matters, measured on calibration data (Minitron-SSM, arXiv 2504.11409, section 3).

Widths are ranked by the mean square of activations: hidden channels by the norms' outputs, FFN channels, attention
groups, Mamba heads and head channels by what enters their output projection, experts by what they add to the layer's
output, which their routing weight scales. Layers are ranked by how far the logits move (KL divergence) when a layer is
left out. Everything is summed up batch by batch, so that memory does not grow with the calibration data.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from rich.progress import track
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from edge_export import torch_ops
from edge_export.data import Batch
from edge_export.terminal import console
from edge_export.torch_layers import Attention, Mamba2Mixer, Mlp, Moe, Parallel
from edge_export.torch_model import HybridLM, Layer
from edge_sdk.errors import ConfigError, explain


@dataclass
class LayerImportance:
    """Scores of one layer's parts; an entry is missing where the layer has no such part."""

    norm_input: Tensor
    """Mean square of the layer's input per hidden channel (hidden), each position's scaled to a mean of 1."""
    removal: float = 0.0
    """Mean KL divergence of the logits without the layer, in nats per token."""
    parts: dict[str, Tensor] = field(default_factory=dict)
    """Mean squares: Mamba ``channels`` (heads, head_dim); ``kv_heads`` (kv_heads); ``intermediate`` and
    ``shared_intermediate``, one per channel; ``experts`` (experts); ``expert_intermediate`` (experts, intermediate).
    Mamba ``norm_input`` (heads, head_dim): that of the gated norm's input, as above, within each group."""


@dataclass
class Importance:
    """Scores of the whole model."""

    hidden: Tensor
    """Mean square of the norms' outputs per hidden channel (hidden), summed over the norms."""
    norm_input: Tensor
    """Of the last norm, as in :class:`LayerImportance`."""
    layers: list[LayerImportance]


class Sums:
    """Sums over positions by name."""

    def __init__(self) -> None:
        self.totals: dict[str, Tensor] = defaultdict(lambda: torch.zeros(()))

    def add(self, name: str, per_position: Tensor) -> None:
        """Adds (positions, ...) up over the positions."""
        self.totals[name] = self.totals[name] + per_position.sum(0, dtype=torch.float32).cpu()


@torch.no_grad()
def measure(model: HybridLM, batches: Iterable[Batch]) -> Importance:
    """Scores from calibration batches; only positions with a target count. Raises ConfigError if there are none.

    Takes as many forward passes of every batch as there are layers, and one more.
    """
    model.eval()
    device = model.embeddings.weight.device
    sums = [Sums() for _ in range(len(model.layers) + 1)]
    removal, positions = torch.zeros(len(model.layers)), 0
    for batch in track(list(batches), "importance", console=console, transient=True):
        input_ids, counted = batch.input_ids.to(device), batch.targets.to(device) >= 0
        with _watched(model, sums, counted):
            logits = model(input_ids)[counted].log_softmax(-1)
        for index in range(len(model.layers)):
            removal[index] += _removal_effect(model, index, input_ids, counted, logits)
        positions += len(logits)
    if not positions:
        raise ConfigError(
            explain("The calibration data", expected="tokens to predict", found="none", todo="Give some.")
        )
    means = [{name: total / positions for name, total in part.totals.items()} for part in sums]
    return Importance(
        hidden=sum((part["hidden"] for part in means), torch.zeros(())),
        norm_input=means[-1]["input"],
        layers=[
            LayerImportance(part.pop("input"), float(effect) / positions, _without(part, "hidden"))
            for part, effect in zip(means, removal)
        ],
    )


def _without(parts: dict[str, Tensor], name: str) -> dict[str, Tensor]:
    return {key: value for key, value in parts.items() if key != name}


@contextmanager
def _watched(model: HybridLM, sums: list[Sums], counted: Tensor) -> Iterator[None]:
    """While it lasts, a forward pass adds to ``sums``, those of the layers and of the last norm."""
    hooks = [model.norm_f.register_forward_hook(_add_norm(sums[-1], counted))]
    for layer, into in zip(model.layers, sums):
        assert isinstance(layer, Layer)
        hooks.append(layer.norm.register_forward_hook(_add_norm(into, counted)))
        hooks += _watch_mixer(layer.mixer, into, counted)
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _add_norm(sums: Sums, counted: Tensor) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], None]:
    def hook(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        entering = inputs[0][counted].float()
        sums.add("hidden", output[counted].square())
        sums.add("input", F.rms_norm(entering, entering.shape[-1:]).square())

    return hook


def _watch_mixer(mixer: nn.Module, sums: Sums, counted: Tensor) -> list[RemovableHandle]:
    def watch(linear: nn.Module, add: Callable[[Tensor], None]) -> RemovableHandle:
        """Calls ``add`` with the squares (positions, width) of what enters a projection."""
        return linear.register_forward_pre_hook(lambda module, inputs: add(inputs[0][counted].float().square()))

    if isinstance(mixer, Mamba2Mixer):
        return [watch(mixer.out_proj, lambda squares: _add_mamba2(mixer, squares, sums))]
    if isinstance(mixer, Attention):
        kv_heads = mixer.spec.kv_heads
        return [
            watch(mixer.o_proj, lambda squares: sums.add("kv_heads", squares.unflatten(-1, (kv_heads, -1)).sum(-1)))
        ]
    if isinstance(mixer, Mlp):
        return [watch(mixer.down_proj, lambda squares: sums.add("intermediate", squares))]
    if isinstance(mixer, Parallel):
        return [*_watch_mixer(mixer.mamba, sums, counted), *_watch_mixer(mixer.attention, sums, counted)]
    assert isinstance(mixer, Moe)
    shared = watch(mixer.shared_experts.down_proj, lambda squares: sums.add("shared_intermediate", squares))
    return [
        shared,
        mixer.register_forward_pre_hook(lambda module, inputs: _add_experts(mixer, inputs[0][counted], sums)),
    ]


def _add_mamba2(mixer: Mamba2Mixer, squares: Tensor, sums: Sums) -> None:
    spec, weight = mixer.spec, mixer.norm.weight.float().square()
    sums.add("channels", squares.unflatten(-1, (spec.heads, spec.head_dim)))
    # What entered the norm is what left it over its weight; of channels whose weight is 0 it is not known.
    entered = torch.where(weight > 0, squares / weight, 0.0)
    sums.add("norm_input", entered.unflatten(-1, (spec.heads, spec.head_dim)))


def _add_experts(mixer: Moe, tokens: Tensor, sums: Sums) -> None:
    """Each expert over the tokens that are routed to it."""
    chosen, weights = torch_ops.route(mixer.gate(tokens), mixer.gate.e_score_correction_bias, **mixer.routing())
    entering, experts = mixer.fc1_latent_proj(tokens), mixer.experts
    activate = torch_ops.ACTIVATIONS[mixer.spec.activation]
    added, risen_by = [], []
    for expert in range(mixer.spec.experts):
        position, rank = (chosen == expert).nonzero(as_tuple=True)
        weight = weights[position, rank, None].float()
        risen = activate(entering[position] @ experts.up_weight[expert])
        added.append((weight * (risen @ experts.down_weight[expert])).square().sum())
        risen_by.append((weight * risen).square().sum(0))
    sums.add("experts", torch.stack(added)[None])
    sums.add("expert_intermediate", torch.stack(risen_by)[None])


def _removal_effect(model: HybridLM, index: int, input_ids: Tensor, counted: Tensor, logits: Tensor) -> float:
    """KL divergence, summed over the counted positions, of the logits without a layer from those with it."""

    def keep_residual(module: nn.Module, inputs: tuple[Tensor, ...], output: tuple[Tensor, object]) -> object:
        return inputs[0], output[1]

    hook = model.layers[index].register_forward_hook(keep_residual)
    without = model(input_ids)[counted].log_softmax(-1)
    hook.remove()
    return float(F.kl_div(without, logits, log_target=True, reduction="sum"))
