"""Ends a piece of work after each change that it makes to files, as a kill would, and looks at what it left.

Run as a program it does so with the saving of a state: ``kill_points.py FILE`` prints how many changes there were.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

PTRACE_TRACEME, PTRACE_SYSCALL = 0, 24  # sys/ptrace.h

Files = dict[str, tuple[int, bytes]]


def kill_at_each_change(folder: Path, work: Callable[[], object], look: Callable[[int], object]) -> int:
    """Runs ``work`` in a new process for each of its system calls that changes something below a folder, and one more.

    Calls ``look`` after each of these processes was killed: the first before it changed anything, the n-th as soon as
    its n-1-th change was made. Between changes it does not matter where a process is killed: what it leaves is the
    same. Returns how many were killed. This process must have a single thread, and ``look`` leaves the files as they
    were at first.
    """
    kills = 0
    while not _ends_before(folder, work, changes=kills):
        kills += 1
        look(kills)
    return kills


def _ends_before(folder: Path, work: Callable[[], object], changes: int) -> bool:
    """Whether the work ends before it made so many changes; otherwise it is killed there."""
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
    before = _files(folder)
    while changes > 0:
        libc.ptrace(PTRACE_SYSCALL, child, None, None)
        _, status = os.waitpid(child, 0)  # at the beginning or the end of a call
        if os.WIFEXITED(status):
            assert os.WEXITSTATUS(status) == 0
            return True
        if (now := _files(folder)) != before:
            before, changes = now, changes - 1
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return False


def _files(folder: Path) -> Files:
    """Everything below a folder: what kind it is, with permissions, and its content."""
    found: Files = {}
    for place, folders, names in os.walk(folder):
        for name in (*folders, *names):
            path = os.path.join(place, name)
            mode = os.lstat(path).st_mode
            content = os.readlink(path).encode() if os.path.islink(path) else b""
            if name in names and not content:
                with open(path, "rb") as file:
                    content = file.read()
            found[path] = mode, content
    return found


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
        save(20)

    found = set[int]()
    save(20)
    kills = kill_at_each_change(path.parent, lambda: save(30), look)
    assert found == {20, 30}, found
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]  # what the killed ones left is gone
    print(kills)


if __name__ == "__main__":
    main()
