"""The evaluation: which episodes policies meet, confidence intervals, films and plots."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import imageio.v3
import msgspec
import numpy as np
import pytest
import scipy.stats

import evaluate
import figures
from catalog import TASKS, ExpertPolicy
from edge_sdk.control.gym_robot import GymRobot
from edge_sdk.control.robot import FloatArray
from tasks import STATE


@pytest.mark.parametrize("seed", range(4))
def test_intervals_are_those_of_scipys_bootstrap(seed: int) -> None:
    sample = np.random.default_rng(seed).gamma(2.0, 3.0, 60)
    found = evaluate.estimate(sample.tolist())
    expected = scipy.stats.bootstrap(
        (sample,), np.mean, method="percentile", n_resamples=20_000, rng=np.random.default_rng(1)
    ).confidence_interval
    assert found.mean == pytest.approx(sample.mean())
    width = expected.high - expected.low
    assert found.low == pytest.approx(expected.low, abs=0.03 * width)
    assert found.high == pytest.approx(expected.high, abs=0.03 * width)


def test_a_gain_is_drawn_from_pairs_of_episodes() -> None:
    """Where episodes differ more than policies do, by a thousand times here, only pairs tell the policies apart."""
    random = np.random.default_rng(3)
    hard = -random.gamma(2.0, 3.0, 80)
    slightly = hard + random.normal(0.02, 0.01, 80)
    mine, other = (scores_of(returns) for returns in (slightly, hard))
    found = evaluate.gain(mine, other)
    assert found.mean == pytest.approx(100 * (slightly.mean() - hard.mean()) / -hard.mean())
    expected = scipy.stats.bootstrap(
        (slightly, hard),
        lambda one, two, axis: 100 * (one.mean(axis) - two.mean(axis)) / np.abs(two.mean(axis)),
        paired=True,
        method="percentile",
        n_resamples=20_000,
        rng=np.random.default_rng(1),
    ).confidence_interval
    width = expected.high - expected.low
    assert (found.low, found.high) == pytest.approx(tuple(expected), abs=0.04 * width)
    assert 0 < found.low < found.high < 1
    assert evaluate.gain(other, mine).mean < 0


def scores_of(returns: np.ndarray) -> evaluate.Scores:
    estimate = evaluate.estimate(returns.tolist())
    return evaluate.Scores(
        task="", policy="", returns=returns.tolist(), successes=[], return_=estimate, success=estimate
    )


class Chunks(ExpertPolicy):
    """Chunks of the expert's action over and over, and a count of what is asked for."""

    asked = 0
    told = ""

    def infer(self, observation: Mapping[str, np.ndarray], committed: FloatArray | None) -> FloatArray:
        self.asked += 1
        assert observation[STATE].dtype == np.float32
        return np.repeat(super().infer(observation, committed), 8, axis=0)

    def instruct(self, instruction: str) -> None:
        self.told = instruction


@pytest.mark.parametrize(("replan_ticks", "inferences"), [(1, 50), (3, 17), (8, 7)])
def test_so_many_actions_of_a_chunk_are_executed(replan_ticks: int, inferences: int) -> None:
    task = TASKS["reacher"]
    env = task.env()
    policy, robot = Chunks(task, env), GymRobot(env, task.config(), seed=0)
    evaluate.begin(robot, env, policy, seed=5)
    assert sum(1 for _ in evaluate.drive(robot, policy, replan_ticks)) == 50
    assert policy.asked == inferences
    assert robot.episodes[-1].steps == 50


def test_policies_are_told_the_instruction() -> None:
    task = TASKS["two-targets"]
    env = task.env()
    policy, robot = Chunks(task, env), GymRobot(env, task.config(), seed=0)
    for seed in range(5):
        evaluate.begin(robot, env, policy, seed)
        assert policy.told == env.get_wrapper_attr("instruction") != ""


def test_the_same_episodes_for_everyone_and_every_time() -> None:
    first, again = (evaluate.evaluate(TASKS["reacher-hidden"], "expert", episodes=4) for _ in range(2))
    assert first == again
    assert evaluate.evaluate(TASKS["reacher"], "expert", episodes=4).returns == first.returns
    env = TASKS["reacher"].env()
    total, over = 0.0, False
    env.reset(seed=evaluate.FIRST_SEED + 2)
    while not over:
        _, reward, _, over, _ = env.step(TASKS["reacher"].expert(env).astype(np.float32))
        total += float(reward)
    assert first.returns[2] == pytest.approx(total)


def test_the_command_and_its_figures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    scores, picture = tmp_path / "scores.json", tmp_path / "scores.png"
    arguments = ["reacher", "expert", "random", "--against", "expert", "--episodes", "3", "--out", str(scores)]
    monkeypatch.setattr(sys, "argv", ["evaluate.py", *arguments])
    evaluate.main()
    shown = capsys.readouterr().out
    assert "random: return" in shown
    assert "random against expert: -" in shown
    assert "expert against" not in shown
    expert, nobody = msgspec.json.decode(scores.read_bytes(), type=list[evaluate.Scores])
    assert expert.return_.mean > nobody.return_.mean
    assert len(json.loads(scores.read_text())[0]["returns"]) == 3
    figures.plot([scores, scores], picture)
    assert picture.read_bytes().startswith(b"\x89PNG")


PROBE = "from mujoco.egl import GLContext; GLContext(16, 16).make_current()"


def test_a_film_is_as_long_as_the_episode(tmp_path: Path) -> None:
    environment = {**os.environ, "MUJOCO_GL": "egl"}
    if subprocess.run([sys.executable, "-c", PROBE], env=environment, capture_output=True, check=False).returncode:
        pytest.skip("MuJoCo cannot draw here: no EGL")
    out = tmp_path / "film.gif"
    command = [sys.executable, figures.__file__, "film", "two-targets", "expert", "--seed", "3", "--out", str(out)]
    subprocess.run(command, check=True)
    shown = imageio.v3.imread(out, index=None)
    assert shown.shape[1:] == (240, 240, 3)
    assert 20 < len(shown) <= 51
    assert np.abs(shown[0].astype(int) - shown[-1]).max() > 50
