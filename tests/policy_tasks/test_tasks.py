"""The tasks: what policies see of them, what their experts reach, and what is collected of those."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import gymnasium
import numpy as np
import pytest
import scipy.linalg
from tokenizers import Tokenizer

import pendulum
import reacher
import two_targets
from catalog import TASKS
from collect import collect
from edge_export.episodes import open_episodes
from edge_export.lerobot.writer import new_dataset
from edge_sdk.control.gym_robot import GymRobot
from evaluate import evaluate
from tasks import STATE, Task

REACHED = {"pendulum": 9300.0, "reacher": -5.5, "fetch": -3.0, "two-targets": -9.5}
"""Return that an expert reaches over five episodes; random actions: 50, -43, -50 and -85."""


@pytest.fixture(params=sorted(TASKS))
def task(request: pytest.FixtureRequest) -> Task:
    return TASKS[request.param]


@pytest.mark.parametrize("name", sorted(REACHED))
def test_experts_succeed(name: str) -> None:
    scores = evaluate(TASKS[name], "expert", episodes=5)
    assert all(scores.successes)
    assert scores.return_.mean > REACHED[name]


@pytest.mark.parametrize("name", sorted(REACHED))
def test_no_skill_does_not_succeed(name: str) -> None:
    scores = evaluate(TASKS[name], "random", episodes=3)
    assert not any(scores.successes)


def test_the_schema_fits_the_environment(task: Task) -> None:
    env = task.env()
    robot = GymRobot(env, task.config(), seed=0)
    task.config().check_observation(robot.observe())
    assert env.action_space.shape == (len(task.joints),)
    assert float(env.unwrapped.dt) == pytest.approx(1 / task.rate_hz)  # type: ignore[attr-defined]
    shown = TASKS[task.name.removesuffix("-hidden")]
    assert len(task.seen()) < len(shown.seen()) if task.hidden else task is shown


@pytest.mark.parametrize("name", ["pendulum", "reacher", "two-targets", "fetch"])
def test_hidden_elements_are_those_that_follow_from_velocities(name: str) -> None:
    """What a policy sees of two states that differ in their velocities alone."""
    task, hidden = TASKS[name], TASKS[f"{name}-hidden"]
    env = task.env()
    env.reset(seed=3)
    for _ in range(3):
        before, *_ = env.step(env.action_space.sample() * 0 + 0.5)
    arm = env.unwrapped
    arm.data.qvel[:] = 0  # type: ignore[attr-defined]
    if name == "two-targets":
        after = env._observation()  # type: ignore[attr-defined]
    elif name == "fetch":
        after = env.observation(env.env.observation(arm._get_obs()))  # type: ignore[attr-defined]
    else:
        after = arm._get_obs()  # type: ignore[attr-defined]
    np.testing.assert_array_equal(after[list(hidden.seen())], before[list(hidden.seen())])
    units = [element.unit for element, old, new in zip(task.elements, before, after) if old != new]
    assert units
    assert set(units) <= {"m/s", "rad/s", "N"}


def test_the_regulator_is_scipys() -> None:
    env = TASKS["pendulum"].env()
    model, skip = env.unwrapped.model, env.unwrapped.frame_skip  # type: ignore[attr-defined]
    a, b = pendulum.linearize(model, skip)
    cost = scipy.linalg.solve_discrete_are(a, b, pendulum.STATE_COST, pendulum.ACTION_COST)
    expected = np.linalg.solve(pendulum.ACTION_COST + b.T @ cost @ b, b.T @ cost @ a)
    np.testing.assert_allclose(pendulum.gain(model, skip), expected, rtol=1e-6)
    assert np.abs(np.linalg.eigvals(a)).max() > 1 > np.abs(np.linalg.eigvals(a - b @ expected)).max()


def test_the_arms_angles_lead_to_the_target() -> None:
    env = TASKS["reacher"].env()
    for seed in range(20):
        env.reset(seed=seed)
        arm = reacher.simulation(env)
        target = arm.data.qpos[2:4].copy()
        arm.set_state(np.concatenate([reacher.joint_angles(target), target]), np.zeros(4))
        assert reacher.distance_m(env) < 1e-6 or np.linalg.norm(target) < 0.01


def test_targets_are_due_in_the_order_of_the_instruction() -> None:
    env = TASKS["two-targets"].env()
    seen = set()
    for seed in range(30):
        env.reset(seed=seed)
        instruction = env.get_wrapper_attr("instruction")
        seen.add(instruction)
        places, due, over = env.get_wrapper_attr("_places"), [], False
        while not over:
            target = reacher.simulation(env).data.qpos[2:4].copy()
            (side,) = [name for name, place in places.items() if np.allclose(place, target)]
            due = due if due[-1:] == [side] else [*due, side]
            *_, over, cut_off, _ = env.step(TASKS["two-targets"].expert(env).astype(np.float32))
            assert not cut_off
        assert tuple(due) == two_targets.INSTRUCTIONS[instruction]
        assert places["left"][1] > 0 > places["right"][1]
    assert seen == set(two_targets.INSTRUCTIONS)


def test_a_target_is_reached_once_it_was_held() -> None:
    env = TASKS["two-targets"].env()
    env.reset(seed=0)
    arm, held = reacher.simulation(env), []
    for away in (False, False, True, False, False, False, False, False):
        target = arm.data.qpos[2:4].copy()
        angles = reacher.joint_angles(target) + away
        arm.set_state(np.concatenate([angles, target]), np.zeros(4))
        env.step(np.zeros(2, np.float32))
        held.append(env.get_wrapper_attr("_due"))
    assert held == [0] * 7 + [1]


def test_words_of_instructions_are_tokens(tmp_path: Path) -> None:
    two_targets.write_tokenizer(tmp_path)
    tokenizer = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    ids = [tokenizer.encode(text).ids for text in two_targets.INSTRUCTIONS]
    assert all(0 not in each for each in ids)
    assert len({tuple(each) for each in ids}) == len(ids)


def test_episodes_are_the_same_again_and_noise_is_executed_but_not_stored(tmp_path: Path) -> None:
    task = TASKS["two-targets"]
    once, again, quiet = (list(collect(item, 3)) for item in (task, task, _without_noise(task)))
    for one, other, calm in zip(once, again, quiet):
        np.testing.assert_array_equal(one.actions, other.actions)
        assert one.instruction == calm.instruction in two_targets.INSTRUCTIONS
        np.testing.assert_array_equal(one.actions[0], calm.actions[0])
        assert not np.array_equal(one.observations[STATE][1], calm.observations[STATE][1])
    with new_dataset(tmp_path / "set", task.config()) as dataset:
        for episode in once:
            dataset.add(episode)
    source = open_episodes(tmp_path / "set")
    assert [source[number].instruction for number in range(3)] == [episode.instruction for episode in once]
    assert source.schema.action.dims == task.config().action.dims


def test_the_stored_action_is_that_of_the_stored_observation() -> None:
    task = TASKS["reacher"]
    (episode,) = collect(task, 1)
    for seen, action in zip(episode.observations[STATE], episode.actions):
        angles = np.arctan2(seen[2:4], seen[:2])
        error = reacher.joint_angles(seen[4:6].astype(np.float64)) - angles
        error[0] = (error[0] + np.pi) % (2 * np.pi) - np.pi
        expected = np.clip(reacher.STIFFNESS * error - reacher.DAMPING * seen[6:8], -1, 1)
        np.testing.assert_allclose(action, expected, atol=1e-5)


def _without_noise(task: Task) -> Task:
    return replace(task, noise=0.0)


def test_environments_are_gymnasiums() -> None:
    for name in ("pendulum", "reacher", "fetch"):
        spec = TASKS[name].env().spec
        assert spec is not None
        assert gymnasium.spec(spec.id).entry_point == spec.entry_point
