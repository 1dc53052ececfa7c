"""Cuts a model down to a smaller one of the same family: layers, hidden width, heads, channels, experts.

A norm divides by the mean square of its input, which changes when channels go: its weight is scaled so that the kept
channels leave it, on the calibration data, about as large as before: channels that are always zero leave no trace.
"""

from __future__ import annotations

import logging

import msgspec
import torch
from torch import Tensor

from edge_export.activation_sums import LayerImportance
from edge_export.importance import Importance
from edge_export.models import make_model
from edge_export.policy_prune import prune_ends
from edge_export.slices import best, prune_norm, units
from edge_export.torch_model import HybridBody
from edge_sdk.errors import ConfigError, explain
from edge_sdk.model import AttentionSpec, LayerSpec, Mamba2Spec, MlpSpec, ModelConfig, MoeSpec, ParallelSpec
from edge_sdk.policy_spec import PolicySpec

log = logging.getLogger("edge_export")


class StudentShape(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Sizes of the student; what is None stays as the teacher has it."""

    hidden: int | None = None
    layers: dict[str, int] = {}
    """How many layers of a kind (mamba2, attention, mlp, moe, parallel) to keep."""
    mamba_heads: int | None = None
    mamba_head_dim: int | None = None
    """Channels of each Mamba head; kernels are fastest with multiples of 16."""
    kv_heads: int | None = None
    intermediate: int | None = None
    experts: int | None = None
    expert_intermediate: int | None = None
    shared_intermediate: int | None = None
    encoder_width: int | None = None
    """Of a policy, as what follows."""
    decoder_layers: int | None = None
    decoder_heads: int | None = None
    decoder_intermediate: int | None = None


def prune(teacher: HybridBody, shape: StudentShape, importance: Importance) -> HybridBody:
    """The student: the teacher's most important parts, in their order. Raises ConfigError for larger sizes.

    A drafting head is dropped: it was trained on hidden states that the student does not have.
    """
    config = teacher.config
    if config.vision is not None:
        todo = "Prune the language model before it is joined to a tower."
        raise ConfigError(explain("The teacher", expected="a model of text", found="one that sees", todo=todo))
    if config.mtp is not None:
        log.warning(
            "the student gets no drafting head: the teacher's was trained on the teacher's hidden states. Once the "
            "student is distilled, `edge-export head` trains one for it"
        )
    hidden = best(importance.hidden, _size(config.hidden, shape.hidden, "hidden"))
    state = {name: tensor.detach().cpu() for name, tensor in teacher.state_dict().items()}
    specs: list[LayerSpec] = []
    new = shrink(config, shape)
    pruned: dict[str, Tensor] = {
        name: state[name][:, hidden] for name in ("embeddings.weight", "lm_head.weight") if name in state
    }
    pruned["norm_f.weight"] = prune_norm(state["norm_f.weight"], hidden, importance.norm_input)
    if config.policy is not None:
        assert new.policy is not None
        assert importance.policy is not None
        pruned |= prune_ends(config.policy, new.policy, state, hidden, importance.policy)
    for new_index, index in enumerate(_choose_layers(config, shape, importance)):
        prefix, spec = f"layers.{index}.", config.layers[index]
        layer = {name[len(prefix) :]: tensor for name, tensor in state.items() if name.startswith(prefix)}
        specs.append(shrink_spec(spec, shape))
        tensors = _prune_layer(spec, specs[-1], layer, importance.layers[index], hidden)
        pruned |= {f"layers.{new_index}.{name}": tensor for name, tensor in tensors.items()}
    student = make_model(msgspec.structs.replace(new, layers=tuple(specs), mtp=None))
    student.load_state_dict(pruned)
    return student


def shrink(config: ModelConfig, shape: StudentShape) -> ModelConfig:
    """The student's description, as if of each kind the first layers were kept. Raises ConfigError."""
    left = {spec.kind: _wanted_layers(config, shape, spec.kind) for spec in config.layers}
    specs: list[LayerSpec] = []
    for spec in config.layers:
        left[spec.kind] -= 1
        if left[spec.kind] >= 0:
            specs.append(shrink_spec(spec, shape))
    hidden = _size(config.hidden, shape.hidden, "hidden")
    policy = None if config.policy is None else shrink_policy(config.policy, shape)
    return msgspec.structs.replace(config, hidden=hidden, layers=tuple(specs), policy=policy)


def shrink_policy(spec: PolicySpec, shape: StudentShape) -> PolicySpec:
    """A policy's encoder and decoder with the student's sizes. Raises ConfigError for larger ones."""
    encoder, decoder = spec.encoder, spec.decoder
    width = _size(encoder.width, shape.encoder_width, "encoder_width")
    sizes = {
        name: _size(getattr(decoder, name), getattr(shape, f"decoder_{name}"), f"decoder_{name}")
        for name in ("layers", "heads", "intermediate")
    }
    return msgspec.structs.replace(
        spec,
        encoder=msgspec.structs.replace(encoder, width=width),
        decoder=msgspec.structs.replace(decoder, **sizes),
    )


def shrink_spec(spec: LayerSpec, shape: StudentShape) -> LayerSpec:
    """A layer's spec with the student's sizes. Raises ConfigError for those that are larger or do not fit."""
    if isinstance(spec, Mamba2Spec):
        heads = _size(spec.heads, shape.mamba_heads, "mamba_heads")
        head_dim = _size(spec.head_dim, shape.mamba_head_dim, "mamba_head_dim")
        return msgspec.structs.replace(spec, heads=heads, head_dim=head_dim)
    if isinstance(spec, AttentionSpec):
        kv_heads = _size(spec.kv_heads, shape.kv_heads, "kv_heads")
        return msgspec.structs.replace(spec, heads=kv_heads * spec.heads // spec.kv_heads, kv_heads=kv_heads)
    if isinstance(spec, MlpSpec):
        return msgspec.structs.replace(spec, intermediate=_size(spec.intermediate, shape.intermediate, "intermediate"))
    if isinstance(spec, ParallelSpec):
        mamba, attention = shrink_spec(spec.mamba, shape), shrink_spec(spec.attention, shape)
        return msgspec.structs.replace(spec, mamba=mamba, attention=attention)
    if spec.n_group > 1 and shape.experts not in (None, spec.experts):
        raise ConfigError(explain("experts", expected="one routing group", found=spec.n_group, todo="Keep them all."))
    experts = _size(spec.experts, shape.experts, "experts")
    return msgspec.structs.replace(
        spec,
        experts=experts,
        top_k=min(spec.top_k, experts),
        intermediate=_size(spec.intermediate, shape.expert_intermediate, "expert_intermediate"),
        shared_intermediate=_size(spec.shared_intermediate, shape.shared_intermediate, "shared_intermediate"),
    )


def _size(of_teacher: int, wanted: int | None, what: str) -> int:
    if wanted is None:
        return of_teacher
    if not 0 < wanted <= of_teacher:
        raise ConfigError(
            explain(f"The student's {what}", expected=f"1 to {of_teacher}", found=wanted, todo="Correct the shape.")
        )
    return wanted


def _wanted_layers(config: ModelConfig, shape: StudentShape, kind: str) -> int:
    there = sum(spec.kind == kind for spec in config.layers)
    wanted = shape.layers.get(kind)
    return 0 if wanted == 0 else _size(there, wanted, f"{kind} layers")


def _choose_layers(config: ModelConfig, shape: StudentShape, importance: Importance) -> list[int]:
    """Of each kind those layers without which the logits move furthest."""
    kept: list[int] = []
    for kind in sorted({spec.kind for spec in config.layers}):
        indices = [index for index, spec in enumerate(config.layers) if spec.kind == kind]
        scores = torch.tensor([importance.layers[index].removal for index in indices])
        kept += [indices[position] for position in best(scores, _wanted_layers(config, shape, kind)).tolist()]
    return sorted(kept)


def _prune_layer(
    spec: LayerSpec, new: LayerSpec, tensors: dict[str, Tensor], scores: LayerImportance, hidden: Tensor
) -> dict[str, Tensor]:
    """A layer's tensors, cut from the sizes of ``spec`` to those of ``new``."""
    mixer = {name[len("mixer.") :]: tensor for name, tensor in tensors.items() if name.startswith("mixer.")}
    mixer = _prune_mixer(spec, new, mixer, scores.parts, hidden)
    renamed = {f"mixer.{name}": tensor for name, tensor in mixer.items()}
    return {"norm.weight": prune_norm(tensors["norm.weight"], hidden, scores.norm_input), **renamed}


def _prune_mixer(
    spec: LayerSpec, new: LayerSpec, mixer: dict[str, Tensor], parts: dict[str, Tensor], hidden: Tensor
) -> dict[str, Tensor]:
    if isinstance(spec, Mamba2Spec) and isinstance(new, Mamba2Spec):
        return _prune_mamba2(spec, new, mixer, parts, hidden)
    if isinstance(spec, AttentionSpec) and isinstance(new, AttentionSpec):
        return _prune_attention(spec, new, mixer, parts, hidden)
    if isinstance(spec, MlpSpec) and isinstance(new, MlpSpec):
        return _prune_mlp("", mixer, best(parts["intermediate"], new.intermediate), hidden)
    if isinstance(spec, MoeSpec) and isinstance(new, MoeSpec):
        return _prune_moe(spec, new, mixer, parts, hidden)
    if isinstance(spec, ParallelSpec) and isinstance(new, ParallelSpec):
        return _prune_parallel(spec, new, mixer, parts, hidden)
    raise AssertionError(f"{spec.kind} does not become {new.kind}")


def _prune_parallel(
    spec: ParallelSpec, new: ParallelSpec, mixer: dict[str, Tensor], parts: dict[str, Tensor], hidden: Tensor
) -> dict[str, Tensor]:
    """Prunes both branches, each as if it stood alone."""
    pruned: dict[str, Tensor] = {}
    for name in ("mamba", "attention"):
        branch = {key.removeprefix(f"{name}."): value for key, value in mixer.items() if key.startswith(f"{name}.")}
        branch = _prune_mixer(getattr(spec, name), getattr(new, name), branch, parts, hidden)
        pruned |= {f"{name}.{key}": value for key, value in branch.items()}
    return pruned


def _prune_mamba2(
    spec: Mamba2Spec, new: Mamba2Spec, mixer: dict[str, Tensor], parts: dict[str, Tensor], hidden: Tensor
) -> dict[str, Tensor]:
    """Keeps as many heads in every group, since B, C and the norm are the group's, and each head's best channels."""
    group_heads, group_width = spec.heads // spec.groups, spec.inner // spec.groups
    channels_of = torch.stack([best(scores, new.head_dim) for scores in parts["channels"]])  # (heads, head_dim kept)
    by_group = parts["channels"].gather(1, channels_of).sum(1).view(spec.groups, group_heads)
    first = torch.arange(spec.groups)[:, None]
    kept = torch.stack([best(scores, new.heads // spec.groups) for scores in by_group]) + first * group_heads
    channels = (kept[..., None] * spec.head_dim + channels_of[kept]).flatten(1)  # (groups, channels of a group)
    heads, inner = kept.flatten(), channels.flatten()
    conv = torch.cat([inner, spec.inner + torch.arange(2 * spec.groups * spec.state)])
    rows = torch.cat([inner, spec.inner + conv, spec.inner + spec.conv_dim + heads])
    pruned = {
        "in_proj.weight": mixer["in_proj.weight"][rows][:, hidden],
        "conv_weight": mixer["conv_weight"][conv],
        "conv_bias": mixer["conv_bias"][conv],
        **{name: mixer[name][heads] for name in ("dt_bias", "A_log", "D")},
        "out_proj.weight": mixer["out_proj.weight"][hidden][:, inner],
    }
    if spec.norm:
        norms = zip(
            mixer["norm.weight"].view(spec.groups, -1),
            channels - first * group_width,
            parts["norm_input"].view(spec.groups, -1),
        )
        pruned["norm.weight"] = torch.cat([prune_norm(*norm) for norm in norms])
    kept_of = {"in_proj.bias": rows, "out_proj.bias": hidden}
    return pruned | {name: mixer[name][part] for name, part in kept_of.items() if name in mixer}


def _prune_attention(
    spec: AttentionSpec, new: AttentionSpec, mixer: dict[str, Tensor], parts: dict[str, Tensor], hidden: Tensor
) -> dict[str, Tensor]:
    """Keeps whole groups: a key-value head with all its query heads."""
    groups = best(parts["kv_heads"], new.kv_heads)
    keys = units(groups, spec.head_dim)
    queries = units(groups, spec.head_dim * spec.heads // spec.kv_heads)
    rows = {"q": queries, "k": keys, "v": keys}
    pruned = {f"{part}_proj.weight": mixer[f"{part}_proj.weight"][kept][:, hidden] for part, kept in rows.items()}
    pruned["o_proj.weight"] = mixer["o_proj.weight"][hidden][:, queries]
    if spec.bias:
        pruned |= {f"{part}_proj.bias": mixer[f"{part}_proj.bias"][kept] for part, kept in rows.items()}
    if spec.output_bias:
        pruned["o_proj.bias"] = mixer["o_proj.bias"][hidden]
    if spec.qk_norm:  # the same for all heads
        pruned |= {name: mixer[name] for name in ("q_norm.weight", "k_norm.weight")}
    return pruned


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
    spec: MoeSpec, new: MoeSpec, mixer: dict[str, Tensor], parts: dict[str, Tensor], hidden: Tensor
) -> dict[str, Tensor]:
    """Keeps the experts that add most to the output, and of each its own best channels."""
    kept = best(parts["experts"], new.experts)
    shared = best(parts["shared_intermediate"], new.shared_intermediate)
    channels = [best(parts["expert_intermediate"][expert], new.intermediate) for expert in kept]
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
    return pruned
