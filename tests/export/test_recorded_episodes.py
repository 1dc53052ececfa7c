"""Recordings of the control loop as episodes: a real loop with a real recorder, and recordings with gaps."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gymnasium
import msgspec
import numpy as np
import pytest

from edge_export.episodes import open_episodes
from edge_export.lerobot.writer import new_dataset
from edge_export.recorded_episodes import read_recording
from edge_sdk.control.clock import SimulatedClock
from edge_sdk.control.gym_robot import GymRobot, gym_config
from edge_sdk.control.loop import ControlLoop
from edge_sdk.control.observers import InferenceRecord, TickRecord
from edge_sdk.control.policy import PolicyConfig
from edge_sdk.control.recording import Recorder
from edge_sdk.control.robot import FloatArray
from edge_sdk.control.settings import LoopSettings
from edge_sdk.errors import ConfigError, RecordingError


class Damper:
    """Turns against a pendulum's speed."""

    def __init__(self, config: PolicyConfig) -> None:
        self.config = config

    def reset(self) -> None:
        pass

    def infer(self, observation: Mapping[str, np.ndarray], committed: FloatArray | None) -> FloatArray:
        return np.full((4, 1), -np.clip(observation["observation"][2], -2, 2), dtype=np.float32)

    def snapshot(self) -> None:
        return None

    def restore(self, snapshot: None) -> None:
        pass


def record(path: Path, ticks: int, replan_ticks: int, instruction: str = "") -> None:
    env = gymnasium.make("Pendulum-v1", max_episode_steps=1000)
    config = gym_config(env, rate_hz=20, chunk_length=4, budget_ms=50)
    clock = SimulatedClock()
    robot = GymRobot(env, config, seed=4, now_ns=clock.now_ns)
    with Recorder(path, config, instruction=instruction) as recorder:
        settings = LoopSettings(replan_ticks=replan_ticks)
        loop = ControlLoop(Damper(config), robot, settings=settings, clock=clock, observers=[recorder])
        loop.run(ticks)


def test_a_step_is_an_observation_and_the_action_after_it(tmp_path: Path) -> None:
    record(tmp_path / "run.mcap", 30, replan_ticks=1)
    source = open_episodes(tmp_path)
    episode = source[0]
    episode.check(source.schema)
    assert sum(source.lengths) >= 28
    seen = episode.observations["observation"]
    np.testing.assert_array_equal(episode.actions[:, 0], -np.clip(seen[:, 2], -2, 2))
    # the world between two steps is gymnasium's
    env: Any = gymnasium.make("Pendulum-v1").unwrapped
    for before, action, after in zip(seen, episode.actions, seen[1:]):
        env.reset()
        env.state = np.array([np.arctan2(before[1], before[0]), before[2]])
        expected, *_ = env.step(action)
        np.testing.assert_allclose(after, expected, atol=1e-5)
    np.testing.assert_allclose(
        source.schema.observations[0].normalization.stats["mean"],
        np.concatenate([source[index].observations["observation"] for index in range(len(source))]).mean(0),
        rtol=1e-5,
    )


def test_a_recording_as_a_lerobot_dataset(tmp_path: Path) -> None:
    (tmp_path / "runs").mkdir()
    record(tmp_path / "runs" / "b.mcap", 12, replan_ticks=1)
    record(tmp_path / "runs" / "a.mcap", 20, replan_ticks=1)
    source = open_episodes(tmp_path / "runs")
    with new_dataset(tmp_path / "set", source.schema) as dataset:
        for index in range(len(source)):
            dataset.add(source[index])
    found = open_episodes(tmp_path / "set")
    assert found.lengths.tolist() == source.lengths.tolist()
    for index in range(len(source)):
        np.testing.assert_array_equal(found[index].actions, source[index].actions)
        name = "observation"
        np.testing.assert_array_equal(found[index].observations[name], source[index].observations[name])


def test_the_instruction_of_a_recording_is_that_of_its_episodes(tmp_path: Path) -> None:
    record(tmp_path / "run.mcap", 12, replan_ticks=1, instruction="stand still")
    source = open_episodes(tmp_path)
    assert [source[index].instruction for index in range(len(source))] == ["stand still"] * len(source)


def test_ticks_without_observations_are_refused(tmp_path: Path) -> None:
    record(tmp_path / "run.mcap", 30, replan_ticks=4)
    assert read_recording(tmp_path / "run.mcap")[1] == []
    with pytest.raises(ConfigError, match="replan_ticks=1"):
        open_episodes(tmp_path)


CONFIG = gym_config(gymnasium.make("Pendulum-v1"), rate_hz=20, chunk_length=4, budget_ms=50)


def write(path: Path, ticks: int, **changes: Mapping[int, Mapping[str, object]]) -> None:
    """A step per tick, but for what ``seen`` and ``acted`` change of it; None leaves the record out."""
    with Recorder(path, CONFIG) as recorder:
        for tick in range(ticks):
            inference = InferenceRecord(
                inference=tick,
                begins_episode=tick == 0,
                first_tick=tick,
                observation_ns=tick,
                started_ns=tick,
                observed_ns=tick,
                done_ns=tick,
                observation={"observation": np.full(3, tick, np.float32)},
                committed=None,
                chunk=np.zeros((4, 1), np.float32),
            )
            acted = TickRecord(
                tick=tick,
                planned_ns=tick,
                woken_ns=tick,
                done_ns=tick,
                timing="on_time",
                skipped=0,
                stage="policy",
                action=np.full(1, tick, np.float32),
                wanted=None,
                violations=0,
                observation_ns=tick,
                inference=tick,
            )
            for kind, record, listen in (("seen", inference, recorder.inference), ("acted", acted, recorder.tick)):
                change = changes.get(kind, {}).get(tick, {})
                if change is not None:
                    listen(msgspec.structs.replace(record, **change))


@pytest.mark.parametrize(
    ("changes", "lengths"),
    [
        ({}, [8]),
        ({"seen": {3: None}}, [3, 4]),
        ({"acted": {3: None}}, [3, 4]),
        ({"seen": {5: {"begins_episode": True}}}, [5, 3]),
        ({"acted": {2: {"stage": "hold"}}}, [2, 5]),
        ({"acted": {7: {"action": None}}}, [7]),
        ({"seen": {2: None, 4: None}}, [2, 3]),
    ],
)
def test_episodes_end_at_gaps(tmp_path: Path, changes: Mapping[str, Mapping[int, object]], lengths: list[int]) -> None:
    write(tmp_path / "run.mcap", 8, **changes)
    source = open_episodes(tmp_path)
    assert source.lengths.tolist() == lengths
    for index in range(len(source)):
        np.testing.assert_array_equal(source[index].actions[:, 0], source[index].observations["observation"][:, 0])


def test_recordings_of_two_robots_are_refused(tmp_path: Path) -> None:
    write(tmp_path / "a.mcap", 4)
    record(tmp_path / "b.mcap", 4, replan_ticks=1)
    config = msgspec.structs.replace(CONFIG, chunk_length=9)
    with Recorder(tmp_path / "c.mcap", config):
        pass
    with pytest.raises(ConfigError, match=r"c\.mcap"):
        open_episodes(tmp_path)


def test_a_damaged_recording_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "a.mcap", 8)
    content = bytearray((tmp_path / "a.mcap").read_bytes())
    content[len(content) // 3] ^= 16
    (tmp_path / "a.mcap").write_bytes(content)
    with pytest.raises(RecordingError, match=r"a\.mcap"):
        open_episodes(tmp_path)
