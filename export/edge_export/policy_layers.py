"""What a policy's encoder and decoder are made of: products that stay in float32, and the schema's normalisation."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edge_export.torch_layers import Constant
from edge_sdk.control.normalization import Normalization


class Dense(nn.Module):
    """x W^T + b. Unlike nn.Linear it is not quantised: encoder and decoder are small, and flow steps add errors up."""

    def __init__(self, width: int, out: int, *, bias: bool = True) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(out, width))
        self.bias = nn.Parameter(torch.zeros(out)) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight, self.bias)


class Normalizer(nn.Module):
    """The arithmetic of ``edge_sdk.control.normalization`` on the last axis, for things that stand side by side.

    ``parts``: the normalisation of each, and its size.
    """

    def __init__(self, parts: Sequence[tuple[Normalization, int]]) -> None:
        super().__init__()
        rows = []
        for normalization, size in parts:
            scaling = normalization.scaling()
            rows.append([np.broadcast_to(value, size) for value in (scaling.offset, scaling.scale, scaling.shift)])
        offset, scale, shift = (np.concatenate(columns) for columns in zip(*rows))
        self.offset, self.scale = _constant(offset), _constant(scale)
        self.shift = _constant(shift) if shift.any() else None
        middle = offset.astype(np.float64) - shift.astype(np.float64) * scale
        self.middle = _constant(middle)

    def forward(self, physical: Tensor) -> Tensor:
        """(..., size) in physical units to what the network sees."""
        centred = (physical - self.offset.weight) / self.scale.weight
        return centred if self.shift is None else centred + self.shift.weight

    def undo(self, normalized: Tensor) -> Tensor:
        """(..., size) from the network to physical units."""
        return normalized * self.scale.weight + self.middle.weight


class PixelNormalizer(nn.Module):
    """uint8 images (..., channels) over 255, then normalised; both in one product and one sum."""

    def __init__(self, normalization: Normalization, channels: int) -> None:
        super().__init__()
        scaling = normalization.scaling()
        offset, scale = (
            np.broadcast_to(value, channels).astype(np.float64) for value in (scaling.offset, scaling.scale)
        )
        self.factor = _constant(1 / (255 * scale))
        self.term = _constant(float(scaling.shift) - offset / scale)

    def forward(self, pixels: Tensor) -> Tensor:
        return pixels.float() * self.factor.weight + self.term.weight


def _constant(values: np.ndarray) -> Constant:
    return Constant(torch.tensor(values.tolist(), dtype=torch.float32, device="cpu"))
