"""Smaller weights for a torch model: int4 and int8 blocks, or bfloat16, in place of its float32 modules."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Union

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edge_export.torch_layers import Experts, operators
from edge_export.torch_model import AnyModel
from edge_export.torch_ops import dequantize
from edge_sdk.errors import ConfigError, explain

INT4_SUFFIX = "packed_int4"
"""Ends the name of a weight whose bytes hold two int4 values each, the first in the low half."""

LARGEST_BLOCK = 256
"""With 512, ONNX Runtime's own int4 product (the function body's, 1.23.2) gives NaN."""


def quantize_blocks(weight: Tensor, bits: int, block_size: int) -> tuple[Tensor, Tensor]:
    """Round to nearest, symmetric: weight (..., in, out) -> int8 values and scales (..., in / block_size, out).

    The scale maps the block's value of largest magnitude to the integer range's lower end, which reaches one
    further than the upper (as llama.cpp's Q4_0 does). Scales are float32 numbers that float16 holds exactly, so that
    kernels can store them in two bytes, but for those that float16 would change by more than a 256th.
    """
    *lead, width, out = weight.shape
    if block_size > LARGEST_BLOCK or width % block_size:
        fitting = " or ".join(str(size) for size in (32, 64, 128, LARGEST_BLOCK) if width % size == 0)
        raise ConfigError(
            explain(
                "block_size",
                expected=f"a divisor of the input width {width}, at most {LARGEST_BLOCK}",
                found=block_size,
                todo=f"Choose {fitting}." if fitting else "The kernels take multiples of 32.",
            )
        )
    values = torch.empty(*lead, width, out, dtype=torch.int8, device=weight.device)
    scales = torch.empty(*lead, width // block_size, out, device=weight.device)
    columns = max(1, CHUNK_NUMBERS * out // max(1, weight.numel()))
    for start in range(0, out, columns):  # in parts: in float32 a large weight would take several times its memory
        part = slice(start, start + columns)
        values[..., part], scales[..., part] = _quantize_part(weight[..., part].detach().float(), bits, block_size)
    return values, scales


CHUNK_NUMBERS = 1 << 22
"""Of a weight that are quantised at once."""


def _quantize_part(weight: Tensor, bits: int, block_size: int) -> tuple[Tensor, Tensor]:
    blocks = weight.unflatten(-2, (-1, block_size))
    scales = block_scales(blocks, bits)
    return round_to(blocks, scales.unsqueeze(-2), bits).to(torch.int8).flatten(-3, -2), scales


def block_scales(blocks: Tensor, bits: int) -> Tensor:
    """The scales (..., out) of blocks (..., block_size, out), as :func:`quantize_blocks` says."""
    extreme = blocks.gather(-2, blocks.abs().argmax(-2, keepdim=True)).squeeze(-2)
    return _rounded_to_float16(torch.where(extreme == 0, torch.ones_like(extreme), extreme / -(2 ** (bits - 1))))


def round_to(values: Tensor, scales: Tensor, bits: int) -> Tensor:
    """The integers, still as floats, that come nearest to values over their scales."""
    limit = 2 ** (bits - 1)
    return (values / scales).round().clamp(-limit, limit - 1)


def _rounded_to_float16(scales: Tensor) -> Tensor:
    rounded = scales.half().float()
    return torch.where((rounded - scales).abs() <= scales.abs() / 256, rounded, scales)


def pack_int4(values: Tensor) -> Tensor:
    """int8 values in -8..7, (..., out) with an even out -> bytes (..., out / 2), as ONNX stores INT4."""
    nibbles = values.to(torch.uint8) & 0xF
    return nibbles[..., 0::2] | (nibbles[..., 1::2] << 4)


def unpack_int4(packed: Tensor) -> Tensor:
    """The inverse of :func:`pack_int4`."""
    nibbles = torch.stack([packed & 0xF, packed >> 4], dim=-1).flatten(-2).to(torch.int8)
    return torch.where(nibbles > 7, nibbles - 16, nibbles)


class BlockWeight(nn.Module):
    """A quantised weight (..., in, out): its integers, packed if int4, and its scales."""

    scales: Tensor

    def __init__(self, weight: Tensor, bits: int, block_size: int) -> None:
        super().__init__()
        self.bits, self.block_size = bits, block_size
        self.hold(*quantize_blocks(weight, bits, block_size))

    def hold(self, values: Tensor, scales: Tensor) -> None:
        """Takes int8 values (..., in, out) and scales (..., in / block_size, out) that were chosen in another way."""
        self.register_buffer(self._name, pack_int4(values) if self.bits == 4 else values)
        self.register_buffer("scales", scales)

    @property
    def _name(self) -> str:
        return INT4_SUFFIX if self.bits == 4 else "int8"

    def stored(self) -> Tensor:
        """The integers as the graph's file holds them."""
        return self.get_buffer(self._name)

    def dequantized(self) -> Tensor:
        """The weight in float32, as the operators see it."""
        values = unpack_int4(self.stored()) if self.bits == 4 else self.stored()
        return dequantize(values, self.scales, self.block_size)


class QuantLinear(nn.Module):
    """A Linear layer whose product is ``edge::QLinear``."""

    def __init__(self, linear: nn.Linear, bits: int, block_size: int) -> None:
        super().__init__()
        self.weight = BlockWeight(linear.weight.T, bits, block_size)
        self.bias = linear.bias

    def forward(self, x: Tensor) -> Tensor:
        if torch.compiler.is_exporting():
            weight = self.weight
            y = operators().qlinear(x, weight.stored(), weight.scales, block_size=weight.block_size)
        else:
            y = x @ self.weight.dequantized()
        return y if self.bias is None else y + self.bias


class QuantExperts(nn.Module):
    """Experts whose weights ``edge::MoE`` reads as blocks."""

    def __init__(self, experts: Experts, bits: int, block_size: int) -> None:
        super().__init__()
        self.up = BlockWeight(experts.up_weight, bits, block_size)
        self.down = BlockWeight(experts.down_weight, bits, block_size)

    def forward(self, x: Tensor, router_logits: Tensor, correction_bias: Tensor, **routing: Any) -> Tensor:
        up, down = self.up, self.down
        if torch.compiler.is_exporting():
            weights = (up.stored(), down.stored(), up.scales, down.scales)
            return operators().moe(x, router_logits, correction_bias, *weights, block_size=up.block_size, **routing)
        return operators().moe(x, router_logits, correction_bias, up.dequantized(), down.dequantized(), **routing)


class Bfloat16Linear(nn.Module):
    """A Linear layer whose product is ``edge::QLinear`` with a bfloat16 weight (in, out)."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.weight = nn.Buffer(linear.weight.detach().T.bfloat16().contiguous())
        self.bias = linear.bias

    def forward(self, x: Tensor) -> Tensor:
        y = operators().qlinear(x, self.weight)
        return y if self.bias is None else y + self.bias


class Bfloat16Embedding(nn.Module):
    """An Embedding stored in bfloat16."""

    def __init__(self, embedding: nn.Embedding) -> None:
        super().__init__()
        self.weight = nn.Buffer(embedding.weight.detach().bfloat16())

    def forward(self, input_ids: Tensor) -> Tensor:
        return F.embedding(input_ids, self.weight).float()


Convert = Callable[[str, nn.Module], Union[nn.Module, None]]
"""From a leaf's name and the leaf (Linear, Embedding, Experts) to what is stored in its place; None leaves it."""


def convert(model: AnyModel, make: Convert) -> AnyModel:
    """Puts in each leaf's place, in a model, what ``make`` makes of it; each old one is freed at once."""
    leaves = (nn.Linear, nn.Embedding, Experts)
    for parent_name, parent in [item for item in model.named_modules() if not isinstance(item[1], leaves)]:
        for name in [name for name, _ in parent.named_children()]:
            full_name = f"{parent_name}.{name}" if parent_name else name
            if (made := make(full_name, parent.get_submodule(name))) is not None:
                setattr(parent, name, made)
    return model


def quantized(bits: int, block_size: int, head_bits: int) -> Convert:
    """Every projection and expert as blocks of integers; the output head with ``head_bits``.

    Embeddings become bfloat16. Routers, norms, convolutions and the scan's own parameters stay in float32.
    """

    def make(name: str, module: nn.Module) -> nn.Module | None:
        if isinstance(module, nn.Linear):
            return QuantLinear(module, head_bits if name == "lm_head" else bits, block_size)
        if isinstance(module, Experts):
            return QuantExperts(module, bits, block_size)
        return Bfloat16Embedding(module) if isinstance(module, nn.Embedding) else None

    return make


def in_bfloat16(name: str, module: nn.Module) -> nn.Module | None:
    """Projections, experts, head and embeddings in bfloat16; all else stays in float32."""
    if isinstance(module, nn.Linear):
        return Bfloat16Linear(module)
    if isinstance(module, Experts):
        for part in ("up_weight", "down_weight"):
            setattr(module, part, nn.Parameter(getattr(module, part).detach().bfloat16()))
        return module
    return Bfloat16Embedding(module) if isinstance(module, nn.Embedding) else None


def as_it_is(name: str, module: nn.Module) -> nn.Module | None:
    """Everything in float32."""
    return None
