"""ONNX Runtime's execution providers, and where states lie for each: numpy's memory, or a GPU's."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from edge_sdk.errors import BackendError, explain

PROVIDERS = {
    "cpu": ("CPUExecutionProvider",),
    "cuda": ("CUDAExecutionProvider", "CPUExecutionProvider"),
    "tensorrt": ("TensorrtExecutionProvider", "CUDAExecutionProvider", "CPUExecutionProvider"),
}
"""By device, best first; what a provider cannot run goes to the next."""


class HostBuffers:
    """States as numpy arrays, which ONNX Runtime reads and writes where they lie."""

    def __init__(self, ort_value: Any) -> None:
        """``ort_value``: onnxruntime.OrtValue."""
        self._ort_value = ort_value

    def put(self, arrays: list[np.ndarray]) -> list[Any]:
        """Buffers with the arrays' content: the arrays themselves."""
        return arrays

    def arrays(self, buffers: Sequence[Any]) -> list[np.ndarray]:
        """The buffers' content."""
        return list(buffers)

    def share(self, buffer: Any) -> Any:
        """An OrtValue in a buffer's own memory."""
        return self._ort_value.ortvalue_from_numpy(buffer)


class DeviceBuffers:
    """States as OrtValues in a device's memory; as arrays they pass through the host."""

    def __init__(self, ort_value: Any, device: str) -> None:
        """``device``: onnxruntime's name of it, such as ``cuda``."""
        self._ort_value, self._device = ort_value, device

    def put(self, arrays: list[np.ndarray]) -> list[Any]:
        """Buffers with the arrays' content."""
        return [self._ort_value.ortvalue_from_numpy(array, self._device, 0) for array in arrays]

    def arrays(self, buffers: Sequence[Any]) -> list[np.ndarray]:
        """The buffers' content."""
        return [buffer.numpy() for buffer in buffers]

    def share(self, buffer: Any) -> Any:
        """The buffer, which is an OrtValue."""
        return buffer


def available_providers() -> list[str]:
    """What the installed onnxruntime was built with; nothing where none is installed."""
    try:
        import onnxruntime
    except ImportError:
        return []
    names: list[str] = onnxruntime.get_available_providers()
    return names


def providers_for(device: str, available: Sequence[str], cache: Path | None) -> list[Any]:
    """The providers for a device, with their settings. Raises BackendError where onnxruntime was built without them.

    ``cache``: where TensorRT keeps what it builds from the graph.
    """
    wanted = PROVIDERS[device]
    if wanted[0] not in available:
        raise BackendError(
            explain(
                f"ONNX Runtime on {device}",
                expected=wanted[0],
                found=", ".join(available),
                todo="pip uninstall onnxruntime, then pip install 'edge-sdk[gpu]'",
            )
        )
    settings: dict[str, str] = {}
    if device == "tensorrt" and cache is not None:
        settings = {"trt_engine_cache_enable": "1", "trt_engine_cache_path": str(cache)}
    return [(wanted[0], settings), *(name for name in wanted[1:] if name in available)]


def check_providers(device: str, running: Sequence[str]) -> None:
    """Raises BackendError where a session lacks its device: onnxruntime goes to the CPU with a mere note."""
    if PROVIDERS[device][0] not in running:
        raise BackendError(
            explain(
                f"ONNX Runtime on {device}",
                expected=f"{PROVIDERS[device][0]} to start",
                found=f"only {', '.join(running)}",
                todo="Install the CUDA and cuDNN that this onnxruntime-gpu needs, or use --device cpu.",
            )
        )
