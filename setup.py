"""Packaging: three rooms in one distribution. The ROS 2 room, ros_bridge/, is an ament package of its own.

The operators' kernels (plugins/CMakeLists.txt) are compiled into edge_plugins/native, and left out where that fails.
"""

from __future__ import annotations

import hashlib
import os
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import ClassVar, TextIO

from setuptools import Extension, find_packages, setup
from setuptools.command.build_ext import build_ext

HERE = Path(__file__).resolve().parent
VERSION = re.search(r'__version__ = "(.+)"', (HERE / "edge_sdk" / "__init__.py").read_text(encoding="utf-8"))[1]

ROOMS = {"edge_sdk": ".", "edge_plugins": "plugins", "edge_export": "export"}

# What `edge-export engine` needs besides TensorRT.
ENGINE = ["onnx>=1.19", "rich>=13.7", "typer>=0.15"]
TENSORRT_RTX = "tensorrt-rtx-cu13==1.7.1.116"

# Recordings of control runs.
CONTROL = ["mcap>=1.6,<2"]

# Robots on a serial line: docs/serial.md. Both vendors' SDKs bring pyserial.
SERIAL = ["cobs>=1.2", "pyserial>=3.5"]
DYNAMIXEL = ["dynamixel-sdk>=4.0"]
FEETECH = ["ftservo-python-sdk>=2.0"]

# LeRobot's datasets: tables and videos.
EPISODES = ["av>=15", "pyarrow>=15"]

# Without windows, which a robot does not open: docs/vision.md.
VISION = ["opencv-python-headless>=4.8"]

SERVER = ["prometheus-client>=0.20", "starlette>=0.40", "uvicorn>=0.30"]

# From the workstation to the boards, on both: docs/deploy.md.
DEPLOY = ["asyncssh>=2.18,<3", "cryptography>=42", "pyyaml>=6.0", "rich>=13.7"]

# Wheels for boards without internet: docs/offline.md.
PACK = ["auditwheel>=6.4", "pip>=23.1", "uv>=0.8"]

EXTRAS = {
    # One engine is enough on a robot.
    "cpu": ["onnxruntime>=1.23.2"],
    "gpu": ["onnxruntime-gpu>=1.23.2"],
    # TensorRT itself is JetPack's, and so is CUDA: 12 on JetPack 6 with Python 3.10, 13 on JetPack 7 with 3.12.
    # onnxruntime runs a bundle where no TensorRT engine was built yet.
    "jetson": [
        "onnxruntime>=1.23.2",
        "cuda-bindings>=12.8,<13; python_version < '3.12'",
        "cuda-bindings>=13; python_version >= '3.12'",
        *ENGINE,
    ],
    # Answers that follow a JSON schema, a regular expression or a grammar.
    "structured": ["llguidance>=1.9,<2"],
    # The tables of `edge-sdk plan`, which does without for --json.
    "plan": ["rich>=13.7"],
    # `edge-sdk serve`.
    "server": SERVER,
    # Gigabytes, for workstations.
    "tensorrt": ["tensorrt>=10.3", "cuda-bindings>=12.8", *ENGINE],
    "tensorrt-rtx": [TENSORRT_RTX, "cuda-bindings>=13", *ENGINE],
    "export": [
        "matplotlib>=3.8",
        "onnx>=1.18",
        "onnx-ir>=0.1.10",
        "onnxruntime>=1.23.2",
        "onnxscript>=0.5",
        "pyyaml>=6.0",
        "rich>=13.7",
        "safetensors>=0.5",
        "torch>=2.9",
        "typer>=0.15",
    ],
    # What `edge-export prune` and `distil` can read and write besides.
    "parquet": ["pyarrow>=15"],
    # Episodes that policies learn from: LeRobot's datasets.
    "episodes": EPISODES,
    "tensorboard": ["tensorboard>=2.16"],
    "test": [
        "cmake>=3.20",
        "colcon-ros>=0.5",
        "cyclonedds==11.0.1",
        "gymnasium[mujoco]>=1.1",
        "gymnasium-robotics>=1.4.2",
        "hypothesis>=6.100",
        "jsonschema>=4.20",
        "llguidance>=1.9,<2",
        "ml-dtypes>=0.5",
        "mujoco>=3,<3.9",  # with newer ones gymnasium-robotics 1.4.2 makes no environment
        "ninja>=1.11",
        "openai>=1.60",
        "pybind11>=2.12",
        "pytest>=8.0",
        "pytest-xdist>=3.7",
        "rosbags>=0.11.9,<0.12",
        "scipy>=1.11",
        "tensorboard>=2.16",
        f"{TENSORRT_RTX}; sys_platform == 'linux' and platform_machine == 'x86_64'",
        "transformers>=5.20",
        *CONTROL,
        *DEPLOY,
        *DYNAMIXEL,
        *EPISODES,
        *FEETECH,
        *PACK,
        *SERIAL,
        *VISION,
        *SERVER,
    ],
    "dev": ["mypy>=1.15", "pre-commit>=4.0", "ruff>=0.11"],
    "control": CONTROL,
    "deploy": DEPLOY,
    "pack": PACK,
    "serial": SERIAL,
    "dynamixel": DYNAMIXEL,
    "feetech": FEETECH,
    "vision": VISION,
}

