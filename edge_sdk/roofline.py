"""How long a step takes on a board: bytes over bandwidth, operations over tensor cores' rate, and a cost per layer.

A roofline (Williams et al. 2009) whose two slopes are added: kernels that read weights and kernels that multiply are
taken to follow one another. Which share of the data sheet's bandwidth and rate is reached, and what a layer costs
besides, was fitted to measurements that NVIDIA published for TensorRT Edge-LLM 0.9.0 (docs/boards.md;
tests/export/test_predictions.py fits again). What our own kernels reach on a board was not measured.
"""

from __future__ import annotations

import msgspec

from edge_sdk.boards import Board, Family, PowerMode
from edge_sdk.model import ModelConfig
from edge_sdk.traffic import WeightStorage, mixing_operations, product_operations, step_bytes


class Shares(msgspec.Struct, frozen=True, kw_only=True):
    """What a family of boards reaches of its data sheet."""

    bandwidth: float
    """Of the memory's bandwidth."""
    decode_cycles: float
    """Of the GPU's clock that a layer costs in a step of one token, which is launched as a whole (a CUDA graph)."""
    prefill_us: float
    """That a layer costs in a step of many tokens, whose kernels the processor launches one by one."""
    tensor: dict[str, float]
    """Of the tensor cores' dense rate, by format of the weights; "float16" stands for attention and the rest, too."""
    fitted: frozenset[str]
    """The formats whose share was fitted."""


SHARES: dict[Family, Shares] = {
    "orin": Shares(
        bandwidth=0.910,
        decode_cycles=49_100,
        prefill_us=157,
        tensor={"float16": 0.569, "int4": 0.569},
        fitted=frozenset({"int4"}),
    ),
    "thor": Shares(
        bandwidth=0.948,
        decode_cycles=25_600,
        prefill_us=106,
        tensor={"float16": 0.569, "int4": 0.118, "nvfp4": 0.405},
        fitted=frozenset({"int4", "nvfp4"}),
    ),
    # Taken over from Orin, whose GPU is of the first of these GPUs' architectures.
    "rtx": Shares(bandwidth=0.910, decode_cycles=49_100, prefill_us=157, tensor={"float16": 0.569}, fitted=frozenset()),
}


def decode_seconds(config: ModelConfig, stored: WeightStorage, board: Board, mode: PowerMode, context: int) -> float:
    """Of a step of one token of one sequence with ``context`` positions in its caches."""
    shares = SHARES[board.family]
    moved = step_bytes(config, stored, context) / (shares.bandwidth * mode.bandwidth_gb_s * 1e9)
    return moved + len(config.layers) * shares.decode_cycles / (mode.gpu_mhz * 1e6)


def prefill_seconds(
    config: ModelConfig, stored: WeightStorage, board: Board, mode: PowerMode, tokens: int, context: int = 0
) -> float | None:
    """Of a step of many tokens of one sequence that follow ``context`` others; None where a rate is not known."""
    if not {stored.multiplied, "float16"} <= set(board.tensor_tops):
        return None
    shares, clock = SHARES[board.family], mode.gpu_mhz / board.modes[0].gpu_mhz
    moved = step_bytes(config, stored, context, tokens) / (shares.bandwidth * mode.bandwidth_gb_s * 1e9)
    share = shares.tensor.get(stored.name, shares.tensor["float16"])
    products = product_operations(config, tokens) / (share * board.tensor_tops[stored.multiplied])
    mixing = mixing_operations(config, tokens, context) / (shares.tensor["float16"] * board.tensor_tops["float16"])
    return moved + (products + mixing) / (clock * 1e12) + 1e-6 * len(config.layers) * shares.prefill_us
