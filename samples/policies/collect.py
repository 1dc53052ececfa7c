"""Collects an expert's episodes as a LeRobot v3.0 dataset.

    python samples/policies/collect.py reacher --episodes 400 --out build/policies/reacher/episodes

What is executed is the expert's action and some noise, so that episodes show how to come back from mistakes; what is
stored is the expert's action without it (DART: Laskey et al., arXiv 1703.09327).
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from catalog import TASKS
from edge_export.episodes import Episode
from edge_export.lerobot.writer import new_dataset
from tasks import STATE, Task, instruction_of


def collect(task: Task, episodes: int, seed: int = 0) -> Iterator[Episode]:
    """Episodes of seeds ``seed``, ``seed + 1`` and so on; each is up to ``task.steps`` long."""
    env = task.env()
    for number in range(seed, seed + episodes):
        random = np.random.default_rng(number)
        observation, _ = env.reset(seed=number)
        instruction = instruction_of(env)
        seen: list[np.ndarray] = []
        labels: list[np.ndarray] = []
        over = False
        while not over and len(labels) < task.steps:
            label = task.expert(env)
            seen.append(np.asarray(observation, dtype=np.float32))
            labels.append(label.astype(np.float32))
            executed = np.clip(label + random.normal(0.0, task.noise, label.shape), -1.0, 1.0)
            observation, _, terminated, truncated, _ = env.step(executed.astype(np.float32))
            over = terminated or truncated
        yield Episode({STATE: np.stack(seen)}, np.stack(labels), instruction)
    env.close()


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("task", choices=sorted(TASKS))
    parser.add_argument("--episodes", type=int, default=400)
    parser.add_argument("--seed", type=int, default=0, help="of the first episode")
    parser.add_argument("--out", type=Path, required=True, help="the dataset's folder")
    options = parser.parse_args()
    task = TASKS[options.task]
    with new_dataset(options.out, task.config(), robot_type=task.name) as dataset:
        for episode in collect(task, options.episodes, options.seed):
            dataset.add(episode)
    print(f"{options.out}: {options.episodes} episodes")


if __name__ == "__main__":
    main()
