"""Nemotron 3 checkpoints cut by Puzzle (arXiv 2411.19146): Nemotron-H whose layers of a kind differ in size."""

from __future__ import annotations

from collections import ChainMap
from collections.abc import Mapping
from typing import Any

from edge_export.families import common, nemotron_h
from edge_sdk.model import AttentionSpec, LayerSpec, Mamba2Spec, MlpSpec, ModelConfig, MoeSpec

FIXED = nemotron_h.FIXED
MTP_PREFIX = nemotron_h.MTP_PREFIX
OTHER_PREFIXES = nemotron_h.OTHER_PREFIXES

BY_BLOCK = ("n_routed_experts", "num_experts_per_tok", "moe_intermediate_size")
"""What a block of experts says of itself in ``block_configs``."""

tensor_maps = nemotron_h.tensor_maps


@common.strict(FIXED, aliases=nemotron_h.ALIASES, ignored=nemotron_h.UNUSED | {"layers_block_type"})
def parse_config(config: common.Config) -> ModelConfig:
    """A ModelConfig from the parsed config.json; refuses by name what it does not support."""
    blocks = common.get(config, "block_configs")
    common.require(config, {"num_hidden_layers": len(blocks)})
    layers = tuple(_parse_block(config, block) for block in blocks)
    return nemotron_h.describe(config, "nemotron_h_puzzle", layers)


def _parse_block(config: common.Config, block: Mapping[str, Any]) -> LayerSpec:
    unknown = block.keys() - {"block_type", *BY_BLOCK}
    common.require({"block_configs": sorted(unknown)}, {"block_configs": []})
    settings = ChainMap({key: block[key] for key in BY_BLOCK if block.get(key) is not None}, config)  # type: ignore[arg-type]
    return nemotron_h.parse_layer(settings, nemotron_h.letters([common.get(block, "block_type")]))


def format_config(config: ModelConfig) -> dict[str, Any]:
    """The config.json of a ModelConfig whose experts alone may differ from layer to layer."""
    raw = nemotron_h.format_model(config, "NemotronHPuzzleForCausalLM")
    for kind in (Mamba2Spec, AttentionSpec, MlpSpec):
        if spec := common.the_one(config, kind):
            raw |= nemotron_h.format_layer(spec)
    blocks = []
    for spec, name in zip(config.layers, raw.pop("layers_block_type")):
        block: dict[str, Any] = {"block_type": name}
        if isinstance(spec, MoeSpec):
            of_experts = nemotron_h.format_layer(spec)
            block |= {key: of_experts.pop(key) for key in BY_BLOCK}
            common.require({key: raw.get(key, value) for key, value in of_experts.items()}, of_experts)
            raw |= of_experts
        blocks.append(block)
    return raw | {"block_configs": blocks}
