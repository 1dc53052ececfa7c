"""Cuts a model down to a smaller one of the same family: layers, hidden width, heads, channels, experts."""

from __future__ import annotations

import logging

import msgspec
import torch
from torch import Tensor

from edge_export.data import Batch
from edge_export.importance import Importance, LayerImportance, measure
from edge_export.torch_model import HybridLM
from edge_sdk.errors import ConfigError, explain
from edge_sdk.model import AttentionSpec, LayerSpec, Mamba2Spec, ModelConfig, MoeSpec, ParallelSpec

log = logging.getLogger("edge_export")


class StudentShape(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Sizes of the student; what is None stays as the teacher has it."""

    hidden: int | None = None
    layers: dict[str, int] = {}
    """How many layers of a kind (mamba2, attention, mlp, moe, parallel) to keep."""
    mamba_heads: int | None = None
    kv_heads: int | None = None
    intermediate: int | None = None
    experts: int | None = None
    expert_intermediate: int | None = None
    shared_intermediate: int | None = None


def prune(teacher: HybridLM, shape: StudentShape, calibration: Batch) -> HybridLM:
    """The student: the teacher's most important parts, in their order. Raises ConfigError for larger sizes.

    A drafting head is dropped: it was trained on hidden states that the student does not have.
    """
    if teacher.config.mtp is not None:
        log.warning("the student gets no drafting head: the teacher's was trained on the teacher's hidden states")
    importance = measure(teacher, calibration)
    kept_layers = _choose_layers(teacher.config, shape, importance)
    hidden = _best(importance.hidden, shape.hidden, "hidden")
    state = teacher.state_dict()
    specs: list[LayerSpec] = []
    pruned: dict[str, Tensor] = {
        "embeddings.weight": state["embeddings.weight"][:, hidden],
        "norm_f.weight": state["norm_f.weight"][hidden],
        "lm_head.weight": state["lm_head.weight"][:, hidden],
    }
    for new_index, index in enumerate(kept_layers):
        prefix = f"layers.{index}."
        layer = {name[len(prefix) :]: tensor for name, tensor in state.items() if name.startswith(prefix)}
        spec, tensors = _prune_layer(teacher.config.layers[index], layer, shape, importance.layers[index], hidden)
        specs.append(spec)
        pruned |= {f"layers.{new_index}.{name}": tensor for name, tensor in tensors.items()}
    student = HybridLM(msgspec.structs.replace(teacher.config, hidden=len(hidden), layers=tuple(specs), mtp=None))
    student.load_state_dict(pruned)
    return student


def _best(scores: Tensor, count: int | None, what: str) -> Tensor:
    """Indices of the highest scores, in their original order; all of them if count is None."""
    if count is None:
        return torch.arange(len(scores))
    if not 0 < count <= len(scores):
        raise ConfigError(
            explain(f"The student's {what}", expected=f"1 to {len(scores)}", found=count, todo="Correct the recipe.")
        )
    return scores.topk(count).indices.sort().values


def _choose_layers(config: ModelConfig, shape: StudentShape, importance: Importance) -> list[int]:
    """Of each kind those layers without which the logits move furthest."""
    kept: list[int] = []
    for kind in sorted({spec.kind for spec in config.layers}):
        indices = [index for index, spec in enumerate(config.layers) if spec.kind == kind]
        count = shape.layers.get(kind, len(indices))
        scores = torch.tensor([importance.layers[index].removal for index in indices])
        if count > 0:
            kept += [indices[position] for position in _best(scores, count, f"{kind} layers").tolist()]
    return sorted(kept)


def _prune_layer(
    spec: LayerSpec, tensors: dict[str, Tensor], shape: StudentShape, scores: LayerImportance, hidden: Tensor
) -> tuple[LayerSpec, dict[str, Tensor]]:
    mixer = {name[len("mixer.") :]: tensor for name, tensor in tensors.items() if name.startswith("mixer.")}
    new_spec, mixer = _prune_mixer(spec, mixer, shape, scores.parts, hidden)
    renamed = {f"mixer.{name}": tensor for name, tensor in mixer.items()}
    return new_spec, {"norm.weight": tensors["norm.weight"][hidden], **renamed}


def _prune_mixer(
    spec: LayerSpec, mixer: dict[str, Tensor], shape: StudentShape, parts: dict[str, Tensor], hidden: Tensor
) -> tuple[LayerSpec, dict[str, Tensor]]:
    if isinstance(spec, Mamba2Spec):
        return _prune_mamba2(spec, mixer, shape, parts, hidden)
    if isinstance(spec, AttentionSpec):
        return _prune_attention(spec, mixer, shape, parts, hidden)
    if isinstance(spec, ParallelSpec):
        return _prune_parallel(spec, mixer, shape, parts, hidden)
    if isinstance(spec, MoeSpec):
        return _prune_moe(spec, mixer, shape, parts, hidden)
    kept = _best(parts["intermediate"], shape.intermediate, "intermediate")
    return msgspec.structs.replace(spec, intermediate=len(kept)), _prune_mlp("", mixer, kept, hidden)


def _prune_parallel(
    spec: ParallelSpec, mixer: dict[str, Tensor], shape: StudentShape, parts: dict[str, Tensor], hidden: Tensor
) -> tuple[ParallelSpec, dict[str, Tensor]]:
    """Prunes both branches, each as if it stood alone."""
    pruned: dict[str, Tensor] = {}
    specs: dict[str, LayerSpec] = {}
    for name in ("mamba", "attention"):
        branch = {key.removeprefix(f"{name}."): value for key, value in mixer.items() if key.startswith(f"{name}.")}
        specs[name], branch = _prune_mixer(getattr(spec, name), branch, shape, parts, hidden)
        pruned |= {f"{name}.{key}": value for key, value in branch.items()}
    return msgspec.structs.replace(spec, **specs), pruned


def _units(kept: Tensor, size: int) -> Tensor:
    """Channels of the kept units, each of ``size`` neighbouring channels."""
    return (kept[:, None] * size + torch.arange(size)).flatten()


def _prune_mamba2(
    spec: Mamba2Spec, mixer: dict[str, Tensor], shape: StudentShape, parts: dict[str, Tensor], hidden: Tensor
) -> tuple[Mamba2Spec, dict[str, Tensor]]:
    """Keeps as many heads in every group, since B, C and the norm are the group's."""
    heads = spec.heads if shape.mamba_heads is None else shape.mamba_heads
    if heads % spec.groups:
        raise ConfigError(
            explain("mamba_heads", expected=f"a multiple of {spec.groups}", found=heads, todo="Correct the recipe.")
        )
    by_group = parts["heads"].view(spec.groups, -1)
    kept = torch.cat(
        [
            _best(scores, heads // spec.groups, "mamba_heads") + group * by_group.shape[1]
            for group, scores in enumerate(by_group)
        ]
    )
    channels = _units(kept, spec.head_dim)
    bc = torch.arange(2 * spec.groups * spec.state)
    conv = torch.cat([channels, spec.inner + bc])
    rows = torch.cat([channels, spec.inner + conv, spec.inner + spec.conv_dim + kept])
    pruned = {
        "in_proj.weight": mixer["in_proj.weight"][rows][:, hidden],
        "conv_weight": mixer["conv_weight"][conv],
        "conv_bias": mixer["conv_bias"][conv],
        **{name: mixer[name][kept] for name in ("dt_bias", "A_log", "D")},
        "out_proj.weight": mixer["out_proj.weight"][hidden][:, channels],
    }
    kept_of = {"norm.weight": channels, "in_proj.bias": rows, "out_proj.bias": hidden}
    pruned |= {name: mixer[name][part] for name, part in kept_of.items() if name in mixer}
    return msgspec.structs.replace(spec, heads=heads), pruned


def _prune_attention(
    spec: AttentionSpec, mixer: dict[str, Tensor], shape: StudentShape, parts: dict[str, Tensor], hidden: Tensor
) -> tuple[AttentionSpec, dict[str, Tensor]]:
    """Keeps whole groups: a key-value head with all its query heads."""
    groups = _best(parts["kv_heads"], shape.kv_heads, "kv_heads")
    keys = _units(groups, spec.head_dim)
    queries = _units(groups, spec.head_dim * spec.heads // spec.kv_heads)
    heads = len(groups) * spec.heads // spec.kv_heads
    rows = {"q": queries, "k": keys, "v": keys}
    pruned = {f"{part}_proj.weight": mixer[f"{part}_proj.weight"][kept][:, hidden] for part, kept in rows.items()}
    pruned["o_proj.weight"] = mixer["o_proj.weight"][hidden][:, queries]
    if spec.bias:
        pruned |= {f"{part}_proj.bias": mixer[f"{part}_proj.bias"][kept] for part, kept in rows.items()}
    if spec.output_bias:
        pruned["o_proj.bias"] = mixer["o_proj.bias"][hidden]
    if spec.qk_norm:  # the same for all heads
        pruned |= {name: mixer[name] for name in ("q_norm.weight", "k_norm.weight")}
    return msgspec.structs.replace(spec, heads=heads, kv_heads=len(groups)), pruned


def both_halves(kept: Tensor, size: int) -> Tensor:
    """Indices of the kept channels of a gate, and of what stands behind its ``size`` channels."""
    return torch.cat([kept, kept + size])


def _prune_mlp(prefix: str, mixer: dict[str, Tensor], kept: Tensor, hidden: Tensor) -> dict[str, Tensor]:
    """Keeps the same channels of every projection that the MLP has, biases included."""
    pruned = {}
    for name in [name for name in mixer if name.startswith(prefix)]:
        part, _, kind = name.removeprefix(prefix).partition("_proj.")
        risen = both_halves(kept, len(mixer[name]) // 2) if part == "gate_up" else kept
        rows, columns = (hidden, kept) if part == "down" else (risen, hidden)
        pruned[name] = mixer[name][rows] if kind == "bias" else mixer[name][rows][:, columns]
    return pruned


def _prune_moe(
    spec: MoeSpec, mixer: dict[str, Tensor], shape: StudentShape, parts: dict[str, Tensor], hidden: Tensor
) -> tuple[MoeSpec, dict[str, Tensor]]:
    """Keeps the experts with the most routing mass, and of each its own best channels."""
    if spec.n_group > 1 and shape.experts not in (None, spec.experts):
        raise ConfigError(explain("experts", expected="one routing group", found=spec.n_group, todo="Keep them all."))
    kept = _best(parts["experts"], shape.experts, "experts")
    shared = _best(parts["shared_intermediate"], shape.shared_intermediate, "shared_intermediate")
    width = shape.expert_intermediate
    channels = [_best(parts["expert_intermediate"][expert], width, "expert_intermediate") for expert in kept]
    latent = hidden if spec.latent is None else torch.arange(spec.latent)
    up, down = mixer["experts.up_weight"], mixer["experts.down_weight"]

    def risen(of: Tensor) -> Tensor:
        return both_halves(of, spec.intermediate) if spec.activation == "silu_gated" else of

    pruned = {
        "gate.weight": mixer["gate.weight"][kept][:, hidden],
        "gate.e_score_correction_bias": mixer["gate.e_score_correction_bias"][kept],
        "experts.up_weight": torch.stack([up[e][latent][:, risen(c)] for e, c in zip(kept, channels)]),
        "experts.down_weight": torch.stack([down[e][c][:, latent] for e, c in zip(kept, channels)]),
        **_prune_mlp("shared_experts.", mixer, shared, hidden),
    }
    if spec.latent is not None:
        pruned["fc1_latent_proj.weight"] = mixer["fc1_latent_proj.weight"][:, hidden]
        pruned["fc2_latent_proj.weight"] = mixer["fc2_latent_proj.weight"][hidden]
    new_spec = msgspec.structs.replace(
        spec,
        experts=len(kept),
        top_k=min(spec.top_k, len(kept)),
        intermediate=len(channels[0]),
        shared_intermediate=len(shared),
    )
    return new_spec, pruned
