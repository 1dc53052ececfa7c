"""What a model's weights take in a storage format, and what a step of it reads and multiplies."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Literal

import msgspec

from edge_sdk.model import AttentionSpec, LayerSpec, Mamba2Spec, MlpSpec, ModelConfig, MoeSpec, ParallelSpec
from edge_sdk.tensor_spec import DTYPE_BYTES, TensorSpec

Precision = Literal["float16", "float8", "int8", "float4"]
"""Of the numbers that tensor cores multiply; bfloat16 is as fast as float16."""

SCAN_OPERATIONS = 6
"""Of a token on each number of a scan's state: decay, input product and sum; output product and sum; one for dt * x."""


class WeightStorage(msgspec.Struct, frozen=True, kw_only=True):
    """How weights are stored; what is not the matrix of a product (norms, convolutions, biases, routers) is float32."""

    name: str
    bits: float
    """Of a product's weight."""
    block_size: int = 0
    """Weights that share a scale; 0 is none."""
    scale_bits: int = 32
    head_bits: float | None = None
    """Of the output projection's weights, where they differ; 16 and 32 have no scales."""
    embedding_bits: int = 16
    multiplied: Precision = "float16"
    """In what products are computed."""
    kept_layers: frozenset[int] = frozenset()
    """Indices of layers whose products stay bfloat16."""

    @property
    def product_bits(self) -> float:
        """Of a product's weight, its share of a scale included."""
        return self._scaled(self.bits)

    @property
    def output_bits(self) -> float:
        """Of an output projection's weight, its share of a scale included."""
        return self.product_bits if self.head_bits is None else self._scaled(self.head_bits)

    def _scaled(self, bits: float) -> float:
        return bits + self.scale_bits / self.block_size if self.block_size and bits < 16 else bits


def bundle_storage(weights: str, *, block_size: int = 32, head_bits: int = 8) -> WeightStorage:
    """How a bundle stores weights as ``float32``, ``bfloat16``, ``int8`` or ``int4``, the last two in blocks."""
    if weights in ("float32", "bfloat16"):
        bits = 32 if weights == "float32" else 16
        return WeightStorage(name=weights, bits=bits, embedding_bits=bits)
    head = head_bits if weights == "int4" else 8
    return WeightStorage(name=weights, bits=int(weights[3:]), block_size=block_size, head_bits=head)


class Counts(msgspec.Struct, frozen=True, kw_only=True):
    """The numbers of a layer by what a token does with them."""

    products: int = 0
    """Of matrices that every token is multiplied with."""
    expert_products: int = 0
    """Of all sparse experts' matrices."""
    plain: int = 0
    """The others."""
    experts: int = 1
    top_k: int = 1

    @property
    def total(self) -> int:
        """All of them."""
        return self.products + self.expert_products + self.plain

    def read(self, tokens: int) -> float:
        """Weights of products that so many tokens read, each expert once, tokens choosing experts independently."""
        return self.products + self.expert_products * (1 - (1 - self.top_k / self.experts) ** tokens)

    @property
    def multiplied(self) -> float:
        """Weights of products that one token is multiplied with."""
        return self.products + self.expert_products * self.top_k / self.experts


def count(spec: LayerSpec, hidden: int) -> Counts:
    """A layer's numbers as they are stored: its norm included, and biases of convolutions and routers, used or not."""
    if isinstance(spec, ParallelSpec):
        mamba, attention = count(spec.mamba, hidden), count(spec.attention, hidden)
        return Counts(products=mamba.products + attention.products, plain=mamba.plain + attention.plain - hidden)
    if isinstance(spec, MoeSpec):
        matrices = 3 if spec.activation == "silu_gated" else 2
        return Counts(
            products=matrices * hidden * spec.shared_intermediate + 2 * hidden * (spec.latent or 0),
            expert_products=matrices * spec.experts * (spec.latent or hidden) * spec.intermediate,
            plain=spec.experts * (hidden + 1) + hidden,
            experts=spec.experts,
            top_k=spec.top_k,
        )
    unused = 0
    if isinstance(spec, Mamba2Spec):
        products = hidden * (spec.proj_dim + spec.inner)
        unused = 0 if spec.conv_bias else spec.conv_dim
    elif isinstance(spec, AttentionSpec):
        products = 2 * hidden * spec.head_dim * (spec.heads + spec.kv_heads)
    else:
        products = (3 if spec.activation == "silu_gated" else 2) * hidden * spec.intermediate
    return Counts(products=products, plain=spec.parameters(hidden) - products + hidden + unused)


def input_widths(spec: LayerSpec, hidden: int) -> set[int]:
    """The widths of what a layer's products read, along which blocks of weights share a scale."""
    if isinstance(spec, ParallelSpec):
        return input_widths(spec.mamba, hidden) | input_widths(spec.attention, hidden)
    if isinstance(spec, Mamba2Spec):
        return {hidden, spec.inner}
    if isinstance(spec, AttentionSpec):
        return {hidden, spec.heads * spec.head_dim}
    if isinstance(spec, MlpSpec):
        return {hidden, spec.intermediate}
    return {hidden, spec.latent or hidden, spec.intermediate, spec.shared_intermediate}


