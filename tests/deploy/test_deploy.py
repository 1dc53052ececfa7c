"""From the workstation to boards: a real SSH server, links that stall and break, and everything that is refused."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Iterator
from pathlib import Path

import asyncssh
import pytest

from edge_sdk import Bundle
from edge_sdk.bundle import WEIGHTS
from edge_sdk.cli import main
from edge_sdk.deploy.boards import Board, read_group
from edge_sdk.deploy.chunks import CHUNK_BYTES, offer, read_chunk
from edge_sdk.deploy.line import Ssh
from edge_sdk.deploy.protocol import AskStatus, Configure, Installed, Rollback
from edge_sdk.deploy.send import ask, deploy, settled
from edge_sdk.deploy.signing import make_keys, sign
from edge_sdk.deploy.store import Store
from edge_sdk.errors import BusyError, DeployError
from links import Link, Server
from small_bundles import install, runs, small_bundle, tree


@pytest.fixture(autouse=True)
def _no_configuration(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever runs the tests has keys and settings of SSH; they stay out."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("SSH_AUTH_SOCK", raising=False)


@pytest.fixture
def links() -> Iterator[list[Link]]:
    """Those that a test made; they end with it."""
    made: list[Link] = []
    yield made
    for link in made:
        link.close()


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """A board that runs version 1."""
    made = Store(tmp_path / "board")
    install(made, small_bundle(tmp_path / "one", "1", chunks=2))
    return made


@pytest.fixture
def two(tmp_path: Path) -> Bundle:
    return small_bundle(tmp_path / "two", "2", chunks=8)


def send(bundle: Bundle, board: Board, ssh: Ssh, **more: bool) -> tuple[Installed, list[str]]:
    """A deployment, and what was reported."""
    said: list[str] = []
    report = lambda doing, received, total: said.append(f"{doing} {received}/{total}")  # noqa: E731
    return asyncio.run(deploy(bundle, offer(bundle), board, ssh, report=report, **more)), said


def test_a_bundle_comes_over_and_a_second_one_sends_only_what_is_new(
    server: Server, store: Store, two: Bundle, tmp_path: Path
) -> None:
    board = server.board(store.folder)
    done, said = send(two, board, server.ssh())
    assert (done.name, done.slot.version, done.already) == ("b", "2", False)
    assert said[0] == "sending 0/10"  # the tokenizer and the template are version 1's
    assert [text.split(" 1")[0] for text in said[-2:]] == ["checking hashes", "switching"]
    assert runs(store) == "2"
    again, said = send(two, board, server.ssh())
    assert (again.already, said) == (True, [])
    content = bytearray(two.file(WEIGHTS).read_bytes())
    content[3 * CHUNK_BYTES] ^= 1
    three = small_bundle(tmp_path / "three", "3", weights=bytes(content))
    assert send(three, board, server.ssh())[1][0] == "sending 0/2"
    assert runs(store) == "3"


def test_a_link_that_breaks_and_stalls_is_gone_on_with(
    server: Server, store: Store, two: Bundle, links: list[Link]
) -> None:
    faults = (("drop", 100), ("drop", 3 * CHUNK_BYTES), ("stall", 3 * CHUNK_BYTES), ("drop", 5_000))
    link = Link(server.port, faults=faults, bytes_per_s=4e6)
    links.append(link)
    ssh = server.ssh(link.port, stall_s=8.0, idle_s=2.0)
    done, said = send(two, server.board(store.folder, link.port), ssh)
    assert done.slot.version == "2"
    assert runs(store) == "2"
    assert len([text for text in said if text.startswith("waiting")]) >= 4
    assert len(link.sent) >= 5
    assert sum(link.sent) < 1.3 * two.total_bytes() + 1e5  # what had come was not sent again


def test_a_link_that_never_holds_is_given_up_and_the_next_deployment_goes_on(
    server: Server, store: Store, two: Bundle, links: list[Link]
) -> None:
    link = Link(server.port, faults=(("drop", 4 * CHUNK_BYTES), *[("drop", 2000)] * 9))
    links.append(link)
    with pytest.raises(DeployError, match="expected a line that holds"):
        send(two, server.board(store.folder, link.port), server.ssh(link.port, attempts=3, idle_s=1.0))
    assert runs(store) == "1"
    _, said = send(two, server.board(store.folder), server.ssh(attempts=20))
    left = next(int(text.split("/")[1]) for text in said if text.startswith("sending"))
    assert left < 10


def refusal(bundle: Bundle, board: Board, ssh: Ssh) -> str:
    with pytest.raises((DeployError, BusyError)) as caught:
        send(bundle, board, ssh)
    return str(caught.value)


def test_what_a_board_refuses_changes_nothing(server: Server, store: Store, two: Bundle, tmp_path: Path) -> None:
    board, ssh = server.board(store.folder), server.ssh()
    make_keys(tmp_path / "theirs", "theirs")
    trusted = make_keys(tmp_path / "ours", "ours")
    store.configure(b'{"require_signature": true}', trusted.line().encode())
    before = tree(store.folder)
    assert "The bundle's signature: expected one of" in refusal(two, board, ssh)
    sign(two.path, tmp_path / "theirs")
    assert "that this board does not trust" in refusal(two, board, ssh)
    older = small_bundle(tmp_path / "older", "0.9")
    sign(older.path, tmp_path / "ours")
    assert "The version: expected 1 or newer, found 0.9" in refusal(older, board, ssh)
    assert tree(store.folder) == before
    sign(two.path, tmp_path / "ours")
    assert send(two, board, ssh)[0].slot.signed_by == "ours"


def test_a_chunk_that_is_altered_on_its_way_is_refused(
    server: Server, store: Store, two: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edge_sdk.deploy.send.read_chunk", lambda path, index: read_chunk(path, index)[:-1] + b"x")
    assert "expected sha256" in refusal(two, server.board(store.folder), server.ssh())
    assert runs(store) == "1"


def test_a_host_whose_key_is_another_or_unknown_gets_nothing(
    server: Server, store: Store, two: Bundle, tmp_path: Path, links: list[Link]
) -> None:
    board, ssh = server.board(store.folder), server.ssh()
    other = asyncssh.generate_private_key("ssh-ed25519").export_public_key().decode().split()[:2]
    ssh.known_hosts.write_text(f"[127.0.0.1]:{server.port} {' '.join(other)}\n")
    said = refusal(two, board, ssh)
    assert said.startswith(f"The host key of [127.0.0.1]:{server.port}: expected the known one, found another.")
    assert f"ssh-keygen -f {ssh.known_hosts} -R '[127.0.0.1]:{server.port}'" in said
    ssh.known_hosts.write_text("")
    assert "expected one that is known" in refusal(two, board, ssh)
    assert runs(store) == "1"


def test_a_user_whose_key_is_not_known_and_a_board_without_the_agent_are_told_so(
    server: Server, store: Store, two: Bundle, tmp_path: Path
) -> None:
    asyncssh.generate_private_key("ssh-ed25519").write_private_key(str(tmp_path / "stranger"))
    ssh = server.ssh()
    stranger = Ssh(known_hosts=ssh.known_hosts, identity=tmp_path / "stranger")
    assert "expected a key that it knows" in refusal(two, server.board(store.folder), stranger)
    bare = Board(host=server.board(store.folder).host, python="/nowhere/python")
    assert "/nowhere/python" in refusal(two, bare, ssh)
    chatty = Board(host=bare.host, python="echo")
    assert "expected a frame" in refusal(two, chatty, ssh)


def test_one_deployment_at_a_time(server: Server, store: Store, two: Bundle) -> None:
    ssh = server.ssh(attempts=2)
    with store.installing():
        assert "expected no other deployment, found one" in refusal(two, server.board(store.folder), ssh)
    assert runs(store) == "1"


def test_boards_are_asked_how_they_are_and_sent_back(server: Server, store: Store, two: Bundle) -> None:
    board, ssh = server.board(store.folder), server.ssh()
    send(two, board, ssh)
    status = asyncio.run(ask(AskStatus(), board, ssh))
    assert status.record == store.read()
    assert status.free_bytes > 0
    assert asyncio.run(ask(Rollback(force=False), board, ssh)).record.active == "a"
    assert runs(store) == "1"


def test_what_may_be_done_twice_is_asked_again_over_a_line_that_breaks(
    server: Server, store: Store, links: list[Link]
) -> None:
    link = Link(server.port, faults=(("drop", 100), ("drop", 2000), ("", 0), ("drop", 2000)))
    links.append(link)
    board, ssh = server.board(store.folder, link.port), server.ssh(link.port)
    settings = b'{"max_starts": 5}'
    assert asyncio.run(ask(Configure(settings, None), board, ssh)).record.active == "a"
    assert store.settings().max_starts == 5
    assert len(link.sent) == 3
    with pytest.raises(DeployError, match="expected a line that holds"):
        asyncio.run(ask(Rollback(force=False), board, ssh))
    assert len(link.sent) == 4


def test_who_waits_for_a_board_waits_for_its_line_too(
    server: Server, store: Store, links: list[Link], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edge_sdk.deploy.send.SETTLE_POLL_S", 0.1)
    links += [Link(server.port, faults=(("drop", 100), ("drop", 2000))), Link(server.port, faults=(("drop", 100),) * 9)]
    bundle_id = store.read().slots["a"].bundle_id
    store.confirm(bundle_id)
    held, broken = (server.board(store.folder, link.port) for link in links)
    ssh = server.ssh(*(link.port for link in links))
    assert asyncio.run(settled(bundle_id, held, ssh, 60)).healthy
    with pytest.raises(DeployError, match="expected a line that holds"):
        asyncio.run(settled(bundle_id, broken, ssh, 0))


def test_three_boards_side_by_side_by_the_command_line(
    server: Server, two: Bundle, tmp_path: Path, links: list[Link], capsys: pytest.CaptureFixture[str]
) -> None:
    links += [Link(server.port, bytes_per_s=4e6, faults=(("drop", 3 * CHUNK_BYTES),)), Link(server.port)]
    ports = (server.port, links[0].port, links[1].port)
    ssh = server.ssh(*ports)
    stores = [Store(tmp_path / name) for name in ("left", "right", "cart")]
    install(stores[2], small_bundle(tmp_path / "newer", "7"))
    group = "boards:\n" + "".join(
        f"  {store.folder.name}: {{host: '{server.board(store.folder, port).host}', store: '{store.folder}', "
        f"python: '{sys.executable}'}}\n"
        for store, port in zip(stores, ports)
    )
    (tmp_path / "arms.yaml").write_text(group)
    common = ["--group", tmp_path / "arms.yaml", "--known-hosts", ssh.known_hosts, "--identity", ssh.identity]
    assert main(["deploy", str(two.path), *map(str, common)]) == 1
    left, right, cart = capsys.readouterr().out.splitlines()
    assert left == "left: version 2 is active in slot a"
    assert right == "right: version 2 is active in slot a"
    assert cart.startswith("cart: refused: The version: expected 7 or newer, found 2.")
    assert [runs(store) for store in stores] == ["2", "2", "7"]
    assert main(["slots", *map(str, common)]) == 0
    rows = capsys.readouterr().out.splitlines()
    assert [row.split()[0] for row in rows] == ["board", "left", "right", "cart"]
    assert "a: 2 (on trial, 0 starts)" in rows[1]
    assert main(["rollback", *map(str, common)]) == 1
    assert capsys.readouterr().out.count("The other slot: expected a bundle, found none") == 3


def test_a_board_may_confine_the_key_to_the_agent(server: Server, store: Store, two: Bundle, tmp_path: Path) -> None:
    """As docs/deploy.md has it in authorized_keys, with the settings in a folder of somebody else."""
    path = server.folder / "user.pub"
    line = path.read_text()
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc" / "board.json").write_text('{"require_signature": true}')
    agent = f"{sys.executable} -m edge_sdk.deploy.agent {store.folder} --settings {tmp_path / 'etc'}"
    try:
        path.write_text(f'restrict,command="{agent}" {line}')
        assert "The bundle's signature" in refusal(two, server.board(tmp_path / "another store"), server.ssh())
    finally:
        path.write_text(line)
    assert runs(store) == "1"


@pytest.mark.parametrize("host", ["", "a b@c/", "x@y:port", "-oProxyCommand=x", "u@h/path", "u@h?x"])
def test_what_is_no_board_is_refused(host: str, tmp_path: Path) -> None:
    with pytest.raises(DeployError, match="A board: expected user@host"):
        Board(host=host)
    (tmp_path / "group.yaml").write_text(f"boards: {{a: {{host: '{host}'}}}}")
    with pytest.raises(DeployError, match=r"\$\.boards"):
        read_group(tmp_path / "group.yaml")


def test_keys_and_signatures_by_the_command_line(
    two: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["keys", str(tmp_path / "release"), "--name", "release 2026"]) == 0
    assert main(["sign", str(two.path), "--key", str(tmp_path / "release")]) == 0
    made, signed = capsys.readouterr().out.splitlines()
    assert made.split()[2].rstrip(";") == signed.split()[-1]
    assert main(["deploy", str(two.path)]) == 1
    assert "expected boards, found none" in capsys.readouterr().err
