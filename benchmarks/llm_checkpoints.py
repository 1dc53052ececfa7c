"""Random nemotron_h checkpoints of the benchmarks' sizes, in Hugging Face's format, from numpy's own generator.

The weights are no model of anything, but behave: fan-in scaled, so that activations stay of order one through all
layers. A tensor's values depend on its name, its shape and the seed alone.
"""

from __future__ import annotations

import json
import math
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from edge_export.families import nemotron_h
from edge_export.torch_model import HybridLM
from edge_sdk.errors import CheckpointError, explain
from edge_sdk.files import new_directory
from edge_sdk.model import AttentionSpec, LayerSpec, Mamba2Spec, MlpSpec, ModelConfig, MoeSpec

SHARD_BYTES = 2 << 30
CONTEXT = 16384
SPECIAL_TOKENS = ("<pad>", "<s>", "</s>")
CHAT_TEMPLATE = "<s>{{ messages[-1].content }}"
OUTPUTS = ("out_proj.weight", "o_proj.weight", "down_proj.weight", "fc2_latent_proj.weight")
"""Matrices whose products are added to the residual stream, by the ends of their names."""


def _config(pattern: str, vocab_size: int, hidden: int, context: int = CONTEXT, **layers: LayerSpec) -> ModelConfig:
    """A config whose layers are those of ``layers`` (mamba2, attention, mlp, moe) in the pattern's order."""
    kinds = {letter: kind for kind, letter in ModelConfig.LETTERS.items()}
    return ModelConfig(
        family="nemotron_h",
        vocab_size=vocab_size,
        hidden=hidden,
        layers=tuple(layers[kinds[letter]] for letter in pattern),
        max_length=context,
        bos_token_id=1,
        eos_token_ids=(2,),
        pad_token_id=0,
    )


MAMBA_260M = Mamba2Spec(heads=32, head_dim=64, groups=8, state=128)
ATTENTION_260M = AttentionSpec(heads=16, kv_heads=4, head_dim=128)
MAMBA_TINY = Mamba2Spec(heads=4, head_dim=32, groups=2, state=16)
ATTENTION_TINY = AttentionSpec(heads=4, kv_heads=2, head_dim=32)

SIZES = {
    # 259 M parameters
    "260m": _config(
        "M-M-M*-M-M-M*-M-M-M*-MM-",
        vocab_size=32768,
        hidden=1024,
        mamba2=MAMBA_260M,
        attention=ATTENTION_260M,
        mlp=MlpSpec(intermediate=4096),
    ),
    # 564 M parameters. Per token 6 of 64 experts (3.1 M), the latent projections (1.0 M), the router (0.07 M) and the
    # shared expert (4.2 M) are read: 8.5 M a layer, where the dense sibling's has 8.4 M.
    "260m-moe": _config(
        "MEMEM*EMEMEM*EMEMEM*EMME",
        vocab_size=32768,
        hidden=1024,
        mamba2=MAMBA_260M,
        attention=ATTENTION_260M,
        moe=MoeSpec(
            experts=64, top_k=6, intermediate=512, shared_intermediate=2048, latent=512, routed_scaling_factor=2.5
        ),
    ),
    # Nemotron-3-Nano-4B's shape: 3.97 G parameters
    "4b": _config(
        "M-M-M-MM-M-M*-M-M*-M-M-M*-M-M-MM*-MMM-M-M-",
        vocab_size=131072,
        hidden=3136,
        mamba2=Mamba2Spec(heads=96, head_dim=80, groups=8, state=128),
        attention=AttentionSpec(heads=40, kv_heads=8, head_dim=128),
        mlp=MlpSpec(intermediate=12544),
    ),
    # 25 M parameters, for long_context.py: its two attention layers have one head each, since reading a million tokens
    # takes 64 TFLOP for each 32 channels of queries
    "long": _config(
        "MMM-M*MMM-M*MM-",
        vocab_size=4096,
        hidden=512,
        context=2**20,
        mamba2=Mamba2Spec(heads=16, head_dim=64, groups=2, state=64),
        attention=AttentionSpec(heads=1, kv_heads=1, head_dim=32),
        mlp=MlpSpec(intermediate=1024),
    ),
    # For the tests.
    "tiny": _config(
        "M-*M-", vocab_size=320, hidden=64, mamba2=MAMBA_TINY, attention=ATTENTION_TINY, mlp=MlpSpec(intermediate=96)
    ),
    "tiny-moe": _config(
        "ME*ME",
        vocab_size=320,
        hidden=64,
        mamba2=MAMBA_TINY,
        attention=ATTENTION_TINY,
        moe=MoeSpec(experts=8, top_k=2, intermediate=32, shared_intermediate=64, latent=32, routed_scaling_factor=2.5),
    ),
}


