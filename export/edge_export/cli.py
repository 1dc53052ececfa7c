"""``edge-export``: from a recipe or checkpoint to a bundle, on a workstation; from there to an engine, on a board."""

from __future__ import annotations

import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Optional

import msgspec
import typer

from edge_export.arguments import chosen
from edge_export.boards import HERE
from edge_export.chain import describe_chain, read_chain, run_chain
from edge_export.dry_run import DryRun
from edge_export.engine import EngineRequest, make_engine
from edge_export.terminal import console
from edge_sdk.boards import BOARDS
from edge_sdk.errors import EdgeError, explain

HELP = """
From a checkpoint in Hugging Face format to a bundle that `edge-sdk` runs, on a workstation; to an engine, on a board.

The usual way: `inspect` a checkpoint, `prune` and `distil` it if it is too large, `quantize` it on data of yours,
`onnx` and `bundle` it; on the robot, `engine`. `head` trains what drafts tokens, for a model that has no such head.
`import` makes FP8 and NVFP4 checkpoints ordinary ones, and `engine --projections` has their weights as they were. What
makes something takes `--dry-run`, and then only says what memory, disk and time that would need.

The shortest way: `edge-export onnx CHECKPOINT --weights int4 --out graph`, then
`edge-export bundle CHECKPOINT --graph graph --out bundle`, then `edge-sdk run bundle "a question"`.
"""

app = typer.Typer(help=HELP, no_args_is_help=True, pretty_exceptions_enable=False, add_completion=False)


@app.callback()
def _commands() -> None:
    """Keeps the command's name where there is only one command."""


@app.command()
def engine(
    bundle: Annotated[Path, typer.Argument(help="The bundle; the engine goes into its engines/.")],
    board: Annotated[str, typer.Option(help=f"{HERE}, or one of {', '.join(BOARDS)}.")] = HERE,
    precision: Annotated[str, typer.Option(help="Of products: float16, bfloat16 or float32.")] = "float16",
    projections: Annotated[
        str,
        typer.Option(
            help="The layers' dense weights: plain (as --precision), fp8 (GPUs from 8.9), nvfp4 (from 10.0), or "
            "lossless (those of the two that an imported checkpoint had)."
        ),
    ] = "plain",
    batch: Annotated[int, typer.Option(min=1, help="Most rows at once.")] = 1,
    max_prefill: Annotated[int, typer.Option(min=2, help="Most tokens of a row that are fed at once.")] = 512,
    max_context: Annotated[int, typer.Option(min=2, help="Most positions that the caches may hold.")] = 4096,
    backend: Annotated[str, typer.Option(help="tensorrt or tensorrt-rtx.")] = "tensorrt",
    qlinear: Annotated[str, typer.Option(help="Who multiplies int4 and int8 matrices: plugin or tensorrt.")] = "plugin",
    plugins: Annotated[str, typer.Option(help="The plugin library: auto, none or a path.")] = "auto",
    dry_run: DryRun = False,
) -> None:
    """Build a TensorRT engine from a bundle, on the machine that will run it.

    For example: edge-export engine bundle --board orin-nx-16gb
    """
    choices = {
        "board": board,
        "precision": precision,
        "projections": projections,
        "batch": batch,
        "max_prefill": max_prefill,
        "max_context": max_context,
        "backend": backend,
        "qlinear": qlinear,
        "plugins": plugins,
    }
    make_engine(bundle, chosen(choices, EngineRequest), dry_run=dry_run)


@app.command()
def run(
    chain: Annotated[Path, typer.Argument(help="YAML with stages of commands.")],
    settings: Annotated[
        Optional[list[str]], typer.Option("--set", help="NAME=VALUE of a variable of the file; may be given often.")
    ] = None,
    dry_run: DryRun = False,
) -> None:
    """Run a chain of these commands from one file; of one that was run before, what changed since.

    The file names stages, and in each the commands that run side by side, without `edge-export` (docs/export.md).

    For example: edge-export run chain.yaml --set out=build/mine
    """
    pairs = [setting.partition("=") for setting in settings or []]
    stages = read_chain(chain, typer.main.get_group(app), {name: value for name, _, value in pairs})
    if dry_run:
        describe_chain(stages)
    else:
        run_chain(stages)


if find_spec("torch") is not None:  # a board has none, and needs only the command above
    from edge_export import (
        episode_commands,
        head_commands,
        inspect,
        quantize_commands,
        student_commands,
        torch_commands,
    )

    for commands in (torch_commands, student_commands, head_commands, quantize_commands, inspect):
        app.registered_commands.extend(commands.app.registered_commands)
    app.add_typer(episode_commands.app, name="episodes")

ORDER = ["inspect", "import", "prune", "distil", "head", "quantize", "onnx", "bundle", "engine", "run"]
"""In which --help lists the commands: as they follow one another; behind them the others."""


def _place(command: typer.models.CommandInfo) -> int:
    name = command.name or getattr(command.callback, "__name__", "")
    return [*ORDER, name].index(name)


app.registered_commands.sort(key=_place)


def main() -> None:
    """Entry point: errors about the user's input end in one message, not in a traceback."""
    try:
        app()
    except EdgeError as error:
        console.print(f"[red]error:[/red] {error}", highlight=False, soft_wrap=True)
        sys.exit(error.exit_code)
    except OSError as error:
        console.print(f"[red]error:[/red] {_described(error)}", highlight=False, soft_wrap=True)
        sys.exit(1)
    except msgspec.ValidationError as error:
        console.print(f"[red]error:[/red] {error}", highlight=False, soft_wrap=True)
        sys.exit(2)


def _described(error: OSError) -> str:
    """The system's own errors name a file and say little else; ours are sentences already."""
    if error.filename is None:
        return str(error)
    return explain(str(error.filename), expected="a path that can be used", found=error.strerror, todo="Check it.")


if __name__ == "__main__":
    main()
