"""Ten held-out commands drive a rover: the language node in one process, this one listening in another.

    python samples/scan_rover/drive.py --bundle BUNDLE --pairs build/scan/test.jsonl --out drive.json

Runs in the ROS environment. The velocities that arrive are integrated to a path, and the path is compared with the
one that SCAN's own interpretation of the command gives.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from edge_ros_bridge.client import Event, LanguageClient, NoAnswerError
from edge_ros_bridge.motion import STOP, Speeds, compare, integrate, plan
from edge_ros_bridge.motion import Path as RobotPath
from edge_sdk.errors import EdgeError, explain
from scan import interpret

SPEEDS = Speeds(linear_m_s=1.5, angular_rad_s=4.5, rate_hz=20.0)
LONGEST_S = 4.0
"""How long the motion of a command that is chosen may take."""
ANSWER_TIMEOUT_S = 60.0
"""Generous: a wrong answer may be a much longer motion than the true one."""
END_TIMEOUT_S = 10.0


@dataclass(frozen=True)
class Drive:
    """One command, what the model made of it and where that led."""

    prompt: str
    expected: str
    answer: str
    correct: bool
    """The answer is SCAN's, and the path driven is the one that it stands for."""
    faithful: bool
    """The path driven is the one that the answer stands for, be it right or wrong."""
    driven: RobotPath
    true: RobotPath
    largest_deviation_m: float
    first_token_ms: float | None
    text_ms: float | None
    """From sending the prompt, as seen from here; None when nothing came."""
    motion_s: float
    errors: tuple[str, ...]


def main() -> int:
    """Command line. Exit code 0 when every command was answered and every answer driven as it stands."""
    options = _options()
    os.environ["ROS_DOMAIN_ID"] = str(options.domain_id)
    os.environ["ROS_AUTOMATIC_DISCOVERY_RANGE"] = "LOCALHOST"
    try:
        prompts = choose(_read_prompts(options.pairs), options.count)
        drives, exit_code = drive_all(options.bundle, prompts)
    except EdgeError as error:
        print(f"drive: {error}", file=sys.stderr)
        return error.exit_code
    record = {"speeds": asdict(SPEEDS), "node_exit_code": exit_code, "commands": [asdict(drive) for drive in drives]}
    options.out.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    print(f"{sum(drive.correct for drive in drives)} of {len(drives)} correct; the node ended with code {exit_code}")
    return 0 if exit_code == 0 and all(drive.faithful for drive in drives) else 1


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundle", type=Path, required=True)
    parser.add_argument("--pairs", type=Path, required=True, help="held-out commands, as scan.py writes them")
    parser.add_argument("--out", type=Path, required=True, help="the JSON file to write")
    parser.add_argument("--count", type=int, default=10, help="how many commands (default 10)")
    parser.add_argument("--domain-id", type=int, default=42, help="ROS_DOMAIN_ID, 0 to 101 (default 42)")
    return parser.parse_args()


def _read_prompts(path: Path) -> list[str]:
    return [json.loads(line)["prompt"] for line in path.read_text(encoding="utf-8").splitlines()]


def choose(prompts: Sequence[str], count: int) -> list[str]:
    """Commands that fit into the time, show a shape and differ: each adds the most pairs of words not seen yet."""
    fitting = [prompt for prompt in prompts if _seconds(prompt) <= LONGEST_S and _has_a_shape(prompt)]
    if len(fitting) < count:
        what = f"{count} that last up to {LONGEST_S:g} s and are no straight line"
        raise EdgeError(explain("The commands", expected=what, found=len(fitting), todo="Ask for fewer."))
    random.Random(0).shuffle(fitting)
    chosen: list[str] = []
    seen: set[tuple[str, str]] = set()
    for _ in range(count):
        best = max(
            (prompt for prompt in fitting if prompt not in chosen), key=lambda prompt: len(_pairs(prompt) - seen)
        )
        chosen.append(best)
        seen |= _pairs(best)
    return chosen


def _seconds(prompt: str) -> float:
    return len(plan(interpret(prompt), SPEEDS)) / SPEEDS.rate_hz


def _has_a_shape(prompt: str) -> bool:
    """Whether the path is more than a straight line."""
    poses = _path(interpret(prompt)).poses
    return len({round(pose.x_m, 3) for pose in poses}) > 1 and len({round(pose.y_m, 3) for pose in poses}) > 1


def _pairs(prompt: str) -> set[tuple[str, str]]:
    words = prompt.split()
    return {(one, other) for index, one in enumerate(words) for other in words[index:]}


