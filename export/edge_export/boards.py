"""Which of the boards an engine can be built for, here."""

from __future__ import annotations

import msgspec

from edge_export.float_codes import Format
from edge_sdk.boards import BOARDS, Board
from edge_sdk.engine_files import Backend, Projections
from edge_sdk.errors import ConfigError, explain
from edge_sdk.machine import read_gpus

RTX_CAPABILITIES = ("8.6", "8.9", "12.0", "12.1")
"""Where TensorRT-RTX runs."""

FIRST_CAPABILITY: dict[Format, str] = {"nvfp4": "10.0", "fp8": "8.9"}
"""Of the GPUs that have a format: NVFP4 since Blackwell, FP8 since Ada."""

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


def formats_for(board: Board, projections: Projections) -> tuple[Format, ...]:
    """The formats that weights may get for a board, the smallest first.

    Raises ConfigError where its GPU does not have the one that was asked for, or none at all.
    """
    if projections == "plain":
        return ()
    wanted = tuple(FIRST_CAPABILITY) if projections == "lossless" else (projections,)
    capability = _as_numbers(board.compute_capability)
    formats = tuple(kind for kind in wanted if capability >= _as_numbers(FIRST_CAPABILITY[kind]))
    if not formats:
        raise ConfigError(
            explain(
                f"--projections {projections} for {board.name}",
                expected=f"a GPU of compute capability {FIRST_CAPABILITY[wanted[-1]]} or later",
                found=board.compute_capability,
                todo="For small weights there, export the bundle with --weights int4 or int8.",
            )
        )
    return formats


def _as_numbers(capability: str) -> tuple[int, ...]:
    return tuple(map(int, capability.split(".")))


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
