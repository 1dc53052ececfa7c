"""Recipes: YAML files that say how a model is trained or distilled."""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypeVar

import msgspec

from edge_export.budget import Budget
from edge_export.distil import DistilSchedule
from edge_export.drafting_head import HeadSchedule
from edge_export.episode_batches import EpisodeSettings
from edge_export.prune import StudentShape
from edge_export.students import SearchSettings
from edge_export.training import Schedule
from edge_sdk.errors import ConfigError, explain


class TrainRecipe(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A model from scratch: its config.json as a mapping, and the schedule."""

    model: dict[str, Any]
    schedule: Schedule
    episodes: EpisodeSettings = EpisodeSettings()
    """Of a policy: what it learns of an episode in a step."""


class DistilRecipe(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A student, by its shape or by a budget, and the schedule of its distillation."""

    schedule: DistilSchedule
    student: StudentShape | None = None
    budget: Budget | None = None
    search: SearchSettings = SearchSettings()
    episodes: EpisodeSettings = EpisodeSettings()
    """As in :class:`TrainRecipe`."""

    @property
    def target(self) -> StudentShape | Budget:
        """What the teacher is pruned to. Raises ConfigError unless it is said once."""
        if (self.student is None) == (self.budget is None):
            found = "neither" if self.student is None else "both"
            raise ConfigError(
                explain("The recipe", expected="`student` or `budget`", found=found, todo="Give one of them.")
            )
        return self.student or self.budget  # type: ignore[return-value]  # one of them it is


class HeadRecipe(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A drafting head, and the schedule of its training."""

    schedule: HeadSchedule
    layers: str | None = None
    """In the letters of ModelConfig.pattern, as ``*E``, each like the model's; None takes attention and experts or MLP,
    as far as the model has them."""


Recipe = TypeVar("Recipe", TrainRecipe, DistilRecipe, HeadRecipe, StudentShape)


def read_recipe(path: Path, kind: type[Recipe]) -> Recipe:
    """Parses and checks a recipe. Raises ConfigError naming the setting that is wrong, OSError without the file."""
    try:
        return msgspec.yaml.decode(path.read_bytes(), type=kind)
    except msgspec.DecodeError as error:
        expected = f"YAML of {', '.join(kind.__struct_fields__)}"
        raise ConfigError(
            explain(str(path), expected=expected, found=error, todo="Correct it (docs/distil.md).")
        ) from None
