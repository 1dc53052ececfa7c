"""A bundle's files are hashed once, and again when they were touched in any way."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import edge_sdk
from edge_sdk import Bundle, hashed_files
from edge_sdk.bundle import ENGINES, HASHED, WEIGHTS
from edge_sdk.errors import BundleError
from edge_sdk.files import sha256
from edge_sdk.text import TOKENIZER_FILE


@pytest.fixture
def copy(scan_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A bundle to touch; what was just written counts as long settled."""
    monkeypatch.setattr(hashed_files, "SETTLED_NS", -(10**9))
    return Path(shutil.copytree(scan_bundle, tmp_path / "bundle", ignore=shutil.ignore_patterns(ENGINES)))


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of files as they are hashed."""
    names: list[str] = []

    def noted(path: Path) -> str:
        names.append(path.name)
        return sha256(path)

    monkeypatch.setattr(hashed_files, "sha256", noted)
    return names


def test_a_second_start_reads_no_file_again(copy: Path, read: list[str]) -> None:
    files = set(edge_sdk.load(copy, threads=1).bundle.manifest.files)
    assert set(read) == files
    read.clear()
    edge_sdk.load(copy, threads=1)
    assert read == []
    (copy / TOKENIZER_FILE).touch()
    edge_sdk.load(copy, threads=1)
    assert read == [TOKENIZER_FILE]


def in_place(path: Path, content: bytes) -> None:
    with path.open("r+b") as file:
        file.write(content)


def by_renaming(path: Path, content: bytes) -> None:
    path.with_name("new").write_bytes(content)
    os.replace(path.with_name("new"), path)


@pytest.mark.parametrize("write", [in_place, by_renaming])
def test_a_change_is_noticed_though_size_and_time_are_as_before(
    copy: Path, write: Callable[[Path, bytes], None]
) -> None:
    Bundle.open(copy, remember=True)
    path = copy / WEIGHTS
    before, content = path.stat(), bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    write(path, bytes(content))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert (path.stat().st_size, path.stat().st_mtime_ns) == (before.st_size, before.st_mtime_ns)
    for _ in range(2):  # what was refused is not remembered
        with pytest.raises(BundleError, match="sha256"):
            Bundle.open(copy, remember=True)


def test_who_asks_for_it_gets_every_file_hashed(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Bundle.open(copy, remember=True)
    monkeypatch.setattr("edge_sdk.bundle.sha256", lambda path: "0" * 64)
    Bundle.open(copy, remember=True)
    with pytest.raises(BundleError, match="sha256"):
        Bundle.open(copy)


def test_what_was_just_written_is_not_noted(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hashed_files, "SETTLED_NS", 3600 * 10**9)
    Bundle.open(copy, remember=True)
    assert not (copy / ENGINES / HASHED).exists()


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(note=st.binary(max_size=60) | st.sampled_from([b"{}", b"null", b'{"model.onnx": {"sha256": "0"}}']))
def test_a_damaged_note_knows_nothing(copy: Path, read: list[str], note: bytes) -> None:
    (copy / ENGINES).mkdir(exist_ok=True)
    (copy / ENGINES / HASHED).write_bytes(note)
    read.clear()
    bundle = Bundle.open(copy, remember=True)
    assert set(read) == set(bundle.manifest.files)


def test_where_nothing_may_be_written_files_are_hashed_each_time(copy: Path, read: list[str]) -> None:
    (copy / ENGINES).write_text("in the way")
    files = set(Bundle.open(copy, remember=True).manifest.files)
    read.clear()
    Bundle.open(copy, remember=True)
    assert set(read) == files