PACKAGE = Path("edge_plugins", "native")
LIBRARY = "libedge_plugins_ort.so"
# Only where EDGE_SDK_CMAKE_ARGS asks for them.
TENSORRT_LIBRARIES = ("libedge_plugins_trt.so", "libedge_tensorrt_rtx_name.so")
LOG = "build.log"
MODULE = "_native" + (sysconfig.get_config_var("EXT_SUFFIX") or ".so")


class BuildNative(build_ext):
    """Compiles the kernels into the package.

    Environment: ``EDGE_SDK_REQUIRE_NATIVE=1`` makes a failed compile an error (or ``--require-native``);
    ``EDGE_SDK_CMAKE_ARGS`` is handed to CMake, such as ``-DEDGE_ISAS=baseline``; ``CXX`` chooses the compiler.
    """

    user_options: ClassVar = [*build_ext.user_options, ("require-native", None, "a failed compile is an error")]
    boolean_options: ClassVar = [*build_ext.boolean_options, "require-native"]

    def initialize_options(self) -> None:
        """Reads the environment, which pip hands through where it has no flag of ours."""
        super().initialize_options()
        self.require_native = os.environ.get("EDGE_SDK_REQUIRE_NATIVE", "") == "1"

    def run(self) -> None:
        """Compiles; on failure leaves the log in the package and says so once."""
        in_source = self.inplace or getattr(self, "editable_mode", False)
        target = HERE / "plugins" / PACKAGE if in_source else Path(self.build_lib).absolute() / PACKAGE
        target.mkdir(parents=True, exist_ok=True)
        log = target / LOG
        with one_at_a_time(build_folder()) as folder:
            try:
                with log.open("w", encoding="utf-8") as output:
                    compile_into(folder, target, output)
                if self.require_native and not (target / MODULE).exists():
                    raise OSError("The Python module needs pybind11 and Python.h, which is in Debian's python3-dev")
                log.unlink()
            except (OSError, subprocess.CalledProcessError) as error:
                with log.open("a", encoding="utf-8") as output:
                    output.write(f"\n{error}\n")
                self.complain(target, error)

    def complain(self, target: Path, error: Exception) -> None:
        """One warning, or an error where the kernels are required."""
        for stale in (LIBRARY, MODULE, *TENSORRT_LIBRARIES):
            (target / stale).unlink(missing_ok=True)  # older than the sources
        if self.require_native:
            sys.stderr.write((target / LOG).read_text(encoding="utf-8", errors="replace"))
            raise SystemExit(f"The native kernels did not compile: {error}")
        self.warn(
            "The native kernels did not compile; everything works without them, on the operators' function bodies, but "
            f"slower. The compiler's error: cat {shlex.quote(str(target / LOG))} (or the installed "
            f"{PACKAGE / LOG}), or install with EDGE_SDK_REQUIRE_NATIVE=1."
        )

    def get_outputs(self) -> list[str]:
        """The files that exist after :meth:`run`."""
        folder = Path(self.build_lib) / PACKAGE
        names = (LIBRARY, MODULE, *TENSORRT_LIBRARIES, LOG)
        return [str(folder / name) for name in names if (folder / name).exists()]

    def get_output_mapping(self) -> dict[str, str]:
        """Built file -> file in the source, for strict editable installs."""
        return {}

    def get_source_files(self) -> list[str]:
        """What a source distribution needs to build this."""
        files = [path for path in (HERE / "plugins").rglob("*") if path.suffix in (".cc", ".cu", ".cuh", ".h", ".map")]
        return [str(path.relative_to(HERE)) for path in [*files, HERE / "plugins" / "CMakeLists.txt"]]


