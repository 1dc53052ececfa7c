"""Knowledge distillation: the student learns the teacher's distribution over the next token."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from rich.progress import track
from torch import Tensor

from edge_export.data import Batch, Sample, collate
from edge_export.terminal import console
from edge_export.torch_model import HybridLM
from edge_export.training import Schedule

TEACHER_BATCH = 256


class DistilSchedule(Schedule, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A schedule with the distillation's own settings."""

    temperature: float = 1.0
    """Both distributions are softened by it; the loss is scaled by its square (Hinton et al. 2015, 1503.02531)."""


class TeacherLogits:
    """The teacher's logits at every completion position of a data set, computed once.

    Memory: 4 * vocab_size bytes per completion token.
    """

    @torch.no_grad()
    def __init__(self, teacher: HybridLM, samples: Sequence[Sample]) -> None:
        teacher.eval()
        self._logits: dict[int, Tensor] = {}
        order = sorted(range(len(samples)), key=lambda index: len(samples[index].ids))
        starts = range(0, len(order), TEACHER_BATCH)
        for start in track(starts, "teacher logits", console=console):
            batch = collate(samples, order[start : start + TEACHER_BATCH])
            logits, counted = teacher(batch.input_ids), batch.targets >= 0
            for row, index in enumerate(batch.indices):
                self._logits[index] = logits[row][counted[row]].clone()

    def of(self, batch: Batch) -> Tensor:
        """Logits (completion tokens, vocab) in the batch's order."""
        return torch.cat([self._logits[index] for index in batch.indices])


class DistilLoss:
    """Forward KL divergence from the teacher's to the student's distribution, per completion token."""

    def __init__(self, teacher: TeacherLogits, temperature: float) -> None:
        self._teacher, self._temperature = teacher, temperature

    def __call__(self, model: HybridLM, batch: Batch) -> Tensor:
        student = (model(batch.input_ids)[batch.targets >= 0] / self._temperature).log_softmax(-1)
        teacher = (self._teacher.of(batch) / self._temperature).log_softmax(-1)
        return F.kl_div(student, teacher, log_target=True, reduction="batchmean") * self._temperature**2
