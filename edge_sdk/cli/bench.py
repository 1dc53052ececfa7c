"""``edge-sdk bench``: how fast a bundle is here."""

from __future__ import annotations

import argparse
import json
import os

import msgspec

from edge_sdk.cli.arguments import Commands, add_engine, load


def add_commands(commands: Commands) -> None:
    """Adds ``bench``."""
    bench = commands.add_parser("bench", help="measure a bundle on this machine")
    add_engine(bench)
    bench.add_argument("--json", action="store_true", help="print everything as JSON")
    bench.add_argument("--prompt", type=int, default=512, metavar="N", help="tokens to read (default 512)")
    bench.add_argument("--answer", type=int, default=128, metavar="N", help="tokens to make (default 128)")
    bench.add_argument("--rounds", type=int, default=5, metavar="N", help="how often (default 5)")
    bench.set_defaults(command=_bench)


def _bench(arguments: argparse.Namespace) -> int:
    from edge_sdk.bench import bench, describe

    model = load(arguments, prefix_cache_bytes=0)
    threads = arguments.threads or len(os.sched_getaffinity(0))
    report = bench(
        model.bundle,
        model.engine,
        threads=threads,
        prompt=arguments.prompt,
        answer=arguments.answer,
        rounds=arguments.rounds,
    )
    print(json.dumps(msgspec.to_builtins(report), indent=2) if arguments.json else describe(report))
    return 0
