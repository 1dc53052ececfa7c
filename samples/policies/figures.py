"""A film of an episode, or a plot of what policies scored.

python samples/policies/figures.py film reacher expert --out reacher.gif
python samples/policies/figures.py plot scores.json --out scores.png
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from evaluate import FIRST_SEED, Estimate, Scores

SIZE = {"width": 240, "height": 240}
LONGEST = 150
"""Steps that are filmed at most."""
SLOWEST_HZ = 25
"""Browsers show a GIF's frames no faster than 50 times a second; half of that keeps files small."""


def film(task_name: str, policy_name: str, seed: int, out: Path) -> int:
    """Writes an episode as a GIF, in the time that it took; returns the number of frames."""
    import imageio.v3

    from catalog import TASKS, load
    from edge_sdk.control.gym_robot import GymRobot
    from evaluate import begin, drive

    task = TASKS[task_name]
    env = task.env(render_mode="rgb_array", **SIZE)
    policy = load(policy_name, task, env)
    robot = GymRobot(env, task.config(), seed=seed)
    begin(robot, env, policy, seed)
    every = max(1, round(task.rate_hz / SLOWEST_HZ))
    frames: list[Any] = [env.render()]
    for step, _ in enumerate(drive(robot, policy), start=1):
        if step % every == 0:
            frames.append(env.render())
        if step == LONGEST:
            break
    env.close()
    imageio.v3.imwrite(out, frames, extension=".gif", duration=1e3 * every / task.rate_hz, loop=0)
    return len(frames)


def plot(paths: Sequence[Path], out: Path) -> None:
    """Means and intervals of return and success, one line of axes for each file."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    files = [msgspec.json.decode(path.read_bytes(), type=list[Scores]) for path in paths]
    rows = sum(len(scores) for scores in files)
    heights = [len(scores) for scores in files]
    figure, axes = pyplot.subplots(
        len(files),
        2,
        figsize=(9, 0.9 * len(files) + 0.4 * rows),
        squeeze=False,
        layout="constrained",
        height_ratios=heights,
    )
    for (left, right), scores in zip(axes, files):
        names = [Path(score.policy).name for score in scores]
        for axis, title in ((left, "return"), (right, "success")):
            estimates = [score.return_ if title == "return" else score.success for score in scores]
            _bars(axis, names, estimates)
            axis.set_title(f"{scores[0].task}: {title} over {len(scores[0].returns)} episodes, 95 %", fontsize=9)
    figure.savefig(out, dpi=120)


def _bars(axis: Any, names: Sequence[str], estimates: Sequence[Estimate]) -> None:
    means = [estimate.mean for estimate in estimates]
    errors = [[e.mean - e.low for e in estimates], [e.high - e.mean for e in estimates]]
    axis.errorbar(means, range(len(names)), xerr=errors, fmt="o", capsize=4)
    axis.set_yticks(range(len(names)), names)
    axis.invert_yaxis()
    axis.margins(y=0.3)
    axis.grid(axis="x", alpha=0.3)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    filmed = commands.add_parser("film")
    filmed.add_argument("task")
    filmed.add_argument("policy", help="expert, random or a bundle")
    filmed.add_argument("--seed", type=int, default=FIRST_SEED)
    filmed.add_argument("--gl", default="egl", choices=("egl", "osmesa", "glfw"), help="how MuJoCo draws")
    plotted = commands.add_parser("plot")
    plotted.add_argument("scores", type=Path, nargs="+", help="what evaluate.py wrote")
    for command in (filmed, plotted):
        command.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    if options.command == "plot":
        plot(options.scores, options.out)
    else:
        os.environ["MUJOCO_GL"] = options.gl  # which MuJoCo reads when it is imported
        print(f"{options.out}: {film(options.task, options.policy, options.seed, options.out)} frames")


if __name__ == "__main__":
    main()
