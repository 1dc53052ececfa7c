"""Finds the student's shape under a budget: candidates that fit, ranked without training, the best tried briefly.

As Minitron-SSM does it (arXiv 2504.11409, section 3.3): shapes over all axes that use up the budget are ranked by the
importance that they keep, the first of them by their loss on calibration data right after pruning, and the best of
those after a short distillation (``candidates``, ``by_zero_shot``; the last step is the caller's).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import msgspec
import numpy as np
import torch
from rich.progress import track
from torch import Tensor

from edge_export.data import StepBatch
from edge_export.families import family_of
from edge_export.importance import Importance
from edge_export.policy_importance import PolicyImportance
from edge_export.prune import StudentShape, prune, shrink
from edge_export.terminal import console
from edge_export.torch_model import HybridBody
from edge_export.training import data_loss
from edge_sdk.errors import CheckpointError, ConfigError, explain
from edge_sdk.model import AttentionSpec, Mamba2Spec, MlpSpec, ModelConfig, MoeSpec
from edge_sdk.policy_spec import PolicySpec

CHANNEL_UNIT = 16
"""Widths are multiples of it where the teacher's is: whole vectors, tiles and int4 blocks."""

DRAWS = 20_000
"""Shapes that are looked at."""

FULL = 0.93
"""A candidate uses at least this share of the budget, where any does."""


@dataclass(frozen=True)
class Candidate:
    """A shape that fits, and what is known of it."""

    shape: StudentShape
    config: ModelConfig
    cost: float
    """In the budget's unit."""
    kept: float
    """Mean share of the importance that is kept, over the axes."""
    loss: float | None = None
    """On calibration data; of a language model in nats per token."""


Cost = Callable[[ModelConfig], float]


def candidates(
    config: ModelConfig, importance: Importance | None, cost: Cost, budget: float, *, count: int, seed: int = 0
) -> list[Candidate]:
    """Up to ``count`` shapes that cost at most ``budget``, those that keep most importance first.

    Without ``importance`` a width counts as the share of it that is kept. Raises ConfigError if nothing fits.
    """
    axes, rng = axis_sizes(config), np.random.default_rng(seed)
    shares = _kept_shares(config, importance)
    largest = {axis: max(values) for axis, values in axes.items()}
    found: dict[str, Candidate] = {}
    cheapest = float("inf")
    for _ in range(DRAWS):
        sizes = {axis: int(rng.choice(values)) for axis, values in axes.items()}
        shape = _shape(sizes)
        student = shrink(config, shape)
        spent = cost(student)
        cheapest = min(cheapest, spent)
        if spent <= budget:
            kept = float(np.mean([_share(shares[axis], size, largest[axis]) for axis, size in sizes.items()]))
            found[repr(shape)] = Candidate(shape, student, spent, kept)
    if not found:
        raise ConfigError(
            explain("The budget", expected=f"at least {cheapest:,.6g}", found=f"{budget:,.6g}", todo="Allow more.")
        )
    full = [item for item in found.values() if item.cost >= FULL * budget] or list(found.values())
    return sorted(full, key=lambda item: -item.kept)[:count]


def by_zero_shot(
    teacher: HybridBody, importance: Importance, found: Sequence[Candidate], batches: Sequence[StepBatch]
) -> list[Candidate]:
    """The candidates with their loss right after pruning, the smallest first; one student is in memory at a time."""
    device = teacher.device
    judged = [
        replace(item, loss=zero_shot_loss(prune(teacher, item.shape, importance).to(device), batches))
        for item in track(found, "candidates", console=console, transient=True)
    ]
    return sorted(judged, key=lambda item: item.loss if item.loss is not None else float("inf"))


@torch.inference_mode()
def zero_shot_loss(model: HybridBody, batches: Sequence[StepBatch]) -> float:
    """Mean error of the targets; of a language model the negative log-likelihood, in nats per token."""
    model.eval()
    device = model.device
    total = sum(float(data_loss(model, batch.to(device))) * batch.tokens for batch in batches)
    return total / sum(batch.tokens for batch in batches)


