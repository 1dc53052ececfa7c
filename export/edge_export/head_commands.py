"""The command of ``edge-export`` that gives a model a drafting head."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import msgspec
import typer

from edge_export.checkpoint import fingerprint, load_model, read_config, save_model
from edge_export.command_options import (
    Data,
    Device,
    Length,
    Out,
    TensorBoard,
    Test,
    Threads,
    set_threads,
    stored_samples,
    torch_device,
    write_report,
)
from edge_export.distributed import joined, world
from edge_export.drafting_head import drafts_right, head_spec, train_head
from edge_export.dry_run import DryRun, show_estimate
from edge_export.estimate import estimate_head
from edge_export.recipes import HeadRecipe, read_recipe
from edge_sdk.errors import ConfigError, explain

app = typer.Typer()


@app.command()
def head(
    checkpoint: Annotated[Path, typer.Argument(help="The model's checkpoint folder; nothing in it is changed.")],
    recipe: Annotated[Path, typer.Argument(help="YAML recipe with `schedule`, and maybe `layers` such as '*E'.")],
    data: Data,
    out: Out,
    test: Test = None,
    length: Length = None,
    device: Device = "cpu",
    tensorboard: TensorBoard = False,
    threads: Threads = None,
    dry_run: DryRun = False,
) -> None:
    """Train a head that drafts tokens for a model; run again to go on after an interruption.

    The model itself stays as it is, to the bit: what is written is the same checkpoint with a drafting head, which
    `onnx --speculation` exports with it (docs/speculation.md). With --test: how often drafts are what the model says.

    For example: edge-export head CHECKPOINT recipe.yaml --data texts --out run
    """
    set_threads(threads)
    plan, config = read_recipe(recipe, HeadRecipe), read_config(checkpoint)
    described = msgspec.structs.replace(config, mtp=head_spec(config, plan.layers))
    if dry_run:
        show_estimate(estimate_head(described, plan.schedule, length or config.max_length), out)
        return
    with joined(torch_device(device)) as place:
        if world() > 1:
            raise ConfigError(
                explain("Several processes", expected="one, which trains a head", found=world(), todo="Start one.")
            )
        samples = stored_samples(data, checkpoint, out, config, length)
        model = load_model(checkpoint).to(place)
        given = {"checkpoint": fingerprint(checkpoint)}
        schedule = plan.schedule
        train_head(model, samples, schedule, out, letters=plan.layers, given=given, tensorboard=tensorboard)
        report: dict[str, object] = {
            "parameters": model.config.parameters(),
            "head_parameters": model.config.parameters() - msgspec.structs.replace(config, mtp=None).parameters(),
            "steps": schedule.steps,
        }
        if test is not None:
            held_out = stored_samples(test, checkpoint, out / "test", config, length)
            shares = drafts_right(model, held_out, schedule.drafts)
            report |= {f"draft_{number}_right": share for number, share in enumerate(shares, 1)}
        save_model(model.cpu(), out / "model", tokenizer_from=checkpoint)
        write_report(report, out)
