"""Which parts of a tensor a smaller model keeps."""

from __future__ import annotations

import torch
from torch import Tensor


def best(scores: Tensor, count: int) -> Tensor:
    """Indices of the highest scores, in their original order."""
    return scores.topk(count).indices.sort().values


def prune_norm(weight: Tensor, kept: Tensor, mean_square: Tensor) -> Tensor:
    """The kept channels' weights, scaled by what dropping the others does to the root of the mean square."""
    if len(kept) == len(weight):
        return weight[kept]
    return weight[kept] * mean_square[kept].mean().sqrt().clamp(min=1e-3)


def units(kept: Tensor, size: int) -> Tensor:
    """Channels of the kept units, each of ``size`` neighbouring channels."""
    return (kept[:, None] * size + torch.arange(size)).flatten()
