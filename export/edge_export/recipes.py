"""Recipes: YAML files that say how a model is trained or distilled."""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypeVar

import msgspec

from edge_export.distil import DistilSchedule
from edge_export.prune import StudentShape
from edge_export.training import Schedule
from edge_sdk.errors import ConfigError, explain


class TrainRecipe(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A model from scratch: its config.json as a mapping, and the schedule."""

    model: dict[str, Any]
    schedule: Schedule


class DistilRecipe(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A student: its shape, and the schedule of its distillation."""

    student: StudentShape
    schedule: DistilSchedule
    calibration_samples: int = 256
    """Samples of the training data that the parts' importance is measured on."""


Recipe = TypeVar("Recipe", TrainRecipe, DistilRecipe)


def read_recipe(path: Path, kind: type[Recipe]) -> Recipe:
    """Parses and checks a recipe. Raises ConfigError naming the setting that is wrong."""
    try:
        return msgspec.yaml.decode(path.read_bytes(), type=kind)
    except (msgspec.DecodeError, OSError) as error:
        raise ConfigError(
            explain(str(path), expected=f"a {kind.__name__}", found=error, todo="Correct the recipe.")
        ) from None
