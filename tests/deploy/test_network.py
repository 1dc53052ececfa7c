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


def sent(server: Server, folder: Path, report: Callable[[str, int, int], None], **more: float) -> Store:
    """The store after a deployment of 12 chunks and a bit."""
    store = Store(folder / "store")
    install(store, small_bundle(folder / "one", "1", chunks=12))
    two = small_bundle(folder / "two", "2", chunks=12)
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


def test_a_link_that_is_gone_for_a_while_is_waited_for(server: Server, tmp_path: Path) -> None:
    """No packet says that it is: the sender notices the silence, and goes on when the link is back."""
    gone, said = threading.Event(), list[str]()

    def go() -> None:
        gone.wait(300)
        run("ip", "-n", NAME, "link", "set", f"{NAME}b", "down")
        time.sleep(6)
        run("ip", "-n", NAME, "link", "set", f"{NAME}b", "up")

    def report(doing: str, received: int, total: int) -> None:
        said.append(doing)
        if received >= 3:
            gone.set()

    thread = threading.Thread(target=go)
    thread.start()
    store = sent(server, tmp_path, report, stall_s=3.0, connect_timeout_s=3.0, attempts=30, idle_s=3.0)
    thread.join()
    assert any(doing.startswith("waiting: ") for doing in said)
    assert runs(store) == "2"
