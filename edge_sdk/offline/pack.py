"""A folder with all wheels that a board needs, and a script that installs them there without internet.

    install.sh         verifies, then makes a virtual environment
    SHA256SUMS         of every other file, as `sha256sum --check` reads it
    board.sh           what the board must be, as install.sh reads it
    requirements.txt   every package in its version, with the hash of its wheel, as pip reads it
    wheels/            pip's own among them

uv chooses the versions, since pip takes environment markers from the Python that runs it
(https://github.com/pypa/pip/issues/11664); pip downloads and installs them.
"""

from __future__ import annotations

import shutil
import tarfile
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec

from edge_sdk.errors import DeployError, explain
from edge_sdk.files import new_directory, new_file, sha256
from edge_sdk.offline.commands import run_module
from edge_sdk.offline.own_wheel import build_wheel, check_wheel
from edge_sdk.offline.target import Target

INSTALL = "install.sh"
BOARD = "board.sh"
REQUIREMENTS = "requirements.txt"
SUMS = "SHA256SUMS"
WHEELS = "wheels"
SCRIPT = Path(__file__).with_name(INSTALL)


class Request(msgspec.Struct, frozen=True, kw_only=True):
    """What is to be packed."""

    target: Target
    extras: tuple[str, ...]
    """Of Edge SDK, such as ``cpu``."""
    packages: tuple[str, ...] = ()
    """Besides, as pip writes them, such as ``pyserial>=3.5``."""
    find_links: tuple[str, ...] = ()
    """Folders or pages with more wheels."""
    index_url: str = ""
    """In place of PyPI."""

    def indexes(self) -> list[str]:
        """As both pip and uv are told where to look."""
        options = [f"--find-links={place}" for place in self.find_links]
        return options + ([f"--index-url={self.index_url}"] if self.index_url else [])


class Pack(msgspec.Struct, frozen=True):
    """What was packed."""

    path: Path
    wheels: int
    wheel_bytes: int
    installed_bytes: int
    """Of the files in the wheels; the board's Python adds its compiled ones."""


def pack(request: Request, out: Path, own: Path, *, kernels: bool = True) -> Pack:
    """Writes a pack to a folder, or to an archive if ``out`` ends in ``.tar``; one that is there is replaced.

    ``own`` is Edge SDK's wheel for the target, or the checkout that it is built from, with or without kernels.
    Raises DeployError; then what was at ``out`` is as it was.
    """
    _check_place(out)
    try:
        with _staging(out) as folder:
            wheels = folder / WHEELS
            wheels.mkdir()
            if own.is_dir():
                wheel = build_wheel(own, wheels, request.target, kernels=kernels)
            else:
                wheel = Path(shutil.copy(own, wheels))
            if kernels:
                check_wheel(wheel, request.target)
            download(resolve(request, wheel), request, wheels)
            return _describe(folder, request.target, out)
    except OSError as error:
        todo = "Make room, or choose another place with --out; what was there is as it was."
        raise DeployError(
            explain(str(out), expected="a place to write", found=error.strerror or error, todo=todo)
        ) from None


def resolve(request: Request, own: Path) -> str:
    """The versions and hashes of everything that Edge SDK's wheel needs on the target, as pip reads them.

    Raises DeployError.
    """
    requirements = [f"edge-sdk[{','.join(request.extras)}] @ {own.resolve().as_uri()}", "pip>=23.1", *request.packages]
    with tempfile.TemporaryDirectory() as scratch:
        (Path(scratch) / "in.txt").write_text("\n".join(requirements) + "\n", encoding="utf-8")
        return run_module(
            *("uv", "pip", "compile", "--quiet", "--no-header", "--no-annotate", "--generate-hashes"),
            *("--only-binary=:all:", "--no-emit-package=edge-sdk", f"--python-version=3.{request.target.python}"),
            *(f"--python-platform={request.target.uv_platform}", *request.indexes(), Path(scratch) / "in.txt"),
            target=request.target,
        )


def download(resolved: str, request: Request, folder: Path) -> None:
    """Downloads the wheels of :func:`resolve`'s answer into a folder. Raises DeployError."""
    with tempfile.TemporaryDirectory() as scratch:
        (Path(scratch) / REQUIREMENTS).write_text(resolved, encoding="utf-8")
        run_module(
            *("pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps", "--only-binary=:all:"),
            *("--require-hashes", "--requirement", Path(scratch) / REQUIREMENTS, "--dest", folder),
            *(*request.target.pip_options(), *request.indexes()),
            target=request.target,
        )


def _check_place(out: Path) -> None:
    """Raises DeployError where something else than a pack is."""
    is_pack = (out / SUMS).is_file() and (out / INSTALL).is_file()
    if out.exists() and not is_pack and not (out.suffix == ".tar" and out.is_file()):
        raise DeployError(
            explain(str(out), expected="no file, or a pack", found="another", todo="Choose another --out.")
        )


@contextmanager
def _staging(out: Path) -> Iterator[Path]:
    """A folder that becomes the pack when the block ends without an error."""
    out.parent.mkdir(parents=True, exist_ok=True)
    if out.suffix != ".tar":
        with new_directory(out) as folder:
            yield folder
        return
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}.") as scratch:
        folder = Path(scratch) / out.stem
        folder.mkdir()
        yield folder
        with new_file(out) as file, tarfile.open(file, "w") as archive:
            archive.add(folder, arcname=folder.name)


def _describe(folder: Path, target: Target, out: Path) -> Pack:
    """Writes what stands beside the wheels."""
    wheels = sorted((folder / WHEELS).iterdir())
    lines = [f"{_requirement(wheel)} --hash=sha256:{sha256(wheel)}\n" for wheel in wheels]
    (folder / REQUIREMENTS).write_text("".join(lines), encoding="utf-8")
    installed = sum(_unpacked_bytes(wheel) for wheel in wheels)
    describe_board(folder, target, installed)
    shutil.copy(SCRIPT, folder)
    write_sums(folder)
    return Pack(out, len(wheels), sum(wheel.stat().st_size for wheel in wheels), installed)


def describe_board(folder: Path, target: Target, installed_bytes: int) -> None:
    """Writes what install.sh asks of the board."""
    needed_kib = installed_bytes * 3 // 2 // 1024  # with what Python compiles
    text = (
        f"python_version=3.{target.python}\nmachine={target.machine}\nglibc=2.{target.glibc}\nneeded_kib={needed_kib}\n"
    )
    (folder / BOARD).write_text(text, encoding="utf-8")


def write_sums(folder: Path) -> None:
    """Writes SHA256SUMS."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != SUMS)
    lines = [f"{sha256(path)}  {path.relative_to(folder)}\n" for path in files]
    (folder / SUMS).write_text("".join(lines), encoding="utf-8")


def _requirement(wheel: Path) -> str:
    """``name==version``, by the file's name (PEP 427)."""
    name, version = wheel.name.split("-")[:2]
    return f"{name}=={version}"


def _unpacked_bytes(wheel: Path) -> int:
    with zipfile.ZipFile(wheel) as archive:
        return sum(entry.file_size for entry in archive.infolist())
