"""The benchmark of long contexts: what it measures, how it goes on, and where it stops."""

from __future__ import annotations

import sys
from pathlib import Path

import msgspec
import pytest

import llm_checkpoints
import long_context
from long_context import Course, Results
from test_cpu_llm import FAKE_LLAMA_BENCH


def run(*arguments: object) -> None:
    long_context.main([str(argument) for argument in arguments])


def results_of(folder: Path) -> Results:
    return msgspec.json.decode((folder / "results.json").read_bytes(), type=Results)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where 1,200 tokens were read of a tiny model by ours, with both caches."""
    folder = tmp_path_factory.mktemp("long")
    run(folder, "--size", "tiny", "--tokens", 1200, "--threads", 1, "--contenders", "ours-float16", "ours-int8")
    return folder


def test_each_mark_is_measured(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    courses = results_of(folder).courses
    assert list(courses) == ["ours-float16", "ours-int8"]
    for course in courses.values():
        assert [mark.tokens for mark in course.marks] == [1000, 1200]
        assert course.ending == "done"
        for mark in course.marks:
            assert mark.step_ms > 0
            assert mark.prefill_tokens_per_second > 0
            assert 2**20 < mark.resident_bytes <= mark.peak_bytes
    written = (folder / "results.json").read_bytes()
    capsys.readouterr()
    run(folder, "--size", "tiny", "--tokens", 1200, "--threads", 1, "--contenders", "ours-float16", "ours-int8")
    assert (folder / "results.json").read_bytes() == written  # all were done
    table = capsys.readouterr().out
    first = courses["ours-int8"].marks[0]
    assert f"| ours-int8 | 1,000 | {first.step_ms:.2f} | {first.prefill_tokens_per_second:,.0f} |" in table
    assert "bfloat16" not in table


def test_other_settings_are_not_mixed(folder: Path) -> None:
    with pytest.raises(SystemExit, match="another --json"):
        run(folder, "--tokens", 1300, "--threads", 1)
    with pytest.raises(SystemExit, match="expected --llama-bench and --gguf"):
        run(folder, "--gguf", "model.gguf")


def test_who_is_slow_is_stopped_and_who_was_cut_off_begins_anew(folder: Path) -> None:
    results = results_of(folder)
    results.settings["limit_s"] = 0
    results.courses = {"ours-int8": Course("old", [], "")}
    path = folder / "stopped.json"
    path.write_bytes(msgspec.json.encode(results))
    options = ("--tokens", 1200, "--threads", 1, "--limit-s", 0, "--json", path)
    run(folder, *options, "--contenders", "ours-int8")
    course = msgspec.json.decode(path.read_bytes(), type=Results).courses["ours-int8"]
    assert course.marks == []
    assert "0 tokens read when 0 s" in course.ending
    assert "Edge SDK" in course.version


def test_transformers_and_llama_bench_are_asked_for_the_same(folder: Path) -> None:
    program = folder / "llama-bench"
    program.write_text(FAKE_LLAMA_BENCH.format(python=sys.executable))
    program.chmod(0o755)
    path = folder / "theirs.json"
    options = ["--llama-bench", program, "--gguf", folder / "model.gguf", "--json", path, "--size", "tiny"]
    run(folder, *options, "--tokens", 1200, "--contenders", "llama.cpp", "transformers")
    courses = msgspec.json.decode(path.read_bytes(), type=Results).courses
    llama, transformers = courses["llama.cpp"], courses["transformers"]
    assert llama.version == "llama.cpp 0123abc"
    assert [mark.tokens for mark in llama.marks] == [mark.tokens for mark in transformers.marks] == [1000, 1200]
    assert llama.marks[0].prefill_tokens_per_second == long_context.LLAMA_PREFILL  # the program says: one second
    assert llama.marks[0].step_ms == 1000 / long_context.STEPS
    assert transformers.version.startswith("transformers")
    assert courses["transformers"].ending == llama.ending == "done"


def test_a_program_that_takes_too_long_is_ended(folder: Path, tmp_path: Path) -> None:
    program = tmp_path / "llama-bench"
    program.write_text("#!/bin/sh\nsleep 60\n")
    program.chmod(0o755)
    options = ["--llama-bench", program, "--gguf", "model.gguf", "--json", tmp_path / "results.json"]
    run(folder, *options, "--limit-s", 0, "--contenders", "llama.cpp")
    results = msgspec.json.decode((tmp_path / "results.json").read_bytes(), type=Results)
    assert results.courses["llama.cpp"].ending == "1,000 tokens were not read in 0 s"


def test_the_model_has_room_for_a_million() -> None:
    config = llm_checkpoints.SIZES[long_context.SIZE]
    assert config.max_length >= long_context.MARKS[-1] + len(long_context.MARKS) * 22
    assert config.parameters() == 24_675_296
