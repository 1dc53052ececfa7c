"""What the ROS bridge adds: a bare rclpy echo, a prompt to its first token, an odometry to the command made of it.

    .venvs/ros/bin/python benchmarks/ros_latency.py --bundle BUNDLE --out build/ros_latency.json [--quick]

Every node is a process of its own on this machine; times are round trips as seen from here.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
KILOBYTE = "x" * 1000
PROMPT = "jump"
DOMAIN_ID = "77"
os.environ |= {"ROS_DOMAIN_ID": DOMAIN_ID, "ROS_AUTOMATIC_DISCOVERY_RANGE": "LOCALHOST"}

import rclpy  # noqa: E402
from geometry_msgs.msg import Twist  # noqa: E402
from nav_msgs.msg import Odometry  # noqa: E402
from std_msgs.msg import String  # noqa: E402

import edge_sdk  # noqa: E402
from edge_ros_bridge.client import LanguageClient, NodeClient  # noqa: E402
from edge_ros_bridge.counting import quantile  # noqa: E402

ECHO = """
import rclpy
from std_msgs.msg import String
rclpy.init()
node = rclpy.create_node("echo")
publisher = node.create_publisher(String, "echo/out", 10)
node.create_subscription(String, "echo/in", publisher.publish, 10)
try:
    rclpy.spin(node)
except rclpy.executors.ExternalShutdownException:
    pass
"""


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundle", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--quick", action="store_true", help="fewer rounds: to see that it works")
    options = parser.parse_args()
    rounds = 100 if options.quick else 2000
    record = {
        "rounds": rounds,
        "rclpy": version("ros-rclpy"),
        "echo_1kb_ms": echo(rounds),
        **prompts(options.bundle, rounds),
        **commands(rounds),
    }
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(record, indent=1))


def summary(times_s: Sequence[float]) -> dict[str, float]:
    """In ms."""
    times_ms = [seconds * 1e3 for seconds in times_s]
    return {"p50": round(quantile(times_ms, 0.5), 3), "p99": round(quantile(times_ms, 0.99), 3)}


@contextmanager
def process(*arguments: str) -> Iterator[subprocess.Popen[bytes]]:
    """A program of this environment, until the block ends."""
    # what the ROS wheels set for their own restart is not for children, which restart themselves
    environment = {name: value for name, value in os.environ.items() if not name.startswith("_ROS_WHEELS")}
    environment["PYTHONPATH"] = os.pathsep.join((*sys.path, str(ROOT / "samples" / "ros_control")))
    with subprocess.Popen([sys.executable, *arguments], env=environment) as started:
        try:
            yield started
        finally:
            started.terminate()


def cpu_s(pid: int) -> float:
    """Processor time of a process so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def echo(rounds: int) -> dict[str, float]:
    """Round trips of 1 KB to a bare rclpy node and back."""
    with process("-c", ECHO):
        rclpy.init()
        node = rclpy.create_node("echo_client")
        received: list[str] = []
        node.create_subscription(String, "echo/out", lambda message: received.append(message.data), 10)
        publisher = node.create_publisher(String, "echo/in", 10)
        while publisher.get_subscription_count() == 0 or node.count_publishers("echo/out") == 0:
            rclpy.spin_once(node, timeout_sec=0.05)
        times_s = []
        for _ in range(rounds):
            received.clear()
            started = time.perf_counter()
            publisher.publish(String(data=KILOBYTE))
            while not received:
                rclpy.spin_once(node, timeout_sec=1.0)
            times_s.append(time.perf_counter() - started)
        node.destroy_node()
        rclpy.shutdown()
    return summary(times_s)


def prompts(bundle: Path, rounds: int) -> dict[str, Any]:
    """From a prompt's sending to its first token and text; and the same of the model in this process."""
    model = edge_sdk.load(bundle)
    own_first_s, own_text_s, first_s, text_s = (list[float]() for _ in range(4))
    for _ in range(rounds):
        started = time.perf_counter()
        with model.session() as session:
            stream = session.stream(PROMPT)
            next(stream)
            own_first_s.append(time.perf_counter() - started)
            stream.result()
        own_text_s.append(time.perf_counter() - started)
    settings = ("-p", f"bundle:={bundle}", "-p", "drive:=false", "-p", "autostart:=true")
    with process("-m", "edge_ros_bridge.language_node", "--ros-args", *settings) as node, LanguageClient() as client:
        client.wait_until_matched(60)
        client.wait_diagnostics("state", "active", 120)
        used_s, began_s = cpu_s(node.pid), time.monotonic()
        for _ in range(rounds):
            client.events.clear()
            sent_s = client.send(PROMPT)
            client.wait(lambda: bool(client.received("text")), "a text", 30)
            client.wait(lambda: bool(client.received("tokens")), "a token", 30)
            first_s.append(client.received("tokens")[0].time_s - sent_s)
            text_s.append(client.received("text")[0].time_s - sent_s)
        share = (cpu_s(node.pid) - used_s) / (time.monotonic() - began_s)
    return {
        "model_first_token_ms": summary(own_first_s),
        "model_text_ms": summary(own_text_s),
        "prompt_to_first_token_ms": summary(first_s),
        "prompt_to_text_ms": summary(text_s),
        "language_node_cores": round(share, 3),
    }


def commands(rounds: int) -> dict[str, Any]:
    """The age of the odometry behind a command when it arrives, and the commands' intervals; 25 Hz.

    The x of every odometry is its number, and the command's speed tells which one it comes from.
    """
    settings = ("policy_entry:=counting_policy:make", "sources.odometry.type:=odometry", "autostart:=true")
    arguments = [item for each in settings for item in ("-p", each)]
    fields = ("-p", "sources.odometry.fields:=[pose.pose.position.x]")
    program = ("-m", "edge_ros_bridge.control_node", "--ros-args", *arguments, *fields)
    with process(*program) as node, NodeClient("control") as client:
        return _commands(client, node.pid, min(rounds, 500))


def _commands(client: NodeClient, pid: int, rounds: int) -> dict[str, Any]:
    client.listen(Twist, "cmd_vel", "cmd_vel", 100)
    publisher = client.node.create_publisher(Odometry, "odom", 10)
    numbers, sent_s = itertools.count(1), {0: time.monotonic()}

    def sense() -> None:
        message, number = Odometry(), next(numbers)
        message.header.stamp = client.node.get_clock().now().to_msg()
        message.pose.pose.position.x = float(number)
        sent_s[number] = time.monotonic()
        publisher.publish(message)

    client.node.create_timer(0.005, sense)
    client.wait(lambda: len(client.received("cmd_vel")) > 10, "commands", 120)
    client.events.clear()
    used_s, began_s = cpu_s(pid), time.monotonic()
    client.wait(lambda: len(client.received("cmd_vel")) >= rounds, "commands", 600)
    share = (cpu_s(pid) - used_s) / (time.monotonic() - began_s)
    events = client.received("cmd_vel")
    ages_s = [event.time_s - sent_s[round(event.data.linear_x)] for event in events]
    gaps_s = [later.time_s - earlier.time_s for earlier, later in itertools.pairwise(events)]
    return {
        "odometry_age_at_command_ms": summary(ages_s),
        "command_interval_ms": summary(gaps_s),
        "control_node_cores": round(share, 3),
    }


if __name__ == "__main__":
    main()
