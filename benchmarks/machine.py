"""What a benchmark says about the machine that it runs on."""

from __future__ import annotations

import platform
import time
from pathlib import Path

import numpy as np
import onnx
import onnxruntime

READER_PRODUCTS, READER_WIDTH = 40, 1024
"""A reader's products, and the width of their matrices: 160 MiB in float32, about what a decode step reads."""


def processor() -> str:
    """The processor's name and the number of its cores that this process may use."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    return f"{names[0]}, {len(names)} cores" if names else platform.machine()


def busy(seconds: float) -> float:
    """Share of all cores' time that was used, by whatever runs, while this process slept for so long."""

    def ticks() -> tuple[int, int]:
        user, nice, system, idle, waiting, *others = map(
            int, Path("/proc/stat").read_text().split("\n")[0].split()[1:9]
        )
        return user + nice + system + sum(others), idle + waiting

    used, idle = ticks()
    time.sleep(seconds)
    used, idle = (after - before for after, before in zip(ticks(), (used, idle)))
    return used / max(1, used + idle)


class Reader:
    """A decode step that is not ours: stock ONNX Runtime takes a vector through a chain of float32 matrices.

    It does nothing but read memory with so many threads of the same pool: what its times vary by is the machine's.
    """

    def __init__(self, threads: int) -> None:
        rng = np.random.default_rng(0)
        shape = (READER_WIDTH, READER_WIDTH)
        weights = [
            onnx.numpy_helper.from_array(rng.standard_normal(shape, dtype=np.float32) / READER_WIDTH**0.5, f"w{index}")
            for index in range(READER_PRODUCTS)
        ]
        nodes = [
            onnx.helper.make_node("MatMul", [f"x{index}", f"w{index}"], [f"x{index + 1}"])
            for index in range(READER_PRODUCTS)
        ]
        ends = [
            onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [1, READER_WIDTH])
            for name in ("x0", f"x{READER_PRODUCTS}")
        ]
        graph = onnx.helper.make_graph(nodes, "reader", ends[:1], ends[1:], weights)
        model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 21)], ir_version=10)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        self._session = onnxruntime.InferenceSession(model.SerializeToString(), options)

    def steps(self, count: int) -> list[float]:
        """The times of so many steps, in seconds."""
        x, seconds = np.ones((1, READER_WIDTH), dtype=np.float32), []
        for _ in range(count):
            started = time.perf_counter()
            self._session.run(None, {"x0": x})
            seconds.append(time.perf_counter() - started)
        return seconds
