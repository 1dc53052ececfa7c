"""The boards and GPUs that an engine can be built for."""

from __future__ import annotations

import msgspec

from edge_sdk.engine_files import Backend
from edge_sdk.errors import ConfigError, explain
from edge_sdk.machine import read_gpus

GIB = 1 << 30


class Board(msgspec.Struct, frozen=True, kw_only=True):
    """A place where engines run."""

    name: str
    compute_capability: str
    memory_bytes: int
    """Of a Jetson: what processor and GPU share."""
    bandwidth_gb_s: float | None = None
    """Of its memory in 10**9 bytes per second, from NVIDIA's data sheets; for an Orin Nano in "Super" mode."""
    gpu: str = ""
    """The name that CUDA gives the GPU, where the board is this machine's."""


def _jetson(name: str, compute_capability: str, gib: int, bandwidth_gb_s: float | None = None) -> Board:
    return Board(
        name=name,
        compute_capability=compute_capability,
        memory_bytes=gib * GIB,
        bandwidth_gb_s=bandwidth_gb_s,
    )


BOARDS = {
    board.name: board
    for board in (
        _jetson("orin-nano-4gb", "8.7", 4),
        _jetson("orin-nano-8gb", "8.7", 8, 102),
        _jetson("orin-nx-8gb", "8.7", 8, 102),
        _jetson("orin-nx-16gb", "8.7", 16, 102),
        _jetson("agx-orin-32gb", "8.7", 32, 205),
        _jetson("agx-orin-64gb", "8.7", 64, 205),
        _jetson("thor-t4000", "11.0", 64, 273),
        _jetson("thor-t5000", "11.0", 128, 273),
        Board(name="rtx-3060", compute_capability="8.6", memory_bytes=12 * GIB),
        Board(name="rtx-4090", compute_capability="8.9", memory_bytes=24 * GIB),
        Board(name="rtx-5090", compute_capability="12.0", memory_bytes=32 * GIB),
    )
}

RTX_CAPABILITIES = ("8.6", "8.9", "12.0", "12.1")
"""Where TensorRT-RTX runs."""

HERE = "here"
"""The board's name for whatever GPU this machine has."""


def find_board(name: str, backend: Backend) -> Board:
    """The board of a name. Raises ConfigError where there is none, or none that the backend builds for."""
    board = _this_machine() if name == HERE else BOARDS.get(name)
    if board is None:
        raise ConfigError(
            explain("--board", expected=f"one of {', '.join((HERE, *BOARDS))}", found=name, todo="Choose one.")
        )
    if backend == "tensorrt-rtx" and board.compute_capability not in RTX_CAPABILITIES:
        raise ConfigError(
            explain(
                f"TensorRT-RTX for {board.name}",
                expected=f"a compute capability of {', '.join(RTX_CAPABILITIES)}",
                found=board.compute_capability,
                todo="Use --backend tensorrt, on the board itself.",
            )
        )
    return board


def _this_machine() -> Board:
    gpus, missing = read_gpus()
    if not gpus:
        raise ConfigError(explain("--board here", expected="a GPU", found=missing, todo="Name a board (--dry-run)."))
    gpu = gpus[0]
    return Board(name=HERE, compute_capability=gpu.compute_capability, memory_bytes=gpu.memory_bytes, gpu=gpu.name)


def check_is_here(board: Board) -> Board:
    """The board with its GPU's name: TensorRT itself builds on the GPU that an engine is for. Raises ConfigError."""
    gpus, missing = read_gpus()
    found = f"compute capability {gpus[0].compute_capability} ({gpus[0].name})" if gpus else missing
    if not gpus or gpus[0].compute_capability != board.compute_capability:
        raise ConfigError(
            explain(
                f"Building for {board.name}",
                expected=f"a GPU of compute capability {board.compute_capability} here",
                found=found,
                todo="Copy the bundle to the board and run this there; --dry-run says here what would be built.",
            )
        )
    return msgspec.structs.replace(board, gpu=gpus[0].name)