def drive_all(bundle: Path, prompts: Sequence[str]) -> tuple[list[Drive], int]:
    """Starts the node, sends it the prompts one by one, ends it; returns its exit code too."""
    with language_node(bundle) as process, LanguageClient(alive=_alive(process)) as client:
        client.wait_until_matched()
        for transition in ("configure", "activate"):
            if not client.change_state(transition):
                raise EdgeError(
                    explain(
                        f"The node's answer to '{transition}'", expected="yes", found="no", todo="See its log above."
                    )
                )
        drives = []
        for index, prompt in enumerate(prompts):
            drives.append(drive_one(client, prompt))
            print(f"{index + 1:3d}/{len(prompts)}  {summary(drives[-1])}", flush=True)
        process.send_signal(signal.SIGINT)
        try:
            return drives, process.wait(END_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            raise NoAnswerError(
                explain(
                    "The node",
                    expected=f"its end within {END_TIMEOUT_S:g} s of SIGINT",
                    found="it runs",
                    todo="See its log.",
                )
            ) from None


@contextmanager
def language_node(bundle: Path) -> Iterator[subprocess.Popen[bytes]]:
    """The node as a process of its own, with this process's interpreter and environment; killed if still there."""
    parameters = {
        "bundle": str(bundle),
        "linear_speed": SPEEDS.linear_m_s,
        "angular_speed": SPEEDS.angular_rad_s,
        "rate_hz": SPEEDS.rate_hz,
    }
    command = [sys.executable, "-m", "edge_ros_bridge.language_node", "--ros-args", "--log-level", "warn"]
    for name, value in parameters.items():
        command += ["-p", f"{name}:={value}"]
    process = subprocess.Popen(command)
    try:
        yield process
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()


def _alive(process: subprocess.Popen[bytes]) -> Callable[[], None]:
    def check() -> None:
        if (code := process.poll()) is not None:
            raise NoAnswerError(
                explain("The node", expected="it to run", found=f"it ended with code {code}", todo="See its log above.")
            )

    return check


def drive_one(client: LanguageClient, prompt: str) -> Drive:
    """Sends one prompt, waits for the answer and for the stop or the error that follows it, and judges the path."""
    sent_s = client.send(prompt)

    def received(topic: str) -> list[Event]:
        return client.received(topic, since_s=sent_s)

    def finished() -> bool:
        texts = received("text")
        # an empty answer moves nothing, so no stop follows it
        still = STOP in client.velocities(since_s=sent_s) or not any(event.data for event in texts)
        return bool(received("error")) or (bool(texts) and still)

    client.wait(finished, f"the end of '{prompt}'", ANSWER_TIMEOUT_S + LONGEST_S)
    answer = "".join(str(event.data) for event in received("text"))
    twists = received("cmd_vel")
    driven = integrate(client.velocities(since_s=sent_s), SPEEDS.rate_hz)
    errors = tuple(str(event.data) for event in received("error"))
    actions = interpret(prompt)
    true, claimed = _path(actions), driven if errors else _path(answer.split())
    deviation = compare(driven, true)
    return Drive(
        prompt=prompt,
        expected=" ".join(actions),
        answer=answer,
        correct=answer.split() == actions and deviation.within(),
        faithful=compare(driven, claimed).within(),
        driven=driven,
        true=true,
        largest_deviation_m=deviation.largest_m,
        first_token_ms=_since(sent_s, received("tokens")),
        text_ms=_since(sent_s, received("text")),
        motion_s=twists[-1].time_s - twists[0].time_s if twists else 0.0,
        errors=errors,
    )


def _path(actions: Sequence[str]) -> RobotPath:
    return integrate(plan(actions, SPEEDS), SPEEDS.rate_hz)


def _since(start_s: float, events: Sequence[Event]) -> float | None:
    """Milliseconds until the first of the events; None where none came."""
    return 1e3 * (events[0].time_s - start_s) if events else None


def summary(drive: Drive) -> str:
    """One line about a command."""
    verdict = "ok   " if drive.correct else "WRONG"
    first, text = ("   - " if ms is None else f"{ms:4.0f} ms" for ms in (drive.first_token_ms, drive.text_ms))
    times = f"first token {first}, text {text}, drove {drive.motion_s:4.1f} s"
    return f"{verdict} {times}, off by {drive.largest_deviation_m:.3f} m  {drive.prompt}"


if __name__ == "__main__":
    sys.exit(main())
