"""Checkpoint families: each module maps one config.json dialect and its tensor names to ours."""

from __future__ import annotations

import json
from types import ModuleType

from edge_export.families import (
    bamba,
    falcon_h1,
    granitemoehybrid,
    llama,
    llava,
    mamba2,
    nemotron_h,
    nemotron_h_puzzle,
    policy,
    qwen3,
)
from edge_sdk.errors import CheckpointError, explain

FAMILIES: dict[str, ModuleType] = {
    "bamba": bamba,
    "falcon_h1": falcon_h1,
    "granitemoehybrid": granitemoehybrid,
    "llama": llama,
    "llava": llava,
    "mamba2": mamba2,
    "nemotron_h": nemotron_h,
    "nemotron_h_puzzle": nemotron_h_puzzle,
    policy.FAMILY: policy,
    "qwen3": qwen3,
}
"""By config.json's ``model_type``.

A module has parse_config, format_config, tensor_maps, and FIXED: the settings that must have one value.
"""


def family_of(config: dict[str, object]) -> ModuleType:
    """The family that a config.json's ``model_type`` names."""
    model_type = config.get("model_type")
    if model_type not in FAMILIES:
        raise CheckpointError(
            explain(
                "config.json's model_type",
                expected="one of " + ", ".join(sorted(FAMILIES)),
                found=repr(model_type),
                todo="Convert the checkpoint to one of these families, or add a family file.",
            )
        )
    return FAMILIES[str(model_type)]


def table() -> str:
    """The families as a Markdown table, as docs/families.md has it."""
    rows = ["| `model_type` | checkpoints and layers | settings that must have this value |", "|---|---|---|"]
    for model_type, family in sorted(FAMILIES.items()):
        fixed = ", ".join(f"`{key}` {json.dumps(value)}" for key, value in family.FIXED.items())
        rows.append(f"| `{model_type}` | {str(family.__doc__).splitlines()[0].rstrip('.')} | {fixed} |")
    return "\n".join(rows) + "\n"
