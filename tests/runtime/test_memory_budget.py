"""Memory that is not there: a typed error before anything was begun, and nobody else harmed."""

from __future__ import annotations

import gc
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

import edge_sdk
from edge_sdk import LanguageModel
from edge_sdk.backends.ort import OrtStates
from edge_sdk.errors import BackendError, MemoryLimitError
from edge_sdk.machine import read_available_memory
from edge_sdk.memory_budget import KEPT_FREE_BYTES, LOOK_FROM_BYTES, SPARE_BYTES, MemoryBudget
from edge_sdk.scheduler import Scheduler

COMMANDS = ("walk around left thrice", "jump twice and run", "look opposite right after walk", "turn left")
MIB = 1 << 20


def machine(root: Path, available: int, **groups: tuple[str, int, int]) -> Path:
    """A folder with what Linux says of memory; of each control group its limit, use, and caches."""
    (root / "proc/self").mkdir(parents=True)
    (root / "proc/meminfo").write_text(f"MemTotal: 9 kB\nMemAvailable: {available // 1024} kB\n")
    (root / "proc/self/cgroup").write_text("1:name=systemd:/x\n0::/robot/sdk\n")
    for name, (limit, used, caches) in groups.items():
        folder = root / "sys/fs/cgroup" / name.replace("_", "/")
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "memory.max").write_text(f"{limit}\n")
        (folder / "memory.current").write_text(f"{used}\n")
        (folder / "memory.stat").write_text(f"anon 5\ninactive_file {caches}\n")
    return root


def test_what_is_left_is_the_least_of_machine_and_groups(tmp_path: Path) -> None:
    assert read_available_memory(tmp_path) is None
    assert read_available_memory(machine(tmp_path / "a", 500 * MIB)) == 500 * MIB
    group = {"robot_sdk": (str(300 * MIB), 200 * MIB, 50 * MIB), "robot": ("max", 900 * MIB, 0)}
    assert read_available_memory(machine(tmp_path / "b", 500 * MIB, **group)) == 150 * MIB
    group["robot"] = (str(1000 * MIB), 900 * MIB, 0)
    assert read_available_memory(machine(tmp_path / "c", 500 * MIB, **group)) == 100 * MIB


def test_what_does_not_fit_is_not_touched(tmp_path: Path) -> None:
    budget = MemoryBudget(machine(tmp_path, KEPT_FREE_BYTES + 2 * MIB))
    memory = budget.take(2 * MIB)
    assert budget.used_bytes == memory.nbytes == 2 * MIB
    with pytest.raises(MemoryLimitError, match=f"expected {2 * MIB + 1:,} bytes"):
        budget.take(2 * MIB + 1)
    view = memory[10:20]
    del memory
    assert budget.used_bytes == 2 * MIB  # a view holds all of it
    address = view.ctypes.data - 10
    del view
    assert budget.used_bytes == 0
    again, other = budget.take(2 * MIB), budget.take(5)
    assert again.ctypes.data == address  # its pages are touched already
    assert np.shares_memory(again, again.view(np.float32)[5:])
    assert not np.shares_memory(again, other)
    del again, other
    budget.limit_bytes = LOOK_FROM_BYTES
    with pytest.raises(MemoryLimitError, match=r"0 of 1,048,576 bytes in use"):
        budget.take(LOOK_FROM_BYTES + 1)


def test_what_is_kept_for_later_is_bounded() -> None:
    budget = MemoryBudget()
    size = SPARE_BYTES // 4
    held = [budget.take(size) for _ in range(6)]
    addresses = [memory.ctypes.data for memory in held]
    while held:
        held.pop(0)
    assert budget.used_bytes == 0
    assert [piece.memory.ctypes.data for piece in budget._spare.values()] == addresses[-4:]
    budget.limit_bytes = size
    with pytest.raises(MemoryLimitError):
        budget.take(size + 1)
    assert not budget._spare  # let go before anything is refused


def test_a_process_with_a_limit_of_its_own_gets_the_same_error() -> None:
    script = (
        "import resource, edge_sdk.memory_budget as m\n"
        "from edge_sdk.errors import MemoryLimitError\n"
        "resource.setrlimit(resource.RLIMIT_AS, (1 << 30, 1 << 30))\n"
        "m.read_available_memory = lambda root: None\n"
        "try: m.MemoryBudget().take(2 << 30)\n"
        "except MemoryLimitError as error: print(error)\n"
    )
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert "expected 2,147,483,648 bytes, found less than that" in result.stdout


@pytest.mark.parametrize("slots", [1, 3])
def test_one_session_too_many_is_refused_and_the_others_go_on(chat_bundle: Path, slots: int) -> None:
    model = edge_sdk.load(chat_bundle, threads=1, prefix_cache_bytes=0, slots=slots)
    expected = [model.generate(command).token_ids for command in COMMANDS[:2]]
    gc.collect()
    budget = model.engine.budget  # type: ignore[attr-defined]
    one = model.config.state_bytes(1, 128) + 4096
    model.engine.limit_states(budget.used_bytes + 2 * one)
    first, second, third = (model.session() for _ in range(3))
    streams = [first.stream(COMMANDS[0]), second.stream(COMMANDS[1])]
    said = [[next(stream).token_id] for stream in streams]
    with pytest.raises(MemoryLimitError, match="Close a session"):
        third.generate(COMMANDS[2])
    with pytest.raises(MemoryLimitError):
        first.fork()
    for tokens, stream in zip(said, streams):
        tokens += [token.token_id for token in stream]
    assert list(map(tuple, said)) == expected
    first.close()
    assert third.generate(None).token_ids  # which has kept its prompt


