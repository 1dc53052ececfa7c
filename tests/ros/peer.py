"""A second real process for the tests: does what it is asked on standard input, one JSON object a line.

Runs in the ROS environment; ``processes.Peer`` is its other end.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
import time
from collections.abc import Callable
from typing import Any

from edge_ros_bridge.client import LanguageClient
from edge_ros_bridge.motion import STOP
from edge_sdk.errors import EdgeError

METHODS = {name: name for name in ("change_state", "state", "cancel", "set_parameter", "wait_diagnostics", "forget")}
METHODS |= {"match": "wait_until_matched", "rename_prompt": "send_prompts_to"}


def do(client: LanguageClient, call: str, request: dict[str, Any]) -> Any:
    """One request; the answer is something that JSON can hold."""
    since_s = request.get("since_s", 0.0)
    if call in METHODS:
        return getattr(client, METHODS[call])(**request)
    if call == "ask_many":  # one after the other; how many answers came
        for _ in range(request["count"]):
            client.events.clear()
            client.send(request["prompt"])
            client.wait(lambda: len(client.received("text")) > 0, "text", 15)
        return request["count"]
    if call == "wait_subscribed":  # until a node has, as the graph shows it
        node, topics = request["node"], request["topics"]
        client.wait(lambda: all(hears(client, node, topic) for topic in topics), f"{node} on {topics}", 20)
    if call == "send":
        return client.send(bytes.fromhex(request["hex"]) if "hex" in request else request["prompt"])
    if call == "wait":  # until a topic has brought some messages, or cmd_vel the final zero
        topic, count = request["topic"], request.get("count", 1)

        def done() -> bool:
            enough = len(client.received(topic, since_s)) >= count
            return enough and (not request.get("stop") or client.velocities(since_s)[-1] == STOP)

        client.wait(done, f"{topic} (request {request})", request.get("timeout_s", 15))
    if call == "listen":
        end_s = time.monotonic() + request["seconds"]
        client.wait(lambda: time.monotonic() > end_s, "the end of listening", 2 * request["seconds"])
    return [dataclasses.asdict(event) for event in client.events if event.time_s >= since_s]


def hears(client: LanguageClient, node: str, topic: str) -> bool:
    """Whether a node of that name subscribes to a topic."""
    return any(found.node_name == node for found in client.node.get_subscriptions_info_by_topic(topic))


def answer_requests(do: Callable[[str, dict[str, Any]], Any], wait: Callable[[], None] = lambda: None) -> None:
    """Until standard input ends; ``wait`` is called before every line is read."""
    while wait() or (line := sys.stdin.readline()):
        request = json.loads(line)
        try:
            answer = {"result": do(request.pop("call"), request)}
        except EdgeError as error:
            answer = {"error": str(error)}
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--namespace", default="")
    with LanguageClient(namespace=parser.parse_args().namespace) as client:
        answer_requests(lambda call, request: do(client, call, request))
