"""What a model is to learn, in tokens or in episodes: its batches, and how a teacher teaches it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from edge_export.data import Batches, BatchSource, Sample
from edge_export.distil import DistilSchedule, Gap, token_gap
from edge_export.distributed import load_sharded
from edge_export.episode_batches import EpisodeBatches, EpisodeSettings
from edge_export.episodes import EpisodeSource
from edge_export.teacher import Answers, LivePolicyTeacher, LiveTeacher, Teacher, stored_teacher
from edge_export.torch_model import HybridBody, HybridLM
from edge_export.training import LossFunction, cross_entropy, data_loss
from edge_sdk.errors import ConfigError, explain
from edge_sdk.instruction import InstructionCodec
from edge_sdk.policy_spec import PolicySpec


class Lessons(Protocol):
    """What the commands ask of data, whatever kind of model learns from it."""

    @property
    def loss(self) -> LossFunction:
        """What the data says of a model."""
        ...

    @property
    def gap(self) -> Gap:
        """Between a student and its teacher."""
        ...

    def batches(self, batch_size: int, seed: int, *, packing: bool = False) -> BatchSource:
        """The data in batches. Raises ConfigError where it cannot be packed."""
        ...

    def live_teacher(self, model: HybridBody, schedule: DistilSchedule) -> Teacher:
        """A model that is asked in every step."""
        ...

    def teacher(self, checkpoint: Path, schedule: DistilSchedule, folder: Path, device: torch.device) -> Teacher:
        """A checkpoint as the schedule wants it asked; ``folder`` is for what it answers beforehand."""
        ...


@dataclass(frozen=True)
class TokenLessons:
    """For a language model."""

    samples: Sequence[Sample]
    loss: LossFunction = cross_entropy
    gap: Gap = token_gap

    def batches(self, batch_size: int, seed: int, *, packing: bool = False) -> BatchSource:
        """Batches of tokens."""
        return Batches(self.samples, batch_size, seed, packing=packing)

    def live_teacher(self, model: HybridBody, schedule: DistilSchedule) -> Teacher:
        """With its whole distributions."""
        assert isinstance(model, HybridLM)
        return LiveTeacher(model, schedule.temperature, schedule.points)

    def teacher(self, checkpoint: Path, schedule: DistilSchedule, folder: Path, device: torch.device) -> Teacher:
        """With ``top_k``, its answers stored in the folder."""
        if not schedule.top_k:
            return self.live_teacher(load_sharded(checkpoint, device), schedule)
        return stored_teacher(
            checkpoint, self.samples, folder, top_k=schedule.top_k, temperature=schedule.temperature, device=device
        )


def output_gap(model: HybridBody, found: Tensor, targets: Answers, schedule: DistilSchedule) -> Tensor:
    """Of a policy's actions or velocities (targets, action_dim)."""
    return model.moved(found, targets.output)


@dataclass(frozen=True)
class EpisodeLessons:
    """For a policy."""

    source: EpisodeSource
    spec: PolicySpec
    settings: EpisodeSettings
    codec: InstructionCodec | None = None
    loss: LossFunction = data_loss
    gap: Gap = output_gap

    def batches(self, batch_size: int, seed: int, *, packing: bool = False) -> BatchSource:
        """Batches of episodes."""
        if packing:
            raise ConfigError(explain("packing", expected="a language model", found="a policy", todo="Leave it out."))
        return EpisodeBatches(self.source, self.spec, self.settings, batch_size, seed, self.codec)

    def live_teacher(self, model: HybridBody, schedule: DistilSchedule) -> Teacher:
        """At the very noise and times that the student meets."""
        return LivePolicyTeacher(model, schedule.points)

    def teacher(self, checkpoint: Path, schedule: DistilSchedule, folder: Path, device: torch.device) -> Teacher:
        """Always asked anew: there is no end of noise."""
        return self.live_teacher(load_sharded(checkpoint, device), schedule)
