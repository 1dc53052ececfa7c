"""What ``edge-sdk pack-wheels`` collects, and what it refuses."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from packaging import tags

from boards import pack_wheels, with_kernels
from edge_plugins import native_library
from edge_sdk.errors import ConfigError, DeployError
from edge_sdk.offline.own_wheel import build_wheel, check_wheel
from edge_sdk.offline.pack import Request, describe_board, pack, resolve
from edge_sdk.offline.target import TARGETS, Target, target_named
from places import ROOT

BOARD_EXTRAS = (
    *("cpu", "jetson", "server", "structured", "plan", "vision", "deploy"),
    *("control", "episodes", "parquet", "serial", "dynamixel", "feetech"),
)
"""Those that Arm boards may have."""

NOWHERE = "http://127.0.0.1:9/simple"


@pytest.fixture(scope="module")
def plain_wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Edge SDK's wheel for Arm without kernels, which takes no compiler."""
    return build_wheel(ROOT, tmp_path_factory.mktemp("own"), Target(10, "aarch64", 28), kernels=False)


def test_a_target_takes_the_wheels_that_its_own_pip_would() -> None:
    options = target_named("this").pip_options()
    platforms = {options[index + 1] for index, option in enumerate(options) if option == "--platform"}
    assert set(tags.platform_tags()) <= platforms


@pytest.mark.parametrize("name", ["jetpack5", "3.10", "3.10-riscv64-2.35", "3.9-aarch64-2.31", "3.10-aarch64-2.17", ""])
def test_another_target_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match="The target: expected"):
        target_named(name)


@pytest.mark.parametrize("name", TARGETS)
def test_every_extra_of_a_board_has_wheels_for_it(plain_wheel: Path, name: str) -> None:
    """And markers are the board's: this very Python is neither of them."""
    resolved = resolve(Request(target=TARGETS[name], extras=BOARD_EXTRAS), plain_wheel)
    packages = {line.split("==")[0] for line in resolved.splitlines() if "==" in line}
    assert {"numpy", "onnxruntime", "onnx", "pyarrow", "opencv-python-headless", "ftservo-python-sdk"} <= packages
    assert ("exceptiongroup" in packages) == (name == "jetpack6")
    (cuda,) = (line for line in resolved.splitlines() if line.startswith("cuda-bindings=="))
    assert cuda.startswith("cuda-bindings==12." if name == "jetpack6" else "cuda-bindings==13.")


@pytest.mark.parametrize(
    ("extra", "todo"), [("gpu", "take the extra cpu or jetson"), ("tensorrt", "It comes with JetPack")]
)
def test_what_has_no_wheel_for_the_board_is_refused_and_says_where_it_is_from(
    plain_wheel: Path, tmp_path: Path, extra: str, todo: str
) -> None:
    with pytest.raises(DeployError, match=f"(?s)expected wheels for Python 3.10 on aarch64.*{todo}"):
        pack(Request(target=TARGETS["jetpack6"], extras=(extra,)), tmp_path / "pack", plain_wheel, kernels=False)
    assert list(tmp_path.iterdir()) == []


def test_without_internet_nothing_is_written(plain_wheel: Path, tmp_path: Path) -> None:
    result = pack_wheels(
        *("--target", "jetpack6", "--wheel", plain_wheel, "--without-kernels", "--out", tmp_path / "pack"),
        *("--index-url", NOWHERE),
        UV_HTTP_RETRIES="0",
        UV_NO_CACHE="1",
    )
    assert result.returncode == 1
    assert "The package index: expected an answer" in result.stderr
    assert "Packing needs internet" in result.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["pack", "pack.tar"])
def test_a_full_disk_leaves_nothing_behind(plain_wheel: Path, tmp_path: Path, name: str) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    packing = (
        '"$2" -m edge_sdk.cli pack-wheels --target jetpack6 --wheel "$3" --without-kernels --out "$1/$4"; ls -A "$1"'
    )
    script = f'mount -t tmpfs -o size=4m none "$1" || exit 77; {packing}'
    command = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", script, "sh"]
    if shutil.which("unshare") is None:
        pytest.skip("needs unshare for a small file system")
    arguments = [*command, disk, sys.executable, plain_wheel, name]
    result = subprocess.run(list(map(str, arguments)), capture_output=True, text=True, check=False)
    if result.returncode == 77 or "unshare failed" in result.stderr:
        pytest.skip(f"may not mount a small file system here: {result.stderr}")
    assert "The disk: expected room for the wheels, found none left" in result.stderr
    assert result.stdout == ""


def test_what_is_no_pack_is_not_replaced(plain_wheel: Path, tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("precious")
    with pytest.raises(DeployError, match="expected no file, or a pack, found another"):
        pack(Request(target=TARGETS["jetpack6"], extras=()), tmp_path, plain_wheel, kernels=False)
    assert (tmp_path / "mine").read_text() == "precious"


def test_a_wheel_without_kernels_says_why(plain_wheel: Path) -> None:
    with pytest.raises(DeployError, match=r"(?s)expected native kernels, found .*expected some of .*--without-kernels"):
        check_wheel(plain_wheel, TARGETS["jetpack6"])


def test_kernels_that_need_a_newer_system_are_refused(tmp_path: Path) -> None:
    this, library = target_named("this"), native_library()
    assert library is not None
    (tmp_path / "plain").mkdir()
    plain = build_wheel(ROOT, tmp_path / "plain", Target(10, this.machine, 28), kernels=False)
    wheel = with_kernels(plain, library, tmp_path)
    check_wheel(wheel, this)
    with pytest.raises(DeployError, match=r'(?s)glibc 2\.28 loads, found what needs "manylinux_2_\d+_'):
        check_wheel(wheel, Target(this.python, this.machine, 28))
    other = TARGETS["jetpack7"] if this.machine == "x86_64" else Target(12, "x86_64", 39)
    with pytest.raises(DeployError, match="expected a wheel for "):
        check_wheel(wheel, other)


def test_without_a_cross_compiler_it_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.setattr("platform.machine", lambda: "riscv64")
    with pytest.raises(DeployError, match="expected a compiler for aarch64, found no aarch64-linux-gnu-g"):
        build_wheel(ROOT, tmp_path, TARGETS["jetpack6"])


def test_the_board_is_described(tmp_path: Path) -> None:
    describe_board(tmp_path, TARGETS["jetpack6"], 2048)
    assert (tmp_path / "board.sh").read_text() == "python_version=3.10\nmachine=aarch64\nglibc=2.35\nneeded_kib=3\n"
