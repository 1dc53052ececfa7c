"""``edge-sdk chat`` over a real pseudo-terminal, as somebody types, and over a pipe."""

from __future__ import annotations

import os
import pty
import re
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import edge_sdk
from servers import SLOW

COMMAND = (sys.executable, "-m", "edge_sdk.cli", "chat")
ANSWER = "I_TURN_LEFT I_WALK I_TURN_LEFT I_WALK"


class Terminal:
    """A chat behind a pseudo-terminal: what is typed goes in, what would be seen comes out."""

    def __init__(self, command: list[str]) -> None:
        self.master, slave = pty.openpty()
        environment = {**os.environ, "TERM": "xterm"}
        # Whoever runs the tests in the background may have SIGINT ignored, which a child would inherit.
        command = ["env", "--default-signal=INT", *command]
        self.process = subprocess.Popen(
            command, stdin=slave, stdout=slave, stderr=slave, env=environment, start_new_session=True, close_fds=True
        )
        os.close(slave)
        self.seen = ""

    def type(self, text: str) -> None:
        os.write(self.master, text.encode())

    def wait_for(self, pattern: str, timeout_s: float = 30) -> str:
        """What was printed up to a pattern; the next one is looked for behind it."""
        end = time.monotonic() + timeout_s
        while (found := re.search(pattern, self.seen)) is None:
            assert time.monotonic() < end, f"no {pattern!r} in {self.seen!r}"
            if select.select([self.master], [], [], 0.1)[0]:
                self.seen += os.read(self.master, 4096).decode()
        text, self.seen = self.seen[: found.end()], self.seen[found.end() :]
        return text

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self.master)


@pytest.fixture
def terminal(chat_bundle: Path) -> Iterator[Terminal]:
    started = Terminal([*COMMAND, str(chat_bundle), "--threads", "1"])
    started.wait_for("> ")
    yield started
    started.close()


def test_a_conversation_with_its_commands(terminal: Terminal, tmp_path: Path) -> None:
    terminal.type("walk left twice\r")
    terminal.wait_for(ANSWER + r"\s+.*> ")
    terminal.type(f"/save {tmp_path / 'kept.state'}\r")
    terminal.wait_for(r"saved \d+ tokens to .*\s+.*> ")
    terminal.type("/stats\r")
    terminal.wait_for(r"\d+ of \d+ tokens of context; last prompt 5 tokens .*\(stop\)\s+.*> ")
    terminal.type("/reset\r")
    terminal.wait_for("> ")
    terminal.type("/stats\r")
    terminal.wait_for(r"\b0 of \d+ tokens of context\s+.*> ")
    terminal.type(f"/load {tmp_path / 'kept.state'}\r")
    terminal.wait_for(r"loaded \d+ tokens .*\s+.*> ")
    terminal.type("/load nowhere\r")
    terminal.wait_for(r"error: nowhere: expected a saved state.*\s+.*> ")
    terminal.type("/dance\r")
    terminal.wait_for(r"/dance is unknown.*\s+.*> ")
    terminal.type("\x1b[A\x1b[A\r")  # the history's last but one
    terminal.wait_for(r"error: nowhere.*\s+.*> ")
    terminal.type("\x04")
    assert terminal.process.wait(timeout=20) == 0


def test_pasted_lines_are_one_turn(terminal: Terminal) -> None:
    terminal.type("\x1b[200~walk left\ntwice\x1b[201~\r")
    terminal.wait_for(ANSWER + r"\s+.*> ")
    terminal.type("/reset\r")
    terminal.wait_for("> ")
    terminal.type("walk left \\\r")
    terminal.type("twice\r")
    terminal.wait_for(ANSWER + r"\s+.*> ")
    terminal.type("\x04")
    assert terminal.process.wait(timeout=20) == 0


def test_ctrl_c_ends_the_answer_and_not_the_chat(chat_bundle: Path) -> None:
    program = [sys.executable, "-c", SLOW.format(step_s=0.1), "chat", str(chat_bundle), "--threads", "1"]
    terminal = Terminal(program)
    try:
        terminal.wait_for("> ")
        terminal.type("look around right thrice and jump around left thrice\r")
        terminal.wait_for("I_LOOK")
        os.kill(terminal.process.pid, signal.SIGINT)
        terminal.wait_for(r"\[interrupted\]\s+.*> ")
        terminal.type("/stats\r")
        terminal.wait_for(r"\(cancelled\)\s+.*> ")
        time.sleep(0.5)  # Python's readline loses a signal between the prompt and its select() until the next key
        os.kill(terminal.process.pid, signal.SIGINT)  # at the prompt it drops what was typed
        terminal.wait_for("> ")
        terminal.type("/exit\r")
        assert terminal.process.wait(timeout=20) == 0
    finally:
        terminal.close()


def test_a_pipe_has_a_line_for_each_turn(chat_bundle: Path) -> None:
    lines = "walk left twice\n/unknown\n\njump\n"
    command = [*COMMAND, str(chat_bundle), "--threads", "1"]
    result = subprocess.run(command, input=lines, capture_output=True, text=True, timeout=60, check=False)
    assert result.returncode == 0
    with edge_sdk.load(chat_bundle, threads=1).session() as session:
        expected = [session.generate(text).text for text in ("walk left twice", "jump")]
    assert result.stdout.splitlines() == [expected[0], "/unknown is unknown, /help says what is not", expected[1]]


def test_a_system_message_comes_first_after_each_new_beginning(chat_bundle: Path) -> None:
    lines = "jump\n/reset\njump\n/system run\njump\n"
    command = [*COMMAND, str(chat_bundle), "--threads", "1", "--system", "walk"]
    result = subprocess.run(command, input=lines, capture_output=True, text=True, timeout=60, check=False)
    model = edge_sdk.load(chat_bundle, threads=1)

    def told(system: str) -> str:
        return model.generate([{"role": "system", "content": system}, {"role": "user", "content": "jump"}]).text

    assert result.stdout.splitlines() == [told("walk"), told("walk"), told("run")]