def build_folder() -> Path:
    """Where the objects are kept between installs; settings from outside get a folder of their own."""
    settings = " ".join(os.environ.get(name, "") for name in ("CXX", "EDGE_SDK_CMAKE_ARGS")).strip()
    suffix = "-" + hashlib.sha256(settings.encode()).hexdigest()[:8] if settings else ""
    return HERE / "build" / f"native-{sysconfig.get_platform()}{suffix}"


@contextmanager
def one_at_a_time(folder: Path) -> Iterator[Path]:
    """Several installs of one checkout, side by side, compile once: the others wait and find it done."""
    import fcntl

    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield folder


def python_headers(folder: Path) -> list[str]:
    """Folders of pybind11 and Python.h; none where one is missing, which leaves out the module but not the library."""
    python = Path(sysconfig.get_paths()["include"])
    try:
        import pybind11
    except ImportError:
        return []
    if not (python / "Python.h").exists():
        return []
    # pip unpacks pybind11 anew for every install: a copy of our own keeps the module from being compiled every time.
    headers = folder / f"pybind11-{pybind11.__version__}"
    if not headers.exists():
        shutil.copytree(pybind11.get_include(), headers)
    return [str(headers), str(python)]


def compile_into(folder: Path, target: Path, output: TextIO) -> None:
    """Configures, builds and installs. Raises CalledProcessError or OSError."""
    if sys.platform != "linux":
        raise OSError(f"The kernels are for Linux, this is {sys.platform}")
    configure = ["cmake", "-S", str(HERE / "plugins"), "-B", str(folder), "-G", "Ninja"]
    configure += [f"-DCMAKE_MAKE_PROGRAM={shutil.which('ninja')}", f"-DCMAKE_INSTALL_PREFIX={target}"]
    configure += [
        f"-DEDGE_PYTHON_INCLUDE={';'.join(python_headers(folder))}",
        f"-DEDGE_PYTHON_SUFFIX={MODULE.removeprefix('_native')}",
        "-DEDGE_TESTS=OFF",  # the tests add theirs to this folder
        "-DEDGE_TRT=OFF",
    ]
    configure += shlex.split(os.environ.get("EDGE_SDK_CMAKE_ARGS", ""))
    for command in (configure, ["cmake", "--build", str(folder)], ["cmake", "--install", str(folder), "--strip"]):
        subprocess.run(command, check=True, stdout=output, stderr=subprocess.STDOUT)


packages = [
    package
    for room, folder in ROOMS.items()
    for package in find_packages(str(HERE / folder), include=[room, f"{room}.*"])
]

setup(
    name="edge-sdk",
    version=VERSION,
    description="Hybrid Mamba-2 / attention / mixture-of-experts models, from the workstation to the robot",
    long_description=(HERE / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.10",
    packages=packages,
    package_dir={room: f"{folder}/{room}".removeprefix("./") for room, folder in ROOMS.items()},
    package_data={
        "edge_sdk": ["py.typed", "control/firmware/*", "offline/install.sh"],
        "edge_plugins": ["py.typed", "native/_native.pyi"],
        "edge_export": ["py.typed"],
    },
    ext_modules=[Extension("edge_plugins.native._native", sources=[])],
    cmdclass={"build_ext": BuildNative},
    install_requires=["jinja2>=3.1", "msgspec>=0.19", "numpy>=1.26", "tokenizers>=0.21"],
    extras_require=EXTRAS,
    entry_points={
        "console_scripts": ["edge-sdk=edge_sdk.cli:main", "edge-export=edge_export.cli:main"],
        "edge_sdk.model_readers": ["checkpoint=edge_export.checkpoint:read_config"],
    },
)
