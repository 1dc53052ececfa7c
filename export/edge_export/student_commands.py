"""The commands of ``edge-export`` that make a model smaller: prune and distil."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Annotated, Optional

import msgspec
import torch
import typer
from rich.table import Table

from edge_export.arguments import chosen, require_target
from edge_export.budget import CONTEXT, Budget, step_ms, weight_bytes
from edge_export.checkpoint import CONFIG, load_body, read_config, save_model
from edge_export.command_options import (
    Data,
    Device,
    Length,
    Out,
    TensorBoard,
    Test,
    Threads,
    set_threads,
    torch_device,
    write_report,
)
from edge_export.distributed import is_first, joined, load_sharded, world
from edge_export.drafting_head import warn_of_stale_head
from edge_export.dry_run import DryRun, show_estimate
from edge_export.estimate import estimate_distillation, estimate_search
from edge_export.learning import read_lessons, scores
from edge_export.lessons import Lessons
from edge_export.pack import Storage
from edge_export.prune import StudentShape, shrink
from edge_export.recipes import DistilRecipe, read_recipe
from edge_export.search import Candidate, candidates
from edge_export.students import SearchSettings, make_student, train_student
from edge_export.terminal import console
from edge_export.torch_model import HybridBody
from edge_sdk.errors import ConfigError, explain
from edge_sdk.files import new_file
from edge_sdk.model import ModelConfig

app = typer.Typer()

SHOWN = 8
"""Of the students that were looked at, the best."""


@app.command()
def prune(
    checkpoint: Annotated[Path, typer.Argument(help="The checkpoint to cut down.")],
    out: Annotated[Path, typer.Option(help="The smaller checkpoint to write.")],
    data: Annotated[Optional[Path], typer.Option(help="Calibration data; as for distil. Not for a dry run.")] = None,
    shape: Annotated[Optional[Path], typer.Option(help="YAML of the sizes, instead of a budget.")] = None,
    params: Annotated[Optional[float], typer.Option(help="At most so many parameters.")] = None,
    gb: Annotated[Optional[float], typer.Option(help="At most so many 10**9 bytes of weights, as --weights.")] = None,
    ms: Annotated[Optional[float], typer.Option(help="At most so many ms per token, estimated for --board.")] = None,
    board: Annotated[Optional[str], typer.Option(help="The board of --ms, such as orin-nano-8gb.")] = None,
    weights: Annotated[str, typer.Option(help="How --gb and --ms store weights: float32, bfloat16, int8, int4.")] = (
        "int4"
    ),
    context: Annotated[int, typer.Option(help="Positions in the caches, for --ms.")] = CONTEXT,
    samples: Annotated[int, typer.Option(min=1, help="Samples that importance is measured on.")] = 256,
    search: Annotated[int, typer.Option(min=1, help="Shapes that are pruned and judged by their loss.")] = 24,
    try_steps: Annotated[int, typer.Option(min=0, help="Distil the best three for so many steps, then choose.")] = 0,
    seed: Annotated[int, typer.Option(help="Of the samples and shapes that are drawn.")] = 0,
    length: Length = None,
    device: Device = "cpu",
    threads: Threads = None,
    dry_run: DryRun = False,
) -> None:
    """Cut a checkpoint down to sizes or to a budget: an ordinary smaller checkpoint, to be distilled next.

    Give one of --params, --gb, --ms with --board, and --shape. With --dry-run: which shapes fit, without data.

    For example: edge-export prune CHECKPOINT --ms 20 --board orin-nano-8gb --data texts --out student
    """
    set_threads(threads)
    storage = chosen({"weights": weights}, Storage)
    require_target(out, CONFIG, checkpoint, data)
    target: StudentShape | Budget
    if shape is not None:
        if (params, gb, ms) != (None, None, None):
            raise ConfigError(explain("--shape", expected="no budget beside it", found="one", todo="Give one of them."))
        target = read_recipe(shape, StudentShape)
    else:
        target = Budget(params=params, gb=gb, ms=ms, board=board, storage=storage, context=context)
    settings = SearchSettings(calibration_samples=samples, candidates=search, try_steps=try_steps, seed=seed)
    config = read_config(checkpoint)
    if dry_run:
        _show(_found_without_data(config, target, settings), storage, board, context)
        show_estimate(estimate_search(config, settings, length or config.max_length), out)
        return
    if data is None:
        raise ConfigError(explain("--data", expected="calibration data", found="none", todo="Give some, or --dry-run."))
    place = torch_device(device)
    work = out.with_name(f".{out.name}.work")
    lessons = read_lessons(data, checkpoint, work, config, length=length)
    teacher = load_body(checkpoint).to(place)
    student = make_student(teacher, lessons, target, settings, work / "tries")
    save_model(student.model.cpu(), out, tokenizer_from=checkpoint)
    shutil.rmtree(work, ignore_errors=True)  # episodes are not copied there
    _show(student.found, storage, board, context)
    console.print(f"{out}: the first of these; next: edge-export distil {checkpoint} RECIPE --student {out} ...")


def _found_without_data(
    config: ModelConfig, target: StudentShape | Budget, settings: SearchSettings
) -> list[Candidate]:
    if isinstance(target, StudentShape):
        student = shrink(config, target)
        return [Candidate(target, student, student.parameters(), 1.0)]
    return candidates(config, None, target.cost, target.limit, count=settings.candidates, seed=settings.seed)


def _show(found: list[Candidate], storage: Storage, board: str | None, context: int) -> None:
    table = Table(title=f"Students, {storage.label}", title_justify="left")
    columns = ("layers", "parameters", "GB", f"ms on {board}", "kept", "loss", "sizes")
    for heading in columns:
        if board is not None or not heading.startswith("ms"):
            table.add_column(heading)
    for item in found[:SHOWN]:
        sizes = msgspec.to_builtins(item.shape)
        row = [item.config.pattern, f"{item.config.parameters():,}", f"{weight_bytes(item.config, storage) / 1e9:.3g}"]
        row += [f"{step_ms(item.config, storage, board, context):.3g}"] if board is not None else []
        row += [f"{item.kept:.3f}", "" if item.loss is None else f"{item.loss:.4f}"]
        table.add_row(*row, ", ".join(f"{name} {size}" for name, size in sizes.items() if isinstance(size, int)))
    console.print(table)
    if len(found) > SHOWN:
        console.print(f"and {len(found) - SHOWN} more")
    if board is not None:
        console.print("ms: estimated from the board's memory bandwidth, not measured.")


@app.command()
def distil(
    teacher: Annotated[Path, typer.Argument(help="The teacher's checkpoint folder.")],
    recipe: Annotated[Path, typer.Argument(help="YAML recipe with `schedule`, and `student` or `budget`.")],
    data: Data,
    out: Out,
    student: Annotated[Optional[Path], typer.Option(help="A checkpoint that `prune` wrote; as it is.")] = None,
    test: Test = None,
    from_scratch: Annotated[
        bool, typer.Option(help="Instead, train the same size from random weights on the data: the baseline.")
    ] = False,
    length: Length = None,
    device: Device = "cpu",
    tensorboard: TensorBoard = False,
    threads: Threads = None,
    dry_run: DryRun = False,
) -> None:
    """Prune a teacher to a student and distil its knowledge into it; run again to go on after an interruption.

    The recipe says how long and how fast it learns, as `schedule: {steps: 1000, learning_rate: 1.0e-3}`, and where no
    --student is given, `student` with its sizes or `budget` with its limit (docs/distil.md).

    For example: edge-export distil TEACHER recipe.yaml --student student --data texts --out run

    On several GPUs or machines prune first, then: torchrun --nproc-per-node N -m edge_export.cli distil ... --student
    """
    set_threads(threads)
    plan, config = read_recipe(recipe, DistilRecipe), read_config(teacher)
    if student is not None and (plan.student or plan.budget) is not None:
        found = f"{recipe} with a size of its own"
        raise ConfigError(explain("--student", expected="a recipe without one", found=found, todo="Give one of them."))
    if dry_run:
        smaller, longest = _smaller(config, plan, student), length or plan.episodes.window or config.max_length
        show_estimate(estimate_distillation(smaller, config, plan.schedule, longest, plan.episodes), out)
        return
    with joined(torch_device(device)) as place:
        lessons = read_lessons(data, teacher, out, config, length=length, settings=plan.episodes)
        if student is not None:
            model = load_sharded(student, place)
        elif world() > 1:
            raise ConfigError(
                explain("Several processes", expected="--student", found="none", todo="Run `edge-export prune` first.")
            )
        else:
            model = _kept_student(teacher, lessons, plan, out, place)
        if from_scratch:
            model.reset_parameters(plan.schedule.seed)
        trained = train_student(
            model, None if from_scratch else teacher, lessons, plan.schedule, out, tensorboard=tensorboard
        )
        if is_first():
            save_model(trained, out / "model", tokenizer_from=teacher)
            warn_of_stale_head(trained.config)
            _report(trained, config, plan, out, {} if test is None else scores(trained, test, teacher))


def _kept_student(teacher: Path, lessons: Lessons, plan: DistilRecipe, out: Path, device: torch.device) -> HybridBody:
    """The pruned student in the run's folder, made there first: a run that goes on must begin with the same one."""
    note, wanted = out / "student.json", msgspec.json.encode((plan.target, plan.search))
    if not (note.exists() and note.read_bytes() == wanted):
        made = make_student(load_body(teacher).to(device), lessons, plan.target, plan.search, out / "tries")
        save_model(made.model.cpu(), out / "student", tokenizer_from=teacher)
        with new_file(note) as path:
            path.write_bytes(wanted)
    return load_body(out / "student").to(device)


def _smaller(config: ModelConfig, plan: DistilRecipe, student: Path | None) -> ModelConfig:
    if student is not None:
        return read_config(student)
    return _found_without_data(config, plan.target, plan.search)[0].config


def _report(model: HybridBody, teacher: ModelConfig, plan: DistilRecipe, out: Path, found: dict[str, float]) -> None:
    report: dict[str, object] = {
        "parameters": model.config.parameters(),
        "teacher_parameters": teacher.parameters(),
        "steps": plan.schedule.steps,
        "pattern": model.config.pattern,
    }
    write_report(report | found, out)
