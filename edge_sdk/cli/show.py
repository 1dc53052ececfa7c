"""``edge-sdk inspect`` and ``edge-sdk doctor``: what a bundle holds, and what a machine has."""

from __future__ import annotations

import argparse
import json

import msgspec

import edge_sdk
from edge_sdk.cli.arguments import Commands


def add_commands(commands: Commands) -> None:
    """Adds both."""
    inspect = commands.add_parser("inspect", help="check a bundle and say what it holds")
    inspect.add_argument("bundle", help="the bundle's folder")
    inspect.set_defaults(command=_inspect)
    doctor = commands.add_parser("doctor", help="say what this machine has and what would be used")
    doctor.add_argument("bundle", nargs="?", help="a bundle's folder: say what would run it")
    doctor.add_argument("--json", action="store_true", help="print everything as JSON")
    doctor.set_defaults(command=_doctor)


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
