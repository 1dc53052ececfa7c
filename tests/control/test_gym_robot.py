"""Environments that nobody here made, as robots."""

from __future__ import annotations

import math
from typing import Any

import gymnasium
import msgspec
import numpy as np
import pytest

from controllers import LinearPolicy, linearised, lqr_gain
from edge_sdk.control.chunks import Blending, Mode
from edge_sdk.control.clock import MonotonicClock, SimulatedClock
from edge_sdk.control.gym_robot import GymRobot, gym_config
from edge_sdk.control.loop import ControlLoop
from edge_sdk.control.policy import ObservationSpec
from edge_sdk.control.settings import LoopSettings, Stages
from edge_sdk.errors import ConfigError

PATIENT = Stages(hold_after_ms=60e3, decay_after_ms=60e3, stop_after_ms=60e3)
"""For the real clock, on a machine that does who knows what else."""


@pytest.fixture
def pole() -> Any:
    env = gymnasium.make("InvertedPendulum-v5")
    yield env
    env.close()


def balancing(env: Any, chunk_length: int) -> LinearPolicy:
    config = gym_config(env, rate_hz=25.0, chunk_length=chunk_length, budget_ms=20.0)
    a, b = linearised(env)
    return LinearPolicy(config, a, b, lqr_gain(a, b, np.diag([1.0, 10.0, 0.1, 0.1]), np.eye(1) * 0.1))


@pytest.mark.parametrize(
    ("mode", "chunk_length"),
    # Blended with actions of older chunks, a correction comes later, and this pole falls with chunks of 8.
    [("switch", 8), ("ensemble", 2), ("soft_mask", 2), ("committed", 8)],
)
def test_a_pole_is_held_upright_for_500_steps_in_chunks(pole: Any, mode: Mode, chunk_length: int) -> None:
    clock = SimulatedClock()
    policy = balancing(pole, chunk_length)
    robot = GymRobot(pole, policy.config, seed=1, now_ns=clock.now_ns)
    loop = ControlLoop(policy, robot, settings=LoopSettings(blending=Blending(mode=mode)), clock=clock)
    report = loop.run(500, until=lambda: robot.over)
    assert report.ended == "finished"
    assert report.timing["on_time"] == report.stages["policy"] == report.ticks == 500
    robot.reset()
    (episode,) = robot.episodes
    assert (episode.steps, episode.total_reward, episode.terminated) == (500, 500.0, False)
    assert report.inferences == 500 / (chunk_length // 2)
    assert any(committed is not None for committed in policy.committed) == (mode == "committed")


def test_without_a_policy_it_falls(pole: Any) -> None:
    policy = balancing(pole, chunk_length=4)
    robot = GymRobot(pole, policy.config, seed=1)
    while not robot.over:
        robot.act(np.array([0.3], np.float32))
    assert robot.episodes[0].terminated
    assert robot.episodes[0].steps < 100
    robot.act(np.array([0.3], np.float32))  # ignored
    assert len(robot.episodes) == 1


def test_a_pole_on_the_machines_clock(pole: Any) -> None:
    clock = MonotonicClock(spin_us=100.0)
    policy = balancing(pole, chunk_length=40)
    robot = GymRobot(pole, policy.config, seed=1)
    report = ControlLoop(policy, robot, settings=LoopSettings(stages=PATIENT), clock=clock).run(100)
    assert report.ended == "finished"
    assert report.ticks == sum(report.timing.values()) == 100
    assert sum(report.stages.values()) == 100 - report.skipped == report.jitter.count
    robot.reset()
    assert sum(episode.steps for episode in robot.episodes) == report.act.count


def test_a_pendulum_observes_what_the_environment_says_and_when() -> None:
    env = gymnasium.make("Pendulum-v1")
    config = gym_config(env, rate_hz=20.0, chunk_length=1, budget_ms=10.0)
    assert [(dim.lower, dim.upper) for dim in config.action.dims] == [(-2.0, 2.0)]
    now = iter(range(100))
    robot = GymRobot(env, config, seed=3, now_ns=lambda: next(now))
    twin = gymnasium.make("Pendulum-v1")
    expected, _ = twin.reset(seed=3)
    for step in range(5):
        seen = robot.observe()
        assert (seen["observation"] == expected).all()
        assert (seen["time_ns"], seen["time_ns"].dtype) == (step, np.int64)
        action = np.array([math.sin(step)], np.float32)
        robot.act(action)
        expected, *_ = twin.step(action)
    robot.stop()
    robot.stop()
    assert abs(float(robot.observe()["observation"][2])) <= 1  # a new episode's speed
    assert robot.episodes[0].steps == 5
    robot.observe()
    assert len(robot.episodes) == 1


class Camera(gymnasium.ObservationWrapper[Any, Any, Any]):
    """Gives a pendulum a dict with a picture, as environments of robots do."""

    def __init__(self, env: Any) -> None:
        super().__init__(env)
        picture = gymnasium.spaces.Box(0, 255, (4, 6, 3), np.uint8)
        self.observation_space = gymnasium.spaces.Dict({"state": env.observation_space, "front": picture})

    def observation(self, observation: Any) -> Any:
        return {"state": observation, "front": np.full((4, 6, 3), 7, np.uint8)}


def test_a_dict_with_a_picture() -> None:
    env = Camera(gymnasium.make("Pendulum-v1"))
    config = gym_config(env, rate_hz=20.0, chunk_length=1, budget_ms=10.0)
    assert {spec.name: (spec.kind, spec.shape) for spec in config.observations} == {
        "state": ("vector", (3,)),
        "front": ("image", (4, 6, 3)),
    }
    seen = GymRobot(env, config).observe()
    assert seen["front"].dtype == np.uint8
    config.check_observation(seen)
    other = ObservationSpec(name="state", shape=(4,))
    with pytest.raises(ConfigError, match="observation 'state': expected float32"):
        GymRobot(env, msgspec.structs.replace(config, observations=(other,)))


def test_an_environment_that_does_not_fit_is_refused() -> None:
    discrete, pendulum = gymnasium.make("CartPole-v1"), gymnasium.make("Pendulum-v1")
    with pytest.raises(ConfigError, match="The space 'action': expected a Box"):
        gym_config(discrete, rate_hz=20.0, chunk_length=1, budget_ms=10.0)
    config = gym_config(pendulum, rate_hz=20.0, chunk_length=1, budget_ms=10.0)
    with pytest.raises(ConfigError, match="The environment's actions: expected a Box of 1 numbers"):
        GymRobot(discrete, config)
