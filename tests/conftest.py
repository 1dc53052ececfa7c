"""What several test folders share: where things lie, and a real bundle made by the real commands."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import settings

from devices import DEVICES, choose_device, usual_device
from once import made_once
from places import PLANNER, POLICIES, ROOT, ROVER, TEACHER, WORKSTATION

sys.path[:0] = [str(ROVER), str(POLICIES), str(ROOT / "ros_bridge"), str(ROOT / "benchmarks")]

# Each run draws the same examples: what turns red is the change. `--hypothesis-profile default` draws others.
settings.register_profile("reproducible", derandomize=True, deadline=None)
settings.load_profile("reproducible")


def pytest_addoption(parser: pytest.Parser) -> None:
    """Environments, bundles and GPUs other than those that the tests take by themselves."""
    parser.addoption(
        "--ros-python",
        type=Path,
        default=ROOT / ".venvs" / "ros" / "bin" / "python",
        help="an interpreter that has rclpy",
    )
    parser.addoption(
        "--device",
        default=usual_device(),
        choices=DEVICES,
        help="what the CUDA kernels run on: their PTX on the CPU, a model of a GPU, or this machine's GPU",
    )
    parser.addoption("--architectures", default="87,110", help="GPUs to compile the CUDA kernels for: Orin and Thor")
    parser.addoption("--scan-bundle", type=Path, help="a finished bundle of SCAN, to save the time of exporting one")


def pytest_configure(config: pytest.Config) -> None:
    """Chooses the device before anything is collected."""
    choose_device(config.getoption("--device"))


LONGEST = (
    *("test_programs", "test_gpu_code", "test_tensorrt_models", "test_training", "test_afternoon", "test_packaging"),
    *("test_packing", "test_installing", "test_chain", "test_dry_runs", "test_distributed", "test_weights"),
    *("test_official", "test_interfaces", "test_acceptance_export", "test_cuts"),
)
"""Files that take half a minute and more: those that wait for compilers, other processes, and whole models."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest first, so that no worker has one of them left when the others are done."""
    items.sort(key=lambda item: LONGEST.index(item.path.stem) if item.path.stem in LONGEST else len(LONGEST))


@pytest.fixture(scope="session")
def ros_python(request: pytest.FixtureRequest) -> Path:
    """The interpreter of the ROS environment."""
    path = Path(request.config.getoption("--ros-python"))
    if not path.exists():
        pytest.fail(f"{path} does not exist: run `make envs`")
    return path


def workstation(*command: object, timeout_s: float = 300) -> None:
    """Runs a command of the workstation's environment; what it says is shown if it fails."""
    program, *arguments = command
    path = WORKSTATION / str(program)
    if not path.exists():
        pytest.fail(f"{path} does not exist: run `make envs`")
    subprocess.run([str(path), *map(str, arguments)], check=True, timeout=timeout_s)


@pytest.fixture(scope="session")
def scan_bundle(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The shipped teacher as a float32 bundle, exported by the command line."""
    if finished := request.config.getoption("--scan-bundle"):
        return Path(finished)
    return made_once(tmp_path_factory, "scan", lambda folder: export(TEACHER, folder)) / "bundle"


@pytest.fixture(scope="session")
def planner_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The shipped model that says plans as JSON, as a float32 bundle."""
    return export(PLANNER, tmp_path_factory.mktemp("planner"))


def export(checkpoint: Path, folder: Path) -> Path:
    """A float32 bundle of a checkpoint, by the command line."""
    workstation("edge-export", "onnx", checkpoint, "--out", folder / "onnx")
    workstation("edge-export", "bundle", checkpoint, "--graph", folder / "onnx", "--out", folder / "bundle")
    return folder / "bundle"
