"""Ten held-out commands drive a rover: the nodes instruct and control in one process, the rover simulated in this one.

    python samples/scan_rover/drive.py --bundle BUNDLE --pairs build/scan/test.jsonl --out drive.json

Runs in the ROS environment. The rover goes where the velocities that arrive lead, and says so by odometry. Where it is
after every step, and at last, is compared with where SCAN's own interpretation of the command leads.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

from edge_ros_bridge.client import NoAnswerError
from edge_ros_bridge.motion import Marker, Pose, Speeds, compare, integrate, plan
from edge_ros_bridge.motion import Path as RobotPath
from edge_sdk.errors import EdgeError, explain
from scan import interpret
from simulated_rover import InstructedRover

HERE = Path(__file__).resolve().parent
CONFIG = HERE.parent.parent / "ros_bridge" / "config"
TOLERANCE_M, TOLERANCE_RAD = 0.1, 0.2
"""How far the rover may be from where it should be after a step: on a busy machine its odometry is heard late."""
SPEEDS = Speeds(linear_m_s=1.5, angular_rad_s=4.5, rate_hz=20.0)
"""The upper limits of rover_policy.json."""
BETWEEN_S = 0.45
"""About what a step takes beyond its motion at full speed: speeding up, slowing down, hearing of its end."""
LONGEST_S = 5.5
"""How long the motion of a command that is chosen may take, about."""
UNDER_WAY = ("idle", "thinking", "driving")
"""States of an instruction that has not ended."""
ANSWER_TIMEOUT_S = 120.0
"""Generous: a wrong answer may be a much longer motion than the true one."""
END_TIMEOUT_S = 10.0


@dataclass(frozen=True)
class Drive:
    """One command, what the model made of it and where that led."""

    prompt: str
    expected: str
    answer: str
    """The plan's steps; none where the model was refused."""
    correct: bool
    """The answer is SCAN's, and every step ended where it leads, within the tolerance; so did the drive."""
    faithful: bool
    """Every step ended where the answer leads, be it right or wrong; without a plan nothing moved."""
    driven: RobotPath
    step_ends: tuple[Pose, ...]
    """Where the rover was at first, after each step, and when it stood."""
    true: RobotPath
    largest_deviation_m: float
    """Of the steps' ends from the true ones."""
    plan_ms: float | None
    """From sending the prompt, as seen from here; None when no plan came."""
    motion_s: float
    """From the plan to the end of its last step."""
    errors: tuple[str, ...]


def main() -> int:
    """Command line. Exit code 0 when every answer was driven as it stands."""
    options = _options()
    os.environ["ROS_DOMAIN_ID"] = str(options.domain_id)
    os.environ["ROS_AUTOMATIC_DISCOVERY_RANGE"] = "LOCALHOST"
    try:
        prompts = choose(_read_prompts(options.pairs), options.count)
        drives, exit_code = drive_all(options.bundle, prompts)
    except EdgeError as error:
        print(f"drive: {error}", file=sys.stderr)
        return error.exit_code
    tolerance = {"tolerance_m": TOLERANCE_M, "tolerance_rad": TOLERANCE_RAD}
    record = {**tolerance, "exit_code": exit_code, "commands": [asdict(drive) for drive in drives]}
    options.out.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    print(f"{sum(drive.correct for drive in drives)} of {len(drives)} correct; the nodes ended with code {exit_code}")
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
    actions = interpret(prompt)
    return len(plan(actions, SPEEDS)) / SPEEDS.rate_hz + len(actions) * BETWEEN_S


def _has_a_shape(prompt: str) -> bool:
    """Whether the path is more than a straight line."""
    poses = _path(interpret(prompt)).poses
    return len({round(pose.x_m, 3) for pose in poses}) > 1 and len({round(pose.y_m, 3) for pose in poses}) > 1


def _pairs(prompt: str) -> set[tuple[str, str]]:
    words = prompt.split()
    return {(one, other) for index, one in enumerate(words) for other in words[index:]}


