"""Ends a piece of work at each of its system calls in turn, as a power cut would, and looks at what it left.

Run as a program it does so with the saving of a state: ``kill_points.py FILE`` prints how many calls there were.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

PTRACE_TRACEME, PTRACE_SYSCALL = 0, 24  # sys/ptrace.h


def kill_at_each_call(work: Callable[[], object], look: Callable[[int], object]) -> int:
    """Runs ``work`` in a new process for each system call that it makes, up to its beginning or its end.

    Calls ``look`` after each of these processes was killed; returns how many there were. This process must have a
    single thread.
    """
    stops = 0
    while not _ends_before(work, stops + 1):
        stops += 1
        look(stops)
    return stops


def _ends_before(work: Callable[[], object], stop: int) -> bool:
    """Whether the work ends before so many beginnings and ends of calls; otherwise it is killed there."""
    libc = ctypes.CDLL(None, use_errno=True)
    child = os.fork()
    if child == 0:
        traced = libc.ptrace(PTRACE_TRACEME, 0, None, None)
        if traced == 0:
            os.kill(os.getpid(), signal.SIGSTOP)
            work()
        os._exit(traced & 1)
    _, status = os.waitpid(child, 0)
    if not os.WIFSTOPPED(status):
        raise PermissionError("this machine lets nobody trace a process")
    for _ in range(stop):
        libc.ptrace(PTRACE_SYSCALL, child, None, None)
        _, status = os.waitpid(child, 0)
        if os.WIFEXITED(status):
            assert os.WEXITSTATUS(status) == 0
            return True
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return False


def main() -> None:
    """Saves a state over an older one, again and again."""
    import numpy as np

    from edge_sdk.backends import Snapshot
    from edge_sdk.model import AttentionSpec, Mamba2Spec, ModelConfig
    from edge_sdk.state_file import Conversation, read_state, write_state

    path = Path(sys.argv[1])
    layers = (Mamba2Spec(heads=2, head_dim=8, groups=1, state=16), AttentionSpec(heads=2, kv_heads=2, head_dim=8))
    model = ModelConfig(
        family="test", vocab_size=9, hidden=16, layers=layers, max_length=64, bos_token_id=1, eos_token_ids=(2,)
    )

    def save(length: int) -> None:
        arrays = [
            np.full(spec.sized(batch=1, capacity=length), length, dtype=spec.dtype) for spec in model.past_specs()
        ]
        write_state(path, "id", [5] * length, Snapshot(length, tuple(arrays)), Conversation(text="x" * 100))

    def look(_: int) -> None:
        header, token_ids, snapshot = read_state(path, "id", model)  # raises where the file is not whole
        assert header.positions in (20, 30)
        assert token_ids == [5] * header.positions
        assert all((array == header.positions).all() for array in snapshot.arrays)
        found.add(header.positions)
        if header.positions == 30:
            save(20)

    found = set[int]()
    save(20)
    calls = kill_at_each_call(lambda: save(30), look)
    assert found == {20, 30}, found
    save(20)
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]  # what the killed ones left is gone
    print(calls)


if __name__ == "__main__":
    main()
