"""The language node's goals, sessions and housekeeping: several clients, cancel, parameters, restarts, many prompts."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import edge_sdk
from places import ROOT
from processes import Peer, Ros, end

GOALS = Path(__file__).with_name("goals.py")
WITHOUT_MESSAGES = "sys.modules['edge_sdk_msgs'] = None"
AS_ON_HUMBLE = "sys.modules['rclpy.experimental'] = None"
EXECUTORS = """
import rclpy
from edge_ros_bridge.container import NODES
from edge_ros_bridge.node import executor_for
from edge_ros_bridge.record_node import RecordNode
rclpy.init()
for kinds in ([NODES["language"]], [NODES["instruct"]], [RecordNode], [NODES["control"]], list(NODES.values())):
    print(type(executor_for([kind() for kind in kinds])).__name__)
"""
LONG = "walk around left thrice and run around right thrice"


@pytest.fixture(scope="module")
def model(scan_bundle: Path) -> edge_sdk.LanguageModel:
    """The same bundle in this process, to know what the node has to answer."""
    return edge_sdk.load(scan_bundle)


@pytest.fixture(scope="module")
def talker(
    ros_python: Path, scan_bundle: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Peer, Peer, Path]]:
    """A node that only talks, who asks it by topics, who asks it by goals, and where it saves sessions."""
    folder = tmp_path_factory.mktemp("goals")
    room = Ros.new(ros_python, folder)
    settings = {"drive": False, "slots": 4, "queue_size": 6, "session_folder": folder}
    with room.node(bundle=scan_bundle, **settings), room.peer() as peer, room.peer(GOALS) as goals:
        peer.start_node()
        goals.call("match")
        goals.call("match_feedback")
        yield peer, goals, folder


@pytest.mark.kilted
def test_a_goal_is_answered_piece_by_piece(talker: tuple[Peer, Peer, Path], model: edge_sdk.LanguageModel) -> None:
    with model.session() as session:
        stream = session.stream(LONG)
        texts, answer = [token.text for token in stream], stream.result()
    (result,) = talker[1].call("generate", goals=[{"prompt": LONG}])
    assert result["status"] == "succeeded"
    assert result["text"] == answer.text
    indices = [index for index, _ in result["pieces"]]
    assert indices == sorted(set(indices))
    assert [text for _, text in result["pieces"]] == [texts[index] for index in indices]
    assert result["finish_reason"] == "stop"
    assert (result["new_tokens"], result["prompt_tokens"]) == (len(answer.token_ids), answer.prompt_tokens)
    assert result["time_to_first_token_ms"] > 0


def test_pieces_say_of_which_request_they_are(talker: tuple[Peer, Peer, Path], model: edge_sdk.LanguageModel) -> None:
    peer, goals, _ = talker
    with model.session() as session:
        stream = session.stream("walk twice")
        pieces = [[token.index, token.text] for token in stream if token.text]
        text = stream.result().text
    numbers = []
    for _ in range(2):
        since_s = peer.call("send", prompt="walk twice")
        peer.events("wait", topic="text", since_s=since_s)
        told = goals.call("told", text=text)
        assert [piece[1:] for piece in told] == pieces
        numbers.append(int(told[0][0].removeprefix("prompt-")))
    assert numbers[1] == numbers[0] + 1
    goals.call("generate", goals=[{"prompt": "walk twice"}])
    told = goals.call("told", text=text)
    assert [piece[1:] for piece in told] == pieces
    assert len(bytes.fromhex(told[0][0])) == 16


def test_several_clients_get_their_own_answers(talker: tuple[Peer, Peer, Path], model: edge_sdk.LanguageModel) -> None:
    peer, goals, _ = talker
    prompts = ["walk twice", "jump around left", "run opposite right", "look thrice", LONG]
    since_s = peer.call("send", prompt="jump")
    results = goals.call("generate", goals=[{"prompt": prompt, "priority": i} for i, prompt in enumerate(prompts)])
    assert [result["text"] for result in results] == [model.generate(prompt).text for prompt in prompts]
    assert peer.events("wait", topic="text", since_s=since_s)["text"] == [model.generate("jump").text]


@pytest.mark.kilted
def test_a_goal_is_cancelled_between_two_tokens(talker: tuple[Peer, Peer, Path], model: edge_sdk.LanguageModel) -> None:
    for _ in range(20):  # the answer may be there before the client asks
        (result,) = talker[1].call("generate", goals=[{"prompt": LONG}], cancel=True)
        if result["status"] == "canceled" and result["new_tokens"] < len(model.generate(LONG).token_ids):
            break
    assert result["finish_reason"] == "cancelled"
    assert result["new_tokens"] < len(model.generate(LONG).token_ids)
    assert model.generate(LONG).text.startswith(result["text"])


@pytest.mark.parametrize(
    ("goal", "message"),
    [
        ({"prompt": "walk " * 5000}, "tokens (the context holds"),
        ({"prompt": "jump", "temperature": -1.0}, "temperature: expected at least 0"),
        ({"prompt": "jump", "json_schema": "{"}, "expected a JSON schema"),
    ],
)
def test_a_goal_that_makes_no_sense_is_aborted_with_the_reason(
    talker: tuple[Peer, Peer, Path], goal: dict[str, Any], message: str
) -> None:
    (result,) = talker[1].call("generate", goals=[goal])
    assert (result["status"], result["finish_reason"]) == ("aborted", "error")
    assert message in result["error"]


@pytest.mark.kilted
def test_a_session_goes_on_is_forked_saved_and_restored(talker: tuple[Peer, Peer, Path]) -> None:
    _, goals, folder = talker

    def manage(operation: str, **fields: str) -> str:
        return goals.call("manage", operation=operation, **fields)

    def ask(session: str) -> int:
        (result,) = goals.call("generate", goals=[{"prompt": "jump", "session": session, "max_new_tokens": 2}])
        assert result["error"] == ""
        return int(result["cached_tokens"] + result["prompt_tokens"])

    ask("one")
    assert manage("FORK", session="one", other="two") == ""
    assert manage("SAVE", session="one", file="one.state") == ""
    assert (folder / "one.state").stat().st_size > 0
    assert manage("CLOSE", session="one") == ""
    assert manage("RESTORE", session="three", file="one.state") == ""
    assert "which exists" in manage("RESTORE", session="two", file="one.state")
    assert manage("RESET", session="two") == ""
    assert "expected one that exists, found three, two" in manage("RESET", session="one")
    assert "a file's name" in manage("SAVE", session="two", file="../out.state")
    assert "operation 9" in goals.call("manage", operation=9)
    for name in ("two", "three"):
        assert manage("CLOSE", session=name) == ""


@pytest.mark.kilted
def test_live_parameters_count_from_the_next_prompt_and_others_are_refused(talker: tuple[Peer, Peer, Path]) -> None:
    peer, _, _ = talker
    assert peer.call("set_parameter", name="max_new_tokens", value=2) == ""
    since_s = peer.call("send", prompt=LONG)
    peer.events("wait", topic="text", since_s=since_s)
    found = peer.events("wait", topic="error", since_s=since_s)
    assert [len(text.split()) for text in found["text"]] == [2]
    assert peer.call("set_parameter", name="max_new_tokens", value=128) == ""
    assert "max_new_tokens" in peer.call("set_parameter", name="max_new_tokens", value=0)
    assert "clean it up first" in peer.call("set_parameter", name="queue_size", value=3)


@pytest.mark.kilted
def test_a_transition_that_the_state_does_not_have_leaves_the_node_as_it_is(talker: tuple[Peer, Peer, Path]) -> None:
    peer, _, _ = talker
    try:
        refused = not peer.call("change_state", transition="configure", timeout_s=1)  # Kilted
    except AssertionError as error:
        refused = "Waiting for the answer of change_state" in str(error)  # Jazzy
    assert refused
    assert peer.call("state") == "active"
    since_s = peer.call("send", prompt="jump")
    assert len(peer.events("wait", topic="text", since_s=since_s)["text"]) == 1


def test_a_cancelled_prompt_is_an_error_and_those_behind_it_are_dropped(talker: tuple[Peer, Peer, Path]) -> None:
    peer, _, _ = talker
    assert not peer.call("cancel")
    since_s = peer.call("send", prompt=LONG)
    for _ in range(3):
        peer.call("send", prompt=LONG)
    assert peer.call("cancel")
    found = peer.events("listen", seconds=0.5, since_s=since_s)
    assert len(found["text"]) < 4
    since_s = peer.call("send", prompt="jump")
    assert len(peer.events("wait", topic="text", since_s=since_s)["text"]) == 1


def test_a_thousand_prompts_leave_no_memory_behind(talker: tuple[Peer, Peer, Path]) -> None:
    peer, _, _ = talker
    resident_mb = []
    for count in (200, 800):
        assert peer.call("ask_many", prompt="jump", count=count) == count
        peer.call("listen", seconds=1.1)
        resident_mb.append(float(peer.call("wait_diagnostics", key="state", value="active")["resident_mb"]))
    assert resident_mb[1] - resident_mb[0] < 20


def test_without_generated_messages_goals_are_off_and_everything_else_works(ros: Ros, scan_bundle: Path) -> None:
    with ros.node(bundle=scan_bundle, drive=False, before=WITHOUT_MESSAGES) as node, ros.peer() as peer:
        peer.start_node()
        since_s = peer.call("send", prompt="jump")
        assert len(peer.events("wait", topic="text", since_s=since_s)["text"]) == 1
        assert peer.call("wait_diagnostics", key="edge_sdk_msgs", value="off")["level"] == "0"
        code, output = end(node)
    assert code == 0
    assert "~/generate, ~/session and ~/pieces are off" in output


def test_without_rclpys_events_executor_topics_and_goals_are_answered(
    ros: Ros, scan_bundle: Path, model: edge_sdk.LanguageModel
) -> None:
    settings = {"bundle": scan_bundle, "drive": False, "before": AS_ON_HUMBLE}
    with ros.node(**settings) as node, ros.peer() as peer, ros.peer(GOALS) as goals:
        peer.start_node()
        goals.call("match")
        since_s = peer.call("send", prompt="jump")
        results = goals.call("generate", goals=[{"prompt": "walk twice"}, {"prompt": "jump"}])
        assert [result["text"] for result in results] == [model.generate(each).text for each in ("walk twice", "jump")]
        assert peer.events("wait", topic="text", since_s=since_s)["text"] == [model.generate("jump").text]
        assert end(node)[0] == 0


def test_nodes_that_destroy_topics_are_not_run_by_the_executor_that_crashes_then(ros: Ros) -> None:
    ran = ros.run("-c", EXECUTORS)
    single, multiple = ["SingleThreadedExecutor"] * 2, ["MultiThreadedExecutor"] * 2
    assert ran.stdout.split() == ["EventsExecutor", *single, *multiple], ran.stderr


def test_who_comes_late_gets_the_last_text_also_of_a_node_that_was_killed_before(
    ros: Ros, scan_bundle: Path, model: edge_sdk.LanguageModel
) -> None:
    with ros.peer() as peer:
        with ros.node(bundle=scan_bundle, drive=False) as node:
            peer.start_node()
            since_s = peer.call("send", prompt=LONG)
            peer.events("wait", topic="tokens", since_s=since_s)
            end(node, signal.SIGKILL)
        peer.call("forget")  # the diagnostics of the one that was killed
        with ros.node(bundle=scan_bundle, drive=False, autostart=True):
            peer.call("wait_diagnostics", key="state", value="active")
            for prompt in ("walk", "jump"):
                since_s = peer.call("send", prompt=prompt)
                peer.events("wait", topic="text", since_s=since_s)
            with ros.peer(GOALS) as late:
                assert late.call("latched_text") == model.generate("jump").text


def test_two_robots_in_two_namespaces_hear_only_their_own(
    ros: Ros, scan_bundle: Path, model: edge_sdk.LanguageModel
) -> None:
    settings = {"bundle": scan_bundle, "drive": False}
    with (
        ros.node(namespace="/a", **settings),
        ros.node(namespace="/b", **settings),
        ros.peer(namespace="/a") as one,
        ros.peer(namespace="/b") as other,
    ):
        for peer in (one, other):
            peer.start_node()
        sent = {peer: peer.call("send", prompt=prompt) for peer, prompt in ((one, "walk"), (other, "jump"))}
        for peer, prompt in ((one, "walk"), (other, "jump")):
            found = peer.events("wait", topic="text", since_s=sent[peer])
            assert found["text"] == [model.generate(prompt).text]


def test_the_messages_package_lists_every_interface() -> None:
    listed = (ROOT / "ros_bridge" / "msgs" / "CMakeLists.txt").read_text()
    for path in (ROOT / "ros_bridge" / "msgs").glob("*/*.*"):
        assert f'"{path.relative_to(ROOT / "ros_bridge" / "msgs").as_posix()}"' in listed