def test_a_limit_below_the_slots_is_told_at_once(chat_bundle: Path) -> None:
    with pytest.raises(MemoryLimitError):
        edge_sdk.load(chat_bundle, threads=1, max_state_bytes=1000, slots=4)


def test_states_that_cannot_grow_are_as_they_were(chat_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edge_sdk.backends.ort.FIRST_CAPACITY", 16)
    monkeypatch.setattr("edge_sdk.backends.host_memory.BLOCK", 16)
    model = edge_sdk.load(chat_bundle, threads=1, prefix_cache_bytes=0)
    expected = model.generate(COMMANDS[0]).token_ids
    assert len(expected) > 16
    budget = model.engine.budget  # type: ignore[attr-defined]
    budget._spare.clear()  # or the next session takes over what has grown
    with model.session() as session:
        stream = session.stream(COMMANDS[0])
        said = [next(stream).token_id]
        budget.limit_bytes = budget.used_bytes
        with pytest.raises(MemoryLimitError):
            said += [token.token_id for token in stream if not said.append(token.token_id)]
        states = session._states
        assert isinstance(states, OrtStates)
        assert states.room == 16 == session.position
        budget.limit_bytes = None
        assert tuple(said) + session.generate(None).token_ids == expected


def test_where_the_slots_cannot_grow_each_goes_on_alone(chat_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edge_sdk.backends.ort.FIRST_CAPACITY", 16)
    monkeypatch.setattr("edge_sdk.backends.host_memory.BLOCK", 16)
    model = edge_sdk.load(chat_bundle, threads=1, prefix_cache_bytes=0, slots=2)
    if not isinstance(model.steps, Scheduler):
        pytest.skip("needs the native kernels")
    expected = [model.generate(command).token_ids for command in COMMANDS[:2]]
    model.engine.budget._spare.clear()  # type: ignore[attr-defined]
    sessions = [model.session() for _ in range(2)]
    for session, command in zip(sessions, COMMANDS):
        session.prepare(command)
    gc.collect()
    budget = model.engine.budget  # type: ignore[attr-defined]
    budget.limit_bytes = budget.used_bytes + model.config.state_bytes(1, 64) + 4096  # one grows, the slots cannot
    with ThreadPoolExecutor(2) as pool:
        answers = list(pool.map(lambda session: session.generate(None).token_ids, sessions))
    assert answers == expected
    budget.limit_bytes = budget.used_bytes
    with pytest.raises(MemoryLimitError):
        sessions[1].generate(COMMANDS[0])


def test_a_prefix_that_does_not_fit_is_not_remembered(
    chat_bundle: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    model = edge_sdk.load(chat_bundle, threads=1)
    assert model.prefixes is not None
    monkeypatch.setattr(model.prefixes, "least", 4)
    prompt = "walk and " * 6 + "run"
    expected = model.generate(prompt).token_ids
    budget = model.engine.budget  # type: ignore[attr-defined]

    def refuse(size: int) -> None:
        raise MemoryLimitError("none left")

    monkeypatch.setattr(budget, "check", lambda size: refuse(size) if size < model.config.state_bytes(1, 100) else None)
    assert model.generate(prompt).token_ids == expected
    assert "is not remembered: none left" in caplog.text


def test_states_elsewhere_are_not_counted(chat_model: LanguageModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chat_model.engine, "place", object())
    with pytest.raises(BackendError, match="states on the host"):
        chat_model.engine.limit_states(1 << 30)


@pytest.mark.parametrize("version", [1, 2])
def test_the_nearest_limit_counts(tmp_path: Path, version: int) -> None:
    def write(name: str, text: str) -> None:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)

    assert read_available_memory(tmp_path) is None
    write("proc/meminfo", "MemTotal: 4000 kB\nMemAvailable:    3000 kB\n")
    assert read_available_memory(tmp_path) == 3000 * 1024
    top = "sys/fs/cgroup/" if version == 2 else "sys/fs/cgroup/memory/"
    write("proc/self/cgroup", "0::/robot/chat\n" if version == 2 else "5:cpu:/x\n4:memory:/robot/chat\n")
    names = ("memory.max", "memory.current") if version == 2 else ("memory.limit_in_bytes", "memory.usage_in_bytes")
    write(f"{top}robot/chat/{names[0]}", "max\n")
    write(f"{top}robot/chat/{names[1]}", "100\n")
    assert read_available_memory(tmp_path) == 3000 * 1024
    write(f"{top}robot/{names[0]}", "2000\n")
    write(f"{top}robot/{names[1]}", "1500\n")
    write(f"{top}robot/memory.stat", "inactive_file 40\ntotal_inactive_file 40\n")
    assert read_available_memory(tmp_path) == 540
    write(f"{top}robot/{names[1]}", "5000\n")
    assert read_available_memory(tmp_path) == 0
