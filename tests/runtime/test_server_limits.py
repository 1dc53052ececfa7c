"""``edge-sdk serve`` under load and abandoned: queue, refusals, disconnects, tokens, and the end of the process."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest

from servers import Server, serving

STEP_S = 0.05
RUNNING, WAITING = "edge_requests_running", "edge_requests_waiting"
LONG = {"logit_bias": {"2": -100}, "temperature": 0, "max_tokens": 200}
"""An answer that never ends by itself: ten seconds of steps."""


@pytest.fixture
def slow(scan_bundle: Path, tmp_path: Path) -> Iterator[Server]:
    """One request at a time, one that waits, and a token."""
    (tmp_path / "token").write_text("s3cret\n")
    arguments = ("--at-once", 1, "--waiting", 1, "--token-file", tmp_path / "token", "--name", "slow/model")
    with serving(scan_bundle, tmp_path / "log", *arguments, step_s=STEP_S, token="s3cret") as started:
        yield started


def body(**changes: Any) -> bytes:
    request = {"model": "slow/model", "messages": [{"role": "user", "content": "walk"}]}
    return json.dumps({**request, **LONG, **changes}).encode()


def begin(server: Server, **changes: Any) -> Any:
    """A connection on which an answer is being made."""
    connection = server.connection()
    headers = {"content-type": "application/json", **server.header}
    connection.request("POST", "/v1/chat/completions", body(**changes), headers)
    return connection


def answered(server: Server) -> dict[str, Any]:
    """The record of the one request that was answered; it is written after the answer."""
    for _ in range(200):
        for record in server.records():
            if record["status"] == 200 and "queue_ms" in record:
                return record
        time.sleep(STEP_S)
    raise AssertionError("no request was answered")


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_leaves_ends_its_answer_within_a_step(slow: Server, stream: bool) -> None:
    connection = begin(slow, stream=stream)
    if stream:
        assert connection.getresponse().readline().startswith(b"data: ")
    slow.wait_for(RUNNING, 1)
    while slow.steps < 5:
        time.sleep(STEP_S)
    connection.sock.close()
    connection.close()
    slow.wait_for(RUNNING, 0)
    made = slow.steps
    assert made < 40  # of the 200 that the answer would have taken
    time.sleep(3 * STEP_S)
    assert slow.steps == made
    slow.wait_for('edge_requests_total{path="/v1/chat/completions",status="499"}', 1)
    assert slow.records()[-1]["status"] == 499
    answer = slow.post("/v1/chat/completions", body(max_tokens=1))
    assert answer[0] == 200


def test_a_client_that_leaves_the_queue_makes_room_there(slow: Server) -> None:
    first, second = begin(slow), begin(slow)
    slow.wait_for(WAITING, 1)
    second.sock.close()
    second.close()
    slow.wait_for(WAITING, 0)
    assert slow.metric(RUNNING) == 1
    first.sock.close()
    first.close()


def test_one_too_many_is_refused_at_once_and_the_waiting_one_is_answered(slow: Server) -> None:
    client = slow.client()  # takes seconds to make on a busy machine
    first = begin(slow)
    slow.wait_for(RUNNING, 1)
    answers: list[tuple[int, dict[str, str], bytes]] = []
    waiting = threading.Thread(target=lambda: answers.append(slow.post("/v1/chat/completions", body(max_tokens=1))))
    waiting.start()
    slow.wait_for(WAITING, 1)
    seen_waiting = time.monotonic()
    with pytest.raises(openai.RateLimitError) as refused:
        client.chat.completions.create(model="slow/model", messages=[{"role": "user", "content": "walk"}])
    assert (slow.metric(RUNNING), slow.metric(WAITING)) == (1, 1)
    assert refused.value.code == "busy"
    assert int(refused.value.response.headers["retry-after"]) > 0
    held_ms = (time.monotonic() - seen_waiting) * 1e3
    first.sock.close()
    first.close()
    waiting.join()
    assert answers[0][0] == 200
    assert answered(slow)["queue_ms"] >= held_ms


def test_only_who_shows_the_token_is_answered(slow: Server) -> None:
    for token in ("s3cre", "s3cret2", "S3CRET"):
        with pytest.raises(openai.AuthenticationError):
            slow.client(token).models.list()
    assert [card.id for card in slow.client().models.list()] == ["slow/model"]
    assert slow.client().models.retrieve("slow/model").id == "slow/model"
    connection = slow.connection()
    connection.request("GET", "/health")
    assert json.loads(connection.getresponse().read())["status"] == "ok"
    connection.request("GET", "/metrics")
    response = connection.getresponse()
    assert (response.status, response.getheader("www-authenticate")) == (401, "Bearer")


def test_a_server_that_is_told_to_stop_stops(slow: Server) -> None:
    connection = begin(slow)
    slow.wait_for(RUNNING, 1)
    slow.process.send_signal(signal.SIGTERM)
    slow.process.wait(timeout=8)  # five seconds are given to the answer
    connection.close()
    assert "Traceback" not in slow.log.read_text()


def test_an_empty_token_is_no_token(scan_bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "token").write_text("\n")
    command = [sys.executable, "-m", "edge_sdk.cli", "serve", scan_bundle, "--token-file", tmp_path / "token"]
    result = subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=60, check=False)
    assert result.returncode == 1
    assert "expected a token" in result.stderr
