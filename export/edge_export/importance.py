"""How much each part of a model matters, measured on calibration data (Minitron-SSM, arXiv 2504.11409, section 3).

Widths are ranked by activations: hidden channels by the norms' outputs, FFN channels, attention groups and Mamba
heads by what enters their output projection, experts by routing mass. Layers are ranked by how far the logits
move (KL divergence) when a layer is left out.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edge_export import torch_ops
from edge_export.data import Batch
from edge_export.torch_model import Attention, HybridLM, Layer, Mamba2Mixer, Mlp, Moe, Parallel


@dataclass
class LayerImportance:
    """Scores of one layer's parts; an entry is missing where the layer has no such part."""

    removal: float = 0.0
    """Mean KL divergence of the logits without the layer, in nats per token."""
    parts: dict[str, Tensor] = field(default_factory=dict)
    """``heads`` (Mamba), ``kv_heads``, ``intermediate``, ``shared_intermediate``: one score per unit;
    ``experts`` (experts,); ``expert_intermediate`` (experts, intermediate)."""


@dataclass
class Importance:
    """Scores of the whole model."""

    hidden: Tensor
    layers: list[LayerImportance]


@torch.no_grad()
def measure(model: HybridLM, batch: Batch) -> Importance:
    """Scores from one calibration batch; only positions with a target count."""
    model.eval()
    counted = batch.targets >= 0
    importance = Importance(torch.zeros(model.config.hidden), [LayerImportance() for _ in model.layers])
    hooks = []
    hooks.append(model.norm_f.register_forward_hook(_add_hidden(importance, counted)))
    for layer, scores in zip(model.layers, importance.layers):
        assert isinstance(layer, Layer)
        hooks.append(layer.norm.register_forward_hook(_add_hidden(importance, counted)))
        hooks += _watch_mixer(layer.mixer, scores.parts, counted)
    logits = model(batch.input_ids)[counted].log_softmax(-1)
    for hook in hooks:
        hook.remove()
    for index, scores in enumerate(importance.layers):
        scores.removal = _removal_effect(model, index, batch, counted, logits)
    return importance


Hook = Callable[[nn.Module, tuple[Tensor, ...], Tensor], None]


def _add_hidden(importance: Importance, counted: Tensor) -> Hook:
    def hook(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        importance.hidden += output[counted].abs().mean(0)

    return hook


def _watch_mixer(
    mixer: nn.Module, parts: dict[str, Tensor], counted: Tensor
) -> list[torch.utils.hooks.RemovableHandle]:
    """Hooks that fill in the scores of one mixer's parts."""

    def watch(linear: nn.Module, name: str, units: int | None) -> torch.utils.hooks.RemovableHandle:
        def hook(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            entering = inputs[0][counted]
            parts[name] = (entering.unflatten(-1, (units, -1)).norm(dim=-1) if units else entering.abs()).mean(0)

        return linear.register_forward_pre_hook(hook)

    if isinstance(mixer, Mamba2Mixer):
        return [watch(mixer.out_proj, "heads", mixer.spec.heads)]
    if isinstance(mixer, Attention):
        return [watch(mixer.o_proj, "kv_heads", mixer.spec.kv_heads)]
    if isinstance(mixer, Mlp):
        return [watch(mixer.down_proj, "intermediate", None)]
    if isinstance(mixer, Parallel):
        return [*_watch_mixer(mixer.mamba, parts, counted), *_watch_mixer(mixer.attention, parts, counted)]
    assert isinstance(mixer, Moe)
    experts = mixer.register_forward_pre_hook(lambda module, inputs: _score_experts(mixer, inputs[0][counted], parts))
    return [watch(mixer.shared_experts.down_proj, "shared_intermediate", None), experts]


def _score_experts(mixer: Moe, tokens: Tensor, parts: dict[str, Tensor]) -> None:
    """Routing mass per expert, and the weighted activation of each of its channels."""
    chosen, weights = torch_ops.route(mixer.gate(tokens), mixer.gate.e_score_correction_bias, **mixer.routing())
    mass = torch.zeros(len(tokens), mixer.spec.experts).scatter(1, chosen, weights)
    parts["experts"] = mass.mean(0)
    activate = torch_ops.ACTIVATIONS[mixer.spec.activation]
    risen = activate(mixer.fc1_latent_proj(tokens) @ mixer.experts.up_weight)
    parts["expert_intermediate"] = (risen * mass.T[..., None]).mean(1)


def _removal_effect(model: HybridLM, index: int, batch: Batch, counted: Tensor, logits: Tensor) -> float:
    def keep_residual(module: nn.Module, inputs: tuple[Tensor, ...], output: tuple[Tensor, object]) -> object:
        return inputs[0], output[1]

    hook = model.layers[index].register_forward_hook(keep_residual)
    without = model(batch.input_ids)[counted].log_softmax(-1)
    hook.remove()
    return float(F.kl_div(without, logits, log_target=True, reduction="batchmean"))
