"""What the ROS bridge adds: a bare rclpy echo, a prompt to its first token, a sensor's message to its command.

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
from sensor_msgs.msg import Image  # noqa: E402
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
    parser.add_argument(
        "--threads", type=int, default=1, help="of the model, in the node and by itself; 0 is all cores"
    )
    parser.add_argument("--quick", action="store_true", help="fewer rounds: to see that it works")
    options = parser.parse_args()
    rounds = 100 if options.quick else 2000
    record = {
        "rounds": rounds,
        "rclpy": version("ros-rclpy"),
        "echo_1kb_ms": echo(rounds),
        **prompts(options.bundle, rounds, options.threads),
        **commands("odometry", rounds),
        **commands("image", rounds),
    }
    for quantile_ in ("p50", "p99"):
        apart = record["model_first_token_ms"][quantile_] + record["echo_1kb_ms"][quantile_]
        record[f"added_{quantile_}_ms"] = round(record["prompt_to_first_token_ms"][quantile_] - apart, 3)
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


def prompts(bundle: Path, rounds: int, threads: int) -> dict[str, Any]:
    """From a prompt's sending to its first token and text; and the same of the model in this process.

    The prompt and its answer are short, so that the model takes little of the time.
    """
    model = edge_sdk.load(bundle, threads=threads or None)
    own_first_s, own_text_s, first_s, text_s = (list[float]() for _ in range(4))
    for _ in range(rounds):
        started = time.perf_counter()
        with model.session() as session:
            stream = session.stream(PROMPT)
            next(stream)
            own_first_s.append(time.perf_counter() - started)
            stream.result()
        own_text_s.append(time.perf_counter() - started)
    settings = ("-p", f"bundle:={bundle}", "-p", f"threads:={threads}", "-p", "drive:=false", "-p", "autostart:=true")
    with process("-m", "edge_ros_bridge.language_node", "--ros-args", *settings) as node, LanguageClient() as client:
        client.wait_until_matched(60)
        client.wait_diagnostics("state", "active", 120)
        used_s, began_s = cpu_s(node.pid), time.monotonic()
        for _ in range(rounds):
            client.events.clear()
            sent_s = client.send(PROMPT)
            client.wait(lambda: bool(client.received("text")), "a text", 30)
            client.wait(lambda: _is_whole(client), "all tokens", 30)  # so that none is taken for one of the next answer
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


def _is_whole(client: LanguageClient) -> bool:
    (text,) = client.received("text")
    return bool("".join(token.data for token in client.received("tokens")) == text.data)


def commands(kind: str, rounds: int) -> dict[str, Any]:
    """The age of the message behind a command when that arrives, and the commands' intervals; 25 Hz.

    Every message holds its number, and the command's speed tells which one it comes from. ``kind``: odometry or image.
    """
    settings = ["policy_entry:=counting_policy:make", f"policy:={kind}", f"sources.{kind}.type:={kind}"]
    if kind == "odometry":
        settings.append("sources.odometry.fields:=[pose.pose.position.x]")
    arguments = [item for each in (*settings, "autostart:=true") for item in ("-p", each)]
    program = ("-m", "edge_ros_bridge.control_node", "--ros-args", *arguments)
    with process(*program) as node, NodeClient("control") as client:
        found = _commands(client, kind, node.pid, min(rounds, 500))
    return {f"{kind}_{name}": value for name, value in found.items()}


def _numbered_odometry(number: int) -> Odometry:
    message = Odometry()
    message.pose.pose.position.x = float(number)
    return message


def _numbered_image(number: int) -> Image:
    """640 x 480, 0.9 MB; its first pixel is the number."""
    message = Image(height=480, width=640, encoding="rgb8", step=640 * 3)
    message.data.frombytes(number.to_bytes(3, "big") + bytes(480 * 640 * 3 - 3))
    return message


def _commands(client: NodeClient, kind: str, pid: int, rounds: int) -> dict[str, Any]:
    client.listen(Twist, "cmd_vel", "cmd_vel", 100)
    if kind == "odometry":
        make, period_s, publisher = _numbered_odometry, 0.005, client.node.create_publisher(Odometry, "odom", 10)
    else:
        make, period_s, publisher = _numbered_image, 0.02, client.node.create_publisher(Image, "image", 2)
    numbers, sent_s = itertools.count(1), {0: time.monotonic()}

    def sense() -> None:
        number = next(numbers)
        message = make(number)
        message.header.stamp = client.node.get_clock().now().to_msg()
        sent_s[number] = time.monotonic()
        publisher.publish(message)

    client.node.create_timer(period_s, sense)
    client.wait(lambda: len(client.received("cmd_vel")) > 10, "commands", 120)
    client.events.clear()
    used_s, began_s = cpu_s(pid), time.monotonic()
    client.wait(lambda: len(client.received("cmd_vel")) >= rounds, "commands", 600)
    share = (cpu_s(pid) - used_s) / (time.monotonic() - began_s)
    events = client.received("cmd_vel")
    ages_s = [event.time_s - sent_s[round(event.data.linear_x)] for event in events]
    gaps_s = [later.time_s - earlier.time_s for earlier, later in itertools.pairwise(events)]
    return {
        "age_at_command_ms": summary(ages_s),
        "command_interval_ms": summary(gaps_s),
        "control_node_cores": round(share, 3),
    }


if __name__ == "__main__":
    main()
