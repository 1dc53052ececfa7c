"""The language node as a real process, asked by a second real process."""

from __future__ import annotations

import re
import signal
import time
from pathlib import Path
from typing import Any

import pytest

import edge_sdk
from edge_ros_bridge.motion import STOP, Speeds, actions_of, plan
from processes import Peer, Ros, end

SPEEDS = Speeds(linear_m_s=5.0, angular_rad_s=15.0)
"""As the shared node has them."""


def ask(peer: Peer, prompt: str) -> dict[str, list[Any]]:
    """Sends a prompt; what came until the motion stopped."""
    since_s = peer.call("send", prompt=prompt)
    peer.events("wait", topic="text", since_s=since_s)
    return peer.events("wait", topic="cmd_vel", since_s=since_s, stop=True)


@pytest.fixture(scope="module")
def model(scan_bundle: Path) -> edge_sdk.LanguageModel:
    """The same bundle in this process, to know what the node has to answer."""
    return edge_sdk.load(scan_bundle)


@pytest.mark.kilted
@pytest.mark.parametrize("prompt", ["walk left twice", "jump around right", "look opposite left and run"])
def test_a_prompt_becomes_tokens_text_and_motion(peer: Peer, model: edge_sdk.LanguageModel, prompt: str) -> None:
    answer = model.generate(prompt)
    found = ask(peer, prompt)
    assert found["text"] == [answer.text]
    assert "".join(found["tokens"]) == answer.text
    assert len(found["tokens"]) == len(answer.token_ids)
    assert found["cmd_vel"] == plan(actions_of(answer.text), SPEEDS)
    assert found["error"] == []


def test_velocities_come_at_the_rate_and_idle_is_silent(peer: Peer) -> None:
    since_s = peer.call("send", prompt="jump around left twice")
    events = peer.call("wait", topic="cmd_vel", since_s=since_s, stop=True)
    times_s = [event["time_s"] for event in events if event["topic"] == "cmd_vel"]
    assert (times_s[-1] - times_s[0]) / (len(times_s) - 1) == pytest.approx(1 / 20, rel=0.1)
    assert peer.events("listen", seconds=0.5, since_s=time.monotonic())["cmd_vel"] == []


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        ({"prompt": ""}, "expected some text, found none"),
        ({"prompt": " \n"}, "expected some text, found none"),
        ({"prompt": "walk " * 5000}, r"tokens \(the context holds \d+\), found \d+ tokens"),
        ({"hex": "ff fe 77 61 6c 6b"}, "expected UTF-8 text"),
    ],
    ids=["empty", "blank", "too long", "not text"],
)
def test_a_bad_prompt_is_an_error_and_the_node_lives_on(peer: Peer, request_: dict[str, str], message: str) -> None:
    since_s = peer.call("send", **request_)
    found = peer.events("wait", topic="error", since_s=since_s)
    assert len(found["error"]) == 1
    assert re.search(message, found["error"][0])
    assert found["text"] == found["cmd_vel"] == []
    assert len(ask(peer, "jump")["text"]) == 1


def test_prompts_beyond_the_queue_are_refused(peer: Peer, model: edge_sdk.LanguageModel) -> None:
    since_s = time.monotonic()
    for _ in range(10):  # one drives, one waits to drive, one waits for that, two are queued: five at most
        peer.call("send", prompt="walk around left thrice")
    found = peer.events("wait", topic="error", since_s=since_s, count=5)
    assert "fewer than 2 prompts waiting" in found["error"][0]
    for transition in ("deactivate", "activate"):  # drops what waits
        assert peer.call("change_state", transition=transition)
    assert ask(peer, "jump")["text"] == [model.generate("jump").text]


@pytest.mark.kilted
def test_deactivating_stops_the_robot_and_refuses_prompts(peer: Peer, model: edge_sdk.LanguageModel) -> None:
    long, short = (plan(actions_of(model.generate(prompt).text), SPEEDS) for prompt in ("run around left", "jump"))
    since_s = peer.call("send", prompt="run around left")
    peer.events("wait", topic="cmd_vel", since_s=since_s, count=5)
    assert peer.call("change_state", transition="deactivate")
    velocities = peer.events("wait", topic="cmd_vel", since_s=since_s, stop=True)["cmd_vel"]
    assert velocities == [*long[: len(velocities) - 1], STOP]
    assert len(velocities) < len(long)
    since_s = peer.call("send", prompt="jump")
    assert "expected active" in peer.events("wait", topic="error", since_s=since_s)["error"][0]
    assert peer.call("change_state", transition="cleanup")
    peer.start_node()
    assert ask(peer, "jump")["cmd_vel"] == short


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_during_motion_stops_the_robot(ros: Ros, scan_bundle: Path, number: signal.Signals) -> None:
    with ros.node(bundle=scan_bundle, autostart=True) as node, ros.peer() as peer:
        peer.call("match")
        since_s = peer.call("send", prompt="run around left thrice")
        peer.events("wait", topic="cmd_vel", since_s=since_s, count=5)
        code, output = end(node, number)
        found = peer.events("wait", topic="cmd_vel", since_s=since_s, stop=True)
    assert code == 0, output
    assert found["cmd_vel"].count(STOP) == 1


