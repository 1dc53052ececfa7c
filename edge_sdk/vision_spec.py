"""How a model sees: what becomes of a picture before the encoder, and the encoder, as a bundle describes them."""

from __future__ import annotations

from typing import Literal

import msgspec

from edge_sdk.errors import ConfigError, explain


class ImageSpec(msgspec.Struct, frozen=True, kw_only=True):
    """From a picture of any size to pixel_values (3, height, width): (RGB * scale - mean) / std."""

    height: int
    width: int
    fit: Literal["stretch", "crop", "letterbox"] = "stretch"
    """``stretch``: to height and width, whatever the picture's; ``crop``: its shorter edge to ``shortest_edge``, then
    the middle; ``letterbox``: ``background`` beside it, as much as makes its shape the wanted one, then stretched."""
    shortest_edge: int | None = None
    background: tuple[int, int, int] = (0, 0, 0)
    """RGB."""
    resample: Literal["bilinear", "bicubic"] = "bicubic"
    scale: float = 1 / 255
    mean: tuple[float, float, float] = (0.5, 0.5, 0.5)
    std: tuple[float, float, float] = (0.5, 0.5, 0.5)

    def __post_init__(self) -> None:
        _require(min(self.height, self.width) > 0, "The image size", "positive", (self.height, self.width))
        _require(min(self.std) > 0, "ImageSpec.std", "positive numbers", self.std)
        _require(all(0 <= level <= 255 for level in self.background), "background", "0 to 255", self.background)
        if self.fit == "crop":
            least = max(self.height, self.width)
            _require((self.shortest_edge or 0) >= least, "shortest_edge", f"at least {least}", self.shortest_edge)


class VisionSpec(msgspec.Struct, frozen=True, kw_only=True):
    """A vision transformer (Dosovitskiy et al., arXiv 2010.11929) and the projector to the language model's width.

    CLIP's (arXiv 2103.00020) has a class token and a norm before its layers; SigLIP's (arXiv 2303.15343) has neither.
    The projector is LLaVA's: linear, GELU, linear (arXiv 2310.03744).
    """

    language: str
    """The family of the language model."""
    tower: Literal["clip", "siglip"]
    images: ImageSpec
    patch: int
    hidden: int
    heads: int
    intermediate: int
    layers: int
    """Those that are run: the features may be taken before the tower's last layers."""
    tower_layers: int
    """Those that the checkpoint holds."""
    activation: Literal["gelu", "gelu_pytorch_tanh", "quick_gelu"]
    class_feature: bool
    """Whether the class token's feature is one of those that the language model reads."""
    norm_eps: float
    projector_bias: bool = True
    image_token_id: int
    """Stands in a prompt where an image is to be seen; the chat template writes it."""

    def __post_init__(self) -> None:
        for name in ("patch", "hidden", "heads", "intermediate", "tower_layers"):
            _require(getattr(self, name) > 0, f"VisionSpec.{name}", "a positive number", getattr(self, name))
        _require(0 <= self.layers <= self.tower_layers, "VisionSpec.layers", f"0 to {self.tower_layers}", self.layers)
        _require(self.hidden % self.heads == 0, "VisionSpec.hidden", f"a multiple of {self.heads}", self.hidden)
        _require(self.tower == "clip" or not self.class_feature, "class_feature", "false for siglip", True)

    @property
    def patches(self) -> int:
        """Of an image."""
        return (self.images.height // self.patch) * (self.images.width // self.patch)

    @property
    def tokens(self) -> int:
        """Positions of a context that an image takes."""
        return self.patches + self.class_feature

    def parameters(self, hidden: int) -> int:
        """Number of weights of the layers that are run, and of the projector to a language model's width ``hidden``."""
        clip = self.tower == "clip"
        embeddings = self.hidden * (3 * self.patch**2 + self.patches + (4 if clip else 1))
        attention = 4 * self.hidden * (self.hidden + 1)
        mlp = 2 * self.hidden * self.intermediate + self.hidden + self.intermediate
        projector = hidden * (self.hidden + hidden + 2 * self.projector_bias)
        return embeddings + self.layers * (attention + mlp + 4 * self.hidden) + projector


def _require(condition: bool, what: str, expected: object, found: object) -> None:
    if not condition:
        raise ConfigError(explain(what, expected=expected, found=found, todo="Correct the model's config."))
