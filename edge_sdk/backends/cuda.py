"""The little of CUDA that an engine needs, on NVIDIA's ``cuda.bindings``: memory, copies, a stream, captured graphs."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Any

import numpy as np

from edge_sdk.backends.trt_layout import Copy
from edge_sdk.errors import BackendError, explain


class Cuda:
    """The CUDA runtime with one stream. Every error is a BackendError."""

    def __init__(self) -> None:
        try:
            from cuda.bindings import runtime
        except ImportError as error:
            raise BackendError(
                explain("CUDA", expected="cuda-bindings", found=error, todo="pip install cuda-bindings")
            ) from None
        self.runtime = runtime
        (self.stream,) = self.call(runtime.cudaStreamCreate)

    def call(self, function: Any, *arguments: Any) -> tuple[Any, ...]:
        """What a function of the runtime returns behind its status. Raises BackendError where that is not success."""
        status, *results = function(*arguments)
        if status != self.runtime.cudaError_t.cudaSuccess:
            _, said = self.runtime.cudaGetErrorString(status)
            raise BackendError(
                explain(
                    function.__name__,
                    expected="success",
                    found=said.decode() if isinstance(said, bytes) else said,
                    todo="`edge-sdk doctor` says what this machine has.",
                )
            )
        return tuple(results)

    def synchronize(self) -> None:
        """Waits for everything that was put into the stream."""
        self.call(self.runtime.cudaStreamSynchronize, self.stream)

    def upload(self, target: int, source: HostArray, size: int) -> None:
        """Puts the copy of ``size`` bytes to the device into the stream."""
        kind = self.runtime.cudaMemcpyKind.cudaMemcpyHostToDevice
        self.call(self.runtime.cudaMemcpyAsync, target, source.address, size, kind, self.stream)

    def download(self, target: HostArray, source: int, size: int) -> None:
        """Puts the copy of ``size`` bytes to the host into the stream."""
        kind = self.runtime.cudaMemcpyKind.cudaMemcpyDeviceToHost
        self.call(self.runtime.cudaMemcpyAsync, target.address, source, size, kind, self.stream)

    def copy(self, source: DeviceMemory, target: DeviceMemory, copy: Copy) -> None:
        """Puts a copy from device to device into the stream; its offsets count from the two memories' beginnings."""
        if copy.rows == 0 or copy.width == 0:
            return
        kind = self.runtime.cudaMemcpyKind.cudaMemcpyDeviceToDevice
        to, at = target.address + copy.target, source.address + copy.source
        pitches = (to, copy.target_pitch, at, copy.source_pitch)
        self.call(self.runtime.cudaMemcpy2DAsync, *pitches, copy.width, copy.rows, kind, self.stream)

    def capture(self, work: Callable[[], None]) -> Graph:
        """What ``work`` puts into the stream, to be launched again and again; it does not run now."""
        mode = self.runtime.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        self.call(self.runtime.cudaStreamBeginCapture, self.stream, mode)
        try:
            work()
        finally:  # ends the capture too where the work failed
            (graph,) = self.call(self.runtime.cudaStreamEndCapture, self.stream)
        (executable,) = self.call(self.runtime.cudaGraphInstantiate, graph, 0)
        self.call(self.runtime.cudaGraphDestroy, graph)
        return Graph(self, executable)


class DeviceMemory:
    """Memory of the GPU, freed with this object."""

    def __init__(self, cuda: Cuda, size: int) -> None:
        """``size`` bytes of zeros."""
        self._cuda, self.size = cuda, max(size, 1)
        (self.address,) = cuda.call(cuda.runtime.cudaMalloc, self.size)
        cuda.call(cuda.runtime.cudaMemsetAsync, self.address, 0, self.size, cuda.stream)

    def __del__(self) -> None:
        if hasattr(self, "address"):
            self._cuda.runtime.cudaFree(self.address)


class HostArray:
    """A flat numpy array in page-locked memory, which the GPU copies from and to by itself."""

    def __init__(self, cuda: Cuda, count: int, dtype: str) -> None:
        self._cuda, size = cuda, max(count * np.dtype(dtype).itemsize, 1)
        (self.address,) = cuda.call(cuda.runtime.cudaMallocHost, size)
        memory = memoryview((ctypes.c_uint8 * size).from_address(self.address))
        self.array = np.frombuffer(memory, dtype=dtype, count=count)

    def __del__(self) -> None:
        if hasattr(self, "address"):
            self._cuda.runtime.cudaFreeHost(self.address)


class Graph:
    """A captured CUDA graph."""

    def __init__(self, cuda: Cuda, executable: Any) -> None:
        self._cuda, self._executable = cuda, executable

    def launch(self) -> None:
        """Puts it into the stream."""
        self._cuda.call(self._cuda.runtime.cudaGraphLaunch, self._executable, self._cuda.stream)

    def __del__(self) -> None:
        self._cuda.runtime.cudaGraphExecDestroy(self._executable)
