"""What a model may cost: parameters, bytes of a storage format, or milliseconds per decoded token on a board.

Milliseconds are an estimate along the roofline's slope (Williams et al. 2009): a decode step of one sequence reads the
weights it needs, and reads and writes the states, at the board's memory bandwidth; each layer adds a fixed overhead for
starting its kernels. Arithmetic is taken to hide behind the reading. No board was measured.
"""

from __future__ import annotations

import math

import msgspec

from edge_export.boards import BOARDS
from edge_export.pack import Storage
from edge_sdk.errors import ConfigError, explain
from edge_sdk.model import AttentionSpec, LayerSpec, Mamba2Spec, ModelConfig, MoeSpec
from edge_sdk.tensor_spec import DTYPE_BYTES, TensorSpec

LAYER_OVERHEAD_US = 10.0
"""An assumption, not a measurement: two or three kernels' starts."""

CONTEXT = 4096
"""Positions in the caches of which a step reads keys and values."""


class Budget(msgspec.Struct, frozen=True, kw_only=True):
    """One of three limits. Raises ConfigError for none or several, and for a board without a known bandwidth."""

    params: float | None = None
    gb: float | None = None
    """Of the bundle's weights, in 10**9 bytes."""
    ms: float | None = None
    """Per decoded token of one sequence."""
    board: str | None = None
    storage: Storage = Storage(weights="int4")
    context: int = CONTEXT
    layer_overhead_us: float = LAYER_OVERHEAD_US

    def __post_init__(self) -> None:
        given = [name for name in ("params", "gb", "ms") if getattr(self, name) is not None]
        if len(given) != 1:
            found = " and ".join(given) or "none"
            raise ConfigError(explain("The budget", expected="one of params, gb and ms", found=found, todo="Give one."))
        if self.ms is not None:
            bandwidth(self.board)

    @property
    def limit(self) -> float:
        """In parameters, GB or ms."""
        return next(value for value in (self.params, self.gb, self.ms) if value is not None)

    def cost(self, config: ModelConfig) -> float:
        """Of a model, in the limit's unit."""
        if self.params is not None:
            return config.parameters()
        if self.gb is not None:
            return weight_bytes(config, self.storage) / 1e9
        assert self.board is not None
        return step_ms(config, self.storage, self.board, self.context, self.layer_overhead_us)


def bandwidth(board: str | None) -> float:
    """A board's memory bandwidth in bytes per second. Raises ConfigError for one whose bandwidth is not known."""
    known = {name: board.bandwidth_gb_s for name, board in BOARDS.items() if board.bandwidth_gb_s}
    if board not in known:
        raise ConfigError(explain("--board", expected=f"one of {', '.join(known)}", found=board, todo="Choose one."))
    return known[board] * 1e9


def bits_per_weight(storage: Storage, *, head: bool = False) -> float:
    """Of a projection's weight, its share of the block's float32 scale included."""
    if storage.weights in ("float32", "bfloat16"):
        return 32 if storage.weights == "float32" else 16
    bits = 8 if storage.weights == "int8" else storage.head_bits if head else 4
    return bits + 32 / storage.block_size


def weight_bytes(config: ModelConfig, storage: Storage) -> float:
    """Bytes of all weights as a bundle stores them."""
    embedding = config.vocab_size * config.hidden * (4 if storage.weights == "float32" else 2)
    return embedding + _bytes_behind_embedding(config, storage)


def step_bytes(config: ModelConfig, storage: Storage, context: int) -> float:
    """Bytes that a decode step of one sequence reads and writes, with so many positions in its caches.

    Of the experts' weights those that the token is sent to; caches are read, all other states read and written.
    """

    def moved(spec: TensorSpec) -> float:
        whole = DTYPE_BYTES[spec.dtype] * math.prod(spec.sized(batch=1, capacity=context))
        return whole if "capacity" in spec.shape else 2 * whole

    states = sum(moved(spec) for spec in storage.describe(config).past_specs())
    idle = sum(
        2 * (spec.experts - spec.top_k) * (spec.latent or config.hidden) * spec.intermediate
        for spec in config.layers
        if isinstance(spec, MoeSpec)
    )
    unread = idle * bits_per_weight(storage) / 8
    return _bytes_behind_embedding(config, storage) - unread + states


def _bytes_behind_embedding(config: ModelConfig, storage: Storage) -> float:
    plain = config.hidden + sum(config.hidden + _plain_parameters(spec, config.hidden) for spec in config.layers)
    if config.policy is not None:
        plain += config.policy.parameters(config.hidden)
    embedding = config.vocab_size * config.hidden
    head = 0 if config.policy is not None else embedding
    embeddings = embedding * (1 if config.tie_embeddings or config.policy is not None else 2)
    products = config.parameters() - plain - embeddings
    bits = products * bits_per_weight(storage)
    return (bits + head * bits_per_weight(storage, head=True)) / 8 + 4 * plain


def _plain_parameters(spec: LayerSpec, hidden: int) -> int:
    """Of a layer's parameters those that are always float32: all but the matrices of its products, and its norm."""
    if isinstance(spec, Mamba2Spec):
        convolution = spec.conv_dim * (spec.conv_kernel + spec.conv_bias)
        return convolution + 3 * spec.heads + spec.inner + spec.proj_bias * (spec.proj_dim + hidden)
    if isinstance(spec, MoeSpec):
        return spec.experts * (hidden + 1)
    without = {"bias": False} | ({"output_bias": False, "qk_norm": False} if isinstance(spec, AttentionSpec) else {})
    return spec.parameters(hidden) - msgspec.structs.replace(spec, **without).parameters(hidden)


def step_ms(
    config: ModelConfig,
    storage: Storage,
    board: str,
    context: int = CONTEXT,
    layer_overhead_us: float = LAYER_OVERHEAD_US,
) -> float:
    """Estimated milliseconds of a decode step of one sequence with ``context`` positions in its caches."""
    return 1e3 * step_bytes(config, storage, context) / bandwidth(board) + 1e-3 * layer_overhead_us * len(config.layers)
