"""A pack for a machine like this one, installed without network; a wrong pack or board is found before."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

import edge_sdk
from boards import install, pack_wheels
from edge_sdk.offline.pack import write_sums

COMMANDS = ["jump twice and walk left", "run around right thrice", "turn opposite left after look"]
PYTHON = ("--python", sys.executable)


@pytest.fixture(scope="module")
def pack(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The pack, from its archive."""
    folder = tmp_path_factory.mktemp("with blank")
    result = pack_wheels("--target", "this", "--extras", "cpu", "--out", folder / "edge.tar")
    assert result.returncode == 0, result.stderr[-5000:]
    assert re.match(r".*edge\.tar: \d+ wheels for Python 3\.\d+ on \w+ with glibc", result.stdout)
    with tarfile.open(folder / "edge.tar") as archive:
        archive.extractall(folder, filter="data")
    assert [path.name for path in folder.iterdir() if path.name.startswith(".")] == []
    return folder / "edge"


@pytest.fixture(scope="module")
def installed(pack: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("board") / "edge"
    result = install(pack, *PYTHON, folder)
    assert result.returncode == 0, result.stdout + result.stderr
    assert result.stdout.splitlines()[1:] == [f"Edge SDK {edge_sdk.__version__} ", f"{folder}/bin/edge-sdk"]
    return folder


@pytest.fixture
def other(pack: Path, tmp_path: Path) -> Path:
    """A copy of the pack, to be spoiled."""
    return Path(shutil.copytree(pack, tmp_path / "other", copy_function=os.link))


def clean() -> dict[str, str]:
    """An environment without this checkout."""
    return {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}


def refused(pack: Path, folder: Path, *arguments: object) -> str:
    """Why install.sh refuses, which leaves nothing behind."""
    result = install(pack, *(arguments or PYTHON), folder)
    assert result.returncode != 0
    assert not folder.exists()
    assert list(folder.parent.glob(f"{folder.name}.versions/*")) == []
    return result.stderr


def test_the_installed_command_answers_as_this_environment_does(installed: Path, scan_bundle: Path) -> None:
    model = edge_sdk.load(scan_bundle, threads=1)
    for command in COMMANDS:
        run = [installed / "bin" / "edge-sdk", "run", scan_bundle, command]
        result = subprocess.run(list(map(str, run)), env=clean(), capture_output=True, text=True, check=False)
        assert result.stdout.strip() == model.generate(command).text, result.stderr
    assert "the edge operators run on native kernels" in result.stderr


def test_nothing_of_this_checkout_is_in_it(installed: Path) -> None:
    code = "import edge_sdk, numpy, pip; print(edge_sdk.__file__, numpy.__file__, pip.__file__, sep='\\n')"
    said = subprocess.run(
        [installed / "bin" / "python", "-I", "-c", code], env=clean(), capture_output=True, text=True, check=True
    )
    assert all(Path(line).resolve().is_relative_to(installed.resolve()) for line in said.stdout.splitlines())


def test_installing_again_turns_the_link_and_keeps_the_last_one(pack: Path, installed: Path) -> None:
    seen = [installed.resolve()]
    for _ in range(2):
        assert install(pack, *PYTHON, installed).returncode == 0
        seen.append(installed.resolve())
    assert len(set(seen)) == 3
    assert sorted(installed.with_name("edge.versions").iterdir()) == sorted(seen[1:])


def test_a_virtual_environment_is_installed_into(pack: Path, tmp_path: Path) -> None:
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", tmp_path / "mine"], check=True)
    assert install(pack, tmp_path / "mine").returncode == 0
    assert not (tmp_path / "mine.versions").exists()
    subprocess.run([tmp_path / "mine" / "bin" / "edge-sdk", "--version"], env=clean(), check=True)


def test_another_folder_is_left_alone(pack: Path, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "file").write_text("precious")
    result = install(pack, *PYTHON, tmp_path / "mine")
    assert result.returncode != 0
    assert "expected nothing, or a virtual environment, found another" in result.stderr
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["file"]


def test_an_altered_wheel_is_refused(other: Path, tmp_path: Path) -> None:
    wheel = next((other / "wheels").glob("jinja2-*.whl"))
    content = bytearray(wheel.read_bytes())
    content[len(content) // 2] ^= 1
    wheel.unlink()  # it is a link
    wheel.write_bytes(content)
    assert f"wheels/{wheel.name}: FAILED" in refused(other, tmp_path / "edge")
    (other / "SHA256SUMS").unlink()
    write_sums(other)  # whoever could alter this too meets pip's own check
    assert "DO NOT MATCH THE HASHES" in refused(other, tmp_path / "edge")


def test_a_missing_wheel_is_refused(other: Path, tmp_path: Path) -> None:
    next((other / "wheels").glob("numpy-*.whl")).unlink()
    assert "numpy" in refused(other, tmp_path / "edge")


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("python_version=3.99", "expected Python 3.99, found 3."),
        ("machine=riscv64", "This board: expected riscv64, found "),
        ("glibc=2.99", "This board: expected glibc 2.99 or newer, found 2."),
        ("needed_kib=99999999999", "expected 99999999999 KiB, found "),
    ],
)
def test_another_board_is_refused(other: Path, tmp_path: Path, line: str, said: str) -> None:
    board = (other / "board.sh").read_text()
    (other / "board.sh").unlink()
    (other / "board.sh").write_text(f"{board}{line}\n")
    (other / "SHA256SUMS").unlink()
    write_sums(other)
    assert said in refused(other, tmp_path / "edge")


def test_a_python_that_does_not_run_is_refused(pack: Path, tmp_path: Path) -> None:
    assert "expected Python 3." in refused(pack, tmp_path / "edge", "--python", "/nowhere/python")
