"""Several boards side by side: a bar for each while they are deployed to, and a table of how they are."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from typing import TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.table import Table

from edge_sdk.bundle import Bundle
from edge_sdk.deploy.boards import Board
from edge_sdk.deploy.chunks import offer
from edge_sdk.deploy.line import Ssh
from edge_sdk.deploy.protocol import Installed, Question, Status
from edge_sdk.deploy.record import Slot
from edge_sdk.deploy.send import Report, ask, deploy, settled
from edge_sdk.errors import EdgeError

Boards = Mapping[str, Board]
T = TypeVar("T")


def deploy_all(
    bundle: Bundle, boards: Boards, ssh: Ssh, *, force: bool, console: Console
) -> dict[str, Installed | EdgeError]:
    """Deploys to all boards at the same time; what one refuses is its outcome and stops no other."""
    described = offer(bundle)
    columns = (TextColumn("{task.fields[board]}"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.description}"))
    with Progress(*columns, console=console) as progress:

        def reporter(name: str) -> Report:
            task = progress.add_task("connecting", total=None, board=name)

            def report(doing: str, received: int, total: int) -> None:
                progress.update(task, description=doing, completed=received, total=total)

            return report

        reports = {name: reporter(name) for name in boards}

        async def one(name: str, board: Board) -> Installed:
            done = await deploy(bundle, described, board, ssh, force=force, report=reports[name])
            reports[name]("done", 1, 1)
            return done

        return asyncio.run(_each(boards, one))


def ask_all(question: Question, boards: Boards, ssh: Ssh) -> dict[str, Status | EdgeError]:
    """Asks all boards the same at the same time."""
    return asyncio.run(_each(boards, lambda _, board: ask(question, board, ssh)))


def settle_all(installed: Mapping[str, Installed], boards: Boards, ssh: Ssh, timeout_s: float) -> dict[str, str]:
    """What became of each board's trial: nothing where its service is healthy, else why not."""

    async def one(name: str, board: Board) -> str:
        slot = await settled(installed[name].slot.bundle_id, board, ssh, timeout_s)
        if slot.failed:
            return f"rolled back: {slot.failed}"
        return "" if slot.healthy else f"still on trial after {timeout_s:g} s: is the service installed?"

    outcomes = asyncio.run(_each(boards, one))
    return {name: str(outcome) for name, outcome in outcomes.items()}


def describe(outcome: Installed | EdgeError) -> str:
    """What became of one deployment, in a line."""
    if isinstance(outcome, EdgeError):
        return f"refused: {outcome}"
    if outcome.already:
        return f"version {outcome.slot.version} is active in slot {outcome.name} already"
    speed = "" if outcome.slot.step_ms is None else f", {outcome.slot.step_ms:.3g} ms a step"
    signed = f", signed by {outcome.slot.signed_by}" if outcome.slot.signed_by else ""
    return f"version {outcome.slot.version} is active in slot {outcome.name}{signed}{speed}"


def table(states: Mapping[str, Status | EdgeError]) -> Table:
    """How boards are: a row each."""
    columns = ("board", "machine", "active", "other slot", "tokens/s", "missed ticks", "°C", "free", "edge-sdk")
    made = Table(*columns, box=None)
    for name, status in states.items():
        if isinstance(status, EdgeError):
            made.add_row(name, str(status))
            continue
        record = status.record
        made.add_row(
            name,
            status.board,
            _slot(record.active, record.running),
            _slot(record.spare, record.slots.get(record.spare)),
            _speed(status),
            ", ".join(
                f"{one.name}: {one.loop.missed} of {one.loop.ticks}" for one in status.figures if one.loop is not None
            ),
            "" if status.temperature_celsius is None else f"{status.temperature_celsius:.0f}",
            f"{status.free_bytes / 1e9:.1f} GB",
            status.version,
        )
    return made


def _speed(status: Status) -> str:
    """As served where answers were given, and by the acceptance check."""
    served = [f"{one.tokens_per_second:.1f}" for one in status.figures if one.tokens_per_second is not None]
    running = status.record.running
    checked = [] if running is None or not running.step_ms else [f"{1e3 / running.step_ms:.1f} (check)"]
    return ", ".join(served + checked)


def _slot(name: str | None, slot: Slot | None) -> str:
    if slot is None:
        return "none"
    state = "failed" if slot.failed else "healthy" if slot.healthy else f"on trial, {slot.starts} starts"
    return f"{name}: {slot.version} ({state})"


async def _each(boards: Boards, work: Callable[[str, Board], Awaitable[T]]) -> dict[str, T | EdgeError]:
    async def outcome(name: str, board: Board) -> T | EdgeError:
        try:
            return await work(name, board)
        except EdgeError as error:
            return error

    found = await asyncio.gather(*(outcome(name, board) for name, board in boards.items()))
    return dict(zip(boards, found))
