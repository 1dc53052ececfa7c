"""The graphs that make embeddings, on ONNX Runtime: of tokens, and of images."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from edge_sdk.speculation import EMBED, VISION

if TYPE_CHECKING:
    from edge_sdk.backends.ort import OrtEngine


class EmbeddingSessions:
    """Beside the language model's session and on the same device; they keep nothing from call to call."""

    def __init__(self, engine: OrtEngine) -> None:
        self._embed, self._vision = engine.open(EMBED), engine.open(VISION)
        self._budget, self._made = engine.budget, engine.bundle.manifest.graphs[VISION].outputs

    def embed(self, input_ids: np.ndarray) -> np.ndarray:
        """See :meth:`edge_sdk.backends.Engine.embed`."""
        (embedded,) = self._embed.run(None, {"input_ids": input_ids})
        return np.asarray(embedded)

    def image_features(self, pixel_values: np.ndarray) -> np.ndarray:
        """See :meth:`edge_sdk.backends.Engine.image_features`."""
        (spec,) = self._made
        self._budget.check(math.prod(spec.sized(images=len(pixel_values))) * np.dtype(spec.dtype).itemsize)
        (features,) = self._vision.run(None, {"pixel_values": pixel_values})
        return np.asarray(features)
