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

    from edge_sdk.planning import Plan


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

    console, table = _console(), _table(f"{plan.sizes.parameters:,} parameters, {plan.context:,} positions of context")
    for kind in ("weights", "states", "cache"):
        for name, size in getattr(plan.sizes, kind).items():
            table.add_row(f"{kind} in {name}", gigabytes(size))
    console.print(table)
    at = f" in mode {plan.mode}" if plan.mode else ""
    table = _table(f"{plan.board}{at}: {gigabytes(plan.usable_bytes)} for the model and its runtime")
    headings = ("weights", "cache", "peak memory", "fits", "decode tokens/s", f"prompt of {plan.prompt}, tokens/s")
    for heading in headings:
        table.add_column(heading)
    table.show_header = True
    for setting in plan.settings:
        fits = "yes" if setting.fits else f"no: {gigabytes(setting.peak_bytes - plan.usable_bytes)} too much"
        rates = (_rate(setting.decode_tokens_per_second), _rate(setting.prefill_tokens_per_second))
        chosen = "bold" if setting == plan.recommended else None
        table.add_row(setting.weights, setting.cache, gigabytes(setting.peak_bytes), fits, *rates, style=chosen)
    console.print(table)
    if plan.recommended is not None:
        best = plan.recommended
        room = f"there is room for {plan.longest_context:,} positions"
        console.print(f"Recommended: weights in {best.weights}, keys and values in {best.cache}; {room}")
        if len(best.decode_by_mode) > 1:
            by_mode = ", ".join(f"{name} {rate:.1f}" for name, rate in best.decode_by_mode.items())
            console.print(f"Tokens per second by power mode: {by_mode}")
    for note in plan.notes:
        console.print(f"Note: {note}")


def _show_all(plans: Sequence[Plan]) -> None:
    """A line for each board."""
    from edge_sdk.planning import gigabytes

    console = _console()
    table = _table(f"{plans[0].sizes.parameters:,} parameters, {plans[0].context:,} positions of context")
    prompt = f"prompt of {plans[0].prompt}, tokens/s"
    for heading in ("board", "mode", "usable", "weights", "cache", "peak memory", "decode tokens/s", prompt):
        table.add_column(heading)
    table.show_header = True
    for plan in plans:
        best = plan.recommended
        usable = gigabytes(plan.usable_bytes)
        if best is None:
            table.add_row(plan.board, plan.mode or "", usable, "does not fit")
            continue
        rates = (_rate(best.decode_tokens_per_second), _rate(best.prefill_tokens_per_second))
        table.add_row(plan.board, plan.mode or "", usable, best.weights, best.cache, gigabytes(best.peak_bytes), *rates)
    console.print(table)
    for note in dict.fromkeys(note for plan in plans for note in plan.notes):
        console.print(f"Note: {note}")


def _rate(tokens_per_second: float | None) -> str:
    return "unknown" if tokens_per_second is None else f"{tokens_per_second:,.1f}"


def _table(title: str) -> Table:
    from rich.table import Table

    return Table(title=title, title_justify="left", show_header=False)


def _console() -> Console:
    """Raises ConfigError where rich is not installed, which programs on a robot do without."""
    try:
        from rich.console import Console
    except ImportError:
        todo = "pip install 'edge-sdk[plan]', or ask for --json."
        raise ConfigError(explain("Tables", expected="rich", found="none", todo=todo)) from None
    return Console(highlight=False)
