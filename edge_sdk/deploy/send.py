"""The workstation's side of a deployment: what is missing goes over, again and again if the line breaks."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

from edge_sdk.bundle import Bundle
from edge_sdk.deploy.boards import Board
from edge_sdk.deploy.chunks import Offer, read_chunk
from edge_sdk.deploy.line import Line, LineLostError, Ssh, connected
from edge_sdk.deploy.protocol import (
    AskStatus,
    Begin,
    Chunk,
    Commit,
    Configure,
    Installed,
    InstallService,
    Missing,
    Progress,
    Question,
    Received,
    Status,
)
from edge_sdk.deploy.record import Slot
from edge_sdk.errors import BusyError, DeployError, explain

WINDOW = 16
"""Chunks that are under way before the first of them must be acknowledged."""
CHECK_TIMEOUT_S = 3600.0 + 600.0
"""Of a board's checks, the building of an engine among them; a line that breaks meanwhile is noticed by SSH."""

ANSWER_TIMEOUT_S = 330.0
"""Of the answers to single questions: the longest is that to InstallService, six commands of systemd's."""

SETTLE_POLL_S = 2.0

Report = Callable[[str, int, int], None]
"""Told what is being done, how many chunks came over and how many are to, in all."""


async def deploy(
    bundle: Bundle, offer: Offer, board: Board, ssh: Ssh, *, force: bool = False, report: Report
) -> Installed:
    """Installs a bundle on a board. Raises DeployError and BusyError; then the board runs what it ran before."""
    sending, failures = _Sending(bundle, offer, report), 0
    while True:
        before = sending.received
        try:
            async with connected(board, ssh) as line:
                return await sending.over(line, force)
        except (LineLostError, BusyError) as error:
            if sending.received > before:
                failures = 0
            failures += 1
            if failures >= ssh.attempts:
                raise error if isinstance(error, BusyError) else _unreachable(board, error) from None
            sending.say(f"waiting: {error}")
        await _pause(failures, ssh)


async def ask(question: Question, board: Board, ssh: Ssh) -> Status:
    """How a board is, after what is asked of it. Raises DeployError.

    What does the same when it is done twice is asked again over another line if one is lost.
    """
    failures, attempts = 0, ssh.attempts if isinstance(question, (Configure, InstallService)) else 1
    while True:
        try:
            return await _ask_once(question, board, ssh)
        except LineLostError as error:
            failures += 1
            if failures >= attempts:
                raise _unreachable(board, error) from None
        await _pause(failures, ssh)


async def _pause(failures: int, ssh: Ssh) -> None:
    """After so many failures in a row: a second, and each time twice as long."""
    await asyncio.sleep(min(2.0 ** (failures - 1), ssh.longest_pause_s))


async def _ask_once(question: Question, board: Board, ssh: Ssh) -> Status:
    """Raises LineLostError and DeployError."""
    async with connected(board, ssh) as line:
        answer = await line.ask(question, timeout_s=ANSWER_TIMEOUT_S)
    if not isinstance(answer, Status):
        raise _unexpected(answer)
    return answer


async def settled(bundle_id: str, board: Board, ssh: Ssh, timeout_s: float) -> Slot:
    """The slot of a bundle once the board's service found it healthy or gave it up, or as it is after so long.

    Raises DeployError where the board cannot be reached at the end of that time, or has no such bundle any more.
    """
    end = time.monotonic() + timeout_s
    while True:
        try:
            async with connected(board, ssh) as line:
                return await _settled_over(line, bundle_id, board, end)
        except LineLostError as error:
            if time.monotonic() > end:
                raise _unreachable(board, error) from None
        await asyncio.sleep(SETTLE_POLL_S)


async def _settled_over(line: Line, bundle_id: str, board: Board, end: float) -> Slot:
    """Over one line: starting an agent for each question would take a small board's time from what is waited for."""
    while True:
        status = await line.ask(AskStatus(), timeout_s=ANSWER_TIMEOUT_S)
        if not isinstance(status, Status):
            raise _unexpected(status)
        slot = next((one for one in status.record.slots.values() if one.bundle_id == bundle_id), None)
        if slot is None:
            raise DeployError(explain(board.host, expected="the bundle", found="others", todo="Deploy it again."))
        if slot.healthy or slot.failed or time.monotonic() > end:
            return slot
        await asyncio.sleep(SETTLE_POLL_S)


class _Sending:
    """One bundle on its way to one board, over as many lines as it takes."""

    def __init__(self, bundle: Bundle, offer: Offer, report: Report) -> None:
        self._bundle, self._offer, self._report = bundle, offer, report
        self.received = 0
        """Chunks, over all lines."""
        self._total = 0

    def say(self, doing: str) -> None:
        """Reports what is being done."""
        self._report(doing, self.received, self._total)

    async def over(self, line: Line, force: bool) -> Installed:
        """All that is missing, and the checks."""
        answer = await line.ask(Begin(self._offer, force), timeout_s=CHECK_TIMEOUT_S)
        if isinstance(answer, Installed):
            return answer
        if not isinstance(answer, Missing):
            raise _unexpected(answer)
        self._total = self.received + len(answer.chunks)
        self.say("sending")
        for number, (name, index) in enumerate(answer.chunks):
            if number >= WINDOW:
                await self._acknowledged(line)
            await line.send(Chunk(name, index, read_chunk(self._bundle.file(name), index)))
        for _ in answer.chunks[-WINDOW:]:
            await self._acknowledged(line)
        answer = await line.ask(Commit(), timeout_s=CHECK_TIMEOUT_S)
        while isinstance(answer, Progress):
            self.say(answer.doing)
            answer = await line.receive(CHECK_TIMEOUT_S)
        if not isinstance(answer, Installed):
            raise _unexpected(answer)
        return answer

    async def _acknowledged(self, line: Line) -> None:
        if not isinstance(answer := await line.receive(), Received):
            raise _unexpected(answer)
        self.received += 1
        self.say("sending")


def _unreachable(board: Board, error: Exception) -> DeployError:
    todo = "Is it on, and does `ssh` reach it? Deploying again goes on where this ended."
    return DeployError(explain(board.host, expected="a line that holds", found=error, todo=todo))


def _unexpected(answer: object) -> DeployError:
    todo = "Bring both sides to the same version of Edge SDK."
    found = type(answer).__name__
    return DeployError(explain("The board's answer", expected="another", found=found, todo=todo))
