"""What robots meet: power cuts in mid-save, full disks, bundles replaced under an open session, engines that fail."""

from __future__ import annotations

import itertools
import shutil
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import openai
import pytest
import uvicorn

import edge_sdk
from edge_sdk import Bundle, LanguageModel, write_bundle
from edge_sdk.backends import States, choose_engine
from edge_sdk.bundle import REQUIRED_FILES, WEIGHTS
from edge_sdk.errors import BackendError, BundleError, ConfigError
from edge_sdk.files import new_file
from edge_sdk.scheduler import Scheduler
from edge_sdk.server.app import Settings, create_app
from places import ROOT

COMMANDS = ("walk around left thrice", "jump twice and run", "look opposite right after walk", "turn left")


def test_a_save_that_is_killed_after_any_change_to_files_leaves_a_whole_file(tmp_path: Path) -> None:
    program = ROOT / "tests" / "runtime" / "kill_points.py"
    result = subprocess.run(
        [sys.executable, program, tmp_path / "a.state"], capture_output=True, text=True, check=False
    )
    if "PermissionError: this machine lets nobody trace" in result.stderr:
        pytest.skip("this machine lets nobody trace a process")
    assert result.returncode == 0, result.stderr
    assert int(result.stdout) >= 4  # before anything was done, and once a file was created, written and renamed


def test_what_killed_writers_left_is_deleted_and_what_is_being_written_is_not(tmp_path: Path) -> None:
    path = tmp_path / "a[1].state"
    left, other = tmp_path / ".a[1].state.0123abcd.tmp", tmp_path / ".b.state.0123abcd.tmp"
    for file in (left, other):
        file.write_text("half")
    with new_file(path) as first:
        first.write_text("first")
        with new_file(path) as second:
            second.write_text("second")
        assert first.exists()
    assert sorted(tmp_path.iterdir()) == [other, path]
    assert path.read_text() == "first"


FULL = """
import errno, logging, sys, edge_sdk
from pathlib import Path
logging.basicConfig()
disk = Path(sys.argv[2])
model = edge_sdk.load(sys.argv[1], threads=1, prefix_cache_folder=disk / "prefixes")
model.prefixes.least = 4
with model.session() as session:
    session.read("<s> jump")
    session.save(disk / "a.state")
    old = (disk / "a.state").read_bytes()
    try:
        (disk / "rest").write_bytes(bytes(1 << 20))
    except OSError:
        pass
    session.read(" twice")
    try:
        session.save(disk / "a.state")
    except OSError as error:
        assert error.errno == errno.ENOSPC, error
    else:
        sys.exit("the disk was not full")
    assert (disk / "a.state").read_bytes() == old
    assert model.restore(disk / "a.state").text == "<s> jump"
prompt = "walk and " * 8 + "run"
first, second = (model.generate(prompt).text for _ in range(2))
assert first == second
model.prefixes.close()
assert sorted(path.name for path in disk.glob("**/.*.tmp")) == []
print("done")
"""


def test_a_full_disk_costs_what_was_to_be_written_and_nothing_else(chat_bundle: Path, tmp_path: Path) -> None:
    tmpfs = 'mount -t tmpfs -o size=256k none "$1" || exit 77; exec "$2" -c "$3" "$4" "$1"'
    arguments = ["sh", tmp_path, sys.executable, FULL, chat_bundle]
    command = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", tmpfs, *map(str, arguments)]
    if shutil.which("unshare") is None:
        pytest.skip("needs unshare for a small file system")
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode == 77 or "unshare failed" in result.stderr:
        pytest.skip(f"may not mount a small file system here: {result.stderr}")
    assert result.stdout == "done\n", result.stderr
    assert "a snapshot was not written" in result.stderr


def replace(bundle: Path, folder: Path) -> None:
    """Puts another model in a bundle's place: the same, but all its weights are zeros."""
    folder.mkdir()
    sources = {name: Path(shutil.copy(bundle / name, folder / name)) for name in REQUIRED_FILES}
    sources[WEIGHTS].write_bytes(bytes(sources[WEIGHTS].stat().st_size))
    manifest = Bundle.open(bundle).manifest
    write_bundle(bundle, sources, model=manifest.model, weights=manifest.weights, provenance={})


def test_a_bundle_may_be_replaced_while_sessions_are_open(chat_bundle: Path, tmp_path: Path) -> None:
    path = Path(shutil.copytree(chat_bundle, tmp_path / "bundle"))
    model = edge_sdk.load(path, threads=1, prefix_cache_bytes=0)
    expected = [model.generate(command).token_ids for command in COMMANDS]
    with model.session() as session:
        stream = session.stream(COMMANDS[0])
        said = [next(stream).token_id]
        session.save(tmp_path / "old.state")
        replace(path, tmp_path / "other")
        said += [token.token_id for token in stream]
        assert tuple(said) == expected[0]
    assert [model.generate(command).token_ids for command in COMMANDS] == expected
    new = edge_sdk.load(path, threads=1, prefix_cache_bytes=0)
    assert new.bundle.model_id != model.bundle.model_id
    assert new.generate(COMMANDS[0]).token_ids != expected[0]
    with pytest.raises(edge_sdk.errors.StateError, match="expected a state of model"):
        new.restore(tmp_path / "old.state")
    assert not [entry for entry in tmp_path.iterdir() if entry.name.endswith(".tmp")]


