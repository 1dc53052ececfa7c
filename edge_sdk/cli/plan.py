"""``edge-sdk plan``: what a model would take on a board, before anything is copied there."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from edge_sdk.cli.arguments import Commands
from edge_sdk.errors import ConfigError, explain

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from edge_sdk.planning import Plan, Setting


def add_commands(commands: Commands) -> None:
    """Adds ``plan``."""
    from edge_sdk.boards import BOARDS

    plan = commands.add_parser("plan", help="say what a model would take on a board, and how fast it would be")
    plan.add_argument("model", type=Path, help="a bundle, a checkpoint's folder, or a config.json by itself")
    plan.add_argument("--board", metavar="NAME", help=f"one of {', '.join(BOARDS)}")
    plan.add_argument("--all", action="store_true", help="compare all boards")
    plan.add_argument("--context", type=int, default=4096, metavar="N", help="prompt and answer (default 4096 tokens)")
    plan.add_argument("--prompt", type=int, metavar="N", help="of them to read (default 512, or the context if less)")
    plan.add_argument("--rate", type=float, metavar="R", help="tokens per second that are enough (default 10)")
    plan.add_argument("--mode", metavar="NAME", help="the board's power mode (default: the fastest)")
    plan.add_argument("--json", action="store_true", help="print everything as JSON")
    plan.set_defaults(command=_plan)


def _plan(options: argparse.Namespace) -> int:
    from edge_sdk.boards import board_named
    from edge_sdk.model_source import read_model
    from edge_sdk.planning import USEFUL_RATE, Request, compare, make_plan, measured_storage, refusal

    if options.all == (options.board is not None) or (options.all and options.mode is not None):
        found = "all of them and one's name or mode" if options.all else "neither"
        raise ConfigError(explain("The board", expected="--board or --all", found=found, todo="Give one of them."))
    request = Request(
        context=options.context,
        prompt=min(512, options.context) if options.prompt is None else options.prompt,
        rate=USEFUL_RATE if options.rate is None else options.rate,
        mode=options.mode,
    )
    board = None if options.all else board_named(options.board)
    config, weights = read_model(options.model)
    stored = [] if weights is None else [measured_storage(config, weights.label, weights.bytes)]
    plans = compare(config, request, stored) if board is None else [make_plan(config, board, request, stored)]
    if options.json:
        text = msgspec.json.encode(plans if board is None else plans[0])
        sys.stdout.write(msgspec.json.format(text, indent=2).decode() + "\n")
    elif board is None:
        _show_all(plans)
    else:
        _show(plans[0])
    if board is not None and plans[0].recommended is None:
        others = msgspec.structs.replace(request, mode=None)
        raise refusal(plans[0], compare(config, others, stored))
    return 0


def _show(plan: Plan) -> None:
    """What the model takes, every setting, and the one that is recommended."""
    from edge_sdk.planning import gigabytes

    console = _console()
    table = _table("of the model", "stored as", "bytes")
    for kind in ("weights", "states", "cache"):
        for name, size in getattr(plan.sizes, kind).items():
            table.add_row(kind, name, gigabytes(size))
    console.print(f"{plan.sizes.parameters:,} parameters, a context of {plan.context:,}", table)
    table = _table("weights", "cache", "peak, GB", "room, GB", "decode", "prompt")
    for setting in plan.settings:
        chosen = "bold" if setting == plan.recommended else "" if setting.fits else "dim"
        table.add_row(setting.weights, setting.cache, *_numbers(plan, setting), style=chosen)
    at = f" in mode {plan.mode}" if plan.mode else ""
    console.print(f"{plan.board}{at}: {gigabytes(plan.usable_bytes)} for the model and its runtime", table)
    if plan.recommended is not None:
        best = plan.recommended
        room = f"there is room for a context of {plan.longest_context:,}"
        console.print(f"Recommended: weights in {best.weights}, keys and values in {best.cache}; {room}.")
        if len(best.decode_by_mode) > 1:
            by_mode = ", ".join(f"{name} {rate:.1f}" for name, rate in best.decode_by_mode.items())
            console.print(f"Its tokens per second by power mode: {by_mode}.")
    _show_notes(console, [plan])


def _show_all(plans: Sequence[Plan]) -> None:
    """A line for each board, with the setting that is recommended there."""
    console = _console()
    table = _table("board", "weights", "cache", "peak, GB", "room, GB", "decode", "prompt")
    for plan in plans:
        best = plan.recommended
        if best is None:
            table.add_row(plan.board, "none fits", style="dim")
        else:
            table.add_row(plan.board, best.weights, best.cache, *_numbers(plan, best))
    sizes, context = plans[0].sizes, plans[0].context
    console.print(f"{sizes.parameters:,} parameters, a context of {context:,}, each board in its fastest mode", table)
    _show_notes(console, plans)


def _numbers(plan: Plan, setting: Setting) -> list[str]:
    """Memory, what is left of it, and the two rates."""
    memory = (f"{setting.peak_bytes / 1e9:,.2f}", f"{(plan.usable_bytes - setting.peak_bytes) / 1e9:+,.2f}")
    rates = (setting.decode_tokens_per_second, setting.prefill_tokens_per_second)
    return [*memory, *("unknown" if rate is None else f"{rate:,.1f}" for rate in rates)]


def _show_notes(console: Console, plans: Sequence[Plan]) -> None:
    console.print(f"decode: tokens per second with full caches; prompt: of {plans[0].prompt} tokens, read per second")
    for note in dict.fromkeys(note for plan in plans for note in plan.notes):
        console.print(f"Note: {note}")


def _table(*headings: str) -> Table:
    from rich.box import SIMPLE
    from rich.table import Table

    return Table(*headings, box=SIMPLE, padding=(0, 1, 0, 0))


def _console() -> Console:
    """Raises ConfigError where rich is not installed, which programs on a robot do without."""
    try:
        from rich.console import Console
    except ImportError:
        todo = "pip install 'edge-sdk[plan]', or ask for --json."
        raise ConfigError(explain("Tables", expected="rich", found="none", todo=todo)) from None
    return Console(highlight=False)