def axis_sizes(config: ModelConfig) -> dict[str, list[int]]:
    """The sizes to look at along each axis: eighths of widths and heads from a quarter up, layers from half."""
    axes, free = {"hidden": _widths(config.hidden)}, _any_layer_may_go(config)
    for kind in sorted({spec.kind for spec in config.layers}):
        there = sum(spec.kind == kind for spec in config.layers)
        axes[f"layers.{kind}"] = list(range(max(1, there // 2), there + 1)) if free else [there]
    for spec in config.layers:
        if isinstance(spec, Mamba2Spec):
            axes["mamba_heads"] = _multiples(spec.heads, spec.groups)
            axes["mamba_head_dim"] = _widths(spec.head_dim)
        elif isinstance(spec, AttentionSpec):
            axes["kv_heads"] = _multiples(spec.kv_heads, 1)
        elif isinstance(spec, MlpSpec):
            axes["intermediate"] = _widths(spec.intermediate)
        elif isinstance(spec, MoeSpec):
            axes["experts"] = [spec.experts] if spec.n_group > 1 else _multiples(spec.experts, 1, at_least=spec.top_k)
            axes["expert_intermediate"] = _widths(spec.intermediate)
            axes["shared_intermediate"] = _widths(spec.shared_intermediate)
    if config.policy is not None:
        encoder, decoder = config.policy.encoder, config.policy.decoder
        axes |= {"encoder_width": _widths(encoder.width)} if encoder.width else {}
        axes["decoder_layers"] = list(range(max(1, decoder.layers // 2), decoder.layers + 1))
        axes["decoder_heads"] = _multiples(decoder.heads, 1)
        axes["decoder_intermediate"] = _widths(decoder.intermediate)
    return axes


def _any_layer_may_go(config: ModelConfig) -> bool:
    """Whether the family's config.json can say so: not where mixers and MLPs make blocks."""
    try:
        family_of({"model_type": config.family}).format_config(
            msgspec.structs.replace(config, layers=config.layers[:-1])
        )
    except (CheckpointError, ConfigError):
        return False
    return True


def _widths(width: int) -> list[int]:
    return _multiples(width, CHANNEL_UNIT if width % CHANNEL_UNIT == 0 else 1)


def _multiples(size: int, unit: int, at_least: int = 1) -> list[int]:
    """Multiples of a unit near the eighths of a size, from a quarter up."""
    eighths = {-(-size * eighth // (8 * unit)) * unit for eighth in range(2, 9)}
    return sorted(value for value in eighths if at_least <= value <= size)


def _shape(sizes: dict[str, int]) -> StudentShape:
    layers = {axis.removeprefix("layers."): size for axis, size in sizes.items() if axis.startswith("layers.")}
    widths = {axis: size for axis, size in sizes.items() if not axis.startswith("layers.")}
    return msgspec.convert({"layers": layers, **widths}, StudentShape)


def _share(shares: np.ndarray, size: int, largest: int) -> float:
    """Of a size; heads are ranked within groups, so that there are fewer shares than sizes."""
    return float(shares[size * len(shares) // largest - 1])


def _kept_shares(config: ModelConfig, importance: Importance | None) -> dict[str, np.ndarray]:
    """By axis, the share of the importance that the best 1, 2, ... units hold; the mean over layers."""
    shares: dict[str, list[np.ndarray]] = {}
    for axis, scores in _axis_scores(config, importance):
        held = -np.sort(-scores.numpy().astype(np.float64).clip(1e-30), axis=-1)
        held = held.cumsum(-1).reshape(-1, held.shape[-1])
        shares.setdefault(axis, []).append((held / held[:, -1:]).mean(0))
    return {axis: np.mean(rows, axis=0) for axis, rows in shares.items()}


def _axis_scores(config: ModelConfig, importance: Importance | None) -> Iterator[tuple[str, Tensor]]:
    """Every axis with the scores (..., units) of its units, as often as there are layers; ones without importance."""
    yield "hidden", torch.ones(config.hidden) if importance is None else importance.hidden
    for kind in {spec.kind for spec in config.layers}:
        indices = [index for index, spec in enumerate(config.layers) if spec.kind == kind]
        removal = [1.0 if importance is None else importance.layers[index].removal for index in indices]
        yield f"layers.{kind}", torch.tensor(removal)
    if config.policy is not None:
        yield from _policy_scores(config.policy, None if importance is None else importance.policy)
    for index, spec in enumerate(config.layers):
        sizes: dict[str, tuple[str, tuple[int, ...]]] = {}
        if isinstance(spec, Mamba2Spec):
            sizes = {
                "mamba_heads": ("heads", (spec.groups, spec.heads // spec.groups)),
                "mamba_head_dim": ("channels", (spec.heads, spec.head_dim)),
            }
        elif isinstance(spec, AttentionSpec):
            sizes = {"kv_heads": ("kv_heads", (spec.kv_heads,))}
        elif isinstance(spec, MlpSpec):
            sizes = {"intermediate": ("intermediate", (spec.intermediate,))}
        elif isinstance(spec, MoeSpec):
            sizes = {
                "experts": ("experts", (spec.experts,)),
                "expert_intermediate": ("expert_intermediate", (spec.experts, spec.intermediate)),
                "shared_intermediate": ("shared_intermediate", (spec.shared_intermediate,)),
            }
        for axis, (part, shape) in sizes.items():
            if importance is None:
                yield axis, torch.ones(shape)
            elif axis == "mamba_heads":
                yield axis, importance.layers[index].parts["channels"].sum(1).view(shape)
            else:
                yield axis, importance.layers[index].parts[part]


def _policy_scores(spec: PolicySpec, importance: PolicyImportance | None) -> Iterator[tuple[str, Tensor]]:
    """As :func:`_axis_scores`, of a policy's encoder and decoder."""
    encoder, decoder = spec.encoder, spec.decoder
    if encoder.width:
        measured = None if importance is None else importance.encoder_width
        yield "encoder_width", torch.ones(encoder.width) if measured is None else measured
    blocks = [] if importance is None else importance.blocks
    yield "decoder_layers", torch.tensor([block.removal for block in blocks] or [1.0] * decoder.layers)
    for axis in ("heads", "intermediate"):
        for scores in [block.parts[axis] for block in blocks] or [torch.ones(getattr(decoder, axis))]:
            yield f"decoder_{axis}", scores
