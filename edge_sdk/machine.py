"""What a machine has, as far as its files and the CUDA driver say: processor, memory, Jetson, GPU."""

from __future__ import annotations

import ctypes
import os
import platform
import re
import threading
import time
from pathlib import Path

import msgspec
import numpy as np

BUFFER_BYTES = 512 << 20
"""What each thread reads: many times the size of any cache."""

DRIVER = "libcuda.so.1"

# CUdevice_attribute, in cuda.h
MULTIPROCESSORS, CAPABILITY_MAJOR, CAPABILITY_MINOR = 16, 75, 76

JETPACKS = {"35": "5", "36": "6", "38": "7", "39": "7"}
"""JetPack by the major version of its Linux, L4T."""


class Gpu(msgspec.Struct, frozen=True, kw_only=True):
    """A GPU, as the CUDA driver describes it."""

    name: str
    compute_capability: str
    """Such as ``8.7``."""
    multiprocessors: int
    memory_bytes: int
    driver_cuda: str
    """The newest CUDA that the driver runs, such as ``12.6``."""


class Machine(msgspec.Struct, frozen=True, kw_only=True):
    """One machine."""

    architecture: str
    cpu: str
    cores: int
    memory_bytes: int
    memory_free_bytes: int
    board: str
    """A Jetson's own name of itself, or nothing."""
    jetpack: str
    """``6 (L4T 36.4.3)``, or nothing where this is no Jetson."""
    gpus: tuple[Gpu, ...]
    gpu_missing: str
    """Why there is no GPU, where there is none."""


def read_machine(root: Path = Path("/")) -> Machine:
    """This machine; ``root`` is where its ``/proc`` and ``/etc`` are."""
    memory = _fields(_text(root / "proc/meminfo"))
    gpus, missing = read_gpus(root)
    return Machine(
        architecture=platform.machine(),
        cpu=_cpu(root),
        cores=len(os.sched_getaffinity(0)),
        memory_bytes=_kibibytes(memory.get("MemTotal", "")),
        memory_free_bytes=_kibibytes(memory.get("MemAvailable", "")),
        board=_text(root / "proc/device-tree/model").rstrip("\0\n"),
        jetpack=_jetpack(_text(root / "etc/nv_tegra_release")),
        gpus=gpus,
        gpu_missing=missing,
    )


def read_available_memory(root: Path = Path("/")) -> int | None:
    """Bytes that this process may still take: of the machine, and of each control group that it is in; None unknown."""
    meminfo = _fields(_text(root / "proc/meminfo"))
    found = [_kibibytes(meminfo["MemAvailable"])] if "MemAvailable" in meminfo else []
    for line in _text(root / "proc/self/cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers in ("", "memory"):
            top, names = root / "sys/fs/cgroup" / controllers, path.strip("/").split("/")
            groups = [top.joinpath(*names[:depth]) for depth in range(len(names) + 1)]
            found += [room for group in groups if (room := _room(group)) is not None]
    return min(found, default=None)


GROUP_FILES = {
    "memory.max": ("memory.current", "inactive_file"),
    "memory.limit_in_bytes": ("memory.usage_in_bytes", "total_inactive_file"),
}
"""What limits a control group: file, what it uses, and its entry in memory.stat that is given back; version 2, 1."""


def _room(group: Path) -> int | None:
    """Bytes that a control group may still take; None where it has no limit."""
    for limit, (usage, reclaimable) in GROUP_FILES.items():
        largest, used = _text(group / limit).strip(), _text(group / usage).strip()
        if largest.isdigit() and used.isdigit():
            fields = dict(line.split() for line in _text(group / "memory.stat").splitlines())
            return max(0, int(largest) - int(used) + int(fields.get(reclaimable, 0)))
    return None


def read_gpus(root: Path = Path("/")) -> tuple[tuple[Gpu, ...], str]:
    """The GPUs that the CUDA driver finds, or none and the reason."""
    try:
        cuda = ctypes.CDLL(DRIVER)
    except OSError:
        models = [
            _fields(_text(path)).get("Model", "") for path in (root / "proc/driver/nvidia/gpus").glob("*/information")
        ]
        if models:
            return (), f"the kernel sees {', '.join(models)}, but {DRIVER} is missing (a container without GPU access?)"
        return (), f"there is no NVIDIA driver ({DRIVER})"
    count = ctypes.c_int()
    status = cuda.cuInit(0) or cuda.cuDeviceGetCount(ctypes.byref(count))
    if status != 0:
        return (), f"the CUDA driver refused to start (error {status})"
    if count.value == 0:
        return (), "the CUDA driver finds none"
    return tuple(_gpu(cuda, index) for index in range(count.value)), ""


def read_bandwidth(threads: int, buffer_bytes: int = BUFFER_BYTES) -> float:
    """Bytes per second that so many threads read from memory: each finds a buffer's largest value; best of 5."""
    # of numpy's reductions the fastest here: or over int64, max over float32 and over bytes reach half to four fifths;
    # np.full and not np.zeros, whose pages would all be the one page of zeros
    buffers = [np.full(buffer_bytes // 4, 1, dtype=np.int32) for _ in range(threads)]
    seconds = []
    for _ in range(5):
        readers = [threading.Thread(target=np.maximum.reduce, args=(buffer,)) for buffer in buffers]
        started = time.perf_counter()
        for reader in readers:
            reader.start()
        for reader in readers:
            reader.join()
        seconds.append(time.perf_counter() - started)
    return threads * buffer_bytes / min(seconds)


def _gpu(cuda: ctypes.CDLL, index: int) -> Gpu:
    device, value, memory = ctypes.c_int(), ctypes.c_int(), ctypes.c_size_t()
    name = ctypes.create_string_buffer(256)
    cuda.cuDeviceGet(ctypes.byref(device), index)
    cuda.cuDeviceGetName(name, len(name), device)
    cuda.cuDeviceTotalMem_v2(ctypes.byref(memory), device)

    def attribute(number: int) -> int:
        cuda.cuDeviceGetAttribute(ctypes.byref(value), number, device)
        return value.value

    capability = f"{attribute(CAPABILITY_MAJOR)}.{attribute(CAPABILITY_MINOR)}"
    multiprocessors = attribute(MULTIPROCESSORS)
    cuda.cuDriverGetVersion(ctypes.byref(value))
    return Gpu(
        name=name.value.decode(),
        compute_capability=capability,
        multiprocessors=multiprocessors,
        memory_bytes=memory.value,
        driver_cuda=f"{value.value // 1000}.{value.value % 1000 // 10}",
    )


def _text(path: Path) -> str:
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""


def _fields(text: str) -> dict[str, str]:
    """Lines of the form ``name: value``; of several with one name the first."""
    fields: dict[str, str] = {}
    for line in text.splitlines():
        name, _, value = line.partition(":")
        fields.setdefault(name.strip(), value.strip())
    return fields


def _kibibytes(text: str) -> int:
    """``123 kB`` in bytes; 0 where there is no number."""
    digits = text.split()[:1]
    return int(digits[0]) * 1024 if digits else 0


def _cpu(root: Path) -> str:
    fields = _fields(_text(root / "proc/cpuinfo"))
    return fields.get("model name") or fields.get("Model") or platform.processor() or "unknown"


def _jetpack(release: str) -> str:
    """Of a line such as ``# R36 (release), REVISION: 4.3, ...``."""
    found = re.search(r"R(\d+) \(release\), REVISION: ([\d.]+)", release)
    if found is None:
        return ""
    major, revision = found.groups()
    return f"{JETPACKS.get(major, 'unknown')} (L4T {major}.{revision})"
