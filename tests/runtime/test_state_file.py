"""Saved sessions: they go on where they stopped, and a damaged or foreign file is refused."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edge_sdk import LanguageModel
from edge_sdk.backends import Snapshot
from edge_sdk.errors import StateError
from edge_sdk.state_file import Conversation, write_state

COMMANDS = ("walk around left thrice", "jump twice and run", "look opposite right after walk", "turn left")


@pytest.fixture
def model(chat_model: LanguageModel) -> LanguageModel:
    return chat_model


@pytest.mark.parametrize("tokens", [1, 4, 100])
def test_a_saved_session_goes_on_where_it_stopped(model: LanguageModel, tmp_path: Path, tokens: int) -> None:
    with model.session() as session:
        session.generate(COMMANDS[0], max_new_tokens=tokens)
        session.save(tmp_path / "a.state")
        restored = model.restore(tmp_path / "a.state")
        assert restored.messages == session.messages
        assert restored.everything == session.everything
        assert restored.generate(COMMANDS[1]).token_ids == session.generate(COMMANDS[1]).token_ids


def test_a_session_may_be_saved_before_anything_was_said(model: LanguageModel, tmp_path: Path) -> None:
    model.session().save(tmp_path / "empty.state")
    restored = model.restore(tmp_path / "empty.state")
    assert restored.generate("jump").token_ids == model.generate("jump").token_ids


def test_a_state_of_another_model_is_refused(
    model: LanguageModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model.session().save(tmp_path / "a.state")
    monkeypatch.setattr(type(model.bundle), "model_id", "f" * 64)
    with pytest.raises(StateError, match="expected a state of model ffffffff"):
        model.restore(tmp_path / "a.state")


def test_a_state_longer_than_the_context_is_refused(model: LanguageModel, tmp_path: Path) -> None:
    length = model.config.max_length + 1
    shapes = [(spec.sized(batch=1, capacity=length), spec.dtype) for spec in model.config.past_specs()]
    snapshot = Snapshot(length, tuple(np.zeros(shape, dtype) for shape, dtype in shapes))
    write_state(tmp_path / "a.state", model.bundle.model_id, [3] * length, snapshot, Conversation())
    with pytest.raises(StateError, match="expected at most 128 positions, found 129"):
        model.restore(tmp_path / "a.state")


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_damaged_state_is_refused(model: LanguageModel, tmp_path: Path, data: st.DataObject) -> None:
    path = tmp_path / "a.state"
    with model.session() as session:
        session.read("<s> jump twice")
        session.save(path)
    content = bytearray(path.read_bytes())
    if data.draw(st.booleans()):
        place = data.draw(st.integers(0, len(content) - 1))
        content[place] ^= data.draw(st.integers(1, 255))
    else:
        del content[data.draw(st.integers(0, len(content) - 1)) :]
    path.write_bytes(content)
    with pytest.raises(StateError, match="expected"):
        model.restore(path)


SAVER = """
import sys, edge_sdk
model = edge_sdk.load(sys.argv[1], threads=1, verify_hashes=False)
session = model.session()
session.read("<s> jump")
print("ready", flush=True)
while True:
    session.read(" twice" if session.position % 2 else " left")
    session.save(sys.argv[2])
"""


def test_a_killed_save_leaves_a_whole_file(model: LanguageModel, chat_bundle: Path, tmp_path: Path) -> None:
    path = tmp_path / "a.state"
    for delay_ms in (1, 3, 7, 20, 50):
        process = subprocess.Popen([sys.executable, "-c", SAVER, chat_bundle, path], stdout=subprocess.PIPE)
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        time.sleep(delay_ms / 1e3)
        process.send_signal(signal.SIGKILL)
        process.wait()
        process.stdout.close()
        if path.exists():
            assert model.restore(path).everything[:2] == model.codec.encode("<s> jump")
    assert path.exists()


def test_a_save_to_a_full_disk_keeps_the_old_file(model: LanguageModel, tmp_path: Path) -> None:
    path = tmp_path / "a.state"
    with model.session() as session:
        session.save(path)
        old = path.read_bytes()
        script = (
            "import resource, sys, edge_sdk\n"
            "model = edge_sdk.load(sys.argv[1], threads=1, verify_hashes=False, prefix_cache_bytes=0)\n"
            "session = model.session()\n"
            "session.read('<s> jump')\n"
            "import signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
            "resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))\n"
            "session.save(sys.argv[2])\n"
        )
        command = [sys.executable, "-c", script, str(model.bundle.path), str(path)]
        result = subprocess.run(command, check=False, capture_output=True, text=True)
    assert "File too large" in result.stderr
    assert path.read_bytes() == old
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.state"]
