"""``edge-sdk run``: one prompt, one answer."""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import msgspec

from edge_sdk.cli.arguments import Commands, add_answer, add_engine, answer_options, load
from edge_sdk.profile import operators, table
from edge_sdk.text import Message, check_prompt


def add_commands(commands: Commands) -> None:
    """Adds ``run``."""
    run = commands.add_parser("run", help="answer a prompt, streaming the tokens")
    add_engine(run)
    run.add_argument("prompt", help="what to say to the model")
    run.add_argument(
        "--image", action="append", default=[], metavar="FILE", help="JPEG or PNG to show; may be repeated"
    )
    run.add_argument("--json", action="store_true", help="print tokens, text and timings as JSON when done")
    run.add_argument("--profile", action="store_true", help="say which operators took the time")
    add_answer(run)
    run.set_defaults(command=_run)


def _run(arguments: argparse.Namespace) -> int:
    if not arguments.profile:
        _answer(arguments, None)
        return 0
    with tempfile.TemporaryDirectory() as folder:
        _answer(arguments, Path(folder) / "profile")
        (trace,) = Path(folder).iterdir()
        print(table(operators(trace)), file=sys.stderr)
    return 0


def _content(arguments: argparse.Namespace) -> Any:
    text = check_prompt(arguments.prompt)
    if not arguments.image:
        return text
    images = [{"type": "image", "image": path} for path in arguments.image]
    return [*images, {"type": "text", "text": text}]


def _answer(arguments: argparse.Namespace, profile: Path | None) -> None:
    options = answer_options(arguments)
    messages: list[Message] = [{"role": "user", "content": _content(arguments)}]
    if arguments.system is not None:
        messages.insert(0, {"role": "system", "content": arguments.system})
    model = load(arguments, profile=profile)
    with model.session() as session:
        stream = session.stream(messages, options)
        if arguments.json:
            print(json.dumps(msgspec.to_builtins(stream.result())))
        else:
            for token in stream:
                print(token.text, end="", flush=True)
            print()
    if profile is not None:
        model.engine.end_profile()
