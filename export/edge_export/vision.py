"""The vision tower and its projector in torch: from pixel_values to what a language model reads in place of tokens."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edge_sdk.vision_spec import VisionSpec


class VisionLayer(nn.Module):
    """A pre-norm transformer layer without a mask; x is (images, positions, hidden)."""

    def __init__(self, spec: VisionSpec) -> None:
        super().__init__()
        self.heads, self.activation = spec.heads, spec.activation
        self.layer_norm1 = nn.LayerNorm(spec.hidden, spec.norm_eps)
        self.q_proj, self.k_proj, self.v_proj, self.out_proj = (nn.Linear(spec.hidden, spec.hidden) for _ in range(4))
        self.layer_norm2 = nn.LayerNorm(spec.hidden, spec.norm_eps)
        self.fc1, self.fc2 = nn.Linear(spec.hidden, spec.intermediate), nn.Linear(spec.intermediate, spec.hidden)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.out_proj(self._attend(self.layer_norm1(x)))
        return x + self.fc2(_activate(self.fc1(self.layer_norm2(x)), self.activation))

    def _attend(self, x: Tensor) -> Tensor:
        query, key, value = (
            project(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)  # (images, heads, positions, head_dim)
            for project in (self.q_proj, self.k_proj, self.v_proj)
        )
        weights = torch.softmax(query @ key.transpose(-1, -2) * query.shape[-1] ** -0.5, dim=-1)
        return (weights @ value).transpose(1, 2).flatten(-2)


def _activate(x: Tensor, kind: str) -> Tensor:
    if kind == "quick_gelu":
        return x * torch.sigmoid(1.702 * x)
    return F.gelu(x, approximate="tanh" if kind == "gelu_pytorch_tanh" else "none")


class VisionEncoder(nn.Module):
    """pixel_values (images, 3, height, width) -> image_features (images, tokens, width of the language model).

    It has the layers that are run and no others: what comes behind them in a checkpoint serves other tasks.
    """

    def __init__(self, spec: VisionSpec, language_hidden: int) -> None:
        super().__init__()
        self.spec, clip = spec, spec.tower == "clip"
        self.patch_embedding = nn.Conv2d(3, spec.hidden, spec.patch, stride=spec.patch, bias=not clip)
        self.position_embedding = nn.Parameter(torch.zeros(spec.patches + clip, spec.hidden))
        if clip:
            self.class_embedding = nn.Parameter(torch.zeros(spec.hidden))
            self.pre_norm = nn.LayerNorm(spec.hidden, spec.norm_eps)
        self.layers = nn.ModuleList(VisionLayer(spec) for _ in range(spec.layers))
        self.linear_1 = nn.Linear(spec.hidden, language_hidden, bias=spec.projector_bias)
        self.linear_2 = nn.Linear(language_hidden, language_hidden, bias=spec.projector_bias)

    def forward(self, pixel_values: Tensor) -> Tensor:
        clip = self.spec.tower == "clip"
        x = self.patch_embedding(pixel_values).flatten(2).transpose(1, 2)
        if clip:
            x = torch.cat([self.class_embedding.expand(x.shape[0], 1, -1), x], dim=1)
        x = x + self.position_embedding
        if clip:
            x = self.pre_norm(x)
        for layer in self.layers:
            x = layer(x)
        if clip and not self.spec.class_feature:
            x = x[:, 1:]
        return self.linear_2(F.gelu(self.linear_1(x)))
