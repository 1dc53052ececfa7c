"""The board's side of a deployment: ``python -m edge_sdk.deploy.agent STORE``, run over SSH, answers on its output."""

from __future__ import annotations

import argparse
import os
import select
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import edge_sdk
from edge_sdk.deploy.install import Installation
from edge_sdk.deploy.protocol import (
    HEADER,
    PROTOCOL,
    Answer,
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
    Refused,
    Rollback,
    Status,
    Welcome,
    decode_question,
    frame,
    frame_length,
)
from edge_sdk.deploy.service import install_service
from edge_sdk.deploy.store import Store
from edge_sdk.errors import BusyError, EdgeError
from edge_sdk.figures import read_figures
from edge_sdk.machine import read_machine
from edge_sdk.telemetry import read_temperatures

IDLE_S = 20.0
"""Silence after which the other side is given up, whose line may have died without a word."""


class Agent:
    """Answers questions about one store."""

    def __init__(self, store: Store, say: Callable[[Answer], None]) -> None:
        self._store, self._say = store, say
        self._installation: Installation | None = None
        self._held = ExitStack()

    def close(self) -> None:
        """Lets others install."""
        self._held.close()

    def answer(self, question: Question) -> None:
        """Says what there is to say. Raises EdgeError."""
        if isinstance(question, Begin):
            self._begin(question)
        elif isinstance(question, (Chunk, Commit)):
            self._go_on(question)
        else:
            if isinstance(question, Rollback):
                self._store.roll_back(force=question.force)
            elif isinstance(question, Configure):
                self._store.configure(question.settings, question.trusted_keys)
            elif isinstance(question, InstallService):
                install_service(self._store, question.arguments)
            self._say(status_of(self._store))

    def _begin(self, question: Begin) -> None:
        self._held.enter_context(self._store.installing())
        self._installation = Installation(self._store, question.offer, force=question.force)
        record = self._store.read()
        if self._installation.is_active and record.active is not None and record.running is not None:
            self._say(Installed(record.active, record.running, already=True))
        else:
            self._say(Missing(tuple(self._installation.begin())))

    def _go_on(self, question: Chunk | Commit) -> None:
        if self._installation is None:
            self._say(Refused("Chunks came before the bundle that they belong to."))
        elif isinstance(question, Chunk):
            self._installation.receive(question.name, question.index, question.data)
            self._say(Received())
        else:
            name, slot = self._installation.commit(lambda doing: self._say(Progress(doing)))
            self._say(Installed(name, slot, already=False))


def status_of(store: Store) -> Status:
    """How this board is. Raises DeployError."""
    machine, temperatures = read_machine(), read_temperatures()
    return Status(
        version=edge_sdk.__version__,
        board=machine.board or machine.cpu,
        record=store.read(),
        free_bytes=shutil.disk_usage(store.folder).free,
        temperature_celsius=max(temperatures.values(), default=None),
        figures=tuple(read_figures(store.figures)),
    )


def questions(descriptor: int, idle_s: float) -> Iterator[Question]:
    """What comes in, until its end or until nothing came for so long. Raises DeployError for what is no question."""
    while header := _read(descriptor, HEADER.size, idle_s):
        content = _read(descriptor, frame_length(header), idle_s)
        if not content:
            return
        yield decode_question(content)


def _read(descriptor: int, size: int, idle_s: float) -> bytes:
    """So many bytes; none where the other side has gone."""
    parts, left = [], size
    while left:
        ready, _, _ = select.select([descriptor], [], [], idle_s)
        part = os.read(descriptor, min(left, 1 << 16)) if ready else b""
        if not part:
            return b""
        parts.append(part)
        left -= len(part)
    return b"".join(parts)


def main(arguments: list[str] | None = None) -> int:
    """Answers until there are no more questions; returns the exit status."""
    parser = argparse.ArgumentParser(prog="edge_sdk.deploy.agent", description=__doc__)
    parser.add_argument("store", type=Path, help="the store's folder")
    parser.add_argument("--settings", type=Path, metavar="FOLDER", help="where board.json and trusted_keys are")
    parser.add_argument("--idle-s", type=float, default=IDLE_S, help=f"silence that ends it (default {IDLE_S:g})")
    options = parser.parse_args(arguments)
    output = os.dup(1)
    os.dup2(2, 1)  # what libraries print must not stand among the answers

    def say(answer: Answer) -> None:
        left = memoryview(frame(answer))
        while left:
            left = left[os.write(output, left) :]

    agent = None
    try:
        say(Welcome(PROTOCOL, edge_sdk.__version__))
        agent = Agent(Store(options.store.expanduser(), options.settings), say)
        for question in questions(0, options.idle_s):
            agent.answer(question)
    except (EdgeError, OSError) as error:
        try:
            say(Refused(str(error), busy=isinstance(error, BusyError)))
        except BrokenPipeError:
            print(error, file=sys.stderr)  # nobody is there to be told
        return 1
    finally:
        if agent is not None:
            agent.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
