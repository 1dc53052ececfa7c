"""Runs a store's active slot: ``python -m edge_sdk.deploy.run STORE -- ARGUMENTS`` is what the systemd unit starts.

Starts `edge-sdk serve` with the active bundle, counts the start, asks the server how it is, tells systemd, and notes
the bundle as healthy. When another slot becomes active, a server with its bundle is started on the same socket, and
when that answers, the one before ends its answers and goes.
"""

from __future__ import annotations

import argparse
import logging
import os
import signal
import socket
import sys
from collections.abc import Sequence
from pathlib import Path
from threading import Event

from edge_sdk.deploy.record import Slot
from edge_sdk.deploy.server_process import ServerProcess
from edge_sdk.deploy.store import Store
from edge_sdk.errors import ConfigError, EdgeError, explain
from edge_sdk.journal import configure_logging, say_error

POLL_S = 1.0
LOAD_S = 900.0
"""What a server that is to take over is given until it answers, as the unit's TimeoutStartSec is for the first one."""
BACKLOG = 2048
"""Connections that wait where no server takes them at the moment."""

log = logging.getLogger("edge_sdk.deploy")


def address(arguments: Sequence[str]) -> tuple[str, int]:
    """Where a server with these arguments listens. Raises ConfigError where that cannot be known."""
    parser = argparse.ArgumentParser(add_help=False, exit_on_error=False)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8000)
    try:
        known, _ = parser.parse_known_args(list(arguments))
    except argparse.ArgumentError as error:
        raise ConfigError(explain("The server's arguments", expected="a port", found=error, todo="Give one.")) from None
    if known.port == 0:
        raise ConfigError(explain("The server's port", expected="one that is known", found=0, todo="Give one."))
    return known.host, known.port


def listen(arguments: Sequence[str]) -> socket.socket:
    """The socket that all servers share. Raises ConfigError."""
    host, port = address(arguments)
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=BACKLOG, dualstack_ipv6=host == "::")
    except OSError as error:
        found = error.strerror or error
        todo = "What else listens there? `ss -ltnp` says it."
        raise ConfigError(explain(f"{host}:{port}", expected="a free port", found=found, todo=todo)) from None


class Service:
    """A server for each slot that becomes active."""

    def __init__(self, store: Store, arguments: Sequence[str]) -> None:
        self._store, self._arguments, self._listening = store, list(arguments), listen(arguments)
        self._server: ServerProcess | None = None
        self._coming: ServerProcess | None = None
        """Is to take the server's place, and loads."""
        self._leaving: ServerProcess | None = None
        """Gives its last answers."""
        self.stopping = Event()
        """Ends the servers and :meth:`run`."""

    def run(self) -> int:
        """Serves until it is told to stop, or until the server ends by itself; returns the exit status."""
        try:
            self._server = self._start()
            while not self.stopping.wait(POLL_S):
                if self._server.status is not None:
                    log.error("the server ended by itself: exit status %d", self._server.status)
                    return 1
                if self._leaving is not None and self._leaving.status is not None:
                    self._leaving = None
                self._server = self._successor(self._server)
                self._look_after(self._server)
            return 0
        finally:
            for server in (self._server, self._coming, self._leaving):
                if server is not None:
                    server.stop()
            self._listening.close()

    def _start(self) -> ServerProcess:
        return self._process_of(self._store.begin_start())

    def _process_of(self, slot: Slot) -> ServerProcess:
        log.info("version %s, %s", slot.version, "healthy before" if slot.healthy else f"start {slot.starts} on trial")
        bundle, figures = self._store.path_of(slot), self._store.figures
        return ServerProcess(slot, bundle, figures, self._arguments, self._listening)

    def _successor(self, server: ServerProcess) -> ServerProcess:
        """The server that is to be asked from now on: this one, or another if that has loaded."""
        if self._coming is None:
            return server if self._is_active(server) else self._begin_move(server)
        if not self._is_active(self._coming):
            self._give_up("another bundle is active")
        elif self._coming.status is not None:
            self._give_up(f"exit status {self._coming.status}")
        elif self._coming.age_s > LOAD_S:
            self._give_up(f"it has not answered for {LOAD_S:g} s")
        elif self._coming.is_healthy():
            log.info("version %s answers", self._coming.slot.version)
            server.leave()
            self._leaving = server
            server, self._coming = self._coming, None
        return server

    def _begin_move(self, server: ServerProcess) -> ServerProcess:
        """Starts a server with the active bundle, beside this one where there is memory for two."""
        if self._leaving is not None:
            self._leaving.stop()  # of a switch just before: three are too many
            self._leaving = None
        if not self._store.settings().two_at_once:
            server.stop()
            return self._start()
        slot = self._store.begin_start()
        if slot.bundle_id == server.slot.bundle_id:  # given up for the one that runs
            log.error("back to version %s, which never stopped", slot.version)
            return server
        self._coming = self._process_of(slot)
        return server

    def _give_up(self, reason: str) -> None:
        """The one that is to come; if its bundle is still wanted, it is tried again and the start counted."""
        if self._coming is not None:
            log.error("version %s did not take over: %s", self._coming.slot.version, reason)
            self._coming.stop()
            self._coming = None

    def _is_active(self, server: ServerProcess) -> bool:
        running = self._store.read().running
        return running is None or running.bundle_id == server.slot.bundle_id

    def _look_after(self, server: ServerProcess) -> None:
        """Tells systemd, whose watchdog hears nothing of a server that does not answer, and confirms the bundle."""
        healthy_s = server.healthy_s()
        if healthy_s is None:
            return
        tell_systemd("READY=1\nWATCHDOG=1")
        if not server.confirmed and healthy_s >= self._store.settings().healthy_after_s:
            self._store.confirm(server.slot.bundle_id)
            server.confirmed = True
            log.info("version %s is healthy", server.slot.version)


def tell_systemd(message: str) -> None:
    """sd_notify(3), where systemd listens."""
    address = os.environ.get("NOTIFY_SOCKET")
    if address:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
            sender.sendto(message.encode(), "\0" + address[1:] if address.startswith("@") else address)


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit status."""
    parser = argparse.ArgumentParser(prog="edge_sdk.deploy.run", description=__doc__)
    parser.add_argument("store", type=Path, help="the store's folder")
    parser.add_argument("--settings", type=Path, metavar="FOLDER", help="where board.json and trusted_keys are")
    parser.epilog = "further arguments of `edge-sdk serve` come after --"
    given = list(sys.argv[1:] if arguments is None else arguments)
    end = given.index("--") if "--" in given else len(given)
    options = parser.parse_args(given[:end])
    configure_logging()
    try:
        service = Service(Store(options.store.expanduser(), options.settings), given[end + 1 :])
        signal.signal(signal.SIGTERM, lambda *_: service.stopping.set())
        signal.signal(signal.SIGINT, lambda *_: service.stopping.set())
        return service.run()
    except EdgeError as error:
        say_error(error)
        return error.exit_code


if __name__ == "__main__":
    sys.exit(main())
