"""The torch model that a ModelConfig describes, be it a language model or a policy."""

from __future__ import annotations

from edge_export.torch_model import HybridBody, HybridLM
from edge_export.torch_policy import HybridPolicy
from edge_sdk.model import ModelConfig


def make_model(config: ModelConfig) -> HybridBody:
    """A model whose weights have no values yet."""
    return HybridLM(config) if config.policy is None else HybridPolicy(config)
