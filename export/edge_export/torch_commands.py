"""The commands of ``edge-export`` that need torch: from a recipe or a checkpoint to a bundle."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Annotated, Optional

import msgspec
import torch
import typer
from rich.progress import BarColumn, DownloadColumn, MofNCompleteColumn, ProgressColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as ProgressBar
from rich.table import Table

from edge_export.checkpoint import load_model, save_model
from edge_export.data import Batches, Sample, collate, read_pairs, tokenize
from edge_export.distil import DistilLoss, TeacherLogits
from edge_export.evaluate import exact_match
from edge_export.families import family_of
from edge_export.pack import Storage, export_graph, make_bundle
from edge_export.prune import prune
from edge_export.recipes import DistilRecipe, TrainRecipe, read_recipe
from edge_export.terminal import console
from edge_export.torch_model import HybridLM
from edge_export.training import Trainer, cross_entropy, plot_losses
from edge_export.weights import Progress
from edge_sdk.errors import ConfigError, explain
from edge_sdk.files import new_file
from edge_sdk.model import ModelConfig
from edge_sdk.text import TextCodec

app = typer.Typer()

Data = Annotated[Path, typer.Option(help="JSONL of {prompt, completion} pairs to learn from.")]
Out = Annotated[Path, typer.Option(help="Folder for the run: checkpoint, log.csv, loss.png and the model.")]
Test = Annotated[Optional[Path], typer.Option(help="JSONL of held-out pairs: report exact match on them.")]
Threads = Annotated[Optional[int], typer.Option(help="Threads for torch; all cores if left out.")]


def _samples(path: Path, tokenizer: Path, config: ModelConfig) -> list[Sample]:
    if not config.eos_token_ids:
        raise ConfigError(explain("The model", expected="an eos_token_id", found="none", todo="Name one."))
    return tokenize(read_pairs(path), TextCodec(tokenizer), config.eos_token_ids[0])


def _set_threads(threads: int | None) -> None:
    if threads is not None:
        torch.set_num_threads(threads)


@app.command()
def train(
    recipe: Annotated[Path, typer.Argument(help="YAML recipe with `model` (config.json) and `schedule`.")],
    data: Data,
    tokenizer: Annotated[Path, typer.Option(help="Folder with tokenizer.json and chat_template.jinja.")],
    out: Out,
    test: Test = None,
    threads: Threads = None,
) -> None:
    """Train a model from scratch; run again after an interruption to go on."""
    _set_threads(threads)
    plan = read_recipe(recipe, TrainRecipe)
    config: ModelConfig = family_of(plan.model).parse_config(plan.model)
    model = HybridLM(config)
    model.reset_parameters(plan.schedule.seed)
    samples = _samples(data, tokenizer, config)
    batches = Batches(samples, plan.schedule.batch_size, plan.schedule.seed)
    Trainer(model, batches, plan.schedule, out, cross_entropy, "train").run()
    save_model(model, out / "model", tokenizer_from=tokenizer)
    report: dict[str, object] = {"parameters": config.parameters(), "steps": plan.schedule.steps}
    if test is not None:
        report["exact_match"] = exact_match(model, _samples(test, tokenizer, config))
    _report(report, out)


@app.command()
def distil(
    teacher: Annotated[Path, typer.Argument(help="The teacher's checkpoint folder.")],
    recipe: Annotated[Path, typer.Argument(help="YAML recipe with `student` and `schedule`.")],
    data: Data,
    out: Out,
    test: Test = None,
    from_scratch: Annotated[
        bool, typer.Option(help="Instead, train the same size from random weights on the data: the baseline.")
    ] = False,
    threads: Threads = None,
) -> None:
    """Prune a teacher to a student and distil its knowledge into it; run again to go on after an interruption."""
    _set_threads(threads)
    plan, big = read_recipe(recipe, DistilRecipe), load_model(teacher)
    samples = _samples(data, teacher, big.config)
    batches = Batches(samples, plan.schedule.batch_size, plan.schedule.seed)
    student = prune(big, plan.student, collate(samples, range(min(plan.calibration_samples, len(samples)))))
    title = "from scratch" if from_scratch else "distil"
    if from_scratch:
        student.reset_parameters(plan.schedule.seed)
        loss = cross_entropy
    else:
        loss = DistilLoss(TeacherLogits(big, samples), plan.schedule.temperature)
    Trainer(student, batches, plan.schedule, out, loss, title).run()
    save_model(student, out / "model", tokenizer_from=teacher)
    report: dict[str, object] = {
        "parameters": student.config.parameters(),
        "teacher_parameters": big.config.parameters(),
        "steps": plan.schedule.steps,
        "pattern": student.config.pattern,
    }
    if test is not None:
        report["exact_match"] = exact_match(student, _samples(test, teacher, big.config))
    _report(report, out)


@app.command()
def evaluate(
    checkpoint: Annotated[Path, typer.Argument(help="A checkpoint folder.")],
    test: Annotated[Path, typer.Option(help="JSONL of {prompt, completion} pairs.")],
) -> None:
    """Exact match of a checkpoint on held-out pairs."""
    model = load_model(checkpoint)
    print(json.dumps({"exact_match": exact_match(model, _samples(test, checkpoint, model.config))}))


@app.command()
def plot(
    logs: Annotated[list[Path], typer.Argument(help="log.csv files of one or several runs.")],
    out: Annotated[Path, typer.Option(help="The PNG to write.")],
) -> None:
    """Draw the losses of several runs into one picture."""
    plot_losses(logs, out)


@contextmanager
def _progress(what: str, count: ProgressColumn) -> Iterator[Progress]:
    columns = (TextColumn("{task.description}"), BarColumn(), count, TimeRemainingColumn())
    with ProgressBar(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task(what, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def bytes_written(what: str) -> AbstractContextManager[Progress]:
    """A bar with bytes and the time left, on a terminal; called with what is done and what there is."""
    return _progress(what, DownloadColumn())


def steps_done(what: str) -> AbstractContextManager[Progress]:
    """As :func:`bytes_written`, counting steps."""
    return _progress(what, MofNCompleteColumn())


@app.command()
def onnx(
    checkpoint: Annotated[Path, typer.Argument(help="A checkpoint folder in Hugging Face format.")],
    out: Annotated[Path, typer.Option(help="Folder for model.onnx and its weights.")],
    weights: Annotated[str, typer.Option(help="float32, bfloat16, int8 or int4.")] = "float32",
    block_size: Annotated[int, typer.Option(help="Values that share a scale, with int8 and int4.")] = 32,
    head_bits: Annotated[int, typer.Option(help="Of the output head, with int4: 4 or 8.")] = 8,
    cache_dtype: Annotated[str, typer.Option(help="Of keys and values: float32, float16 or int8.")] = "float16",
    state_dtype: Annotated[str, typer.Option(help="Of the scan's states between steps: float32 or float16.")] = (
        "float32"
    ),
    speculation: Annotated[bool, typer.Option(help="Also export what drafting tokens and taking them back needs.")] = (
        False
    ),
    plan: Annotated[
        Optional[Path], typer.Option(help="Folder that `edge-export quantize` wrote: it says how weights are stored.")
    ] = None,
) -> None:
    """Trace a checkpoint to one ONNX graph for prefill and decode."""
    started = time.perf_counter()
    choices = {
        "weights": weights,
        "block_size": block_size,
        "head_bits": head_bits,
        "cache_dtype": cache_dtype,
        "state_dtype": state_dtype,
        "speculation": speculation,
    }
    storage = msgspec.convert(choices, Storage)
    with bytes_written("weights") as progress:
        export_graph(checkpoint, out, storage, progress, plan)
    console.print(f"{out}/model.onnx: {plan or weights}, traced and checked in {time.perf_counter() - started:.1f} s")


@app.command()
def bundle(
    checkpoint: Annotated[Path, typer.Argument(help="The checkpoint that the graph was traced from.")],
    graph: Annotated[Path, typer.Option(help="Folder that `edge-export onnx` wrote.")],
    out: Annotated[Path, typer.Option(help="The bundle to write.")],
) -> None:
    """Pack a graph, its weights and its tokenizer into a bundle that a robot loads."""
    made = make_bundle(checkpoint, graph, out)
    console.print(f"{out}: {made.manifest.weights}, {made.total_bytes():,} bytes in {len(made.manifest.files)} files")


def _report(values: dict[str, object], out: Path) -> None:
    """Writes report.json and shows it."""
    with new_file(out / "report.json") as path:
        path.write_text(json.dumps(values, indent=2) + "\n")
    table = Table(show_header=False)
    for name, value in values.items():
        table.add_row(name.replace("_", " "), f"{value:.4f}" if isinstance(value, float) else f"{value}")
    console.print(table)