def raw_config(config: ModelConfig) -> dict[str, object]:
    """config.json with only the keys that the layers need, in the dialect that every reader knows.

    llama.cpp's converter takes a model for one with experts if the experts' keys are there at all, and finds the
    dense MLP layers only in ``hybrid_override_pattern``; the attention, Mamba-2 and MLP keys it always wants.
    """
    raw = nemotron_h.format_config(config)
    del raw["layers_block_type"]
    raw |= {
        "hybrid_override_pattern": config.pattern,
        "num_hidden_layers": len(config.layers),
        "eos_token_id": config.eos_token_ids[0],
        "torch_dtype": "bfloat16",
    }
    if "E" in config.pattern:
        raw["n_shared_experts"] = 1
    return raw


def tensor_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Name and shape of every tensor of the checkpoint, in the model's order."""
    with torch.device("meta"):
        ours = HybridLM(config).state_dict()
    return {
        name: item.their_shape(tuple(ours[item.ours].shape))
        for item in nemotron_h.tensor_maps(config)
        for name in item.theirs
    }


def draw(name: str, shape: tuple[int, ...], layers: int, seed: int) -> np.ndarray:
    """The float32 values of one tensor; of a model of so many layers."""
    random = np.random.default_rng([seed, zlib.crc32(name.encode())])
    last = name.rpartition("mixer.")[2]
    if last == "A_log":  # Mamba-2's own initialisation, as is the next: A in -16 to -1, time steps 0.001 to 0.1
        values = np.log(random.uniform(1.0, 16.0, shape))
    elif last == "dt_bias":
        step = np.exp(random.uniform(math.log(1e-3), math.log(1e-1), shape))
        values = step + np.log(-np.expm1(-step))  # softplus, inverted
    elif last == "gate.e_score_correction_bias":
        values = random.uniform(-0.05, 0.05, shape)
    elif last == "conv1d.bias":
        values = random.uniform(-0.1, 0.1, shape)
    elif last == "conv1d.weight":
        values = random.uniform(-0.5, 0.5, shape)
    elif len(shape) == 1:  # norms, and the skip D
        values = random.uniform(0.5, 1.5, shape)
    else:
        matrix: np.ndarray = random.standard_normal(shape, dtype=np.float32)
        if name != "backbone.embeddings.weight":
            depth = 2 * layers if last.endswith(OUTPUTS) else 1
            matrix *= (shape[-1] * depth) ** -0.5
        return matrix
    return values.astype(np.float32)


def make_tokenizer() -> Tokenizer:
    """Special tokens and the 256 bytes; one merge, as formats of BPE tokenizers expect some."""
    symbols = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {token: index for index, token in enumerate([*SPECIAL_TOKENS, *symbols, "th"])}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[("t", "h")]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(list(SPECIAL_TOKENS))
    return tokenizer


def _shards(shapes: dict[str, tuple[int, ...]], limit: int) -> Iterator[list[str]]:
    """Names in order, in runs of at most ``limit`` bytes of bfloat16."""
    names: list[str] = []
    size = 0
    for name, shape in shapes.items():
        count = 2 * math.prod(shape)
        if names and size + count > limit:
            yield names
            names, size = [], 0
        names.append(name)
        size += count
    yield names


def _write(path: Path, content: dict[str, object]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def make(folder: Path, size: str, *, seed: int = 0, shard_bytes: int = SHARD_BYTES) -> int:
    """Writes the checkpoint in bfloat16, shard by shard, and returns its number of parameters.

    Needs memory for one shard and its largest tensor in float32. Replaces a checkpoint, and raises CheckpointError
    for any other folder that has something in it.
    """
    if folder.exists() and any(folder.iterdir()) and not (folder / "config.json").exists():
        raise CheckpointError(
            explain(str(folder), expected="a checkpoint to replace", found="something else", todo="Choose another.")
        )
    config = SIZES[size]
    shapes = tensor_shapes(config)
    shards = list(_shards(shapes, shard_bytes))
    with new_directory(folder) as new:
        index: dict[str, str] = {}
        for number, names in enumerate(shards, start=1):
            file = f"model-{number:05}-of-{len(shards):05}.safetensors" if len(shards) > 1 else "model.safetensors"
            tensors = {
                name: torch.from_numpy(draw(name, shapes[name], len(config.layers), seed)).bfloat16() for name in names
            }
            save_file(tensors, new / file, metadata={"format": "pt"})
            index |= dict.fromkeys(names, file)
        if len(shards) > 1:
            total = sum(2 * math.prod(shape) for shape in shapes.values())
            _write(new / "model.safetensors.index.json", {"metadata": {"total_size": total}, "weight_map": index})
        _write(new / "config.json", raw_config(config))
        make_tokenizer().save(str(new / "tokenizer.json"))
        special = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>"}
        _write(new / "tokenizer_config.json", {"tokenizer_class": "PreTrainedTokenizerFast", **special})
        (new / "chat_template.jinja").write_text(CHAT_TEMPLATE)
    return config.parameters()
