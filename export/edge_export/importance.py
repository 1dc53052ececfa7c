"""How much each part of a model matters, measured on calibration data (Minitron-SSM, arXiv 2504.11409, section 3).

Widths are ranked by the mean square of activations: hidden channels by the norms' outputs, FFN channels, attention
groups, Mamba heads and head channels by what enters their output projection, experts by what they add to the layer's
output, which their routing weight scales. Layers are ranked by how far the logits move (KL divergence) when a layer is
left out. Everything is summed up batch by batch, so that memory does not grow with the calibration data.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from rich.progress import track
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from edge_export import torch_ops
from edge_export.activation_sums import LayerImportance, Sums, add_norm
from edge_export.data import StepBatch
from edge_export.policy_importance import PolicyEnds, PolicyImportance
from edge_export.terminal import console
from edge_export.torch_layers import Attention, Mamba2Mixer, Mlp, Moe, Parallel
from edge_export.torch_model import HybridBody, Layer
from edge_export.torch_policy import HybridPolicy
from edge_sdk.errors import ConfigError, explain


@dataclass
class Importance:
    """Scores of the whole model."""

    hidden: Tensor
    """Mean square of the norms' outputs per hidden channel (hidden), summed over the norms."""
    norm_input: Tensor
    """Of the last norm, as in :class:`LayerImportance`."""
    layers: list[LayerImportance]
    policy: PolicyImportance | None = None
    """Of a policy's encoder and decoder."""


@torch.no_grad()
def measure(model: HybridBody, batches: Iterable[Any]) -> Importance:
    """Scores from calibration batches; only positions with a target count. Raises ConfigError if there are none.

    Takes as many forward passes of every batch as there are layers, and one more; of a policy also as many as its
    decoder has blocks.
    """
    model.eval()
    sums = [Sums() for _ in range(len(model.layers) + 1)]
    ends = PolicyEnds(model) if isinstance(model, HybridPolicy) else None
    effects: dict[nn.Module, float] = dict.fromkeys([*model.layers, *([] if ends is None else ends.blocks)], 0.0)
    positions = targets = 0
    for batch in track(list(batches), "importance", console=console, transient=True):
        moved = batch.to(model.device)
        with _watched(model, sums, moved.counted), nullcontext() if ends is None else ends.watched(moved):
            expected = model.predict(moved)
        for module in effects:
            effects[module] += _removal_effect(model, module, moved, expected)
        positions, targets = positions + int(moved.counted.sum()), targets + len(expected)
    if not targets:
        raise ConfigError(
            explain("The calibration data", expected="something to predict", found="nothing", todo="Give some.")
        )
    means = [part.means(positions) for part in sums]
    removal = [effect / targets for effect in effects.values()]
    policy = None if ends is None else ends.scores(positions, targets, removal[len(model.layers) :])
    return Importance(
        hidden=sum((part["hidden"] for part in means), torch.zeros(()) if policy is None else policy.hidden),
        norm_input=means[-1]["input"],
        layers=[
            LayerImportance(part.pop("input"), effect, _without(part, "hidden")) for part, effect in zip(means, removal)
        ],
        policy=policy,
    )


def _without(parts: dict[str, Tensor], name: str) -> dict[str, Tensor]:
    return {key: value for key, value in parts.items() if key != name}


@contextmanager
def _watched(model: HybridBody, sums: list[Sums], counted: Tensor) -> Iterator[None]:
    """While it lasts, a forward pass adds to ``sums``, those of the layers and of the last norm."""
    hooks = [model.norm_f.register_forward_hook(add_norm(sums[-1], counted))]
    for layer, into in zip(model.layers, sums):
        assert isinstance(layer, Layer)
        hooks.append(layer.norm.register_forward_hook(add_norm(into, counted)))
        hooks += _watch_mixer(layer.mixer, into, counted)
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


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


def _removal_effect(model: HybridBody, module: nn.Module, batch: StepBatch, expected: Tensor) -> float:
    """How far the predictions of a batch move, summed over its targets, without a residual branch."""

    def keep_residual(module: nn.Module, inputs: tuple[Tensor, ...], output: Any) -> object:
        return (inputs[0], *output[1:]) if isinstance(output, tuple) else inputs[0]

    hook = module.register_forward_hook(keep_residual)
    without = model.predict(batch)
    hook.remove()
    return float(model.moved(without, expected))
