"""Knowledge distillation: the student learns the teacher's distribution over the next token."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edge_export.data import StepBatch
from edge_export.teacher import Targets, Teacher, watched
from edge_export.torch_model import HybridBody
from edge_export.training import Schedule
from edge_sdk.errors import ConfigError, explain


class DistilSchedule(Schedule, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A schedule with the distillation's own settings."""

    temperature: float = 1.0
    """Both distributions are softened by it; the loss is scaled by its square (Hinton et al. 2015, 1503.02531)."""
    top_k: int = 64
    """Of the teacher's logits those that are stored, with the sum of the others; 0 asks the teacher in every step."""
    data_weight: float = 0.0
    """Share of the data's own cross-entropy in the loss."""
    hidden_weight: float = 0.0
    """Of the distance between student's and teacher's residual streams, added to the loss; needs top_k 0."""
    hidden_points: int = 1
    """Where the streams are compared: evenly over the depth, the last after the last layer."""
    hidden_distance: Literal["cosine", "mse"] = "cosine"

    def __post_init__(self) -> None:
        if self.hidden_weight and self.top_k:
            raise ConfigError(
                explain(
                    "hidden_weight", expected="top_k: 0", found=f"top_k: {self.top_k}", todo="Only logits are kept."
                )
            )

    @property
    def points(self) -> int:
        """How often the residual streams are compared."""
        return self.hidden_points if self.hidden_weight else 0


Gap = Callable[[HybridBody, Tensor, Any, DistilSchedule], Tensor]
"""From the student, what it predicts and what the teacher answers: how far they are apart, summed over the targets."""


class DistilLoss(nn.Module):
    """How far the student is from the teacher, per target, and what is added to it.

    Unless another ``gap`` is given that is the forward KL divergence from the teacher's distribution to the student's.
    """

    def __init__(
        self,
        teacher: Teacher,
        schedule: DistilSchedule,
        residuals: ResidualDistance | None = None,
        gap: Gap | None = None,
    ) -> None:
        super().__init__()
        self._teacher, self._schedule, self._residuals, self._gap = teacher, schedule, residuals, gap or token_gap

    def forward(self, model: HybridBody, batch: StepBatch) -> Tensor:
        schedule = self._schedule
        with watched(model, schedule.points) as residuals:
            found = model.predict(batch)
        targets = self._teacher.of(batch)
        loss = self._gap(model, found, targets, schedule)
        if schedule.data_weight:
            loss = (1 - schedule.data_weight) * loss + schedule.data_weight * model.data_error(found, batch)
        if self._residuals is not None:
            mine = [residual[batch.counted] for residual in residuals]
            loss = loss + schedule.hidden_weight * self._residuals(mine, targets.residuals)
        return loss / batch.tokens


def token_gap(model: HybridBody, found: Tensor, targets: Targets, schedule: DistilSchedule) -> Tensor:
    """Of a language model's logits (tokens, vocab)."""
    return divergence(found / schedule.temperature, targets) * schedule.temperature**2


class ResidualDistance(nn.Module):
    """How far the student's residual streams are from the teacher's, through a learnt projection if widths differ."""

    def __init__(self, student: int, teacher: int, points: int, distance: str) -> None:
        super().__init__()
        same = student == teacher
        self.projections = nn.ModuleList(
            nn.Identity() if same else nn.Linear(student, teacher, bias=False) for _ in range(points)
        )
        self.distance = distance

    def forward(self, student: Sequence[Tensor], teacher: Sequence[Tensor]) -> Tensor:
        """Mean over the points of the sum over the tokens, from (tokens, hidden) each.

        "cosine" is 1 less the cosine, "mse" the squared distance over the teacher's squared length.
        """
        total = torch.zeros((), device=student[0].device)
        for project, mine, other in zip(self.projections, student, teacher):
            projected = project(mine).float()
            if self.distance == "cosine":
                apart = 1 - F.cosine_similarity(projected, other.float(), dim=-1)
            else:
                apart = (projected - other).square().sum(-1) / other.float().square().sum(-1).clamp(min=1e-12)
            total = total + apart.sum()
        return total / len(student)


def divergence(logits: Tensor, targets: Targets) -> Tensor:
    """Sum over the tokens of KL(teacher || student), the student's logits (tokens, vocab) already softened.

    With top-k targets the other tokens are one event, so that the sum is a lower bound of the whole divergence.
    """
    student = logits.log_softmax(-1)
    if targets.ids is not None:
        rest = student.scatter(-1, targets.ids, float("-inf")).logsumexp(-1, keepdim=True)
        student = torch.cat([student.gather(-1, targets.ids), rest], -1)
    possible = targets.log_probs > float("-inf")
    gap = torch.where(possible, targets.log_probs - student, 0.0)
    return (targets.log_probs.exp() * gap).sum()
