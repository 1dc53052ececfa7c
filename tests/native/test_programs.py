"""The native test program: with sanitizers, on a processor without extensions, and on Arm under qemu."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from builds import build, build_host, need
from devices import ptx_build
from places import ROOT

SANITIZED = "baseline;avx2;avxvnni;avx512_bf16;amx_emulated;neon"
"""What the sanitizers see: avx512 is avx512_bf16 without its bfloat16 products, and few processors have amx."""

TOOLCHAIN = ROOT / "plugins" / "toolchain-aarch64.cmake"


def run(*command: object, checks: int = 1000, timeout_s: float = 1200) -> str:
    """The output of a test program, which must have passed at least so many checks and failed none."""
    result = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False, timeout=timeout_s)
    assert result.returncode == 0, (result.stdout + result.stderr)[-5000:]
    passed = re.search(r"^(\d+) passed, 0 failed$", result.stdout, re.MULTILINE)
    assert passed is not None, result.stdout
    assert int(passed[1]) >= checks
    return result.stdout


@pytest.fixture(scope="module")
def plain() -> Path:
    """The program as it is compiled for users."""
    return build_host("native_test") / "native_test"


def test_runs_clean_under_the_sanitizers() -> None:
    folder = build("sanitized", "native_test", "-DEDGE_SANITIZE=address,undefined", f"-DEDGE_ISAS={SANITIZED}")
    output = run(folder / "native_test")
    assert "amx_emulated" in output


def test_no_two_tasks_touch_the_same_memory() -> None:
    need("setarch")
    folder = build("threads", "native_test", "-DEDGE_SANITIZE=thread", "-DEDGE_ISAS=baseline;neon")
    # gcc 12's thread sanitizer does not know the random addresses of new Linux kernels.
    output = run("setarch", "--addr-no-randomize", folder / "native_test")
    assert len(re.findall(r"^\w+: \d+ checks", output, re.MULTILINE)) == 1


def test_every_usable_instruction_set_agrees_with_the_reference(plain: Path) -> None:
    run(plain)


def test_a_million_steps_neither_drift_nor_allocate() -> None:
    run(build_host("soak_test") / "soak_test", checks=42)


def test_the_model_of_a_gpu_does_what_cuda_says() -> None:
    run(build_host("device_test") / "device_test", checks=11)


def test_the_machine_for_ptx_finds_what_is_wrong_with_kernels() -> None:
    run(ptx_build("ptx_test") / "ptx_test", checks=31)


def test_nothing_outside_the_kernels_needs_an_extension(plain: Path) -> None:
    """The linker keeps one copy of an inline function: it must not be one compiled for a newer processor."""
    need("qemu-x86_64-static")
    output = run("qemu-x86_64-static", "-cpu", "qemu64", plain)
    assert re.findall(r"^\w+(?=:)", output, re.MULTILINE) == ["baseline"]


@pytest.mark.parametrize(
    ("processor", "sets"),
    [("cortex-a57", ["neon"]), ("max", ["dotprod", "i8mm"])],
)
def test_runs_on_arm(processor: str, sets: list[str]) -> None:
    need("aarch64-linux-gnu-g++", "qemu-aarch64-static")
    options = (f"-DCMAKE_TOOLCHAIN_FILE={TOOLCHAIN}", "-DCMAKE_EXE_LINKER_FLAGS=-static")
    folder = build("aarch64", "native_test", *options)
    output = run("qemu-aarch64-static", "-cpu", processor, folder / "native_test", *sets)
    assert re.findall(r"^\w+(?=:)", output, re.MULTILINE) == sets


def test_the_library_for_onnx_runtime_compiles_for_arm() -> None:
    need("aarch64-linux-gnu-g++")
    folder = build("aarch64", "edge_plugins_ort", f"-DCMAKE_TOOLCHAIN_FILE={TOOLCHAIN}")
    exported = subprocess.run(
        ["aarch64-linux-gnu-nm", "-D", "--defined-only", folder / "libedge_plugins_ort.so"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert [line.split()[-1] for line in exported.stdout.splitlines()] == ["RegisterCustomOps"]