def test_a_bundle_that_is_replaced_while_it_is_loaded_is_refused(
    chat_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = Path(shutil.copytree(chat_bundle, tmp_path / "bundle"))
    choose = choose_engine

    def late(bundle: Bundle, **named: Any) -> Any:
        engine = choose(bundle, **named)
        replace(path, tmp_path / "other")
        return engine

    monkeypatch.setattr("edge_sdk.language.choose_engine", late)
    with pytest.raises(BundleError, match="the same bundle until it is loaded"):
        edge_sdk.load(path, threads=1)


class Failing:
    """Makes an engine's steps fail when it is told to."""

    def __init__(self, model: LanguageModel, monkeypatch: pytest.MonkeyPatch) -> None:
        self.fails: Callable[[np.ndarray], BaseException | None] = lambda ids: None
        self._step = model.engine.step
        monkeypatch.setattr(model.engine, "step", self._watched)

    def _watched(self, input_ids: np.ndarray, states: States, logits: Any = "last") -> np.ndarray:
        if error := self.fails(input_ids):
            raise error
        return self._step(input_ids, states, logits)


@pytest.mark.parametrize("slots", [1, 2])
@pytest.mark.parametrize("error", [RuntimeError("lost the device"), BackendError("lost the device")])
def test_a_failing_engine_closes_the_session_and_frees_its_place(
    chat_bundle: Path, monkeypatch: pytest.MonkeyPatch, slots: int, error: Exception
) -> None:
    model = edge_sdk.load(chat_bundle, threads=1, slots=slots, waiting=0, prefix_cache_bytes=0)
    failing, expected = Failing(model, monkeypatch), model.generate(COMMANDS[0]).token_ids
    with model.session() as other:
        other.prepare(COMMANDS[0])
        for _ in range(slots + 1):  # a place that is not given back would be missing the last time
            session = model.session()
            stream = session.stream(COMMANDS[1])
            next(stream)
            failing.fails = lambda ids: error
            with pytest.raises(BackendError, match="lost the device"):
                next(stream)
            failing.fails = lambda ids: None
            with pytest.raises(ConfigError, match="found closed"):
                session.generate("walk")
            assert list(stream) == []
        assert other.generate(None).token_ids == expected


@pytest.mark.parametrize("slots", [1, 2])
def test_ctrl_c_in_a_step_leaves_no_session_that_is_half_fed(
    chat_bundle: Path, monkeypatch: pytest.MonkeyPatch, slots: int
) -> None:
    model = edge_sdk.load(chat_bundle, threads=1, slots=slots, prefix_cache_bytes=0)
    session, expected = model.session(), model.generate(COMMANDS[1]).token_ids
    with monkeypatch.context() as patched:
        patched.setattr(model.steps, "advance", lambda *arguments: _raise(KeyboardInterrupt()))
        with pytest.raises(KeyboardInterrupt):
            session.generate(COMMANDS[0])
    with pytest.raises(ConfigError, match="found closed"):
        session.generate(COMMANDS[0])
    assert model.generate(COMMANDS[1]).token_ids == expected


def test_ctrl_c_while_waiting_for_a_place_leaves_the_queue(chat_bundle: Path) -> None:
    model = edge_sdk.load(chat_bundle, threads=1, slots=2)
    if not isinstance(model.steps, Scheduler):
        pytest.skip("needs the native kernels")
    held = [model.session().stream(command) for command in COMMANDS[:2]]
    for stream in held:
        next(stream)
    with pytest.raises(KeyboardInterrupt), model.steps.place(0, lambda: _raise(KeyboardInterrupt())):
        pass
    assert model.steps._queue == []
    held[0].close()
    assert model.generate(COMMANDS[2]).token_ids


def _raise(error: BaseException) -> None:
    raise error


@contextmanager
def listening(app: Any) -> Iterator[int]:
    """An application in a thread of this process; gives its port."""
    server = uvicorn.Server(config := uvicorn.Config(app, port=0, log_config=None))
    sockets = [config.bind_socket()]
    thread = threading.Thread(target=server.run, kwargs={"sockets": sockets})
    thread.start()
    try:
        yield sockets[0].getsockname()[1]
    finally:
        server.should_exit = True
        thread.join()


def test_a_server_whose_engine_failed_once_goes_on(chat_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = edge_sdk.load(chat_bundle, threads=1, slots=2, prefix_cache_bytes=0)
    failing, expected = Failing(model, monkeypatch), model.generate(COMMANDS[0]).text
    steps = itertools.count(1)
    failing.fails = lambda ids: RuntimeError("lost the device") if next(steps) == 3 else None
    with listening(create_app(model, Settings(name="m", at_once=1, waiting=0))) as port:
        client = openai.OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="none", max_retries=0, timeout=60)

        def ask() -> str | None:
            messages: Any = [{"role": "user", "content": COMMANDS[0]}]
            answer = client.chat.completions.create(model="m", messages=messages, temperature=0)
            return answer.choices[0].message.content

        with pytest.raises(openai.InternalServerError) as failed:
            ask()
        assert failed.value.code == "engine_failed"
        assert ask() == expected
        model.engine.limit_states(1)
        with pytest.raises(openai.InternalServerError) as refused:
            ask()
        assert (refused.value.status_code, refused.value.code) == (503, "out_of_memory")
        assert "retry-after" in refused.value.response.headers
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics") as response:
            metrics = response.read().decode()
    assert "edge_requests_running 0.0" in metrics
    assert 'edge_requests_total{path="/v1/chat/completions",status="500"} 1.0' in metrics
