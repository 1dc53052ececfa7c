"""``edge-sdk control`` and ``edge-sdk replay``: a policy's bundle drives a robot, and what was recorded is replayed."""

from __future__ import annotations

import argparse
import json
import typing
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import edge_sdk
from edge_sdk.cli.arguments import Commands
from edge_sdk.control.chunks import Blending, Mode
from edge_sdk.control.clock import MonotonicClock, SimulatedClock
from edge_sdk.control.gym_robot import GymRobot
from edge_sdk.control.loop import ControlLoop
from edge_sdk.control.model_policy import ModelPolicy
from edge_sdk.control.observers import Counter, Observer
from edge_sdk.control.recording import Recorder
from edge_sdk.control.recording_reader import Recording
from edge_sdk.control.replay import replay
from edge_sdk.control.report import Report
from edge_sdk.control.settings import LoopSettings
from edge_sdk.errors import ConfigError, explain
from edge_sdk.figures import loop_figures


def add_commands(commands: Commands) -> None:
    """Adds both."""
    control = commands.add_parser("control", help="let a policy's bundle drive a robot")
    control.add_argument("bundle", help="the bundle's folder")
    control.add_argument("--gym", required=True, metavar="ENV_ID", help="a gymnasium environment, or MODULE:ENV_ID")
    control.add_argument("--rate-hz", type=float, metavar="HZ", help="ticks per second (default: the policy's)")
    control.add_argument("--seconds", type=float, default=10.0, metavar="S", help="longest episode (default 10)")
    control.add_argument("--episodes", type=int, default=1, metavar="N", help="how many (default 1)")
    control.add_argument("--instruction", default="", metavar="TEXT", help="what to do, if the policy reads that")
    control.add_argument("--seed", type=int, default=0, metavar="N", help="of the environment and the policy's noise")
    control.add_argument("--threads", type=int, default=1, metavar="N", help="engine threads (default 1)")
    control.add_argument(
        "--blending", default="switch", choices=typing.get_args(Mode), help="how chunks meet (default switch)"
    )
    control.add_argument("--simulated", action="store_true", help="as fast as it computes, on a simulated clock")
    control.add_argument("--record", type=Path, metavar="FILE", help="write a new MCAP recording")
    control.add_argument("--figures", type=Path, metavar="FOLDER", help="say there each second what came too late")
    control.add_argument("--render", action="store_true", help="show the environment")
    control.add_argument("--json", action="store_true", help="print the reports as JSON")
    control.set_defaults(command=_control)

    again = commands.add_parser("replay", help="say whether a policy's bundle does what was recorded, bit for bit")
    again.add_argument("recording", type=Path, help="what `edge-sdk control --record` wrote")
    again.add_argument("bundle", help="the bundle's folder")
    again.add_argument("--threads", type=int, default=1, metavar="N", help="engine threads, as recorded (default 1)")
    again.set_defaults(command=_replay)


def _control(arguments: argparse.Namespace) -> int:
    policy = edge_sdk.load_policy(
        arguments.bundle, instruction=arguments.instruction, threads=arguments.threads, seed=arguments.seed
    )
    with ExitStack() as ending:
        env = _environment(arguments)
        ending.callback(env.close)
        observers: list[Observer] = []
        if arguments.record is not None:
            observers.append(ending.enter_context(_recorder(arguments, policy)))
        if arguments.figures is not None:
            counter = Counter(policy.config.budget_ms)
            observers.append(counter)
            ending.enter_context(loop_figures(arguments.figures, "control", counter.figures))
        episodes = list(_episodes(arguments, policy, env, observers))
    if arguments.json:
        print(json.dumps([report.as_dict() | {"reward": reward} for report, reward in episodes], indent=2))
    else:
        print("\n\n".join(f"reward {reward:g}\n{report.as_table()}" for report, reward in episodes))
    return int(any(report.error is not None for report, _ in episodes))


def _environment(arguments: argparse.Namespace) -> Any:
    try:
        import gymnasium
    except ImportError as error:
        todo = "pip install 'gymnasium[mujoco]'"
        raise ConfigError(explain("--gym", expected="gymnasium", found=error, todo=todo)) from None
    try:
        return gymnasium.make(arguments.gym, render_mode="human" if arguments.render else None)
    except (gymnasium.error.Error, ImportError) as error:
        todo = "Install the package that has it, and write MODULE:ENV_ID if it must be imported first."
        raise ConfigError(explain("--gym", expected="an environment", found=error, todo=todo)) from None


def _recorder(arguments: argparse.Namespace, policy: ModelPolicy) -> Recorder:
    return Recorder(
        arguments.record,
        policy.config,
        bundle=policy.bundle.model_id,
        rate_hz=arguments.rate_hz,
        instruction=arguments.instruction,
        seed=arguments.seed,
    )


def _episodes(
    arguments: argparse.Namespace, policy: ModelPolicy, env: Any, observers: list[Observer]
) -> Iterator[tuple[Report, float]]:
    """Each episode's report and total reward."""
    clock = SimulatedClock() if arguments.simulated else MonotonicClock()
    robot = GymRobot(env, policy.config, seed=arguments.seed, now_ns=clock.now_ns)
    settings = LoopSettings(blending=Blending(mode=arguments.blending), replan_ticks=policy.spec.stride)
    loop = ControlLoop(policy, robot, arguments.rate_hz, settings=settings, observers=observers, clock=clock)
    for _ in range(arguments.episodes):
        before = len(robot.episodes)
        report = loop.run(max(1, round(arguments.seconds * 1e9 / loop.period_ns)), until=lambda: robot.over)
        robot.reset()
        yield report, sum(episode.total_reward for episode in robot.episodes[before:])


def _replay(arguments: argparse.Namespace) -> int:
    recording = Recording(arguments.recording)
    header = recording.header
    policy = edge_sdk.load_policy(
        arguments.bundle, instruction=header.instruction, threads=arguments.threads, seed=header.seed
    )
    if header.bundle != policy.bundle.model_id:
        print("the recording is of another bundle")
    report = replay(recording, policy)
    if report.truncated:
        print("the recording was never completed; this is what it has")
    if report.missing is not None:
        print(f"inference {report.missing} is not in the recording: nothing can be said from there on")
    if report.difference is not None:
        print(f"not the same: {report.difference}")
    else:
        print(f"{report.inferences} inferences, equal bit for bit")
    return int(not report.identical)
