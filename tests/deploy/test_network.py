"""A board behind a network of the kernel's own: narrow, with a queue that drops packets, and gone for a while."""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from edge_sdk.deploy.chunks import offer
from edge_sdk.deploy.send import deploy
from edge_sdk.deploy.store import Store
from links import Server, sshd_program
from small_bundles import install, runs, small_bundle

NAME = f"edge{os.getpid()}"
NEAR, FAR = "10.249.9.1", "10.249.9.2"
SHAPES = (
    # Where the kernel has netem: packets are late, lost and in another order.
    ("netem", "rate", "16mbit", "delay", "20ms", "5ms", "loss", "1%"),
    # A bucket of tokens before a short queue, which drops what does not fit.
    ("tbf", "rate", "16mbit", "burst", "16k", "latency", "5ms"),
)
BAD = ("netem", "rate", "2mbit", "delay", "100ms", "20ms", "loss", "5%")
"""A board behind walls, or behind a mobile network. Of each direction."""


def run(*command: str) -> str:
    """What it complains of; nothing where it succeeds."""
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stderr.strip() or f"exit status {done.returncode}" if done.returncode else ""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """It, in a network namespace whose one link is shaped."""
    if os.geteuid() != 0 or sshd_program() is None or shutil.which("ip") is None or shutil.which("tc") is None:
        pytest.skip("needs root, sshd, ip and tc")
    with ExitStack() as ending:
        link, peer = f"{NAME}a", f"{NAME}b"
        for command, undo in (
            (f"ip netns add {NAME}", f"ip netns del {NAME}"),
            (f"ip link add {link} type veth peer name {peer}", f"ip link del {link}"),
            (f"ip link set {peer} netns {NAME}", ""),
            (f"ip addr add {NEAR}/30 dev {link}", ""),
            (f"ip link set {link} up", ""),
            (f"ip -n {NAME} addr add {FAR}/30 dev {peer}", ""),
            (f"ip -n {NAME} link set {peer} up", ""),
        ):
            if complaint := run(*command.split()):
                pytest.skip(f"{command}: {complaint}")
            if undo:
                ending.callback(run, *undo.split())
        complaints = []
        for shape in SHAPES:
            if not (complaint := run("tc", "qdisc", "add", "dev", link, "root", *shape)):
                break
            complaints.append(f"{shape[0]}: {complaint}")
        else:
            pytest.skip("; ".join(complaints))
        made = Server(tmp_path_factory.mktemp("network") / "server", address=FAR, within=("ip", "netns", "exec", NAME))
        ending.callback(made.close)
        yield made


def sent(
    server: Server, folder: Path, report: Callable[[str, int, int], None], *, chunks: int = 12, **more: float
) -> Store:
    """The store after a deployment of so many chunks and a bit."""
    store = Store(folder / "store")
    install(store, small_bundle(folder / "one", "1", chunks=chunks))
    two = small_bundle(folder / "two", "2", chunks=chunks)
    board, ssh = server.board(store.folder), server.ssh(**more)
    asyncio.run(deploy(two, offer(two), board, ssh, report=report))
    return store


def test_a_narrow_link_that_loses_packets_carries_a_bundle(server: Server, tmp_path: Path) -> None:
    assert runs(sent(server, tmp_path, lambda doing, received, total: None)) == "2"
    counted = subprocess.run(
        ["tc", "-s", "qdisc", "show", "dev", f"{NAME}a"], capture_output=True, text=True, check=True
    )
    dropped = int(counted.stdout.split("dropped ")[1].split(",")[0])
    assert dropped > 0


@pytest.fixture
def bad(server: Server) -> Iterator[Server]:
    """The same, where both directions are as bad as links are that are used all the same."""
    ends = (("tc", "qdisc", "replace", "dev", f"{NAME}a", "root"), ("tc", "-n", NAME, "qdisc", "replace"))
    commands = ((*ends[0], *BAD), (*ends[1], "dev", f"{NAME}b", "root", *BAD))
    before = subprocess.run(["tc", "qdisc", "show", "dev", f"{NAME}a"], capture_output=True, text=True, check=True)
    if "netem" not in before.stdout:
        pytest.skip("the kernel has no netem")
    for command in commands:
        assert not (complaint := run(*command)), complaint
    yield server
    run(*ends[0], *SHAPES[0])
    run("tc", "-n", NAME, "qdisc", "del", "dev", f"{NAME}b", "root")


def test_a_bad_link_carries_a_bundle_and_stalls_are_waited_for(bad: Server, tmp_path: Path) -> None:
    """100 ms and 5 % of the packets lost in each direction, 2 Mbit/s, and twice gone for 25 s."""
    began = time.monotonic()
    gone = Absence(times=2, seconds=25)
    store = sent(bad, tmp_path, gone.report, chunks=6, stall_s=10.0, idle_s=10.0, attempts=30)
    gone.join()
    print(f"1.5 MiB in {time.monotonic() - began:.0f} s, with {gone.waits} waits")
    assert gone.waits
    assert runs(store) == "2"


class Absence:
    """Takes the link away for a while when two chunks more came over, so many times."""

    def __init__(self, times: int, seconds: float) -> None:
        self._left, self._seconds, self._at = times, seconds, 2
        self._thread: threading.Thread | None = None
        self.waits = 0
        """How often the sender lost its line."""

    def report(self, doing: str, received: int, total: int) -> None:
        """Of what the sender does."""
        self.waits += doing.startswith("waiting: ")
        if self._left and received >= self._at and (self._thread is None or not self._thread.is_alive()):
            self._left, self._at = self._left - 1, received + 2
            self._thread = threading.Thread(target=self._go)
            self._thread.start()

    def join(self) -> None:
        """Until the link is back."""
        if self._thread is not None:
            self._thread.join()

    def _go(self) -> None:
        run("ip", "-n", NAME, "link", "set", f"{NAME}b", "down")
        time.sleep(self._seconds)
        run("ip", "-n", NAME, "link", "set", f"{NAME}b", "up")


def test_a_link_that_is_gone_for_a_while_is_waited_for(server: Server, tmp_path: Path) -> None:
    """No packet says that it is: the sender notices the silence, and goes on when the link is back."""
    gone = Absence(times=1, seconds=6)
    store = sent(server, tmp_path, gone.report, stall_s=3.0, connect_timeout_s=20.0, attempts=30, idle_s=3.0)
    gone.join()
    assert gone.waits
    assert runs(store) == "2"
