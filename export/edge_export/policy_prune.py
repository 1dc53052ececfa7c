"""Cuts a policy's encoder and decoder down with the layers between them."""

from __future__ import annotations

import torch
from torch import Tensor

from edge_export.activation_sums import LayerImportance
from edge_export.policy_importance import PolicyImportance
from edge_export.slices import best, prune_norm, units
from edge_sdk.policy_spec import DecoderSpec, PolicySpec, images

State = dict[str, Tensor]


def prune_ends(spec: PolicySpec, new: PolicySpec, state: State, hidden: Tensor, scores: PolicyImportance) -> State:
    """The tensors of encoder and decoder, cut to the sizes of ``new`` and to the kept ``hidden`` channels."""
    pruned = _vectors(new, state, hidden, scores)
    for index in range(len(images(spec.schema))):
        prefix = f"encoder.images.{index}."
        kept = {name: tensor for name, tensor in state.items() if name.startswith(f"{prefix}convolutions.")}
        pruned |= kept | {f"{prefix}fc.{kind}": state[f"{prefix}fc.{kind}"][hidden] for kind in ("weight", "bias")}
    same = ("action_out.bias", "time_in.weight", "time_in.bias")
    pruned |= {f"decoder.{name}": state[f"decoder.{name}"] for name in same if f"decoder.{name}" in state}
    rows = ("action_in.weight", "action_in.bias", "time_out.weight", "time_out.bias")
    pruned |= {f"decoder.{name}": state[f"decoder.{name}"][hidden] for name in rows if f"decoder.{name}" in state}
    pruned |= {f"decoder.{name}": state[f"decoder.{name}"][:, hidden] for name in ("place", "action_out.weight")}
    pruned["decoder.norm.weight"] = prune_norm(state["decoder.norm.weight"], hidden, scores.norm_input)
    removal = torch.tensor([block.removal for block in scores.blocks])
    for new_index, index in enumerate(best(removal, new.decoder.layers).tolist()):
        prefix = f"decoder.blocks.{index}."
        block = {name[len(prefix) :]: tensor for name, tensor in state.items() if name.startswith(prefix)}
        block = _block(spec.decoder, new.decoder, block, hidden, scores.blocks[index])
        pruned |= {f"decoder.blocks.{new_index}.{name}": tensor for name, tensor in block.items()}
    return pruned


def _vectors(new: PolicySpec, state: State, hidden: Tensor, scores: PolicyImportance) -> State:
    prefix = "encoder.vectors."
    vectors = {name[len(prefix) :]: tensor for name, tensor in state.items() if name.startswith(prefix)}
    if not vectors:
        return {}
    pruned = {"fc2.weight": vectors["fc2.weight"][hidden], "fc2.bias": vectors["fc2.bias"][hidden]}
    if scores.encoder_width is not None:
        width = best(scores.encoder_width, new.encoder.width)
        pruned |= {f"fc1.{kind}": vectors[f"fc1.{kind}"][width] for kind in ("weight", "bias")}
        pruned["fc2.weight"] = pruned["fc2.weight"][:, width]
    return {prefix + name: tensor for name, tensor in pruned.items()}


def _block(spec: DecoderSpec, new: DecoderSpec, block: State, hidden: Tensor, scores: LayerImportance) -> State:
    inner = units(best(scores.parts["heads"], new.heads), spec.head_dim)
    risen = best(scores.parts["intermediate"], new.intermediate)
    size = spec.heads * spec.head_dim
    qkv = torch.cat([inner, inner + size, inner + 2 * size])
    return {
        "norm1.weight": prune_norm(block["norm1.weight"], hidden, scores.norm_input),
        "qkv_proj.weight": block["qkv_proj.weight"][qkv][:, hidden],
        "out_proj.weight": block["out_proj.weight"][hidden][:, inner],
        "norm2.weight": prune_norm(block["norm2.weight"], hidden, scores.parts["norm_input"]),
        "up_proj.weight": block["up_proj.weight"][risen][:, hidden],
        "down_proj.weight": block["down_proj.weight"][hidden][:, risen],
    }
