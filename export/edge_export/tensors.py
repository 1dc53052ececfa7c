"""How the tensors of a checkpoint become those of our torch model, and back."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class TensorMap:
    """One tensor of ours and the checkpoint's tensors that make it.

    ``layout``: "same"; "conv" for (channels, 1, kernel) there and (channels, kernel) here; "experts" for one
    (out, in) matrix per expert there and one (experts, in, out) tensor here; "transposed" for one (experts, out, in)
    tensor there; "rows" for tensors of equal sizes there, below each other in one here.
    """

    ours: str
    theirs: tuple[str, ...]
    layout: str = "same"

    def their_shape(self, our_shape: tuple[int, ...]) -> tuple[int, ...]:
        """Shape that each of the checkpoint's tensors must have."""
        if self.layout == "conv":
            return (our_shape[0], 1, our_shape[1])
        if self.layout == "experts":
            return (our_shape[2], our_shape[1])
        if self.layout == "transposed":
            return (our_shape[0], our_shape[2], our_shape[1])
        if self.layout == "rows":
            return (our_shape[0] // len(self.theirs), *our_shape[1:])
        return our_shape

    def join(self, parts: list[Tensor]) -> Tensor:
        """Our tensor from the checkpoint's."""
        if self.layout == "experts":
            return torch.stack([part.T for part in parts])
        if self.layout == "transposed":
            return parts[0].transpose(1, 2)
        if self.layout == "rows":
            return torch.cat(parts)
        return parts[0].squeeze(1) if self.layout == "conv" else parts[0]

    def split(self, tensor: Tensor) -> dict[str, Tensor]:
        """The checkpoint's tensors from ours, by name."""
        if self.layout == "experts":
            return {name: part.T.contiguous() for name, part in zip(self.theirs, tensor)}
        if self.layout == "transposed":
            return {self.theirs[0]: tensor.transpose(1, 2).contiguous()}
        if self.layout == "rows":
            return {name: part.clone() for name, part in zip(self.theirs, tensor.chunk(len(self.theirs)))}
        return {self.theirs[0]: (tensor.unsqueeze(1) if self.layout == "conv" else tensor).contiguous()}
