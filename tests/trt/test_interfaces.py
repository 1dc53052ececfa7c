"""The plugins' interfaces: driven by a program of ours under the sanitizers, and compared with TensorRT's headers."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest

from builds import build, need, plugin_library


def run(program: Path, checks: int) -> str:
    """The output of a test program, which must have passed at least so many checks and failed none."""
    result = subprocess.run([program], capture_output=True, text=True, check=False, timeout=600)
    assert result.returncode == 0, (result.stdout + result.stderr)[-5000:]
    passed = re.search(r"^(\d+) passed, 0 failed$", result.stdout, re.MULTILINE)
    assert passed is not None, result.stdout
    assert int(passed[1]) >= checks
    return result.stdout


def test_the_plugins_do_what_their_interfaces_ask_under_the_sanitizers() -> None:
    options = ("-DEDGE_TRT=ON", "-DEDGE_ISAS=baseline", "-DEDGE_SANITIZE=address,undefined")
    run(build("trt-sanitized", "trt_test", *options) / "trt_test", checks=384)


def test_the_library_exports_two_functions_and_needs_no_library_of_nvidia() -> None:
    library = plugin_library()
    exported = subprocess.run(["nm", "-D", "--defined-only", library], capture_output=True, text=True, check=True)
    assert [line.split()[-1] for line in exported.stdout.splitlines()] == ["getCreators", "setLoggerFinder"]
    needed = subprocess.run(["objdump", "-p", library], capture_output=True, text=True, check=True)
    assert not re.search(r"NEEDED.*(nvinfer|tensorrt|cuda)", needed.stdout)


HEADERS = [
    Path(root)
    for root in [*filter(None, os.environ.get("TENSORRT_ROOT", "").split(os.pathsep)), "/usr"]
    if [*Path(root).glob("include/NvInferRuntime.h"), *Path(root).glob("include/*-linux-gnu/NvInferRuntime.h")]
]
"""TensorRT's own headers: JetPack's or Debian's in the system, others (several with colons) by TENSORRT_ROOT."""


@pytest.mark.skipif(not HEADERS, reason="no headers of TensorRT: set TENSORRT_ROOT")
@pytest.mark.parametrize("root", HEADERS, ids=str)
def test_our_declaration_says_what_the_official_headers_say(root: Path) -> None:
    need("nvcc")  # they include CUDA's headers
    folder = build(
        f"trt-{root.name}", "trt_slice_test", "-DEDGE_TRT=ON", "-DEDGE_ISAS=baseline", f"-DTENSORRT_ROOT={root}"
    )
    run(folder / "trt_slice_test", checks=45)


@pytest.mark.skipif(not HEADERS, reason="no headers of TensorRT: set TENSORRT_ROOT")
@pytest.mark.parametrize("root", HEADERS, ids=str)
def test_the_plugins_compile_with_the_official_headers(root: Path) -> None:
    need("nvcc")
    folder = build(f"trt-{root.name}", "trt_test", "-DEDGE_TRT=ON", "-DEDGE_ISAS=baseline", f"-DTENSORRT_ROOT={root}")
    run(folder / "trt_test", checks=384)
