"""What ``edge-export quantize`` will take, before a weight is read."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from torch import nn

from edge_export.calibration import Sequences
from edge_export.checkpoint import Checkpoint, hashed_files
from edge_export.dry_run import Estimate
from edge_export.estimate import TIME_FROM, multiplied_parameters, operations_per_second
from edge_export.plan import QuantizeRequest, leaf_bytes, quantizable
from edge_export.quantize_report import settings
from edge_export.torch_layers import Experts
from edge_sdk.model import ModelConfig
from edge_sdk.telemetry import read_memory

PLAN_ROWS = 2
"""Of a report, that a plan adds."""

FLOAT = 4
"""Bytes of a float32."""

HESSIAN_COPIES = 5
"""Of the Hessian that is being factored: itself, damped, its factor, its inverse and the factor of that."""

ACTIVATION_COPIES = 6
"""Of a batch's widest activations, at the most."""

LOGIT_COPIES = 4
"""Of a batch's logits: two models', before and behind the softmax."""


def estimate_quantize(
    checkpoint: Path,
    source: Checkpoint,
    request: QuantizeRequest,
    batches: Sequence[Sequences],
    scored: Sequence[Sequences],
    *,
    compared: bool,
) -> Estimate:
    """Of choosing levels and solving them on ``batches`` and, if ``compared``, of the report on ``scored``."""
    config = source.config
    modules, forward = quantizable(config), 2 * multiplied_parameters(config)
    tokens, reported = (sum(batch.ids.numel() for batch in part) for part in (batches, scored))
    solved = request.method == "gptq" and not request.report_only
    chosen = request.budget_gb is not None and not request.report_only
    memory, operations = {"the tokens": 0.0}, 0.0
    if solved:
        memory["GPTQ on the largest layer"] = _solving_memory(config, modules, batches)
        operations += 2 * forward * tokens + sum(_solving_operations(leaf, tokens) for leaf in modules.values())
    if chosen:
        memory["measuring sensitivities with the float32 model twice"] = _comparing_memory(config, batches)
        operations += 2 * 2 * len(modules) * forward * tokens
    if compared:
        memory["the report on the float32 model and another"] = _comparing_memory(config, scored)
        rows = len(settings(config, request.block_size)) + (0 if request.report_only else PLAN_ROWS)
        operations += 2 * rows * forward * reported
    largest = max(memory, key=memory.__getitem__)
    size = sum(path.stat().st_size for path in hashed_files(checkpoint))
    return Estimate(
        read_bytes=size * (2 * (not request.report_only) + solved + 2 * chosen + compared),
        write_bytes=written_bytes(config, request),
        memory_bytes=read_memory().resident_bytes + memory[largest],
        seconds=operations / operations_per_second(),
        largest=largest,
        time_from=TIME_FROM,
    )


def written_bytes(config: ModelConfig, request: QuantizeRequest) -> int:
    """Of the integers beside the plan, which only GPTQ needs; with a budget at the most."""
    if request.method == "rtn" or request.report_only:
        return 0
    solved = {name: leaf for name, leaf in quantizable(config).items() if not name.startswith("mtp.")}
    return sum(leaf_bytes(leaf, request.leaves(config)[name], request.block_size) for name, leaf in solved.items())


def _solving_memory(
    config: ModelConfig, modules: dict[str, nn.Linear | Experts], batches: Sequence[Sequences]
) -> float:
    """One layer in float32, its Hessians, the work on its largest projection, and all hidden states twice."""
    tokens = sum(batch.ids.numel() for batch in batches)
    by_layer: dict[str, list[nn.Linear | Experts]] = defaultdict(list)
    for name, leaf in modules.items():
        by_layer[".".join(name.split(".")[:2])].append(leaf)
    layers = [
        sum(_weights(leaf) for leaf in leaves)
        + sum(_hessian(leaf) if isinstance(leaf, nn.Linear) else tokens * leaf.up_weight.shape[1] for leaf in leaves)
        + max(2 * _weights(leaf) + HESSIAN_COPIES * _hessian(leaf) for leaf in leaves)
        for leaves in by_layer.values()
    ]
    batch = max(part.ids.numel() for part in batches)
    widest = max(leaf.out_features for leaf in modules.values() if isinstance(leaf, nn.Linear))
    return FLOAT * (max(layers) + 2 * tokens * config.hidden + ACTIVATION_COPIES * batch * widest)


def _weights(leaf: nn.Linear | Experts) -> int:
    return sum(parameter.numel() for parameter in leaf.parameters())


def _width(leaf: nn.Linear | Experts) -> int:
    """Of the products' inputs, the widest."""
    return leaf.in_features if isinstance(leaf, nn.Linear) else max(leaf.up_weight.shape[1], leaf.down_weight.shape[1])


def _hessian(leaf: nn.Linear | Experts) -> int:
    return _width(leaf) ** 2


def _solving_operations(leaf: nn.Linear | Experts, tokens: int) -> float:
    """The Hessian, its factors (8/3 width^3) and the errors' compensation (width^2 for each output)."""
    width = _width(leaf)
    matrices = 2 * leaf.up_weight.shape[0] if isinstance(leaf, Experts) else 1
    return matrices * 8 / 3 * width**3 + width * _weights(leaf) + 2 * tokens * width**2


def _comparing_memory(config: ModelConfig, batches: Sequence[Sequences]) -> float:
    batch = max(part.ids.numel() for part in batches)
    return FLOAT * (2 * config.parameters() + LOGIT_COPIES * batch * config.vocab_size)
