"""The service under a systemd that runs: installed by SSH, watched, limited, restarted, logged, back after a reboot."""

from __future__ import annotations

import json
import time
import urllib.request
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from services import until, versioned
from small_bundles import small_bundle
from virtual_board import USER, VirtualBoard, data_disk, image, run_tests

pytestmark = pytest.mark.slow

STORE = "/data/edge-sdk"
UNIT = "edge-sdk.service"
GROUP = f"/sys/fs/cgroup/system.slice/{UNIT}"

HOG = f"""
import pathlib
pathlib.Path("{GROUP}/cgroup.procs").write_text("0")
kept = [bytearray(b"x" * (16 << 20)) for _ in range(1000)]
"""
"""Joins the service's group and takes memory until there is none."""


@pytest.fixture(scope="module")
def board(tmp_path_factory: pytest.TempPathFactory) -> Iterator[VirtualBoard]:
    folder = tmp_path_factory.mktemp("board")
    made = VirtualBoard(folder, image(), data_disk(folder / "data.img"), memory_mib=2048)
    made.power_on()
    yield made
    made.cut_power()


@pytest.fixture(scope="module")
def one(scan_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return versioned(scan_bundle, tmp_path_factory.mktemp("bundles") / "one", "1").path


def show(board: VirtualBoard, name: str) -> str:
    """A property of the unit."""
    return board.says(f"systemctl show {UNIT} --property={name} --value")


def answers(board: VirtualBoard) -> bool:
    with suppress(OSError), urllib.request.urlopen(f"http://127.0.0.1:{board.service_port}/health", timeout=20) as said:
        return bool(said.status == 200)
    return False


def journal(board: VirtualBoard, *options: str) -> list[dict[str, str]]:
    lines = board.says(f"journalctl --boot --no-pager --output=json --unit={UNIT} {' '.join(options)}").splitlines()
    return [json.loads(line) for line in lines]


def test_root_gets_a_service_that_answers(board: VirtualBoard, one: Path) -> None:
    options = f"--store {STORE} --install --serve '--host 0.0.0.0 --port 8000' --wait-s 600"
    said = board.edge_sdk("deploy", one, options=options).splitlines()
    assert [line.split(": ", 1)[1] for line in said] == [
        "version 1 is active in slot a",
        "the service was started",
        "healthy",
    ]
    assert answers(board)
    assert show(board, "UnitFileState") == "enabled"
    assert show(board, "WatchdogUSec") == "1min"
    memory = int(board.says("grep MemTotal /proc/meminfo").split()[1]) * 1024
    assert int(board.says(f"cat {GROUP}/memory.max")) == pytest.approx(0.9 * memory, rel=0.01)
    assert board.says(f"cat {GROUP}/pids.max") == "512"
    row = board.edge_sdk("slots", options=f"--store {STORE}").splitlines()[1]
    assert "a: 1 (healthy)" in row
    print(board.says(f"systemd-analyze security --no-pager {UNIT}").splitlines()[-1])


def test_the_journal_has_priorities_and_requests(board: VirtualBoard) -> None:
    """What `journalctl --priority=warning` finds, and each request with what it cost."""
    question = {"model": "edge", "messages": [{"role": "user", "content": "walk"}]}
    request = urllib.request.Request(
        f"http://127.0.0.1:{board.service_port}/v1/chat/completions",
        json.dumps(question).encode(),
        {"content-type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=300) as response:
        assert response.status == 200
    found = journal(board)
    assert {line["SYSLOG_IDENTIFIER"] for line in found} == {"systemd", "edge-sdk"}
    said = {line["MESSAGE"]: line["PRIORITY"] for line in found}
    assert said["edge_sdk.deploy: version 1 is healthy"] == "6"
    assert [priority for text, priority in said.items() if "may use this model" in text] == ["4"]
    costs = [text for text in said if text.startswith("edge_sdk.server: {")]
    assert json.loads(costs[-1].removeprefix("edge_sdk.server: "))


def test_an_ordinary_user_gets_one_that_stays(board: VirtualBoard, one: Path) -> None:
    """Without polkit, which this board has not, root must allow that services run without a login."""
    options = "--install --serve '--port 8100'"
    with pytest.raises(AssertionError, match=f"Once, on the board: sudo loginctl enable-linger {USER}"):
        board.edge_sdk("deploy", one, options=options, user=USER)
    assert board.run("ls ~/.config/systemd", USER, check=False).returncode  # nothing was written
    board.run(f"loginctl enable-linger {USER}")
    said = board.edge_sdk("deploy", one, options=f"{options} --wait-s 600", user=USER)
    assert said.splitlines()[-1].endswith(": healthy")
    assert "edge_sdk.deploy: version 1 is healthy" in board.says(f"journalctl --user --unit={UNIT} --output=cat", USER)
    assert board.says(f"systemctl --user show {UNIT} --property=MemoryMax --value", USER).isdigit()


@pytest.mark.parametrize("stopped", ["the service", "its server"])
def test_what_hangs_is_killed_and_started_again(board: VirtualBoard, stopped: str) -> None:
    """The watchdog's minute, not less."""
    before, main = int(show(board, "NRestarts")), show(board, "MainPID")
    process = main if stopped == "the service" else board.says(f"pgrep --parent {main}")
    board.run(f"kill -STOP {process}")
    began = time.monotonic()
    until(lambda: int(show(board, "NRestarts")) > before)
    print(f"{stopped}: killed after {time.monotonic() - began:.0f} s")
    assert any("Watchdog timeout (limit 1min)!" in line["MESSAGE"] for line in journal(board))
    until(lambda: show(board, "ActiveState") == "active")
    assert answers(board)


def test_memory_beyond_the_limit_is_not_taken_from_others(board: VirtualBoard) -> None:
    """What grows in the service's group is killed there, and the service started again."""
    before, other = int(show(board, "NRestarts")), board.says("systemctl show ssh --property=MainPID --value")
    hog = board.run(f"python3 -c '{HOG}'; exit $?", check=False)  # of a shell that is still there
    assert hog.returncode == 137, hog.stderr
    said = board.says("journalctl --boot --dmesg --output=cat")
    assert "constraint=CONSTRAINT_MEMCG" in said
    assert "constraint=CONSTRAINT_NONE" not in said
    until(lambda: int(show(board, "NRestarts")) == before + 1)
    until(lambda: show(board, "ActiveState") == "active")
    assert board.says("systemctl show ssh --property=MainPID --value") == other
    assert any(line["MESSAGE"].endswith("Failed with result 'oom-kill'.") for line in journal(board))


def test_a_bundle_that_crashes_is_rolled_back(board: VirtualBoard, tmp_path: Path) -> None:
    broken = small_bundle(tmp_path / "broken", "2")
    with pytest.raises(AssertionError, match="rolled back: 3 starts without a healthy service"):
        board.edge_sdk("deploy", broken.path, options=f"--store {STORE} --wait-s 600")
    assert answers(board)
    errors = {line["MESSAGE"] for line in journal(board, "--priority=err")}
    assert "edge_sdk.deploy: version 2 did not take over: exit status 1" in errors


def test_after_a_reboot_both_services_are_back(board: VirtualBoard) -> None:
    boot = board.says("cat /proc/sys/kernel/random/boot_id")
    board.run("systemctl reboot", check=False)
    until(lambda: board.run("cat /proc/sys/kernel/random/boot_id", check=False).stdout.strip() not in ("", boot), 900)
    until(lambda: answers(board), 600)
    until(lambda: board.says(f"systemctl --user is-active {UNIT} || true", USER) == "active", 600)
    print(board.says("systemd-analyze time"))


def test_a_crash_loop_ends(board: VirtualBoard) -> None:
    """Where neither bundle can be run: twelve starts in ten minutes, and no more."""
    board.run(f"echo damaged > {STORE}/record.json; systemctl reset-failed {UNIT}; systemctl restart {UNIT} || true")
    until(lambda: show(board, "ActiveState") == "failed", 900)
    assert f"{UNIT}: Start request repeated too quickly." in [line["MESSAGE"] for line in journal(board)][-5:]
    assert any("expected a store's record" in line["MESSAGE"] for line in journal(board, "--priority=err"))


def test_the_tests_of_the_network_pass_where_the_kernel_has_netem(board: VirtualBoard) -> None:
    said = run_tests(board, "test_network.py")
    print(said[-1000:])
    assert " passed" in said
    assert "skipped" not in said
