"""Students of a checkpoint: pruned to a shape or a budget, distilled; what the commands and recipes call."""

from __future__ import annotations

import shutil
from dataclasses import dataclass, replace
from pathlib import Path

import msgspec
import torch

from edge_export.budget import Budget
from edge_export.checkpoint import read_config
from edge_export.data import StepBatch
from edge_export.distil import DistilLoss, DistilSchedule, ResidualDistance
from edge_export.distributed import sharded, whole_model
from edge_export.importance import measure
from edge_export.lessons import Lessons
from edge_export.prune import StudentShape, prune
from edge_export.search import Candidate, by_zero_shot, candidates, zero_shot_loss
from edge_export.torch_model import HybridBody
from edge_export.training import LossFunction, Trainer


class SearchSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How importance is measured, and how a shape is searched for."""

    calibration_samples: int = 256
    """Of the data, drawn by the seed."""
    calibration_batch: int = 16
    """Samples that go through the model at once."""
    candidates: int = 24
    """Shapes that are pruned and judged by their loss."""
    tries: int = 3
    """Of them those that are distilled briefly, if ``try_steps`` is given."""
    try_steps: int = 0
    try_batch_size: int = 16
    seed: int = 0


def calibration_batches(lessons: Lessons, settings: SearchSettings) -> list[StepBatch]:
    """Samples drawn by the seed, those of similar lengths together."""
    generator, size = torch.Generator().manual_seed(settings.seed), settings.calibration_batch
    source = lessons.batches(size, settings.seed)
    drawn = torch.randperm(len(source.lengths), generator=generator)[: settings.calibration_samples].tolist()
    drawn.sort(key=lambda index: source.lengths[index])
    return [source.of(drawn[start : start + size]) for start in range(0, len(drawn), size)]


@dataclass(frozen=True)
class Student:
    """A pruned model, and the candidates that it was chosen from, the best first; one if the shape was given."""

    model: HybridBody
    found: list[Candidate]


def make_student(
    teacher: HybridBody, lessons: Lessons, target: StudentShape | Budget, settings: SearchSettings, tries: Path
) -> Student:
    """Prunes to a shape, or to the best shape within a budget; brief distillations run in the folder ``tries``.

    Raises ConfigError for a shape that is no part of the teacher, and for a budget that nothing fits.
    """
    batches = calibration_batches(lessons, settings)
    importance = measure(teacher, batches)
    if isinstance(target, StudentShape):
        model = prune(teacher, target, importance)
        parameters = model.config.parameters()
        return Student(model, [Candidate(target, model.config, parameters, 1.0, zero_shot_loss(model, batches))])
    found = candidates(
        teacher.config, importance, target.cost, target.limit, count=settings.candidates, seed=settings.seed
    )
    found = by_zero_shot(teacher, importance, found, batches)
    if not settings.try_steps:
        return Student(prune(teacher, found[0].shape, importance), found)
    tried = []
    for place, item in enumerate(found[: settings.tries]):
        model = prune(teacher, item.shape, importance).to(teacher.device)
        model = _distil_briefly(teacher, model, lessons, settings, tries / str(place))
        tried.append((replace(item, loss=zero_shot_loss(model, batches)), model))
    tried.sort(key=lambda pair: pair[0].loss or 0.0)
    shutil.rmtree(tries)
    return Student(tried[0][1], [item for item, _ in tried] + found[settings.tries :])


def _distil_briefly(
    teacher: HybridBody, model: HybridBody, lessons: Lessons, settings: SearchSettings, folder: Path
) -> HybridBody:
    schedule = DistilSchedule(
        steps=settings.try_steps, batch_size=settings.try_batch_size, warmup_steps=settings.try_steps // 10, top_k=0
    )
    loss = DistilLoss(lessons.live_teacher(teacher, schedule), schedule, gap=lessons.gap)
    return Trainer(model, lessons.batches(schedule.batch_size, settings.seed), schedule, folder, loss, "try").run()


def train_student(
    student: HybridBody,
    teacher: Path | None,
    lessons: Lessons,
    schedule: DistilSchedule,
    out: Path,
    *,
    tensorboard: bool = False,
) -> HybridBody:
    """Distils a checkpoint into a student; without a teacher it learns from the data alone. Goes on where it stopped.

    The student may be shared out over processes, and then a live teacher is too; what is returned is whole.
    """
    batches = lessons.batches(schedule.batch_size, schedule.seed, packing=schedule.packing)
    device = student.device
    loss: LossFunction = lessons.loss
    if teacher is not None:
        residuals = None
        if schedule.hidden_weight:
            torch.manual_seed(schedule.seed)
            widths = (student.config.hidden, read_config(teacher).hidden)
            residuals = ResidualDistance(*widths, schedule.hidden_points, schedule.hidden_distance)
            residuals = sharded(residuals.to(device), device)
        answers = lessons.teacher(teacher, schedule, out / "teacher", device)
        loss = DistilLoss(answers, schedule, residuals, lessons.gap)
    title = "train" if teacher is None else "distil"
    return whole_model(Trainer(student, batches, schedule, out, loss, title, tensorboard=tensorboard).run())
