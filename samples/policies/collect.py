"""Collects episodes that an expert labels, as a LeRobot v3.0 dataset.

    python samples/policies/collect.py reacher --episodes 400 --out build/policies/reacher/train
    python samples/policies/collect.py reacher --episodes 400 --driver expert build/policies/reacher/student --out more

What is executed is the driver's action and some noise; what is stored is the expert's action without it. Noise shows
how to come back from small mistakes (DART: Laskey et al., arXiv 1703.09327), and a policy that drives from its own ones
(DAgger: Ross et al., arXiv 1011.0686).
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from catalog import EXPERT, TASKS, load, tell
from edge_export.episodes import Episode
from edge_export.lerobot.writer import new_dataset
from edge_sdk.control.policy import Policy
from tasks import STATE, Env, Task, instruction_of


def collect(task: Task, episodes: int, seed: int = 0, drivers: Sequence[str] = (EXPERT,)) -> Iterator[Episode]:
    """Episodes of seeds ``seed``, ``seed + 1`` and so on; each is up to ``task.steps`` long.

    ``drivers``, as ``catalog.load`` knows them, take turns from episode to episode.
    """
    env = task.env()
    policies = [load(name, task, env) for name in drivers]
    for turn in range(episodes):
        yield _episode(task, env, policies[turn % len(policies)], seed + turn)
    env.close()


def _episode(task: Task, env: Env, driver: Policy, seed: int) -> Episode:
    """From a step on that is drawn evenly the expert drives, so that episodes also show how to come back."""
    random = np.random.default_rng(seed)
    taken_over = np.random.default_rng((seed, 1)).integers(task.steps + 1)
    observation, _ = env.reset(seed=seed)
    tell(driver, env)
    driver.reset()
    seen: list[np.ndarray] = []
    labels: list[np.ndarray] = []
    over = False
    while not over and len(labels) < task.steps:
        seen.append(np.asarray(observation, dtype=np.float32))
        label = acted = task.expert(env)
        if len(labels) < taken_over:
            acted = driver.infer({STATE: seen[-1]}, None)[0].astype(np.float64)
        labels.append(label.astype(np.float32))
        executed = np.clip(acted + random.normal(0.0, task.noise, acted.shape), -1.0, 1.0)
        observation, _, terminated, truncated, _ = env.step(executed.astype(np.float32))
        over = terminated or truncated
    return Episode({STATE: np.stack(seen)}, np.stack(labels), instruction_of(env))


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("task", choices=sorted(TASKS))
    parser.add_argument("--episodes", type=int, default=400)
    parser.add_argument("--seed", type=int, default=0, help="of the first episode")
    parser.add_argument(
        "--driver", nargs="+", default=[EXPERT], metavar="POLICY", help=f"{EXPERT} or bundles; several take turns"
    )
    parser.add_argument("--out", type=Path, required=True, help="the dataset's folder")
    options = parser.parse_args()
    task = TASKS[options.task]
    with new_dataset(options.out, task.config(), robot_type=task.name) as dataset:
        for episode in collect(task, options.episodes, options.seed, options.driver):
            dataset.add(episode)
    print(f"{options.out}: {options.episodes} episodes")


if __name__ == "__main__":
    main()
