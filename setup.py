"""Packaging: three rooms in one distribution. The ROS 2 room, ros_bridge/, is an ament package of its own."""

import re
from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).parent
VERSION = re.search(r'__version__ = "(.+)"', (HERE / "edge_sdk" / "__init__.py").read_text(encoding="utf-8"))[1]

ROOMS = {"edge_sdk": ".", "edge_plugins": "plugins", "edge_export": "export"}

EXTRAS = {
    # One engine is enough on a robot.
    "cpu": ["onnxruntime>=1.23.2"],
    "gpu": ["onnxruntime-gpu>=1.23.2"],
    # TensorRT itself is JetPack's; this is the engine that runs where no TensorRT engine was built yet.
    "jetson": ["onnxruntime>=1.23.2"],
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
    "test": [
        "cyclonedds==11.0.1",
        "hypothesis>=6.100",
        "ml-dtypes>=0.5",
        "pytest>=8.0",
        "transformers>=5.20",
    ],
    "dev": ["mypy>=1.15", "pre-commit>=4.0", "ruff>=0.11"],
    # Named for what is to come, so that installation commands stay the same.
    "serial": ["pyserial>=3.5"],
    "vision": ["opencv-python>=4.8"],
    "server": [],
    "control": [],
}

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
    package_data={"edge_sdk": ["py.typed"], "edge_plugins": ["py.typed"], "edge_export": ["py.typed"]},
    install_requires=["jinja2>=3.1", "msgspec>=0.19", "numpy>=1.26", "tokenizers>=0.21"],
    extras_require=EXTRAS,
    entry_points={
        "console_scripts": ["edge-sdk=edge_sdk.cli:main", "edge-export=edge_export.cli:main"],
    },
)
