"""Arguments that several commands share."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import edge_sdk
from edge_sdk.backends import DEVICES
from edge_sdk.errors import ConfigError, explain
from edge_sdk.grammar import Grammar
from edge_sdk.language import LanguageModel
from edge_sdk.options import Options
from edge_sdk.speculation import CHOICES

Commands = Any
"""What argparse's ``add_subparsers`` returns, whose class is private."""


def add_engine(parser: argparse.ArgumentParser) -> None:
    """Which bundle, and what runs it."""
    parser.add_argument("bundle", help="the bundle's folder")
    parser.add_argument("--threads", type=int, metavar="N", help="engine threads (default: all cores)")
    parser.add_argument("--device", default="auto", choices=DEVICES, help="what to run on (default auto)")
    parser.add_argument(
        "--speculation",
        default="auto",
        choices=CHOICES,
        help="what drafts tokens that the model verifies together: whatever pays, nothing, what was said before, or "
        "its own head (default auto)",
    )


def load(arguments: argparse.Namespace, **more: Any) -> LanguageModel:
    """The model that :func:`add_engine`'s arguments name."""
    return edge_sdk.load(
        arguments.bundle,
        device=arguments.device,
        threads=arguments.threads,
        speculation=arguments.speculation,
        **more,
    )


def add_answer(parser: argparse.ArgumentParser) -> None:
    """How answers are made."""
    parser.add_argument("--max-new-tokens", type=int, default=256, metavar="N", help="longest answer (default 256)")
    parser.add_argument("--temperature", type=float, default=0.0, metavar="T", help="0, the default, is greedy")
    parser.add_argument("--top-p", type=float, default=1.0, metavar="P", help="likeliest tokens that have P together")
    parser.add_argument("--top-k", type=int, default=0, metavar="K", help="the K likeliest tokens")
    parser.add_argument("--min-p", type=float, default=0.0, metavar="P", help="tokens P times as likely as the best")
    parser.add_argument("--seed", type=int, metavar="N", help="makes draws repeatable")
    parser.add_argument("--stop", action="append", default=[], metavar="TEXT", help="ends the answer; may be repeated")
    parser.add_argument("--system", metavar="TEXT", help="a system message")
    parser.add_argument("--json-schema", type=Path, metavar="FILE", help="answer in JSON of this schema")


def answer_options(arguments: argparse.Namespace) -> Options:
    """What :func:`add_answer`'s arguments say. Raises ConfigError."""
    schema = arguments.json_schema
    return Options(
        max_new_tokens=arguments.max_new_tokens,
        temperature=arguments.temperature,
        top_p=arguments.top_p,
        top_k=arguments.top_k,
        min_p=arguments.min_p,
        seed=arguments.seed,
        stop=tuple(arguments.stop),
        grammar=None if schema is None else Grammar.json_schema(read_text(schema)),
    )


def read_text(path: Path) -> str:
    """A file's text. Raises ConfigError."""
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        message = explain(str(path), expected="a readable text file", found=error, todo="Check it.")
        raise ConfigError(message) from None
