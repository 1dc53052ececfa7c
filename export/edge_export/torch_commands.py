"""The commands of ``edge-export`` that need torch: from a recipe or a checkpoint to a bundle."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Annotated, Optional

import typer
from rich.progress import BarColumn, DownloadColumn, MofNCompleteColumn, ProgressColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as ProgressBar

from edge_export.arguments import chosen, require_target
from edge_export.checkpoint import load_body, save_model
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
from edge_export.distributed import is_first, joined, sharded, whole_model
from edge_export.drafting_head import warn_of_stale_head
from edge_export.dry_run import DryRun, show_estimate
from edge_export.export_estimate import estimate_bundle, estimate_export
from edge_export.learning import described_model, read_lessons, scores
from edge_export.logs import plot_losses
from edge_export.models import make_model
from edge_export.pack import Storage, export_graph, make_bundle
from edge_export.plan import read_plan
from edge_export.recipes import TrainRecipe, read_recipe
from edge_export.terminal import console
from edge_export.training import Trainer
from edge_export.weights import Progress
from edge_sdk.bundle import GRAPH, MANIFEST
from edge_sdk.errors import ConfigError, explain

app = typer.Typer()


@app.command()
def train(
    recipe: Annotated[Path, typer.Argument(help="YAML recipe with `model` (config.json) and `schedule`.")],
    data: Data,
    out: Out,
    tokenizer: Annotated[
        Optional[Path],
        typer.Option(help="Folder with tokenizer.json and chat_template.jinja; not for policies without instruction."),
    ] = None,
    test: Test = None,
    length: Length = None,
    device: Device = "cpu",
    tensorboard: TensorBoard = False,
    threads: Threads = None,
) -> None:
    """Train a model from scratch; run again after an interruption to go on.

    For example: edge-export train recipe.yaml --tokenizer DIR --data texts --out run
    """
    set_threads(threads)
    plan = read_recipe(recipe, TrainRecipe)
    config = described_model(plan.model, data)
    with joined(torch_device(device)) as place:
        lessons = read_lessons(data, tokenizer, out, config, length=length, settings=plan.episodes)
        model = make_model(config)
        model.reset_parameters(plan.schedule.seed)
        model = sharded(model.to(place), place)
        schedule = plan.schedule
        batches = lessons.batches(schedule.batch_size, schedule.seed, packing=schedule.packing)
        trainer = Trainer(model, batches, schedule, out, lessons.loss, "train", tensorboard=tensorboard)
        model = whole_model(trainer.run())
        if is_first():
            save_model(model, out / "model", tokenizer_from=tokenizer)
            warn_of_stale_head(config)
            report: dict[str, object] = {"parameters": config.parameters(), "steps": plan.schedule.steps}
            if test is not None:
                report |= scores(model, test, tokenizer)
            write_report(report, out)


@app.command()
def evaluate(
    checkpoint: Annotated[Path, typer.Argument(help="A checkpoint folder.")],
    test: Annotated[Path, typer.Option(help="JSONL of {prompt, completion} pairs; of a policy, episodes.")],
) -> None:
    """Exact match of a checkpoint on held-out pairs; of a policy, its actions' errors on held-out episodes.

    For example: edge-export evaluate CHECKPOINT --test held_out.jsonl
    """
    print(json.dumps(scores(load_body(checkpoint), test, checkpoint)))


@app.command()
def plot(
    logs: Annotated[list[Path], typer.Argument(help="log.csv files of one or several runs.")],
    out: Annotated[Path, typer.Option(help="The PNG to write.")],
) -> None:
    """Draw the losses of several runs into one picture.

    For example: edge-export plot run1/log.csv run2/log.csv --out losses.png
    """
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
    weights: Annotated[
        Optional[str],
        typer.Option(help="float32, bfloat16, int8 or int4; float32 if neither this nor --plan is given."),
    ] = None,
    block_size: Annotated[
        int,
        typer.Option(help="Values that share a scale, with int8 and int4; the native kernels take multiples of 32."),
    ] = 32,
    head_bits: Annotated[int, typer.Option(help="Of the output head, with int4: 4 or 8.")] = 8,
    cache_dtype: Annotated[
        Optional[str],
        typer.Option(help="Of keys and values: float32, float16 or int8; if left out, as --plan says, or float16."),
    ] = None,
    state_dtype: Annotated[
        Optional[str],
        typer.Option(
            help="Of the scan's states between steps: float32 or float16; if left out, as --plan says, or float32."
        ),
    ] = None,
    speculation: Annotated[bool, typer.Option(help="Also export what drafting tokens and taking them back needs.")] = (
        False
    ),
    plan: Annotated[
        Optional[Path], typer.Option(help="Folder that `edge-export quantize` wrote: it says how weights are stored.")
    ] = None,
    dry_run: DryRun = False,
) -> None:
    """Trace a checkpoint to one ONNX graph for prefill and decode.

    For example: edge-export onnx CHECKPOINT --weights int4 --out graph
    """
    started = time.perf_counter()
    default = Storage() if plan is None else read_plan(plan)
    if plan is not None and weights is not None:
        raise ConfigError(explain("--weights", expected="none beside --plan", found=weights, todo="Give one of them."))
    choices = {
        "weights": weights or "float32",
        "block_size": block_size,
        "head_bits": head_bits,
        "cache_dtype": cache_dtype or default.cache_dtype,
        "state_dtype": state_dtype or default.state_dtype,
        "speculation": speculation,
    }
    storage = chosen(choices, Storage)
    require_target(out, GRAPH, checkpoint, plan)
    if dry_run:
        show_estimate(estimate_export(checkpoint, storage, plan), out)
        return
    with bytes_written("weights") as progress:
        export_graph(checkpoint, out, storage, progress, plan)
    console.print(
        f"{out}/{GRAPH}: {plan or storage.label}, traced and checked in {time.perf_counter() - started:.1f} s"
    )


@app.command()
def bundle(
    checkpoint: Annotated[Path, typer.Argument(help="The checkpoint that the graph was traced from.")],
    graph: Annotated[Path, typer.Option(help="Folder that `edge-export onnx` wrote.")],
    out: Annotated[Path, typer.Option(help="The bundle to write.")],
    version: Annotated[Optional[str], typer.Option(help="What boards compare, as 1.4.0 (docs/deploy.md).")] = None,
    acceptance: Annotated[
        bool, typer.Option(help="Run it on this machine's CPU and store its answers, for boards to check.")
    ] = False,
    observations: Annotated[
        Optional[Path], typer.Option(help="Of --acceptance: episodes to show a policy (default: drawn ones).")
    ] = None,
    dry_run: DryRun = False,
) -> None:
    """Pack a graph, its weights and its tokenizer into a bundle that a robot loads.

    For example: edge-export bundle CHECKPOINT --graph graph --out bundle
    """
    require_target(out, MANIFEST, checkpoint, graph)
    if dry_run:
        show_estimate(estimate_bundle(checkpoint, graph), out)
        return
    made = make_bundle(checkpoint, graph, out, version=version, acceptance=acceptance, observations=observations)
    console.print(f"{out}: {made.manifest.weights}, {made.total_bytes():,} bytes in {len(made.manifest.files)} files")
