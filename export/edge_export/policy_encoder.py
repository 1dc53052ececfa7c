"""From a policy's observations to what enters the first layer."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edge_export.policy_layers import Dense, Normalizer, PixelNormalizer
from edge_export.torch_layers import Constant
from edge_sdk.control.policy import ObservationSpec
from edge_sdk.policy_spec import EncoderSpec, PolicySpec, reduced_shape, vectors


class ObservationEncoder(nn.Module):
    """Observations in the schema's order, (batch, length, *shape) each, to (batch, length, hidden).

    All vectors enter one perceptron together; what each image says is added.
    """

    def __init__(self, spec: PolicySpec, hidden: int) -> None:
        super().__init__()
        self.schema = spec.schema
        size = sum(item.shape[0] for item in vectors(spec.schema))
        self.vectors = VectorEncoder(spec, size, hidden) if size else None
        self.images = nn.ModuleList(
            ImageEncoder(item, spec.encoder, hidden) for item in spec.schema.observations if item.kind == "image"
        )

    def forward(self, observations: Sequence[Tensor]) -> Tensor:
        kinds = [item.kind for item in self.schema.observations]
        flat = [values for values, kind in zip(observations, kinds) if kind == "vector"]
        encoded = [] if self.vectors is None else [self.vectors(flat)]
        pictures = [values for values, kind in zip(observations, kinds) if kind == "image"]
        encoded += [encoder(pixels) for encoder, pixels in zip(self.images, pictures)]
        total = encoded[0]
        for part in encoded[1:]:
            total = total + part
        return total


class VectorEncoder(nn.Module):
    """Vectors (batch, length, size) each, in physical units, through one hidden layer, or none."""

    def __init__(self, spec: PolicySpec, size: int, hidden: int) -> None:
        super().__init__()
        self.normalize = Normalizer([(item.normalization, item.shape[0]) for item in vectors(spec.schema)])
        width = spec.encoder.width
        self.fc1 = Dense(size, width) if width else None
        self.fc2 = Dense(width or size, hidden)

    def forward(self, flat: Sequence[Tensor]) -> Tensor:
        x = self.normalize(torch.cat(list(flat), dim=-1) if len(flat) > 1 else flat[0])
        return self.fc2(x if self.fc1 is None else F.silu(self.fc1(x)))


class ImageEncoder(nn.Module):
    """Pixels (batch, length, height, width, channels) uint8 through convolutions to where their features are.

    Spatial softmax (Levine et al., arXiv 1504.00702, section 5.1): of each last channel the mean place, weighted by the
    softmax of the channel over the image.
    """

    def __init__(self, item: ObservationSpec, spec: EncoderSpec, hidden: int) -> None:
        super().__init__()
        self.shape = item.shape
        self.normalize = PixelNormalizer(item.normalization, item.shape[-1])
        widths = (item.shape[-1], *spec.channels)
        self.convolutions = nn.ModuleList(
            nn.Conv2d(before, after, spec.kernel, stride=2, padding=spec.kernel // 2)
            for before, after in pairwise(widths)
        )
        self.places = Constant(_places(*reduced_shape(item, spec)))
        self.fc = Dense(2 * spec.channels[-1], hidden)

    def forward(self, pixels: Tensor) -> Tensor:
        batch, length = pixels.shape[:2]
        # to float first: TensorRT does nothing else with uint8
        x = self.normalize(pixels).reshape(-1, *self.shape).permute(0, 3, 1, 2)
        for index, convolution in enumerate(self.convolutions):
            x = convolution(x) if index == 0 else convolution(F.relu(x))
        weights = x.flatten(2).softmax(-1)  # (batch * length, channels, places)
        return self.fc((weights @ self.places.weight).reshape(batch, length, -1))


def _places(height: int, width: int) -> Tensor:
    """Row and column of each place (height * width, 2), from -1 to 1."""
    rows, columns = (
        torch.arange(size, dtype=torch.float32, device="cpu") * (2 / max(1, size - 1)) - 1 for size in (height, width)
    )
    return torch.stack([rows.repeat_interleave(width), columns.repeat(height)], dim=-1)
