"""A policy's bundle drives an environment, and what was recorded is replayed bit for bit, also by the command line."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import gymnasium
import msgspec
import numpy as np
import pytest

from edge_sdk.bundle import Bundle
from edge_sdk.control.chunks import Blending
from edge_sdk.control.clock import SimulatedClock
from edge_sdk.control.gym_robot import GymRobot, gym_config
from edge_sdk.control.loop import ControlLoop
from edge_sdk.control.model_policy import ModelPolicy, load_policy
from edge_sdk.control.observers import InferenceRecord
from edge_sdk.control.recording import Recorder
from edge_sdk.control.recording_reader import Recording
from edge_sdk.control.replay import replay
from edge_sdk.control.settings import LoopSettings
from places import ROOT
from policies import MAMBA, MLP, bundle_of, make_policy

INSTRUCTION = "reach the left target"
TICKS = 60


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """Flow matching for gymnasium's pendulum, with an instruction."""
    config = gym_config(gymnasium.make("Pendulum-v1"), rate_hz=20, chunk_length=4, budget_ms=1e4)
    described = msgspec.structs.replace(config, head="flow_matching")
    made = make_policy(described, instruction=True, layers=[MAMBA, MLP])
    return bundle_of(made, tmp_path_factory.mktemp("pendulum"))


@pytest.fixture(scope="module")
def recording(bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two runs of a loop that commits actions."""
    path = tmp_path_factory.mktemp("recording") / "run.mcap"
    policy, clock = load_policy(bundle.path, instruction=INSTRUCTION, seed=3), SimulatedClock()
    env: Any = gymnasium.make("Pendulum-v1")
    robot = GymRobot(env, policy.config, seed=0, now_ns=clock.now_ns)
    settings = LoopSettings(blending=Blending(mode="committed"), replan_ticks=1)
    with Recorder(path, policy.config, bundle=bundle.model_id, instruction=INSTRUCTION, seed=3) as recorder:
        for _ in range(2):
            report = ControlLoop(policy, robot, settings=settings, observers=[recorder], clock=clock).run(TICKS)
            assert (report.ended, report.stages["policy"]) == ("finished", TICKS)
    assert not recorder.close().dropped
    return path


def test_a_run_of_the_loop_is_replayed_bit_for_bit(bundle: Bundle, recording: Path) -> None:
    report = replay(recording, ModelPolicy(bundle, instruction=INSTRUCTION, seed=3))
    assert report.identical
    assert report.inferences >= 2 * TICKS
    committed = [one.committed for one in Recording(recording) if isinstance(one, InferenceRecord)]
    assert any(actions is not None and len(actions) for actions in committed)


@pytest.mark.parametrize(("instruction", "seed"), [("stop", 3), (INSTRUCTION, 4)])
def test_another_instruction_or_noise_is_found_at_once(
    bundle: Bundle, recording: Path, instruction: str, seed: int
) -> None:
    report = replay(recording, ModelPolicy(bundle, instruction=instruction, seed=seed))
    assert report.difference is not None
    assert report.difference.inference == 0


def call(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "edge_sdk.cli", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


def test_control_records_what_replay_finds_equal(bundle: Bundle, tmp_path: Path) -> None:
    path = tmp_path / "run.mcap"
    told = ("--seconds", 2, "--episodes", 2, "--instruction", INSTRUCTION, "--seed", 5)
    result = call("control", bundle.path, "--gym", "Pendulum-v1", "--simulated", "--json", "--record", path, *told)
    assert result.returncode == 0, result.stderr
    reports = json.loads(result.stdout)
    assert [(one["ended"], one["ticks"]) for one in reports] == [("finished", 40)] * 2
    assert all(-700 < one["reward"] < 0 for one in reports)  # at most 16.3 a step, and never a reward

    header = Recording(path).header
    assert (header.instruction, header.seed, header.rate_hz) == (INSTRUCTION, 5, 20)
    again = call("replay", path, bundle.path)
    assert again.returncode == 0, again.stderr
    inferences = sum(one["inferences"] for one in reports)
    assert again.stdout == f"{inferences} inferences, equal bit for bit\n"


def test_control_prints_a_table_in_real_time(bundle: Bundle) -> None:
    result = call("control", bundle.path, "--gym", "Pendulum-v1", "--seconds", 0.5, "--rate-hz", 40)
    assert "20 ticks at 40 Hz" in result.stdout
    assert "ended: " in result.stdout
    assert "a step takes" in result.stderr


def test_replay_says_what_differs(bundle: Bundle, recording: Path, tmp_path: Path) -> None:
    other = bundle_of(
        make_policy(Recording(recording).header.policy, seed=1, instruction=True, layers=[MAMBA, MLP]), tmp_path
    )
    result = call("replay", recording, other.path)
    assert result.returncode == 1
    assert "the recording is of another bundle" in result.stdout
    assert "not the same: inference 0, step 0" in result.stdout


@pytest.mark.parametrize(
    ("environment", "message"),
    [("NoSuchThing-v0", "expected an environment"), ("Reacher-v5", "a Box of 1 numbers")],
)
def test_environments_that_do_not_fit_are_refused(bundle: Bundle, environment: str, message: str) -> None:
    result = call("control", bundle.path, "--gym", environment)
    assert result.returncode == 1
    assert message in result.stderr
    assert "Traceback" not in result.stderr


def test_the_recorded_instruction_is_in_old_recordings_too(recording: Path) -> None:
    header = msgspec.structs.asdict(Recording(recording).header)
    del header["instruction"], header["seed"]
    old = msgspec.convert(msgspec.to_builtins(header), type(Recording(recording).header))
    assert (old.instruction, old.seed) == ("", 0)
    assert np.isfinite(old.rate_hz)


def test_the_example_of_the_page_runs(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    page = (ROOT / "docs" / "control.md").read_text(encoding="utf-8")
    (example,) = (
        text for text in re.findall(r"^```python\n(.*?)^```", page, re.MULTILINE | re.DOTALL) if "load_policy" in text
    )
    monkeypatch.chdir(bundle.path.parent)
    assert bundle.path.name == "bundle"
    names: dict[str, Any] = {}
    exec(example, names)
    assert names["report"].ticks == 100
    assert names["report"].ended in ("finished", "silent")  # a busy machine may be silent for a second
