"""``edge-sdk``: what happens on the robot, at the command line."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

import edge_sdk
from edge_sdk.cli import bench, chat, control, deploy, pack_wheels, plan, run, serve, show
from edge_sdk.errors import EdgeError
from edge_sdk.journal import configure_logging, say_error

INTERRUPTED = 130
"""Exit status after SIGINT, as shells use it."""


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="edge-sdk", description="Run an Edge SDK bundle on this machine.")
    parser.add_argument("--version", action="version", version=edge_sdk.__version__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for module in (run, chat, serve, bench, control, plan, show, deploy, pack_wheels):
        module.add_commands(commands)
    return parser


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The options of a command line. Boards may also stand behind options, where argparse takes no more words."""
    parser = _parser()
    options, behind = parser.parse_known_args(arguments)
    if behind:
        if not hasattr(options, "hosts") or any(word.startswith("-") for word in behind):
            parser.error(f"unrecognized arguments: {' '.join(behind)}")
        options.hosts += behind
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit status."""
    options = parse(arguments)
    configure_logging()
    try:
        return int(options.command(options))
    except EdgeError as error:
        say_error(error)
        return error.exit_code
    except KeyboardInterrupt:
        print("\ninterrupted", file=sys.stderr)
        return INTERRUPTED
