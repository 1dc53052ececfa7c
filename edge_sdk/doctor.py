"""``edge-sdk doctor``: what this machine has, which engine would run, and what to do about what is missing."""

from __future__ import annotations

import platform
import sys
from collections.abc import Iterator
from typing import Any

import msgspec

import edge_sdk
from edge_plugins import missing_reason, missing_tensorrt_reason, native_library, tensorrt_library
from edge_sdk.backends import engine_kinds
from edge_sdk.backends.ort_device import available_providers
from edge_sdk.backends.trt_module import MODULES, import_tensorrt
from edge_sdk.bundle import Bundle
from edge_sdk.control.realtime import RealtimeLimits, describe_limits, read_limits
from edge_sdk.engine_files import read_records
from edge_sdk.errors import BackendError
from edge_sdk.machine import Machine, read_machine

GIB = 1 << 30

ENGINES = {
    "tensorrt": "TensorRT, on the bundle's engine",
    "ort-cuda": "ONNX Runtime on the GPU, on the operators' function bodies",
    "ort-cpu": "ONNX Runtime on the CPU",
}


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """Everything that was found."""

    edge_sdk: str
    python: str
    machine: Machine
    onnxruntime: str
    """Its version; empty where there is none."""
    providers: list[str]
    kernels: list[str]
    """Instruction sets of the CPU kernels that this processor has, slowest first."""
    kernel_library: str
    tensorrt: dict[str, str]
    """Version by backend of each TensorRT that can be imported."""
    plugin_library: str
    engines: list[str]
    """Files of the bundle's TensorRT engines."""
    realtime: RealtimeLimits
    """What a control loop would be permitted."""
    would_run: list[str]
    """Kinds of engines in the order in which they are tried; empty without a bundle."""
    advice: list[str]
    """What is missing, and what to do."""


def examine(bundle: Bundle | None = None) -> Report:
    """Looks at this machine and, with a bundle, at what would run it."""
    machine, providers, tensorrt = read_machine(), available_providers(), _tensorrt_versions()
    library, plugins = native_library(), tensorrt_library()
    engines = [record.file for record in read_records(bundle)] if bundle else []
    return Report(
        edge_sdk=edge_sdk.__version__,
        python=f"{platform.python_version()} ({sys.executable})",
        machine=machine,
        onnxruntime=_onnxruntime_version(),
        providers=providers,
        kernels=_instruction_sets(),
        kernel_library=str(library or ""),
        tensorrt=tensorrt,
        plugin_library=str(plugins or ""),
        engines=engines,
        realtime=read_limits(),
        would_run=engine_kinds(bundle, "auto") if bundle else [],
        advice=list(
            _advice(
                machine,
                providers,
                tensorrt,
                has_kernels=library is not None,
                has_plugins=plugins is not None,
                engines=engines,
            )
        ),
    )


def _advice(
    machine: Machine,
    providers: list[str],
    tensorrt: dict[str, str],
    *,
    has_kernels: bool,
    has_plugins: bool,
    engines: list[str],
) -> Iterator[str]:
    """What is missing here, each with what to do; what is not needed on this machine is not missing."""
    if not providers:
        yield "No ONNX Runtime: pip install 'edge-sdk[cpu]'"
    if not has_kernels:
        yield f"No native CPU kernels: {missing_reason()}"
    if not machine.gpus:
        if machine.jetpack or "the kernel sees" in machine.gpu_missing:
            yield f"No GPU, though there should be one: {machine.gpu_missing}."
        return
    if "CUDAExecutionProvider" not in providers and not machine.jetpack:
        yield "ONNX Runtime cannot use the GPU: pip uninstall onnxruntime, then pip install 'edge-sdk[gpu]'"
    if not tensorrt:
        todo = (
            "make the virtual environment with --system-site-packages"
            if machine.jetpack
            else "pip install 'edge-sdk[tensorrt]'"
        )
        yield f"No TensorRT: {todo}"
    elif not has_plugins:
        yield f"No TensorRT plugins: {missing_tensorrt_reason()}"
    elif not engines:
        yield "No TensorRT engine: `edge-export engine BUNDLE` builds one, `edge-sdk doctor BUNDLE` looks for it"


def _tensorrt_versions() -> dict[str, str]:
    found = {}
    for backend in MODULES:
        try:
            found[str(backend)] = str(import_tensorrt(backend).__version__)
        except BackendError:
            continue
    return found


def _onnxruntime_version() -> str:
    try:
        import onnxruntime
    except ImportError:
        return ""
    return str(onnxruntime.__version__)


def _instruction_sets() -> list[str]:
    try:
        from edge_plugins.native import _native
    except ImportError:
        return []
    return _native.isas()


def describe(report: Report) -> str:
    """The report on one screen."""
    return "\n".join(f"{name:<13} {value}" for name, value in _lines(report))


def _lines(report: Report) -> Iterator[tuple[str, Any]]:
    machine = report.machine
    yield "Edge SDK", report.edge_sdk
    yield "Python", report.python
    yield "Board", machine.board or f"{machine.architecture}, no Jetson"
    if machine.jetpack:
        yield "JetPack", machine.jetpack
    yield "CPU", f"{machine.cpu}, {machine.cores} cores"
    yield "Memory", f"{machine.memory_bytes / GIB:.1f} GiB, {machine.memory_free_bytes / GIB:.1f} free"
    for gpu in machine.gpus:
        yield (
            "GPU",
            (
                f"{gpu.name}, compute capability {gpu.compute_capability}, {gpu.multiprocessors} multiprocessors, "
                f"{gpu.memory_bytes / GIB:.1f} GiB, driver for CUDA {gpu.driver_cuda}"
            ),
        )
    if not machine.gpus:
        yield "GPU", f"none: {machine.gpu_missing}"
    fastest = f" (uses {report.kernels[-1]})" if report.kernels else ""
    yield "CPU kernels", f"{report.kernel_library or 'none'}{fastest}"
    yield "ONNX Runtime", f"{report.onnxruntime}: {', '.join(report.providers)}" if report.onnxruntime else "none"
    yield "TensorRT", ", ".join(f"{name} {version}" for name, version in report.tensorrt.items()) or "none"
    yield "Plugins", report.plugin_library or "none"
    for file in report.engines:
        yield "Engine", file
    yield from describe_limits(report.realtime)
    if report.would_run:
        yield "Would run", ", else ".join(ENGINES[kind] for kind in report.would_run)
    for text in report.advice:
        yield "To do", text
