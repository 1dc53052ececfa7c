"""The control loop with its watchdog and its recorder: what one run leaves behind is replayed bit for bit."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pytest

from edge_sdk.control.chunks import Blending
from edge_sdk.control.clock import SimulatedClock
from edge_sdk.control.loop import ControlLoop
from edge_sdk.control.observers import InferenceRecord, TickRecord
from edge_sdk.control.recording import Recorder
from edge_sdk.control.recording_reader import Recording
from edge_sdk.control.replay import replay
from edge_sdk.control.robot import FloatArray
from edge_sdk.control.settings import LoopSettings
from edge_sdk.control.watchdog import Stopper, Watchdog
from recorded import CONFIG, RecurrentPolicy


class Arm:
    """Two joints that follow torques, and a camera that sees them; ``slow`` names the action that takes long."""

    def __init__(self, slow: int | None = None, takes_s: float = 0.0) -> None:
        self.angles, self.acts, self.stops = np.zeros(2, np.float32), 0, 0
        self._slow, self._takes_s = slow, takes_s

    def observe(self) -> dict[str, np.ndarray]:
        camera = np.zeros((4, 6, 3), np.uint8)
        camera[..., :2] = np.abs(self.angles * 100).astype(np.uint8)
        return {"joints": np.append(self.angles, np.float32(self.acts)), "camera": camera}

    def act(self, action: FloatArray) -> None:
        if self.acts == self._slow:
            time.sleep(self._takes_s)
        self.angles = self.angles + action / np.float32(50)
        self.acts += 1

    def stop(self) -> None:
        self.stops += 1


@pytest.fixture
def stopper(tmp_path: Path) -> Stopper:
    return Stopper(entry="edge_sdk.control.stoppers:write_file", arguments={"path": str(tmp_path / "stopped")})


def test_a_run_with_an_emergency_stop_is_recorded_and_replayed(stopper: Stopper, tmp_path: Path) -> None:
    clock, arm = SimulatedClock(), Arm()
    path = tmp_path / "run.mcap"
    with Watchdog(stopper, 1e6) as watchdog, Recorder(path, CONFIG) as recorder:
        loop = ControlLoop(
            RecurrentPolicy(),
            watchdog.guard(arm),
            clock=clock,
            observers=[watchdog, recorder],
            settings=LoopSettings(blending=Blending(mode="committed")),
        )
        ticks = iter(range(10**6))

        def estop_for_a_while() -> bool:
            tick = next(ticks)
            if tick == 20:
                loop.estop()
            if tick == 30:
                loop.reset_estop()
            return False

        report = loop.run(60, until=estop_for_a_while)
    assert report.ended == "finished", report.error
    records = list(Recording(path))
    inferences = [one for one in records if isinstance(one, InferenceRecord)]
    assert [one.tick for one in records if isinstance(one, TickRecord)] == list(range(60))
    assert sum(one.begins_episode for one in inferences) == 2
    assert inferences[0].begins_episode
    assert any(one.committed is not None and len(one.committed) for one in inferences)
    replayed = replay(path, RecurrentPolicy())
    assert (replayed.inferences, replayed.identical) == (len(inferences), True)
    assert (tmp_path / "stopped").read_text() == ""


def test_a_loop_that_was_held_up_sends_nothing_after_the_watchdog_stopped_the_robot(
    stopper: Stopper, tmp_path: Path
) -> None:
    arm = Arm(slow=5, takes_s=3.0)
    with Watchdog(stopper, 500) as watchdog:
        loop = ControlLoop(RecurrentPolicy(), watchdog.guard(arm), observers=[watchdog])
        report = loop.run(1000)
    assert report.error is not None
    assert "the watchdog has stopped the robot" in report.error
    assert arm.acts == 6  # the slow one had begun before
    assert arm.stops >= 1
    assert len((tmp_path / "stopped").read_text().split()) == 1


def test_a_guarded_robot_acts_until_the_watchdog_has_stopped_it(stopper: Stopper, tmp_path: Path) -> None:
    arm = Arm()
    with Watchdog(stopper, 100) as watchdog:
        robot = watchdog.guard(arm)
        watchdog.beat()
        robot.act(np.zeros(2, np.float32))
        assert robot.observe()["joints"][2] == arm.acts == 1
        while not (tmp_path / "stopped").read_text():
            time.sleep(0.01)
        with pytest.raises(Exception, match="the watchdog has stopped the robot"):
            robot.act(np.zeros(2, np.float32))
        robot.stop()
    assert (arm.acts, arm.stops) == (1, 1)
