"""Files and directories that appear whole or not at all."""

from __future__ import annotations

import contextlib
import os
import threading
from pathlib import Path

import pytest

from edge_sdk import files


def test_a_file_is_replaced_only_when_all_went_well(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("old")

    def fail() -> None:
        with files.new_file(path) as new:
            new.write_text("half")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert path.read_text() == "old"
    with files.new_file(path) as new:
        new.write_text("new")
    assert path.read_text() == "new"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("exchange", [True, False])
def test_a_directory_is_replaced_as_a_whole(tmp_path: Path, exchange: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not exchange:
        monkeypatch.setattr("ctypes.CDLL", lambda name: object())
    path = tmp_path / "directory"
    for content in ("first", "second", "third"):
        with files.new_directory(path) as new:
            (new / content).write_text(content)
        assert [entry.name for entry in path.iterdir()] == [content]

    def fail() -> None:
        with files.new_directory(path) as new:
            (new / "half").write_text("half")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert [entry.name for entry in path.iterdir()] == ["third"]
    assert list(tmp_path.iterdir()) == [path]


def test_a_reader_never_finds_a_directory_missing_or_mixed(tmp_path: Path) -> None:
    path, stop = tmp_path / "directory", threading.Event()
    seen: set[frozenset[bytes]] = set()
    missing: list[OSError] = []

    def write(content: str) -> None:
        with files.new_directory(path) as new:
            for name in ("one", "two"):
                (new / name).write_text(content)

    def read() -> None:
        while not stop.is_set():
            try:
                folder = os.open(path, os.O_RDONLY)
            except OSError as error:
                missing.append(error)
                continue
            contents = []
            for name in ("one", "two"):
                # Once it is replaced, the old directory is emptied: what is gone by then says nothing.
                with contextlib.suppress(FileNotFoundError):
                    file = os.open(name, os.O_RDONLY, dir_fd=folder)
                    contents.append(os.read(file, 10))
                    os.close(file)
            os.close(folder)
            seen.add(frozenset(contents))

    write("0")
    reader = threading.Thread(target=read)
    reader.start()
    for number in range(1, 60):
        write(str(number))
    stop.set()
    reader.join()
    assert not missing
    assert all(len(contents) <= 1 for contents in seen)
    assert len(seen) > 3