def drive_all(bundle: Path, prompts: Sequence[str]) -> tuple[list[Drive], int]:
    """Starts the nodes, gives them the prompts one by one, ends them; returns their process's exit code too."""
    with nodes(bundle) as process, InstructedRover(_alive(process)) as rover:
        rover.begin()
        drives = []
        for index, prompt in enumerate(prompts):
            drives.append(drive_one(rover, prompt))
            print(f"{index + 1:3d}/{len(prompts)}  {summary(drives[-1])}", flush=True)
        process.send_signal(signal.SIGINT)
        try:
            return drives, process.wait(END_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            raise NoAnswerError(
                explain(
                    "The nodes",
                    expected=f"their end within {END_TIMEOUT_S:g} s of SIGINT",
                    found="they run",
                    todo="See their log.",
                )
            ) from None


@contextmanager
def nodes(bundle: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Both nodes as one process, with this process's interpreter and environment; killed if still there."""
    files = (CONFIG / "instruct.yaml", CONFIG / "control.yaml", HERE / "simulation.yaml")
    parameters = {
        "instruct:bundle": bundle,
        "control:policy_entry": "edge_ros_bridge.following:make",
        "control:policy": CONFIG / "rover_policy.json",
    }
    command = [sys.executable, "-m", "edge_ros_bridge.container", "instruct", "control"]
    command += ["--ros-args", "--log-level", "warn"]
    command += [item for path in files for item in ("--params-file", str(path))]
    command += [item for name, value in parameters.items() for item in ("-p", f"{name}:={value}")]
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
                explain("The nodes", expected="them to run", found=f"code {code}, the end", todo="See their log above.")
            )

    return check


def drive_one(rover: InstructedRover, prompt: str) -> Drive:
    """Gives one instruction, waits until the rover stands again, and judges where it was after every step."""
    start, sent_s = rover.pose, time.monotonic()
    rover.instruct(prompt)

    def finished() -> bool:
        statuses = rover.statuses()
        last: dict[str, Any] = statuses[-1] if statuses else {"state": "idle"}
        if "plan" not in last:
            return last["state"] not in UNDER_WAY
        # topics are not ordered among each other: what the status is about may come after it
        heard = last["state"] != "done" or f"{last['plan']}/{last['steps'] - 1}" in rover.step_ends
        return last["state"] not in UNDER_WAY and bool(rover.received("plan")) and heard

    rover.wait(finished, f"the end of '{prompt}'", ANSWER_TIMEOUT_S)
    rest = rover.rest()
    plans, last = rover.received("plan"), rover.received("status")[-1]
    planned: dict[str, Any] = json.loads(plans[0].data) if plans else {"plan": "", "steps": []}
    answer = [step["name"] for step in planned["steps"]]
    orders = [f"{planned['plan']}/{index}" for index in range(len(answer))]
    done = [rover.step_ends[order] for order in orders if order in rover.step_ends]
    ends = tuple(pose.seen_from(start) for pose in (start, *done, rest))
    markers = tuple(Marker(marker.action, marker.pose.seen_from(start)) for marker in rover.markers)
    actions = interpret(prompt)
    from_true, from_claimed = (compare(RobotPath(ends, markers), _ends(steps)) for steps in (actions, answer))
    return Drive(
        prompt=prompt,
        expected=" ".join(actions),
        answer=" ".join(answer),
        correct=answer == actions and from_true.within(TOLERANCE_M, TOLERANCE_RAD),
        faithful=from_claimed.within(TOLERANCE_M, TOLERANCE_RAD),
        driven=RobotPath(tuple(pose.seen_from(start) for pose, _ in groupby((start, *rover.path))), markers),
        step_ends=ends,
        true=_path(actions),
        largest_deviation_m=from_true.largest_m,
        plan_ms=1e3 * (plans[0].time_s - sent_s) if plans else None,
        motion_s=last.time_s - plans[0].time_s if plans else 0.0,
        errors=tuple(str(event.data) for topic in ("refusal", "error") for event in rover.received(topic)),
    )


def _path(actions: Sequence[str]) -> RobotPath:
    return integrate(plan(actions, SPEEDS), SPEEDS.rate_hz)


def _ends(actions: Sequence[str]) -> RobotPath:
    """Where a robot is at first and after each action, and what it shows."""
    ends = tuple(_path(actions[:count]).end for count in range(len(actions) + 1))
    return RobotPath(ends, _path(actions).markers)


def summary(drive: Drive) -> str:
    """One line about a command."""
    verdict = "ok   " if drive.correct else "WRONG"
    planned = "no plan" if drive.plan_ms is None else f"plan {drive.plan_ms:4.0f} ms"
    times = f"{planned}, drove {drive.motion_s:4.1f} s"
    return f"{verdict} {times}, off by {drive.largest_deviation_m:.3f} m  {drive.prompt}"


if __name__ == "__main__":
    sys.exit(main())
