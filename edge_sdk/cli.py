"""``edge-sdk``: what happens on the robot, at the command line."""

from __future__ import annotations

import argparse
import json
import logging
import sys
from collections.abc import Sequence

import msgspec

import edge_sdk
from edge_sdk.backends import DEVICES
from edge_sdk.errors import EdgeError

INTERRUPTED = 130
"""Exit status after SIGINT, as shells use it."""


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="edge-sdk", description="Run an Edge SDK bundle on this machine.")
    parser.add_argument("--version", action="version", version=edge_sdk.__version__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    run = commands.add_parser("run", help="answer a prompt, streaming the tokens")
    run.add_argument("bundle", help="the bundle's folder")
    run.add_argument("prompt", help="what to say to the model")
    run.add_argument("--json", action="store_true", help="print tokens, text and timings as JSON when done")
    run.add_argument("--max-new-tokens", type=int, default=256, metavar="N", help="longest answer (default 256)")
    run.add_argument("--threads", type=int, metavar="N", help="engine threads (default: all cores)")
    run.add_argument("--device", default="auto", choices=DEVICES, help="what to run on (default auto)")
    run.set_defaults(command=_run)
    inspect = commands.add_parser("inspect", help="check a bundle and say what it holds")
    inspect.add_argument("bundle", help="the bundle's folder")
    inspect.set_defaults(command=_inspect)
    doctor = commands.add_parser("doctor", help="say what this machine has and what would be used")
    doctor.add_argument("bundle", nargs="?", help="a bundle's folder: say what would run it")
    doctor.add_argument("--json", action="store_true", help="print everything as JSON")
    doctor.set_defaults(command=_doctor)
    return parser


def _run(options: argparse.Namespace) -> int:
    model = edge_sdk.load(options.bundle, device=options.device, threads=options.threads)
    if options.json:
        completion = model.generate(options.prompt, max_new_tokens=options.max_new_tokens)
        print(json.dumps(msgspec.to_builtins(completion)))
        return 0
    with model.session() as session:
        for token in session.stream(options.prompt, max_new_tokens=options.max_new_tokens):
            print(token.text, end="", flush=True)
    print()
    return 0


def _inspect(options: argparse.Namespace) -> int:
    bundle = edge_sdk.Bundle.open(options.bundle)
    manifest, model = bundle.manifest, bundle.manifest.model
    print(f"bundle      {bundle.path} (format {manifest.format_version}, every hash matches)")
    print(
        f"model       {model.family}, {model.parameters():,} parameters, layers {model.pattern}, hidden {model.hidden}"
    )
    print(f"weights     {manifest.weights}, {bundle.total_bytes():,} bytes in all")
    print(
        f"states      {model.state_bytes(1, 0):,} bytes ({model.state_dtype}), "
        f"and {_cache_bytes(model):,} per token of context ({model.cache_dtype})"
    )
    for name, value in manifest.provenance.items():
        print(f"{name:<11} {value}")
    return 0


def _doctor(options: argparse.Namespace) -> int:
    from edge_sdk.doctor import describe, examine

    report = examine(edge_sdk.Bundle.open(options.bundle) if options.bundle else None)
    print(json.dumps(msgspec.to_builtins(report), indent=2) if options.json else describe(report))
    return 0


def _cache_bytes(model: edge_sdk.ModelConfig) -> int:
    return model.state_bytes(1, 1) - model.state_bytes(1, 0)


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit status."""
    options = _parser().parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(name)s: %(message)s", stream=sys.stderr)
    try:
        return int(options.command(options))
    except EdgeError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("\ninterrupted", file=sys.stderr)
        return INTERRUPTED


if __name__ == "__main__":
    sys.exit(main())
