"""Our declaration of ONNX Runtime's C API against the official header, wherever one can be had."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from builds import build, need

KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
SOURCE = f"deb [signed-by={KEYRING}] http://deb.debian.org/debian trixie main\n"


def from_debian(folder: Path) -> Path:
    """The header out of Debian's libonnxruntime-dev, fetched with apt in a folder of its own and not installed."""
    need("apt-get", "dpkg-deb")
    if not KEYRING.exists():
        pytest.skip("no official header: set ONNXRUNTIME_INCLUDE_DIR (Debian's keys are not on this machine)")
    (folder / "sources.list").write_text(SOURCE)
    for part in ("state/lists/partial", "cache/archives/partial"):
        (folder / part).mkdir(parents=True)
    options = ["-o", f"Dir::Etc::SourceList={folder}/sources.list", "-o", "Dir::Etc::SourceParts=/dev/null"]
    options += ["-o", f"Dir::State={folder}/state", "-o", f"Dir::Cache={folder}/cache", "-o", "APT::Sandbox::User="]
    for command in (["update"], ["download", "libonnxruntime-dev"]):
        result = subprocess.run(
            ["apt-get", *options, *command], cwd=folder, capture_output=True, text=True, check=False, timeout=120
        )
        if result.returncode != 0:
            pytest.skip(f"no official header: set ONNXRUNTIME_INCLUDE_DIR ({result.stderr.strip()[-300:]})")
    (package,) = folder.glob("libonnxruntime-dev_*.deb")
    subprocess.run(["dpkg-deb", "-x", package, folder / "files"], check=True)
    (header,) = (folder / "files").rglob("onnxruntime_c_api.h")
    return header.parent


@pytest.fixture(scope="module")
def include(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the official header."""
    given = os.environ.get("ONNXRUNTIME_INCLUDE_DIR")
    return Path(given) if given else from_debian(tmp_path_factory.mktemp("header"))


def test_our_declaration_says_what_the_official_header_says(include: Path) -> None:
    build("official", "ort_slice_test", f"-DONNXRUNTIME_INCLUDE_DIR={include}", "-DEDGE_ISAS=baseline")


def test_the_library_compiles_with_the_official_header(include: Path) -> None:
    build("official", "ort_operators", f"-DONNXRUNTIME_INCLUDE_DIR={include}", "-DEDGE_ISAS=baseline")