def weight_bytes(config: ModelConfig, stored: WeightStorage) -> float:
    """Bytes of all weights as a bundle stores them, which has an output projection besides a smaller embedding."""
    tied = config.tie_embeddings and stored.bits == 32
    total = config.vocab_size * config.hidden * stored.embedding_bits / 8
    total += _end_bytes(config, stored, outputs=0 if tied else config.vocab_size)
    total += sum(
        (counts.products + counts.expert_products) * _layer_bits(stored, index) / 8 + 4 * counts.plain
        for index, counts in _layers(config.layers, config.hidden)
    )
    if config.mtp is not None:
        heads = [counts for _, counts in _layers(config.mtp.layers, config.hidden)]
        products = 2 * config.hidden**2 + sum(counts.products + counts.expert_products for counts in heads)
        total += products * stored.product_bits / 8 + 4 * (3 * config.hidden + sum(counts.plain for counts in heads))
    if config.vision is not None:
        total += 4 * config.vision.parameters(config.hidden)
    return total


def step_weight_bytes(config: ModelConfig, stored: WeightStorage, tokens: int = 1) -> float:
    """Bytes of weights that a step with so many tokens reads; of the embedding, nothing worth counting."""
    total = _end_bytes(config, stored, outputs=config.vocab_size)
    return total + sum(
        counts.read(tokens) * _layer_bits(stored, index) / 8 + 4 * counts.plain
        for index, counts in _layers(config.layers, config.hidden)
    )


def _end_bytes(config: ModelConfig, stored: WeightStorage, outputs: int) -> float:
    """Of what comes after the layers: a norm, and the output projection or, of a policy, its encoder and decoder."""
    if config.policy is not None:
        return float(4 * (config.hidden + config.policy.parameters(config.hidden)))
    return outputs * config.hidden * stored.output_bits / 8 + 4 * config.hidden


def step_state_bytes(config: ModelConfig, context: int) -> float:
    """Bytes of states that a step of one sequence moves: caches are read, all other states read and written."""

    def moved(spec: TensorSpec) -> float:
        whole = DTYPE_BYTES[spec.dtype] * math.prod(spec.sized(batch=1, capacity=context))
        return whole if "capacity" in spec.shape else 2 * whole

    return sum(moved(spec) for spec in config.past_specs())


def step_bytes(config: ModelConfig, stored: WeightStorage, context: int, tokens: int = 1) -> float:
    """Bytes that a step of one sequence reads and writes, with ``context`` positions in its caches."""
    return step_weight_bytes(config, stored, tokens) + step_state_bytes(config, context)


def product_operations(config: ModelConfig, tokens: int) -> float:
    """Multiplications and additions in the products of weights, of which only one token's logits are wanted.

    Of a policy the layers' only: its encoder and decoder are not counted.
    """
    layers = sum(counts.multiplied for _, counts in _layers(config.layers, config.hidden))
    return 2 * (layers * tokens + (config.vocab_size * config.hidden if config.policy is None else 0))


def mixing_operations(config: ModelConfig, tokens: int, context: int = 0) -> float:
    """Multiplications and additions of attention and scans over ``tokens`` that follow ``context`` others."""
    pairs = tokens * context + tokens * (tokens + 1) / 2
    total = 0.0
    for spec in config.layers:
        parts = (spec.mamba, spec.attention) if isinstance(spec, ParallelSpec) else (spec,)
        for part in parts:
            if isinstance(part, AttentionSpec):
                total += 4 * part.heads * part.head_dim * pairs
            elif isinstance(part, Mamba2Spec):
                total += SCAN_OPERATIONS * part.inner * part.state * tokens
    return total


def activation_bytes(config: ModelConfig, tokens: int) -> float:
    """An upper estimate of the float32 values between a graph's nodes while it computes so many tokens."""
    return 4 * (tokens * (4 * config.hidden + 2 * max(_width(spec) for spec in config.layers)) + config.vocab_size)


def _width(spec: LayerSpec) -> int:
    """Numbers that a token has at most between two of a layer's nodes."""
    if isinstance(spec, ParallelSpec):
        return _width(spec.mamba) + _width(spec.attention)
    if isinstance(spec, Mamba2Spec):
        return spec.proj_dim + spec.inner
    if isinstance(spec, AttentionSpec):
        return spec.head_dim * 2 * (spec.heads + spec.kv_heads)
    if isinstance(spec, MlpSpec):
        return 2 * spec.intermediate
    return 2 * max(spec.shared_intermediate, spec.top_k * spec.intermediate, spec.experts)


def _layers(specs: Iterable[LayerSpec], hidden: int) -> Iterable[tuple[int, Counts]]:
    return enumerate(count(spec, hidden) for spec in specs)


def _layer_bits(stored: WeightStorage, index: int) -> float:
    return 16 if index in stored.kept_layers else stored.product_bits
