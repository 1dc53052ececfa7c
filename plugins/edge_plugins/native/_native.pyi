# The kernels on NumPy arrays (module.cc). Arguments, shapes and meaning as in edge_plugins/<operator>/op.py.
#
# isa: a name of isas(), or "auto" for the fastest. threads: of this call alone. exact: activations stay float32.
# Weights: float32, bfloat16 (ml_dtypes or uint16), or int8 or int4 (ml_dtypes)
# with scales; bits=4 says that int8 integers are -8..7.
# inplace: the past arrays become the present ones. Raises ValueError where arguments contradict each other.
from typing import Any

import numpy as np

_Array = np.ndarray[Any, np.dtype[Any]]

class PackedMatrix:
    """A weight (in, out), or (experts, in, out), in the kernels' layout: takes the place of an array of weights."""

    def __init__(self, weight: _Array, scales: _Array | None = None, *, block_size: int = 0, bits: int = 8) -> None: ...
    @property
    def bytes(self) -> int: ...
    @property
    def shape(self) -> tuple[int, int, int]:
        """(count, in, out)."""

def isas() -> list[str]:
    """The instruction sets that were compiled and that this processor has, slowest first."""

def qlinear(
    *,
    x: _Array,
    weight: _Array | PackedMatrix,
    scales: _Array | None = None,
    block_size: int = 0,
    bits: int = 8,
    exact: bool = False,
    isa: str = "auto",
    threads: int = 1,
) -> _Array: ...
def moe(
    *,
    x: _Array,
    router_logits: _Array,
    correction_bias: _Array,
    up_weight: _Array | PackedMatrix,
    down_weight: _Array | PackedMatrix,
    top_k: int,
    n_group: int,
    topk_group: int,
    norm_topk_prob: int,
    routed_scaling_factor: float,
    up_scales: _Array | None = None,
    down_scales: _Array | None = None,
    block_size: int = 0,
    activation: str = "relu2",
    scoring: str = "sigmoid",
    bits: int = 8,
    exact: bool = False,
    isa: str = "auto",
    threads: int = 1,
) -> _Array: ...
def mamba2_mixer(
    *,
    proj: _Array,
    conv_weight: _Array,
    conv_bias: _Array,
    dt_bias: _Array,
    a_log: _Array,
    d: _Array,
    norm_weight: _Array,
    past_conv: _Array,
    past_ssm: _Array,
    groups: int,
    conv_dim: int,
    eps: float,
    dt_min: float,
    dt_max: float,
    inplace: bool = False,
    isa: str = "auto",
    threads: int = 1,
) -> tuple[_Array, _Array, _Array]: ...
def cached_attention(
    *,
    query: _Array,
    key: _Array,
    value: _Array,
    past_length: _Array,
    past_key: _Array,
    past_value: _Array,
    scale: float,
    window: int,
    past_key_scale: _Array | None = None,
    past_value_scale: _Array | None = None,
    inplace: bool = False,
    isa: str = "auto",
    threads: int = 1,
) -> tuple[_Array, ...]: ...
