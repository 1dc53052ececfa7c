"""``edge-export episodes``: what a dataset of episodes holds, and any of them as LeRobot v3.0."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import msgspec
import numpy as np
import typer
from rich.console import Console
from rich.progress import track
from rich.table import Table

from edge_export.dry_run import DryRun, Estimate, show_estimate
from edge_export.episodes import EpisodeSource, open_episodes
from edge_export.lerobot.writer import new_dataset
from edge_export.terminal import console
from edge_sdk.control.policy import PolicyConfig

app = typer.Typer(help="Episodes to learn a policy from: LeRobot datasets, and recordings of the control loop.")

Source = Annotated[Path, typer.Argument(help="A LeRobot dataset (v2.0, v2.1, v3.0), or a folder of MCAP recordings.")]


class EpisodesReport(msgspec.Struct, frozen=True, kw_only=True):
    """A dataset in numbers."""

    episodes: int
    steps: int
    shortest: int
    longest: int
    seconds: float
    """Of all episodes, at the schema's rate."""
    instructions: dict[str, int]
    """How many episodes have each; only where they were read."""
    schema: PolicyConfig


def describe(source: EpisodeSource, *, read: bool) -> EpisodesReport:
    """With ``read``, every episode is decoded and checked against the schema, and instructions are counted.

    Raises ConfigError for the first that does not fit.
    """
    instructions: dict[str, int] = {}
    if read:
        for index in track(range(len(source)), "reading", console=console, transient=True):
            episode = source[index]
            episode.check(source.schema)
            instructions[episode.instruction] = instructions.get(episode.instruction, 0) + 1
    steps = int(source.lengths.sum())
    return EpisodesReport(
        episodes=len(source),
        steps=steps,
        shortest=int(source.lengths.min()),
        longest=int(source.lengths.max()),
        seconds=steps / source.schema.action.rate_hz,
        instructions=instructions,
        schema=source.schema,
    )


@app.command()
def inspect(
    source: Source,
    read: Annotated[bool, typer.Option("--read", help="Decode and check every episode; count instructions.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Describe a dataset: episodes, observations, actions and their statistics."""
    report = describe(open_episodes(source), read=read)
    if as_json:
        sys.stdout.write(msgspec.json.format(msgspec.json.encode(report), indent=2).decode() + "\n")
        return
    Console().print(_table(report))


@app.command()
def convert(
    source: Source,
    out: Annotated[Path, typer.Option(help="The LeRobot v3.0 dataset to write.")],
    robot_type: Annotated[str, typer.Option(help="What the dataset says of the robot.")] = "unknown",
    dry_run: DryRun = False,
) -> None:
    """Write a dataset, or recordings, as LeRobot v3.0. Images become H.264 videos, which loses a little."""
    episodes = open_episodes(source)
    if dry_run:
        show_estimate(_estimate(source, episodes), out)
        return
    with new_dataset(out, episodes.schema, robot_type=robot_type) as dataset:
        for index in track(range(len(episodes)), "converting", console=console, transient=True):
            dataset.add(episodes[index])


def _estimate(source: Path, episodes: EpisodeSource) -> Estimate:
    """Numbers take their size; of videos nothing honest can be said but that they are smaller than their pixels."""
    schema = episodes.schema
    step = sum(int(np.prod(spec.shape)) * spec.dtype.itemsize for spec in schema.observations) + 4 * schema.action_dim
    images = any(spec.kind == "image" for spec in schema.observations)
    return Estimate(
        read_bytes=sum(file.stat().st_size for file in source.rglob("*") if file.is_file()),
        write_bytes=float(step * episodes.lengths.sum()),
        memory_bytes=float(step * episodes.lengths.max()),
        seconds=None,
        largest="the longest episode",
        time_from="nothing; images are counted as pixels, of which a video takes a part" if images else "nothing",
    )


def _table(report: EpisodesReport) -> Table:
    table = Table(show_header=False)
    table.add_row("episodes", f"{report.episodes}: {report.shortest} to {report.longest} steps")
    rate_hz = report.schema.action.rate_hz
    table.add_row("steps", f"{report.steps:,}: {report.seconds:,.1f} s at {rate_hz:g} Hz")
    for instruction, count in sorted(report.instructions.items()):
        table.add_row("instruction", f"{instruction!r}: {count} episodes")
    for spec in report.schema.observations:
        stats = spec.normalization.stats
        table.add_row(spec.name, f"{spec.kind} {spec.shape}\n{_numbers(stats)}")
    for index, dim in enumerate(report.schema.action.dims):
        low, high = dim.bounds
        one = {
            name: values[index : index + 1] or values
            for name, values in report.schema.action.normalization.stats.items()
        }
        table.add_row(f"action {dim.name}", f"[{low:g}, {high:g}] {dim.unit}\n{_numbers(one)}", style=None)
    return table


def _numbers(stats: dict[str, tuple[float, ...]]) -> str:
    return "\n".join(f"{name} {' '.join(f'{value:.4g}' for value in values)}" for name, values in stats.items())
