"""``edge-sdk`` as its user calls it: in a process of its own."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from edge_sdk.bundle import WEIGHTS

EDGE_SDK = (sys.executable, "-m", "edge_sdk.cli")


def call(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [*EDGE_SDK, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


@pytest.fixture
def sigint_is_heard() -> Iterator[None]:
    """A test run that was started in the background ignores SIGINT, and would hand that down."""
    previous = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, previous)


def test_run_prints_the_answer(scan_bundle: Path) -> None:
    result = call("run", scan_bundle, "walk around left twice")
    assert result.returncode == 0
    assert result.stdout == " ".join(["I_TURN_LEFT I_WALK"] * 8) + "\n"
    (line,) = (line for line in result.stderr.splitlines() if "the edge operators run on" in line)
    assert "native kernels" in line


def test_run_as_json(scan_bundle: Path) -> None:
    result = call("run", "--json", scan_bundle, "jump left")
    answer = json.loads(result.stdout)
    assert answer["text"] == "I_TURN_LEFT I_JUMP"
    assert len(answer["token_ids"]) == 2
    assert answer["finish_reason"] == "stop"
    assert answer["time_to_first_token_ms"] > 0
    assert answer["tokens_per_second"] > 0


def test_run_samples_and_stops_as_told(scan_bundle: Path) -> None:
    arguments = (
        "run",
        scan_bundle,
        "walk around left twice",
        "--temperature",
        30,
        "--top-k",
        3,
        "--top-p",
        0.9,
        "--json",
    )
    one, same, other = (json.loads(call(*arguments, "--seed", seed).stdout)["text"] for seed in (1, 1, 2))
    assert one == same != other
    stopped = call("run", scan_bundle, "walk around left twice", "--stop", " I_WALK", "--min-p", 0.1)
    assert stopped.stdout == "I_TURN_LEFT\n"
    assert "temperature" in call("run", scan_bundle, "walk", "--temperature", -1).stderr


def test_run_answers_in_json_of_a_schema(json_bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "schema.json").write_text('{"enum": ["nose", "ear"]}')
    result = call("run", json_bundle, "rattle", "--json-schema", tmp_path / "schema.json")
    assert json.loads(result.stdout) in ("nose", "ear")
    assert "expected a readable text file" in call("run", json_bundle, "rattle", "--json-schema", "nowhere").stderr


def test_a_profile_says_which_operators_took_the_time(scan_bundle: Path) -> None:
    result = call("run", scan_bundle, "walk around left twice", "--profile", "--threads", 1)
    assert result.stdout == " ".join(["I_TURN_LEFT I_WALK"] * 8) + "\n"
    lines = result.stderr.splitlines()
    (start,) = (number for number, line in enumerate(lines) if line.startswith("operator "))
    rows = [line.split() for line in lines[start + 1 :]]
    assert {"Mamba2Mixer", "MoE", "CachedAttention"} <= {row[0] for row in rows}
    shares = [float(row[3].rstrip("%")) for row in rows]
    assert shares == sorted(shares, reverse=True)
    assert abs(sum(shares) - 100) < 0.1 * len(rows)
    assert {int(row[1]) % 17 for row in rows if row[0] == "Mamba2Mixer"} == {0}  # a prompt's step and 16 tokens' ones


def test_bench_says_what_was_measured_and_its_bound(scan_bundle: Path) -> None:
    arguments = ("bench", scan_bundle, "--prompt", 64, "--answer", 16, "--rounds", 2, "--threads", 1)
    report = json.loads(call(*arguments, "--json").stdout)
    assert report["step_p50_ms"] <= report["step_p99_ms"]
    assert report["prefill_tokens_per_second"] == pytest.approx(64e3 / report["time_to_first_token_ms"])
    assert report["bound_tokens_per_second"] == report["memory_bytes_per_second"] / report["step_bytes"]
    assert 0 < report["step_bytes"] < (scan_bundle / "model.onnx.data").stat().st_size + (1 << 20)
    assert 0 < report["resident_bytes"] <= report["peak_bytes"]
    assert "decode" in call(*arguments).stdout
    assert "at most" in call("bench", scan_bundle, "--prompt", 10**6).stderr


def test_inspect(scan_bundle: Path) -> None:
    result = call("inspect", scan_bundle)
    assert result.returncode == 0
    assert "every hash matches" in result.stdout
    assert "nemotron_h" in result.stdout


def test_inspect_hashes_everything(scan_bundle: Path, tmp_path: Path) -> None:
    bundle = Path(shutil.copytree(scan_bundle, tmp_path / "bundle"))
    assert call("inspect", bundle).returncode == 0
    content = bytearray((bundle / WEIGHTS).read_bytes())
    content[len(content) // 2] ^= 1
    (bundle / WEIGHTS).write_bytes(content)
    assert "sha256" in call("inspect", bundle).stderr


@pytest.mark.parametrize(
    ("prompt", "expected"), [("", "some text"), (b"\xff\xfe", "UTF-8"), ("walk " * 500, "at most")]
)
def test_a_bad_prompt_ends_in_one_clear_line(scan_bundle: Path, prompt: str | bytes, expected: str) -> None:
    command = [*map(os.fsencode, EDGE_SDK), b"run", os.fsencode(scan_bundle), os.fsencode(prompt)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert result.returncode == 1
    assert result.stderr.splitlines()[-1].startswith("error: The prompt: expected")
    assert expected in result.stderr
    assert "Traceback" not in result.stderr


def test_a_missing_bundle_ends_in_one_clear_line(tmp_path: Path) -> None:
    result = call("run", tmp_path / "nowhere", "walk")
    assert result.returncode == 1
    assert result.stderr.startswith("error:")
    assert "Traceback" not in result.stderr


def test_drafts_that_cannot_be_verified_are_refused(scan_bundle: Path) -> None:
    result = call("run", scan_bundle, "jump", "--speculation", "lookup")
    assert result.returncode == 1
    assert "edge-export onnx --speculation" in result.stderr
    assert call("run", scan_bundle, "jump", "--speculation", "auto").stdout == "I_JUMP\n"


@pytest.mark.usefixtures("sigint_is_heard")
def test_sigint_ends_a_run_at_once_and_keeps_what_was_said(scan_bundle: Path) -> None:
    command = [*EDGE_SDK, "run", str(scan_bundle), "look around right thrice and jump around left thrice"]
    statuses: list[int] = []
    while len(statuses) < 40 and 130 not in statuses:  # a signal after the last token finds a finished run
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        assert process.stdout is not None
        said = os.read(process.stdout.fileno(), 4)
        process.send_signal(signal.SIGINT)
        rest, errors = process.communicate(timeout=30)
        assert (said + rest).startswith(b"I_TURN_RIGHT")
        assert b"Traceback" not in errors
        statuses.append(process.returncode)
    assert set(statuses) <= {0, 130}
    assert 130 in statuses
