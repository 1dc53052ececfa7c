"""Runs a store's active slot: ``python -m edge_sdk.deploy.run STORE -- ARGUMENTS`` is what the systemd unit starts.

Starts `edge-sdk serve` with the active bundle, counts the start, asks the server how it is, tells systemd, and notes
the bundle as healthy. When another slot becomes active, the server ends its answers and one with the other bundle is
started.
"""

from __future__ import annotations

import argparse
import logging
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from threading import Event

from edge_sdk.deploy.record import Slot
from edge_sdk.deploy.store import Store
from edge_sdk.errors import ConfigError, EdgeError, explain

POLL_S = 1.0
HEALTH_TIMEOUT_S = 5.0
STOP_S = 15.0
"""What the server is given to end; it gives its answers 5 s of it."""
NAME = "edge"
"""What clients call the model, unless ``--name`` says otherwise: the same for every bundle."""

log = logging.getLogger("edge_sdk.deploy")


def health_url(arguments: Sequence[str]) -> str:
    """Where a server with these arguments says how it is. Raises ConfigError where that cannot be known."""
    parser = argparse.ArgumentParser(add_help=False, exit_on_error=False)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8000)
    try:
        known, _ = parser.parse_known_args(list(arguments))
    except argparse.ArgumentError as error:
        raise ConfigError(explain("The server's arguments", expected="a port", found=error, todo="Give one.")) from None
    if known.port == 0:
        raise ConfigError(explain("The server's port", expected="one that is known", found=0, todo="Give one."))
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(known.host, known.host)
    return f"http://{f'[{host}]' if ':' in host else host}:{known.port}/health"


class Service:
    """A server for each slot that becomes active."""

    def __init__(self, store: Store, arguments: Sequence[str]) -> None:
        self._store, self._arguments, self._url = store, list(arguments), health_url(arguments)
        self.stopping = Event()
        """Ends the server and :meth:`run`."""

    def run(self) -> int:
        """Serves until it is told to stop, or until a server ends by itself; returns the exit status."""
        while not self.stopping.is_set():
            slot = self._store.begin_start()
            log.info("version %s, start %d on trial", slot.version, slot.starts)
            server = self._start(slot)
            try:
                if self._watch(server, slot):
                    log.error("the server ended by itself: exit status %d", server.returncode)
                    return 1
            finally:
                _stop(server)
        return 0

    def _start(self, slot: Slot) -> subprocess.Popen[bytes]:
        named = [] if "--name" in self._arguments else ["--name", NAME]
        command = [sys.executable, "-m", "edge_sdk.cli", "serve", str(self._store.path_of(slot))]
        return subprocess.Popen([*command, *named, *self._arguments])

    def _watch(self, server: subprocess.Popen[bytes], slot: Slot) -> bool:
        """Until it is to stop or another bundle is active; True where the server ended by itself."""
        healthy_since: float | None = None
        healthy_after_s, confirmed = self._store.settings().healthy_after_s, slot.healthy
        while not self.stopping.wait(POLL_S):
            if server.poll() is not None:
                return True
            running = self._store.read().running
            if running is not None and running.bundle_id != slot.bundle_id:
                log.info("version %s is active now", running.version)
                return False
            if not self._is_healthy():
                healthy_since = None  # and systemd's watchdog hears nothing
                continue
            healthy_since = healthy_since or time.monotonic()
            tell_systemd("READY=1\nWATCHDOG=1")
            if not confirmed and time.monotonic() - healthy_since >= healthy_after_s:
                self._store.confirm(slot.bundle_id)
                confirmed = True
                log.info("version %s is healthy", slot.version)
        return False

    def _is_healthy(self) -> bool:
        try:
            with urllib.request.urlopen(self._url, timeout=HEALTH_TIMEOUT_S) as response:
                return bool(response.status == 200)
        except OSError:  # URLError is one
            return False


def tell_systemd(message: str) -> None:
    """sd_notify(3), where systemd listens."""
    address = os.environ.get("NOTIFY_SOCKET")
    if address:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
            sender.sendto(message.encode(), "\0" + address[1:] if address.startswith("@") else address)


def _stop(server: subprocess.Popen[bytes]) -> None:
    server.terminate()
    try:
        server.wait(STOP_S)
    except subprocess.TimeoutExpired:
        server.kill()
        server.wait()


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit status."""
    parser = argparse.ArgumentParser(prog="edge_sdk.deploy.run", description=__doc__)
    parser.add_argument("store", type=Path, help="the store's folder")
    parser.add_argument("--settings", type=Path, metavar="FOLDER", help="where board.json and trusted_keys are")
    parser.add_argument("serve", nargs="*", help="further arguments of `edge-sdk serve`, after --")
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(name)s: %(message)s", stream=sys.stderr)
    try:
        service = Service(Store(options.store.expanduser(), options.settings), options.serve)
        signal.signal(signal.SIGTERM, lambda *_: service.stopping.set())
        signal.signal(signal.SIGINT, lambda *_: service.stopping.set())
        return service.run()
    except EdgeError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code


if __name__ == "__main__":
    sys.exit(main())
