"""Real-time settings are applied where the kernel permits it, and where not, the report says what to do."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from edge_sdk.control.realtime import (
    RealtimeLimits,
    RealtimeReport,
    RealtimeSettings,
    apply_realtime,
    describe_limits,
    read_limits,
)
from edge_sdk.errors import ConfigError

NOBODY = 65534

LIMITS = """\
Limit                     Soft Limit           Hard Limit           Units
Max locked memory         8388608              unlimited            bytes
Max realtime priority     40                   99
Max realtime timeout      unlimited            unlimited            us
"""

# Applies the settings in a process of its own, as another user where asked to, and says what the kernel then has.
PROGRAM = """\
import json, os, sys, threading
from edge_sdk.control.realtime import RealtimeSettings, apply_realtime
user, settings = json.loads(sys.argv[1])
if user:
    os.setuid(user)
report = apply_realtime(RealtimeSettings(**settings))
found = {}
def look():
    found["thread"] = os.sched_getscheduler(0)
thread = threading.Thread(target=look)
thread.start()
thread.join()
status = dict(line.split(":", 1) for line in open("/proc/self/status"))
found |= {
    "scheduler": os.sched_getscheduler(0) & ~os.SCHED_RESET_ON_FORK,
    "priority": os.sched_getparam(0).sched_priority,
    "cpus": sorted(os.sched_getaffinity(0)),
    "locked_kb": int(status["VmLck"].split()[0]),
    "outcomes": {outcome.setting: [outcome.granted, outcome.detail] for outcome in report.outcomes},
}
print(json.dumps(found))
"""


def applied(user: int = 0, **settings: object) -> dict[str, object]:
    """Settings in a fresh process -> what it found."""
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, json.dumps([user, settings])],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
    )
    return json.loads(done.stdout)


def write(root: Path, **files: str) -> Path:
    for name, text in files.items():
        path = root / name.replace("__", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def test_nothing_is_done_that_nobody_asked_for() -> None:
    assert apply_realtime(RealtimeSettings()) == RealtimeReport()
    assert os.sched_getscheduler(0) == os.SCHED_OTHER


def test_what_every_user_may_do_is_granted() -> None:
    cpu = min(os.sched_getaffinity(0))
    found = applied(cpus=[cpu])
    assert found["cpus"] == [cpu]
    assert found["outcomes"] == {"cpus": [True, f"runs on [{cpu}]"]}


@pytest.mark.skipif(not read_limits().may_schedule, reason="needs CAP_SYS_NICE")
def test_fifo_is_for_the_thread_that_asked_and_not_for_those_it_starts() -> None:
    found = applied(fifo_priority=5)
    assert (found["scheduler"], found["priority"]) == (os.SCHED_FIFO, 5)
    assert found["thread"] == os.SCHED_OTHER
    assert found["outcomes"] == {"fifo_priority": [True, "SCHED_FIFO, 5"]}


@pytest.mark.skipif(not read_limits().may_lock, reason="needs CAP_IPC_LOCK")
def test_locked_memory_is_locked() -> None:
    found = applied(lock_memory=True)
    assert int(str(found["locked_kb"])) > 1000
    assert found["outcomes"] == {"lock_memory": [True, "all memory is locked"]}


@pytest.mark.skipif(os.getuid() != 0, reason="needs root, to become a user without rights")
def test_a_refusal_says_what_to_do() -> None:
    found = applied(NOBODY, fifo_priority=5, lock_memory=True, cpus=[4095])
    assert found["scheduler"] == os.SCHED_OTHER
    assert found["locked_kb"] == 0
    outcomes = found["outcomes"]
    assert isinstance(outcomes, dict)
    assert not any(granted for granted, _ in outcomes.values())
    assert "Operation not permitted: `@robot - rtprio" in outcomes["fifo_priority"][1]
    assert "LimitRTPRIO=" in outcomes["fifo_priority"][1]
    assert "may be locked: `@robot - memlock unlimited`" in outcomes["lock_memory"][1]
    assert "Invalid argument" in outcomes["cpus"][1]


def test_the_report_survives_its_way_between_processes() -> None:
    report = apply_realtime(RealtimeSettings(cpus=(4095,)))
    assert [outcome.setting for outcome in report.refused] == ["cpus"]
    assert RealtimeReport.decode(report.encode()) == report


@pytest.mark.parametrize("settings", [{"fifo_priority": 0}, {"fifo_priority": 100}, {"cpus": (-1,)}])
def test_values_that_no_linux_takes_are_refused(settings: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match=rf"{next(iter(settings))}: expected"):
        RealtimeSettings(**settings)


def test_limits_are_read_as_the_kernel_writes_them(tmp_path: Path) -> None:
    root = write(
        tmp_path,
        proc__self__limits=LIMITS,
        proc__self__status=f"Name:\tx\nCapEff:\t{1 << 23:016x}\n",
        proc__version="Linux version 5.15.148-rt-tegra (x) #1 SMP PREEMPT_RT Tue\n",
        sys__devices__system__cpu__isolated="2-3\n",
        sys__devices__system__cpu__cpu0__cpufreq__scaling_governor="schedutil\n",
        sys__devices__system__cpu__cpu1__cpufreq__scaling_governor="performance\n",
    )
    assert read_limits(root) == RealtimeLimits(
        priority_limit=40,
        lockable_bytes=8388608,
        may_schedule=True,
        may_lock=False,
        isolated_cpus="2-3",
        preempt_rt=True,
        governors=("performance", "schedutil"),
    )
    assert (
        read_limits(
            write(tmp_path, proc__self__limits="Max locked memory   unlimited  unlimited bytes\n")
        ).lockable_bytes
        is None
    )


def test_the_kernels_own_word_agrees_with_what_is_read() -> None:
    import resource

    soft, _ = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    assert read_limits().lockable_bytes == (None if soft == resource.RLIM_INFINITY else soft)
    assert read_limits().priority_limit == resource.getrlimit(resource.RLIMIT_RTPRIO)[0]


def test_a_machine_that_says_nothing_permits_nothing(tmp_path: Path) -> None:
    limits = read_limits(tmp_path)
    assert limits.priority_limit == 0
    assert not any((limits.may_schedule, limits.may_lock, limits.preempt_rt))
    rows = dict(describe_limits(limits))
    assert list(rows) == ["RT priority", "CAP_SYS_NICE", "Lock memory", "Isolated CPUs", "Kernel", "Governor"]
    for name, todo in [
        ("RT priority", "LimitRTPRIO="),
        ("Lock memory", "LimitMEMLOCK="),
        ("Isolated CPUs", "isolcpus"),
    ]:
        assert todo in rows[name]


def test_a_machine_that_is_set_up_has_nothing_to_do(tmp_path: Path) -> None:
    ready = RealtimeLimits(
        priority_limit=80,
        lockable_bytes=None,
        may_schedule=False,
        may_lock=False,
        isolated_cpus="3",
        preempt_rt=True,
        governors=("performance",),
    )
    assert [value for _, value in describe_limits(ready)] == [
        "up to 80",
        "no; not needed where RT priority is allowed",
        "without limit",
        "3",
        "PREEMPT_RT",
        "performance",
    ]
