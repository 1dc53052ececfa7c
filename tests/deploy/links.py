"""A real SSH server on loopback, and links to it that are slow, stall or break."""

from __future__ import annotations

import getpass
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path

import asyncssh

from edge_sdk.deploy.boards import Board
from edge_sdk.deploy.line import Ssh
from places import ROOT

CONFIG = """
ListenAddress {address}
Port {port}
HostKey {folder}/host
AuthorizedKeysFile {folder}/user.pub
PidFile none
StrictModes no
UsePAM no
PasswordAuthentication no
KbdInteractiveAuthentication no
PermitRootLogin prohibit-password
MaxStartups 100
SetEnv {environment}
"""


def sshd_program() -> str | None:
    """OpenSSH's server, which Debian keeps out of ordinary users' paths."""
    return shutil.which("sshd", path=os.environ["PATH"] + ":/usr/sbin")


def free_port() -> int:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        return int(listening.getsockname()[1])


class Server:
    """A user's own sshd, with keys of its own; the agent that it starts is this checkout's."""

    def __init__(
        self,
        folder: Path,
        user: str | None = None,
        address: str = "127.0.0.1",
        within: tuple[str, ...] = (),
        **environment: str,
    ) -> None:
        """``user``: an account that it runs as and lets in, None is this one; ``within``: a command that it is run by;
        ``environment``: of what it starts.
        """
        self.folder, self.port, self.user, self.address = folder, free_port(), user or getpass.getuser(), address
        folder.mkdir(parents=True)
        for name in ("host", "user"):
            asyncssh.generate_private_key("ssh-ed25519").write_private_key(str(folder / name))
            (folder / name).chmod(0o600)
            asyncssh.read_private_key(str(folder / name)).write_public_key(str(folder / f"{name}.pub"))
        path = ":".join([*map(str, (ROOT, ROOT / "plugins", ROOT / "export")), os.environ.get("PYTHONPATH", "")])
        given = " ".join(f'"{name}={value}"' for name, value in {"PYTHONPATH": path.rstrip(":"), **environment}.items())
        (folder / "config").write_text(CONFIG.format(address=address, port=self.port, folder=folder, environment=given))
        for file in (folder, *folder.iterdir()) if user else ():
            shutil.chown(file, user)
        if os.geteuid() == 0:
            Path("/run/sshd").mkdir(exist_ok=True)  # where it confines itself, which packages leave to the start script
        command = [*within, sshd_program(), "-D", "-e", "-f", folder / "config"]
        self._log = (folder / "log").open("wb")
        self._process = subprocess.Popen(list(map(str, command)), stderr=self._log, user=user, cwd="/")
        self._wait()

    def _wait(self) -> None:
        for _ in range(200):
            with suppress(ConnectionRefusedError), socket.create_connection((self.address, self.port)):
                return
            if self._process.poll() is not None:
                break
            time.sleep(0.05)
        raise RuntimeError(f"sshd does not run: {(self.folder / 'log').read_text()}")

    def board(self, store: Path, port: int | None = None) -> Board:
        """A board behind this server, or behind a link to it."""
        host = f"{self.user}@{self.address}:{port or self.port}"
        return Board(host=host, store=str(store), python=sys.executable)

    def ssh(self, *ports: int, **more: float) -> Ssh:
        """How to reach it, at its own port and at those of links."""
        key = " ".join((self.folder / "host.pub").read_text().split()[:2])
        known = "".join(f"[{self.address}]:{port} {key}\n" for port in (self.port, *ports))
        (self.folder / "known_hosts").write_text(known)
        given = {"stall_s": 20.0, "longest_pause_s": 1.0} | more
        return Ssh(known_hosts=self.folder / "known_hosts", identity=self.folder / "user", **given)

    def close(self) -> None:
        self._process.terminate()
        self._process.wait()
        self._log.close()


class Link:
    """Carries bytes to a port, so many at the most each second, and breaks or stalls each connection in its turn."""

    def __init__(
        self, port: int, *, bytes_per_s: float = 1e9, faults: tuple[tuple[str, int], ...] = (), stall_s: float = 60
    ) -> None:
        """``faults``: for one connection after another, ``drop`` or ``stall`` after so many bytes towards the board."""
        self._target, self._rate, self._faults, self._stall_s = port, bytes_per_s, list(faults), stall_s
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listening.getsockname()[1])
        self.sent: list[int] = []
        """Bytes towards the board, by connection."""
        self._closing = threading.Event()
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        self._closing.set()
        self._listening.close()

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._listening.accept()
                far = socket.create_connection(("127.0.0.1", self._target))
            except OSError:
                return
            fault = self._faults.pop(0) if self._faults else ("", 0)
            self.sent.append(0)
            number = len(self.sent) - 1
            threading.Thread(target=self._carry, args=(near, far, number, fault), daemon=True).start()
            threading.Thread(target=self._carry, args=(far, near, None, ("", 0)), daemon=True).start()

    def _carry(self, source: socket.socket, target: socket.socket, number: int | None, fault: tuple[str, int]) -> None:
        kind, after = fault
        with suppress(OSError):
            while data := source.recv(1 << 14):
                if number is not None:
                    self.sent[number] += len(data)
                    if kind and self.sent[number] > after:
                        if kind == "stall":
                            self._closing.wait(self._stall_s)
                        break
                time.sleep(len(data) / self._rate)
                target.sendall(data)
        for one in (source, target):
            with suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
