"""Qwen3 dense checkpoints (arXiv 2505.09388): Llama's blocks, queries and keys normalised head by head."""

from __future__ import annotations

from typing import Any

from edge_export.families import common, llama
from edge_sdk.model import ModelConfig

FIXED = {"hidden_act": "silu", "use_sliding_window": False}

tensor_maps = llama.tensor_maps


@common.strict(FIXED, ignored={"sliding_window", "max_window_layers"})
def parse_config(raw: common.Config) -> ModelConfig:
    """A ModelConfig from the parsed config.json; refuses by name what it does not support."""
    attention = common.parse_attention(raw, raw.get("head_dim") or 128, qk_norm=True)
    return llama.decoder(raw, "qwen3", attention)


def format_config(config: ModelConfig) -> dict[str, Any]:
    """The config.json of a ModelConfig."""
    raw = llama.format_decoder(config, "Qwen3ForCausalLM")
    del raw["mlp_bias"]
    return raw
