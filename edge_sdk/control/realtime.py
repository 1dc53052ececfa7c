"""Real-time settings of Linux for a control loop: asked for explicitly, and what was permitted is said.

Sources: sched(7), mlockall(2), cpuset(7), and the Linux kernel's documentation of PREEMPT_RT.
"""

from __future__ import annotations

import ctypes
import errno
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec

from edge_sdk.errors import ConfigError, explain

MCL_CURRENT, MCL_FUTURE = 1, 2
CAP_IPC_LOCK, CAP_SYS_NICE = 14, 23

PRIORITY = 80
"""What the advice below asks for: above the kernel's interrupt threads (50), below its watchdogs (99)."""

ALLOW_PRIORITY = (
    f"`@robot - rtprio {PRIORITY}` in /etc/security/limits.conf and a new login, or LimitRTPRIO={PRIORITY} in the unit"
)
ALLOW_LOCKING = "`@robot - memlock unlimited` in /etc/security/limits.conf and a new login, or LimitMEMLOCK=infinity"


class RealtimeSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a thread asks for; by default nothing. Raises ConfigError for values that no Linux takes."""

    fifo_priority: int | None = None
    """SCHED_FIFO with this priority, 1 to 99, for the calling thread; not for threads and processes it starts."""
    lock_memory: bool = False
    """All memory of the process, also what it takes later, stays in RAM."""
    cpus: tuple[int, ...] = ()
    """The calling thread, and those that it starts, run on these only."""

    def __post_init__(self) -> None:
        priority = self.fifo_priority
        _require(priority is None or 1 <= priority <= 99, "fifo_priority", "1 to 99", priority)
        _require(all(cpu >= 0 for cpu in self.cpus), "cpus", "0 or more", list(self.cpus))


class Outcome(msgspec.Struct, frozen=True, kw_only=True):
    """One setting that was asked for."""

    setting: str
    granted: bool
    detail: str
    """What holds now; where it was refused, why and what to do."""


class RealtimeReport(msgspec.Struct, frozen=True, kw_only=True):
    """What became of the settings that were asked for, in their order."""

    outcomes: tuple[Outcome, ...] = ()

    @property
    def refused(self) -> tuple[Outcome, ...]:
        """Those that were not granted."""
        return tuple(outcome for outcome in self.outcomes if not outcome.granted)

    def encode(self) -> bytes:
        """As JSON."""
        return msgspec.json.encode(self)

    @classmethod
    def decode(cls, text: bytes) -> RealtimeReport:
        """From :meth:`encode`."""
        return msgspec.json.decode(text, type=cls)


def apply_realtime(settings: RealtimeSettings) -> RealtimeReport:
    """Applies the settings to the calling thread and its process. A refusal is an outcome, not an error."""
    asked: list[tuple[str, str, Callable[[], None]]] = []
    if settings.cpus:
        cpus = settings.cpus
        asked.append(("cpus", f"runs on {list(cpus)}", lambda: os.sched_setaffinity(0, cpus)))
    if settings.lock_memory:
        asked.append(("lock_memory", "all memory is locked", _lock_memory))
    if settings.fifo_priority is not None:
        priority = settings.fifo_priority
        asked.append(("fifo_priority", f"SCHED_FIFO, {priority}", lambda: _schedule_first(priority)))
    return RealtimeReport(outcomes=tuple(_outcome(*one) for one in asked))


def _outcome(setting: str, granted: str, apply: Callable[[], None]) -> Outcome:
    try:
        apply()
    except OSError as error:
        todo = {"lock_memory": ALLOW_LOCKING, "fifo_priority": ALLOW_PRIORITY, "cpus": "See `lscpu -e`."}[setting]
        return Outcome(setting=setting, granted=False, detail=f"{error.strerror}: {todo}")
    return Outcome(setting=setting, granted=True, detail=granted)


def _schedule_first(priority: int) -> None:
    policy = os.SCHED_FIFO | os.SCHED_RESET_ON_FORK  # an engine's thread pool must not take the same priority
    os.sched_setscheduler(0, policy, os.sched_param(priority))


def _lock_memory() -> None:
    limits = read_limits()
    if limits.lockable_bytes is not None and not limits.may_lock:
        # mlockall could succeed, and an allocation fail at any time after it, in the middle of the loop
        raise OSError(errno.EPERM, f"only {limits.lockable_bytes >> 10} KiB may be locked")
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.mlockall(MCL_CURRENT | MCL_FUTURE) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


class RealtimeLimits(msgspec.Struct, frozen=True, kw_only=True):
    """What this process would be permitted, and what the machine is set up for."""

    priority_limit: int
    """RLIMIT_RTPRIO: the highest SCHED_FIFO priority without CAP_SYS_NICE; 0 allows none."""
    lockable_bytes: int | None
    """RLIMIT_MEMLOCK, None for no limit."""
    may_schedule: bool
    """CAP_SYS_NICE."""
    may_lock: bool
    """CAP_IPC_LOCK."""
    isolated_cpus: str
    """Such as ``2-3``; empty for none."""
    preempt_rt: bool
    governors: tuple[str, ...]
    """Of the processors' frequency, each once; empty where it is not ours to choose, as in a virtual machine."""


