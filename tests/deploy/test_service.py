"""The service that runs the active slot: it moves over after a switch, and goes back from what crashes."""

from __future__ import annotations

import asyncio
import shutil
import socket
import subprocess
import threading
import urllib.request
from contextlib import suppress
from pathlib import Path

import openai
import pytest

from edge_sdk.cli import main
from edge_sdk.deploy.run import address, listen
from edge_sdk.deploy.send import settled
from edge_sdk.deploy.service import UNIT, install_service, unit
from edge_sdk.deploy.store import Store
from edge_sdk.errors import ConfigError, DeployError
from links import Server, free_port
from services import service, until, versioned
from small_bundles import install, runs, small_bundle


def answers(port: int) -> bool:
    with suppress(OSError), urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5) as response:
        return bool(response.status == 200)
    return False


def test_a_bundle_that_does_not_start_is_given_up_for_the_one_before(store: Store, tmp_path: Path) -> None:
    port = free_port()
    with service(store, port) as process:
        until(lambda: store.read().slots["a"].healthy)
    assert process.returncode == 0
    install(store, small_bundle(tmp_path / "broken", "2"))
    for start in (1, 2):
        with service(store, port) as process:
            assert process.wait(300) == 1
        assert store.read().slots["b"].starts == start
    with service(store, port):
        until(lambda: answers(port))
    assert runs(store) == "1"
    assert store.read().slots["b"].failed == "2 starts without a healthy service"


def test_after_a_switch_the_service_goes_over_by_itself(store: Store, scan_bundle: Path, tmp_path: Path) -> None:
    port = free_port()
    address = str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listening:
        listening.bind(address)
        listening.settimeout(300)
        with service(store, port, NOTIFY_SOCKET=address) as process:
            assert listening.recv(100) == b"READY=1\nWATCHDOG=1"
            client = openai.OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="none", max_retries=0)
            found: list[str | None] = []

            def ask() -> None:
                messages = [{"role": "user", "content": "walk around left thrice"}]
                answer = client.chat.completions.create(model="edge", messages=messages, temperature=0)  # type: ignore[arg-type]
                found.append(answer.choices[0].message.content)

            ask()
            second = versioned(scan_bundle, tmp_path / "two", "2")
            asking = threading.Thread(target=ask)
            asking.start()
            install(store, second)
            asking.join()
            until(lambda: store.read().slots["b"].healthy)
            ask()
            assert process.poll() is None
    assert len(found) == 3
    assert len(set(found)) == 1
    assert runs(store) == "2"


def test_who_deploys_may_wait_for_what_becomes_of_it(
    server: Server, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    board, ssh = server.board(store.folder), server.ssh()
    options = ["--store", board.store, "--python", board.python, "--identity", ssh.identity, "--wait-s"]
    options = [*map(str, options), "0", "--known-hosts", str(ssh.known_hosts)]
    broken = small_bundle(tmp_path / "broken", "2")
    assert main(["deploy", str(broken.path), board.host, *options]) == 1
    assert "still on trial after 0 s" in capsys.readouterr().out
    for _ in range(3):
        store.begin_start()
    status = asyncio.run(settled(broken_id(store), board, ssh, 60))
    assert status.failed == "2 starts without a healthy service"
    assert main(["deploy", str(tmp_path / "one"), board.host, *options, "--force"]) == 1
    store.confirm(store.read().slots["a"].bundle_id)
    assert main(["deploy", str(tmp_path / "one"), board.host, *options]) == 0
    assert capsys.readouterr().out.splitlines()[-2:] == [
        f"{board.host}: version 1 is active in slot a already",
        f"{board.host}: healthy",
    ]


def broken_id(store: Store) -> str:
    return store.read().slots["b"].bundle_id


def test_systemd_takes_the_unit(store: Store, tmp_path: Path) -> None:
    if shutil.which("systemd-analyze") is None:
        pytest.skip("needs systemd-analyze")
    awkward = Store(tmp_path / '100% "odd" $HOME')
    for system, board in ((True, store), (False, awkward)):
        text = unit(board, ["--port", "8123", "--name", 'a "b"'], system=system)
        (tmp_path / UNIT).write_text(text)
        command = ["systemd-analyze", "verify", *([] if system else ["--user"]), str(tmp_path / UNIT)]
        result = subprocess.run(command, capture_output=True, text=True, check=False)
        complaints = [line for line in result.stderr.splitlines() if UNIT in line]
        assert not complaints, result.stderr
    assert '100%% \\"odd\\" $$HOME' in text
    assert "WatchdogSec=60" in text


def test_systemd_sees_what_is_wrong_with_a_unit(store: Store, tmp_path: Path) -> None:
    if shutil.which("systemd-analyze") is None:
        pytest.skip("needs systemd-analyze")
    text = unit(store, [], system=True).replace("WatchdogSec=60", "WatchdogSec=soon")
    (tmp_path / UNIT).write_text(text)
    result = subprocess.run(
        ["systemd-analyze", "verify", str(tmp_path / UNIT)], capture_output=True, text=True, check=False
    )
    assert UNIT in result.stderr


def test_a_machine_without_systemd_says_so(store: Store, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(DeployError, match="systemctl --version: expected success"):
        install_service(store, [])


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ([], ("127.0.0.1", 8000)),
        (["--host", "0.0.0.0", "--port=9000", "--name", "x"], ("0.0.0.0", 9000)),
        (["--host", "::"], ("::", 8000)),
    ],
)
def test_where_the_service_listens(arguments: list[str], expected: tuple[str, int]) -> None:
    assert address(arguments) == expected


@pytest.mark.parametrize("arguments", [["--port", "0"], ["--port", "x"]])
def test_a_port_that_is_not_known_is_refused(arguments: list[str]) -> None:
    with pytest.raises(ConfigError, match="server's"):
        address(arguments)


def test_a_port_that_is_taken_is_refused() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ConfigError, match=f"127.0.0.1:{port}: expected a free port, found Address already in use"):
            listen(["--port", str(port)])
