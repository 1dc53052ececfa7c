"""Several documents side by side in a row: which of them share one, and what keeps them apart.

Rows are described by ``documents`` (batch, length) int64: which document stands at a position, what mamba_ssm calls
``seq_idx``. A document's positions are next to each other; padding is a document too, that nothing is learnt from.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

PADDING = -1


def first_fit(lengths: Sequence[int], longest: int) -> list[list[int]]:
    """Which items share a row: the longest items first, each in the first row that has room for it.

    A row holds at most ``longest`` positions, and at least one item. First-fit decreasing takes at most 11/9 of the
    fewest rows possible, and 6/9 of a row more (Dosa 2007, doi 10.1007/978-3-540-74450-4_1).
    """
    rows: list[list[int]] = []
    room: list[int] = []
    for item in sorted(range(len(lengths)), key=lambda item: -lengths[item]):
        row = next((row for row, left in enumerate(room) if lengths[item] <= left), len(rows))
        if row == len(rows):
            rows.append([])
            room.append(longest)
        rows[row].append(item)
        room[row] -= lengths[item]
    return rows


def together(documents: Tensor) -> Tensor:
    """Whether two positions are the same document's, (batch, length, length) of bool."""
    return documents[:, :, None] == documents[:, None, :]


def positions(documents: Tensor) -> Tensor:
    """Of each position, how many of its document's stand before it (batch, length)."""
    places = torch.arange(documents.shape[1], device=documents.device).expand_as(documents)
    first = torch.ones_like(documents, dtype=torch.bool)
    first[:, 1:] = documents[:, 1:] != documents[:, :-1]
    return places - torch.where(first, places, 0).cummax(1).values