def read_limits(root: Path = Path("/")) -> RealtimeLimits:
    """Of this process; ``root`` is where ``/proc`` and ``/sys`` are. What cannot be read counts as not permitted."""
    priority, lockable = (
        _soft_limit(_text(root / "proc/self/limits"), name) for name in ("realtime priority", "locked memory")
    )
    capabilities = _capabilities(_text(root / "proc/self/status"))
    cpus = root / "sys/devices/system/cpu"
    governors = {_text(path) for path in cpus.glob("cpu[0-9]*/cpufreq/scaling_governor")}
    return RealtimeLimits(
        priority_limit=99 if priority is None else priority,
        lockable_bytes=lockable,
        may_schedule=bool(capabilities >> CAP_SYS_NICE & 1),
        may_lock=bool(capabilities >> CAP_IPC_LOCK & 1),
        isolated_cpus=_text(cpus / "isolated"),
        preempt_rt=_text(root / "sys/kernel/realtime") == "1" or "PREEMPT_RT" in _text(root / "proc/version"),
        governors=tuple(sorted(governors - {""})),
    )


def describe_limits(limits: RealtimeLimits) -> Iterator[tuple[str, str]]:
    """Rows of name and value for ``edge-sdk doctor``; what is missing for a control loop comes with what to do."""
    if limits.may_schedule:
        yield "RT priority", "any, by CAP_SYS_NICE"
    else:
        allowed = f"up to {limits.priority_limit}" if limits.priority_limit else f"none; to allow it: {ALLOW_PRIORITY}"
        yield "RT priority", allowed
    yield "CAP_SYS_NICE", "yes" if limits.may_schedule else "no; not needed where RT priority is allowed"
    if limits.may_lock or limits.lockable_bytes is None:
        yield "Lock memory", "without limit"
    else:
        yield "Lock memory", f"{limits.lockable_bytes >> 10} KiB; to allow it: {ALLOW_LOCKING}"
    isolated = limits.isolated_cpus or "none; `isolcpus=N` on the kernel's command line keeps one for the control loop"
    yield "Isolated CPUs", isolated
    yield "Kernel", "PREEMPT_RT" if limits.preempt_rt else "not PREEMPT_RT: expect delays of milliseconds under load"
    governors = ", ".join(limits.governors) or "not ours to choose"
    slow = set(limits.governors) - {"performance"}
    yield "Governor", governors + ("; for a steady clock: `cpupower frequency-set -g performance`" if slow else "")


def _soft_limit(limits: str, name: str) -> int | None:
    """From /proc/self/limits; None for unlimited, 0 where it is not said."""
    for line in limits.splitlines():
        if line.startswith(f"Max {name} "):
            soft = line.removeprefix(f"Max {name} ").split()[0]
            return None if soft == "unlimited" else int(soft)
    return 0


def _capabilities(status: str) -> int:
    """The effective ones, from /proc/self/status; 0 where they are not said."""
    lines = [line for line in status.splitlines() if line.startswith("CapEff:")]
    return int(lines[0].split()[1], 16) if lines else 0


def _text(path: Path) -> str:
    try:
        return path.read_text(errors="replace").strip()
    except OSError:  # not every kernel has every file
        return ""


def _require(right: bool, what: str, expected: str, found: object) -> None:
    if not right:
        raise ConfigError(explain(f"Real-time setting {what}", expected=expected, found=found, todo="Correct it."))
