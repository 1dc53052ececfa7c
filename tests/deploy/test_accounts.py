"""Three boards as three accounts, each behind its own unprivileged sshd, deployed to as a group."""

from __future__ import annotations

import os
import pwd
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from accounts import account, python_for_all, why_not
from edge_sdk.cli import main
from edge_sdk.deploy.boards import STORE
from edge_sdk.deploy.chunks import CHUNK_BYTES
from edge_sdk.deploy.store import Store
from links import Link, Server
from small_bundles import runs, small_bundle

NAMES = ("left", "right", "cart")


@pytest.fixture(scope="module")
def boards() -> Iterator[dict[str, tuple[Server, Path]]]:
    if reason := why_not():
        pytest.skip(reason)
    with ExitStack() as ending:
        yield {name: ending.enter_context(account(f"edge-{os.getpid()}-{name}")) for name in NAMES}


def test_a_group_of_accounts_is_deployed_to(
    boards: dict[str, tuple[Server, Path]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The link to one breaks, and one holds a newer version; each has its own store, which only it can read."""
    two = small_bundle(tmp_path / "two", "2", chunks=8)
    broken = Link(boards["left"][0].port, faults=(("drop", 3 * CHUNK_BYTES),))
    ports = {name: server.port for name, (server, _) in boards.items()} | {"left": broken.port}
    arms, known = "boards:\n", ""
    for name, (server, _) in boards.items():
        arms += f"  {name}: {{host: '{server.board(Path(), ports[name]).host}', python: {python_for_all()}}}\n"
        key = " ".join((server.folder / "host.pub").read_text().split()[:2])
        known += f"[127.0.0.1]:{ports[name]} {key}\n"
        (server.folder / "user.pub").write_text((boards["cart"][0].folder / "user.pub").read_text())
    (tmp_path / "arms.yaml").write_text(arms)
    (tmp_path / "known_hosts").write_text(known)
    options = ["--group", tmp_path / "arms.yaml", "--known-hosts", tmp_path / "known_hosts", "--identity"]
    common = [*map(str, options), str(boards["cart"][0].folder / "user")]
    newer = small_bundle(tmp_path / "newer", "7")
    only = f"{boards['cart'][0].board(Path()).host}"
    assert main(["deploy", str(newer.path), only, "--python", python_for_all(), *common[2:]]) == 0
    capsys.readouterr()
    try:
        assert main(["deploy", str(two.path), *common]) == 1
    finally:
        broken.close()
    left, right, cart = capsys.readouterr().out.splitlines()
    assert left == "left: version 2 is active in slot a"
    assert right == "right: version 2 is active in slot a"
    assert cart.startswith("cart: refused: The version: expected 7 or newer, found 2.")
    for name, version in zip(NAMES, ("2", "2", "7")):
        server, home = boards[name]
        store = home / STORE.removeprefix("~/")
        assert runs(Store(store)) == version
        assert {path.stat().st_uid for path in store.rglob("*")} == {pwd.getpwnam(server.user).pw_uid}
    assert main(["slots", *common]) == 0
    rows = capsys.readouterr().out.splitlines()
    assert [row.split()[0] for row in rows] == ["board", *NAMES]
