"""Tiny random checkpoints in Hugging Face format, each with some special settings switched on."""

from __future__ import annotations

from typing import Any

import torch

from edge_export.families import nemotron_h
from edge_export.torch_layers import Moe
from edge_export.torch_model import HybridLM

BASE: dict[str, Any] = {
    "model_type": "nemotron_h",
    "vocab_size": 48,
    "hidden_size": 64,
    "layers_block_type": ["linear_attention", "moe", "full_attention", "mlp", "linear_attention", "moe"],
    "mamba_num_heads": 4,
    "mamba_head_dim": 16,
    "n_groups": 2,
    "ssm_state_size": 16,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "intermediate_size": 96,
    "n_routed_experts": 8,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 32,
    "moe_shared_expert_intermediate_size": 64,
    "max_position_embeddings": 512,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
    "time_step_min": 0.0,
}
VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "one-mamba-group": {"n_groups": 1},
    "head-dim-80": {"mamba_head_dim": 80, "mamba_num_heads": 2},
    "latent-experts": {"moe_latent_size": 32},
    "expert-groups": {"n_group": 4, "topk_group": 2, "num_experts_per_tok": 3},
    "unnormalised-routing": {"norm_topk_prob": False, "routed_scaling_factor": 2.5},
    "no-conv-bias": {"use_conv_bias": False},
    "projection-bias": {"use_bias": True},
    "many-queries-per-key": {"num_attention_heads": 8, "num_key_value_heads": 1},
    "tied": {"tie_word_embeddings": True},
    "only-mamba": {"layers_block_type": ["linear_attention", "mlp", "linear_attention"]},
    "no-experts": {"layers_block_type": ["linear_attention", "mlp", "full_attention"]},
    "drafting-head": {"num_nextn_predict_layers": 1, "mtp_hybrid_override_pattern": "*E", "moe_latent_size": 32},
    "dense-drafting-head": {
        "layers_block_type": ["linear_attention", "mlp", "full_attention", "linear_attention"],
        "num_nextn_predict_layers": 1,
        "mtp_layers_block_type": ["attention", "mlp"],
        "num_key_value_heads": 1,
    },
}


def make(variant: str, seed: int = 0) -> HybridLM:
    """A random model whose correction biases and norms are not the trivial ones."""
    torch.manual_seed(seed)  # torch draws biases as it makes modules
    model = HybridLM(nemotron_h.parse_config(BASE | VARIANTS[variant]))
    model.reset_parameters(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name:
                parameter.uniform_(0.5, 1.5)
        for module in model.modules():
            if isinstance(module, Moe):
                module.gate.e_score_correction_bias.uniform_(-0.2, 0.2)
    return model.eval()


def relative_error(found: torch.Tensor, expected: torch.Tensor) -> float:
    """Largest difference over the largest magnitude expected."""
    return float((found - expected).abs().max() / expected.abs().max())
