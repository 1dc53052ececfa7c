"""Drives a task's environment by a policy over seeded episodes: return and success with confidence intervals.

    python samples/policies/evaluate.py reacher expert random build/policies/reacher/student --against expert

Every policy sees the same episodes, none of which the experts were collected in.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import msgspec
import numpy as np
from numpy.typing import NDArray

from catalog import EXPERT, RANDOM, TASKS, load, tell
from edge_sdk.control.gym_robot import GymRobot
from edge_sdk.control.policy import Policy
from edge_sdk.files import new_file
from tasks import Env, Task

Float64Array = NDArray[np.float64]

EPISODES, FIRST_SEED = 100, 1_000_000
RESAMPLES, CONFIDENCE = 10_000, 0.95


class Estimate(msgspec.Struct, frozen=True):
    """A mean over episodes and the bootstrap's interval for it."""

    mean: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.mean:.3f} [{self.low:.3f}, {self.high:.3f}]"


class Scores(msgspec.Struct, frozen=True, kw_only=True):
    """One policy's episodes."""

    task: str
    policy: str
    returns: list[float]
    successes: list[bool]
    return_: Estimate
    success: Estimate


def estimate(values: Sequence[float]) -> Estimate:
    """The mean of some episodes' values."""
    return _bootstrap(np.asarray([values], dtype=np.float64), lambda means: means[0])


def gain(mine: Scores, other: Scores) -> Estimate:
    """By how many percent of the other's mean return mine is higher, over the same episodes."""
    returns = np.array([mine.returns, other.returns])
    return _bootstrap(returns, lambda means: 100 * (means[0] - means[1]) / np.abs(means[1]))


def _bootstrap(samples: Float64Array, statistic: Callable[[Float64Array], Float64Array]) -> Estimate:
    """Of a statistic of the means (n, ...) of samples (n, episodes), whose episodes are drawn together.

    The percentile interval (Efron and Tibshirani, An Introduction to the Bootstrap, chapter 13).
    """
    episodes = samples.shape[1]
    drawn = np.random.default_rng(0).integers(episodes, size=(RESAMPLES, episodes))
    tail = 50 * (1 - CONFIDENCE)
    low, high = np.percentile(statistic(samples[:, drawn].mean(axis=-1)), [tail, 100 - tail])
    return Estimate(float(statistic(samples.mean(axis=-1))), float(low), float(high))


def drive(robot: GymRobot, policy: Policy, replan_ticks: int = 1) -> Iterator[None]:
    """One episode, after ``robot.reset``: yields after every action."""
    policy.reset()
    while not robot.over:
        for action in policy.infer(robot.observe(), None)[:replan_ticks]:
            robot.act(action)
            yield
            if robot.over:
                break


def begin(robot: GymRobot, env: Env, policy: Policy, seed: int) -> None:
    """Resets the environment, and tells the policy what is asked for."""
    robot.reset(seed)
    tell(policy, env)


def evaluate(task: Task, name: str, *, episodes: int = EPISODES, replan_ticks: int = 1) -> Scores:
    """``name``: ``expert``, ``random`` or a bundle. ``replan_ticks`` actions of each chunk are executed."""
    env = task.env()
    policy = load(name, task, env)
    robot = GymRobot(env, task.config(), seed=FIRST_SEED)
    returns, successes = [], []
    for seed in range(FIRST_SEED, FIRST_SEED + episodes):
        begin(robot, env, policy, seed)
        for _ in drive(robot, policy, replan_ticks):
            pass
        outcome = robot.episodes[-1]
        returns.append(outcome.total_reward)
        successes.append(task.succeeded(env, outcome))
    env.close()
    return Scores(
        task=task.name,
        policy=name,
        returns=returns,
        successes=successes,
        return_=estimate(returns),
        success=estimate(successes),
    )


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("task", choices=sorted(TASKS))
    parser.add_argument("policies", nargs="+", help=f"{EXPERT}, {RANDOM} or a bundle")
    parser.add_argument("--episodes", type=int, default=EPISODES)
    parser.add_argument("--replan-ticks", type=int, default=1, help="actions of a chunk that are executed")
    parser.add_argument("--against", metavar="POLICY", help="one of them, whose return the others are compared with")
    parser.add_argument("--out", type=Path, help="a JSON file to write")
    options = parser.parse_args()
    if options.against not in (None, *options.policies):
        parser.error(f"--against {options.against}: not among the policies")
    found = []
    for name in options.policies:
        task = TASKS[options.task]
        found.append(evaluate(task, name, episodes=options.episodes, replan_ticks=options.replan_ticks))
        print(f"{name}: return {found[-1].return_}, success {found[-1].success}", flush=True)
    for scores in found:
        if options.against not in (None, scores.policy):
            other = found[options.policies.index(options.against)]
            print(f"{scores.policy} against {options.against}: {gain(scores, other)} % of its return")
    if options.out:
        with new_file(options.out) as new:
            new.write_bytes(msgspec.json.format(msgspec.json.encode(found), indent=1) + b"\n")


if __name__ == "__main__":
    main()
