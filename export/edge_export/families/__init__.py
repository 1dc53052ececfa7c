"""Checkpoint families: each module maps one config.json dialect and its tensor names to ours."""

from __future__ import annotations

from types import ModuleType

from edge_export.families import nemotron_h
from edge_sdk.errors import CheckpointError, explain

FAMILIES: dict[str, ModuleType] = {"nemotron_h": nemotron_h}


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