def test_the_same_signal_of_a_terminal_and_of_launch_stops_the_robot_too(ros: Ros, scan_bundle: Path) -> None:
    with ros.node(bundle=scan_bundle, autostart=True) as node, ros.peer() as peer:
        peer.call("match")
        since_s = peer.call("send", prompt="run around left thrice")
        peer.events("wait", topic="cmd_vel", since_s=since_s, count=5)
        node.send_signal(signal.SIGINT)
        time.sleep(0.02)  # or the kernel makes one of them
        code, output = end(node)
        found = peer.events("wait", topic="cmd_vel", since_s=since_s, stop=True)
    assert code == 0, output
    assert found["cmd_vel"].count(STOP) == 1


SIGNALS = """
import hashlib, os, signal, threading, time
from edge_ros_bridge.node import SAME_S, Interrupt

def compute(count):  # one call, in which Python handles no signal
    start_s = time.monotonic()
    hashlib.pbkdf2_hmac("sha256", b"", b"", count)
    return time.monotonic() - start_s

def again():
    time.sleep(0.02)
    os.kill(os.getpid(), signal.SIGINT)

interrupt = Interrupt()
count = int(100_000 * 2 * SAME_S / compute(100_000))
os.kill(os.getpid(), signal.SIGINT)
thread = threading.Thread(target=again)
thread.start()
busy_s = compute(count)
thread.join()
assert interrupt.received
assert busy_s > SAME_S, busy_s
print("alive", flush=True)
time.sleep(0.1)  # for the alarm
os.kill(os.getpid(), signal.SIGTERM)
time.sleep(5)
"""


def test_signals_are_one_by_when_they_come_and_a_later_one_ends_the_process(ros: Ros) -> None:
    result = ros.run("-c", SIGNALS)
    assert (result.returncode, result.stdout) == (-signal.SIGTERM, "alive\n"), result.stderr


def test_a_wrong_bundle_fails_to_configure(ros: Ros, tmp_path: Path) -> None:
    with ros.node(bundle=tmp_path / "nowhere") as node, ros.peer() as peer:
        peer.call("match")
        assert not peer.call("change_state", transition="configure")
        assert peer.call("state") == "unconfigured"
        assert "nowhere" in peer.events("wait", topic="error")["error"][0]
        code, output = end(node)
    assert code == 0
    assert "expected a bundle with a manifest.json" in output


def test_a_cut_answer_is_published_but_not_driven(ros: Ros, scan_bundle: Path) -> None:
    with ros.node(bundle=scan_bundle, max_new_tokens=3) as node, ros.peer() as peer:
        peer.start_node()
        since_s = peer.call("send", prompt="walk around left")
        peer.events("wait", topic="text", since_s=since_s)  # topics are not ordered among each other
        found = peer.events("wait", topic="error", since_s=since_s)
        assert [len(text.split()) for text in found["text"]] == [3]
        assert "expected to end within 3 tokens" in found["error"][0]
        assert peer.events("listen", seconds=0.3, since_s=since_s)["cmd_vel"] == []
        assert end(node)[0] == 0


def test_a_node_that_may_not_drive_only_talks(ros: Ros, scan_bundle: Path) -> None:
    with ros.node(bundle=scan_bundle, drive=False) as node, ros.peer() as peer:
        peer.start_node()
        since_s = peer.call("send", prompt="walk")
        peer.events("wait", topic="text", since_s=since_s)
        found = peer.events("listen", seconds=0.3, since_s=since_s)
        assert found["cmd_vel"] == found["error"] == []
        assert end(node)[0] == 0


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"autostart": True}, "The parameter bundle: expected a path, found none"),
        ({"rate_hz": 0.0}, "rate_hz"),
        ({"queue_size": "many"}, "queue_size"),
    ],
)
def test_a_start_that_cannot_succeed_ends_with_code_1(ros: Ros, parameters: dict[str, object], message: str) -> None:
    with ros.node(**parameters) as node:
        code, output = end(node, None)
    assert code == 1
    assert message in output
    assert "Traceback" not in output
