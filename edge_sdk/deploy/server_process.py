"""One `edge-sdk serve` as a process: on the socket that all share, and on one of its own that tells how it is."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Sequence
from pathlib import Path

from edge_sdk.deploy.record import Slot

HEALTH_TIMEOUT_S = 5.0
FINISH_S = 300
"""What a server's last answers are given when another has taken its place: nobody waits for it to go."""
STOP_S, FORCED_S = 10.0, 5.0
"""What they are given when the service is to end, and what the process is then given before it is killed."""
NAME = "edge"
"""What clients call the model, unless ``--name`` says otherwise: the same for every bundle."""


class ServerProcess:
    """Starts when it is made."""

    def __init__(
        self, slot: Slot, bundle: Path, figures: Path, arguments: Sequence[str], listening: socket.socket
    ) -> None:
        """``figures``: the folder where it says how fast it answers; ``arguments``: further ones of `edge-sdk serve`;
        ``listening``: the socket that all servers share."""
        self.slot = slot
        self.confirmed = slot.healthy
        """Whether the store knows that its bundle is healthy."""
        self._started_s = time.monotonic()
        self._healthy_since_s: float | None = None
        named = [] if "--name" in arguments else ["--name", NAME]
        command = [sys.executable, "-m", "edge_sdk.cli", "serve", str(bundle), *named, *arguments]
        with socket.socket() as own:
            own.bind(("127.0.0.1", 0))  # the server listens: until then a question is refused and not kept waiting
            self._port = own.getsockname()[1]
            shared = (listening.fileno(), own.fileno())
            command += [
                "--figures",
                str(figures),
                "--finish-s",
                str(FINISH_S),
                *(f"--fd={descriptor}" for descriptor in shared),
            ]
            self._process = subprocess.Popen(command, pass_fds=shared)

    @property
    def status(self) -> int | None:
        """The exit status; None while it runs."""
        return self._process.poll()

    @property
    def age_s(self) -> float:
        """Since the start."""
        return time.monotonic() - self._started_s

    def is_healthy(self) -> bool:
        """Whether it answers."""
        try:
            url = f"http://127.0.0.1:{self._port}/health"
            with urllib.request.urlopen(url, timeout=HEALTH_TIMEOUT_S) as response:
                return bool(response.status == 200)
        except OSError:  # URLError is one
            return False

    def healthy_s(self) -> float | None:
        """How long it has answered each time that this was asked; None where it does not answer."""
        now = time.monotonic()
        if not self.is_healthy():
            self._healthy_since_s = None
            return None
        if self._healthy_since_s is None:
            self._healthy_since_s = now
        return now - self._healthy_since_s

    def leave(self) -> None:
        """Lets it give the answers that it has begun, and go."""
        self._process.terminate()

    def stop(self) -> None:
        """Ends it, within 15 s."""
        self._process.terminate()
        for timeout_s, forced in ((STOP_S, signal.SIGINT), (FORCED_S, signal.SIGKILL)):
            try:
                self._process.wait(timeout_s)
            except subprocess.TimeoutExpired:
                self._process.send_signal(forced)
        self._process.wait()
