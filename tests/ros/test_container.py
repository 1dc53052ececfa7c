"""Both nodes in one process, with a topic that has another name."""

from __future__ import annotations

from pathlib import Path

import edge_sdk
from processes import ROVER, Ros, end


def test_one_process_answers_and_drives_and_stops_both(ros: Ros, scan_bundle: Path) -> None:
    settings = {
        "language:bundle": scan_bundle,
        "language:drive": False,
        "control:policy_entry": "go_home:make",
        "control:sources.odometry.type": "odometry",
        "control:sources.odometry.fields": "[pose.pose.position.x, pose.pose.position.y, yaw]",
    }
    # /input_query is where ros2_nanollm listens
    remap = {"language:~/prompt": "/input_query"}
    container = ros.node("container", names=("language", "control"), remap=remap, **settings)
    with container as process, ros.peer() as asker, ros.peer(ROVER) as rover:
        assert asker.call("rename_prompt", topic="/input_query") is None
        asker.start_node()
        rover.call("match")
        for transition in ("configure", "activate"):
            assert rover.call("change_state", transition=transition)
        rover.call("wait_home", within_m=0.1)
        since_s = asker.call("send", prompt="jump")
        found = asker.events("wait", topic="text", since_s=since_s)
        assert found["text"] == [edge_sdk.load(scan_bundle).generate("jump").text]
        code, output = end(process)
    assert code == 0, output


def test_a_container_of_nothing_says_what_there_is(ros: Ros) -> None:
    with ros.node("container", names=("dance",)) as process:
        code, output = end(process, None)
    assert code == 2
    assert "expected some of language, control, instruct, found ['dance']" in output
