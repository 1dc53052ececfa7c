"""The watchdog stops the robot, whatever becomes of the loop: real processes, killed, stopped and hanging."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from edge_sdk.control.realtime import RealtimeSettings
from edge_sdk.control.stoppers import write_frame
from edge_sdk.control.watchdog import Stopper, Watchdog
from edge_sdk.errors import ConfigError, WatchdogError
from loop_program import REFUSED

PROGRAM = Path(__file__).with_name("loop_program.py")
TIMEOUT_MS = 300.0
SOON_S = 20.0
"""A bound for a busy machine; what it takes on a quiet one, benchmarks/control_safety.py measures."""

FRAME = "00a5ff00"


def wait_for(happened: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + SOON_S
    while not happened():
        assert time.monotonic() < deadline, f"waited {SOON_S} s for {what}"
        time.sleep(0.005)


def stops(path: Path) -> list[int]:
    """Times at which the robot was stopped."""
    return [int(line) for line in path.read_text().split()]


def is_alive(process_id: int) -> bool:
    """Whether there is such a process that still runs: a dead one may wait for whoever adopted it."""
    try:
        return "State:\tZ" not in Path(f"/proc/{process_id}/status").read_text()
    except OSError:
        return False


class Loop:
    """A loop in a process of its own."""

    def __init__(self, stop_file: Path, mode: str, timeout_ms: float) -> None:
        self.stop_file = stop_file
        self.process = subprocess.Popen(
            [sys.executable, PROGRAM, stop_file, str(timeout_ms), mode],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            start_new_session=True,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        )
        assert self.process.stdout is not None
        self.watchdog_id, self.beating_ns = (int(word) for word in self.process.stdout.readline().split())
        """The loop had beaten some times."""

    def wait_until_stopped(self) -> int:
        wait_for(lambda: bool(stops(self.stop_file)), "the robot to be stopped")
        return stops(self.stop_file)[0]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Loop]]:
    loops = []

    def make(mode: str, timeout_ms: float = TIMEOUT_MS) -> Loop:
        loops.append(Loop(tmp_path / f"stop{len(loops)}", mode, timeout_ms))
        return loops[-1]

    yield make
    for loop in loops:
        if loop.process.poll() is None or is_alive(loop.process.pid):
            os.killpg(loop.process.pid, signal.SIGKILL)
        loop.process.communicate()


@pytest.fixture
def stopper(tmp_path: Path) -> Stopper:
    return Stopper(entry="edge_sdk.control.stoppers:write_file", arguments={"path": str(tmp_path / "stop")})


def test_a_killed_loop_is_noticed_at_once(start: Callable[..., Loop]) -> None:
    loop = start("beat", timeout_ms=1e9)  # by death, not by silence
    killed_ns = time.monotonic_ns()
    loop.process.kill()
    assert 0 < loop.wait_until_stopped() - killed_ns < SOON_S * 1e9
    wait_for(lambda: not is_alive(loop.watchdog_id), "the watchdog to end after its work")
    assert len(stops(loop.stop_file)) == 1


def test_a_killed_loop_whose_child_holds_the_connection_is_noticed_by_its_silence(start: Callable[..., Loop]) -> None:
    loop = start("fork")
    killed_ns = time.monotonic_ns()
    loop.process.kill()
    assert loop.wait_until_stopped() - killed_ns > 0
    os.killpg(loop.process.pid, signal.SIGKILL)  # the child
    wait_for(lambda: not is_alive(loop.watchdog_id), "the watchdog to end with the last holder")


def test_a_loop_that_hangs_with_the_interpreters_lock_is_stopped(start: Callable[..., Loop]) -> None:
    loop = start("hang")
    silent_ns = loop.wait_until_stopped() - loop.beating_ns
    assert silent_ns > (TIMEOUT_MS - 50) * 1e6  # beating_ns is just after the last beat


def test_a_stopped_process_that_goes_on_is_not_heard_any_more(start: Callable[..., Loop]) -> None:
    loop = start("beat")
    os.kill(loop.process.pid, signal.SIGSTOP)
    loop.wait_until_stopped()
    time.sleep(2 * TIMEOUT_MS / 1e3)
    os.kill(loop.process.pid, signal.SIGCONT)
    said, _ = loop.process.communicate(timeout=SOON_S)
    assert loop.process.returncode == REFUSED
    assert "the watchdog has stopped the robot" in said
    assert len(stops(loop.stop_file)) == 1


def test_an_error_in_the_loop_stops_and_an_orderly_end_does_not(start: Callable[..., Loop]) -> None:
    failed, ended = start("error"), start("end")
    failed.wait_until_stopped()
    assert failed.process.wait(SOON_S) == 1
    assert ended.process.wait(SOON_S) == 0
    assert not is_alive(ended.watchdog_id)
    assert stops(ended.stop_file) == []


@pytest.mark.parametrize(("number", "timeout_ms"), [(signal.SIGKILL, 1e6), (signal.SIGSTOP, 100)])
def test_the_loop_notices_that_its_watchdog_is_gone_or_hangs(
    start: Callable[..., Loop], number: int, timeout_ms: float
) -> None:
    loop = start("beat", timeout_ms)
    os.kill(loop.watchdog_id, number)
    said, _ = loop.process.communicate(timeout=SOON_S)
    assert loop.process.returncode == REFUSED
    assert "The watchdog's process: expected it to watch, found it dead, or without" in said
    assert not is_alive(loop.watchdog_id)


def test_the_signals_that_end_a_service_leave_the_watchdog_to_its_work(start: Callable[..., Loop]) -> None:
    loop = start("beat")
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        os.kill(loop.watchdog_id, number)
    time.sleep(0.1)
    assert loop.process.poll() is None
    loop.process.kill()
    loop.wait_until_stopped()


def test_a_loop_that_beats_is_left_alone_and_may_rest_when_disarmed(stopper: Stopper, tmp_path: Path) -> None:
    with Watchdog(stopper, 500) as watchdog:
        time.sleep(0.7)  # not armed yet
        for _ in range(100):
            watchdog.beat()
            time.sleep(0.01)
        watchdog.disarm()
        time.sleep(0.7)
        watchdog.beat()
    watchdog.close()
    assert stops(tmp_path / "stop") == []


def test_a_frame_goes_out_through_an_inherited_descriptor() -> None:
    ours, theirs = os.pipe()
    stopper = Stopper(
        entry="edge_sdk.control.stoppers:write_frame",
        arguments={"descriptor": theirs, "frame_hex": FRAME, "times": 2},
        descriptors=(theirs,),
    )
    watchdog = Watchdog(stopper, TIMEOUT_MS)
    os.close(theirs)  # the watchdog has its own
    watchdog.beat()
    watchdog.close(stop=True, timeout_s=SOON_S)
    assert os.read(ours, 100) == bytes.fromhex(FRAME) * 2
    assert os.read(ours, 100) == b""  # the process has ended
    os.close(ours)


def test_a_long_frame_is_written_whole(tmp_path: Path) -> None:
    with (tmp_path / "line").open("wb", buffering=0) as line:
        write_frame(line.fileno(), FRAME * 1000, times=1)()
    assert (tmp_path / "line").read_bytes() == bytes.fromhex(FRAME) * 1000


def flaky(path: str, failures: int) -> Callable[[], None]:
    """A stopper that fails so many times first."""
    tries = 0

    def stop() -> None:
        nonlocal tries
        tries += 1
        if tries <= failures:
            raise OSError("the port is busy")
        Path(path).write_text(str(tries))

    return stop


def test_a_stopper_that_fails_is_tried_again(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    stopper = Stopper(entry="test_watchdog:flaky", arguments={"path": str(tmp_path / "stop"), "failures": 3})
    watchdog = Watchdog(stopper, TIMEOUT_MS)
    watchdog.close(stop=True, timeout_s=SOON_S)
    assert (tmp_path / "stop").read_text() == "4"
    assert capfd.readouterr().err.count("the stopper failed: OSError: the port is busy") == 3


@pytest.mark.parametrize(
    ("entry", "arguments", "found"),
    [
        ("no_such_module:stop", {}, "ModuleNotFoundError"),
        ("edge_sdk.control.stoppers:no_such_function", {}, "AttributeError"),
        ("edge_sdk.control.stoppers:write_file", {"path": "/no/such/folder/stop"}, "FileNotFoundError"),
        ("edge_sdk.control.stoppers:write_frame", {"descriptor": 999, "frame_hex": FRAME}, "OSError"),
        ("builtins:dict", {}, "returned dict"),
        ("os:_exit", {"status": 3}, "exit status 3"),
    ],
)
def test_a_stopper_that_cannot_be_made_is_refused_at_the_start(
    entry: str, arguments: dict[str, object], found: str
) -> None:
    with pytest.raises(WatchdogError, match=found):
        Watchdog(Stopper(entry=entry, arguments=arguments), TIMEOUT_MS)


def test_a_stopper_that_never_comes_back_is_refused(stopper: Stopper) -> None:
    with pytest.raises(WatchdogError, match=r"found no answer for 0\.01 s"):
        Watchdog(stopper, TIMEOUT_MS, start_timeout_s=0.01)


def test_values_that_make_no_sense_are_refused(stopper: Stopper) -> None:
    for timeout_ms in (0, -1, float("nan")):
        with pytest.raises(ConfigError, match="timeout_ms: expected more than 0"):
            Watchdog(stopper, timeout_ms)
    for entry in ("stop", ":stop", "module:"):
        with pytest.raises(ConfigError, match="module:function"):
            Stopper(entry=entry)


def test_the_watchdogs_own_settings_are_reported(stopper: Stopper) -> None:
    cpu = min(os.sched_getaffinity(0))
    with Watchdog(stopper, TIMEOUT_MS, realtime=RealtimeSettings(cpus=(cpu,))) as watchdog:
        assert [(outcome.setting, outcome.granted) for outcome in watchdog.realtime.outcomes] == [("cpus", True)]
        assert os.sched_getaffinity(watchdog.process_id) == {cpu}
