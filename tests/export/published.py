"""NVIDIA's published measurements of TensorRT Edge-LLM 0.9.0, and the models that they were taken of.

Rates: "Performance Benchmarks", section "v0.9.0 Results",
https://nvidia.github.io/TensorRT-Edge-LLM/0.9.1/user_guide/performance/performance-benchmarks.html (the Markdown of it
was read, docs/source/user_guide/performance/performance-benchmarks.md). One sequence, vanilla decoding. The page names
neither power modes nor the positions in the caches of its runtime rows.

Qwen3: the sizes of the published config.json files. The language models of Qwen3-VL 2B, 4B and 8B have the sizes of
Qwen3 1.7B, 4B and 8B.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edge_export.checkpoint import read_config
from edge_export.families import qwen3
from edge_sdk.boards import BOARDS, Board, PowerMode
from edge_sdk.model import ModelConfig
from edge_sdk.roofline import decode_seconds, prefill_seconds
from edge_sdk.traffic import WeightStorage

OFFICIAL = Path(__file__).parent / "official"

MEAN_CONTEXT = 512
"""Assumed of the runtime rows: questions of 60 tokens (MT-Bench), answers of unknown length."""

QWEN3 = {
    "Qwen3-0.6B": (1024, 3072, 28, 16, True),
    "Qwen3-1.7B": (2048, 6144, 28, 16, True),
    "Qwen3-4B": (2560, 9728, 36, 32, True),
    "Qwen3-8B": (4096, 12288, 36, 32, False),
}
"""Hidden width, width of the MLP, layers, query heads, whether the output projection is the embedding."""


def qwen3_config(name: str) -> dict[str, Any]:
    """The config.json of a Qwen3 model, as far as it says sizes."""
    hidden, intermediate, layers, heads, tied = QWEN3[name]
    return {
        "model_type": "qwen3",
        "vocab_size": 151936,
        "hidden_size": hidden,
        "intermediate_size": intermediate,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "hidden_act": "silu",
        "max_position_embeddings": 40960,
        "rms_norm_eps": 1e-6,
        "rope_theta": 1000000,
        "tie_word_embeddings": tied,
        "use_sliding_window": False,
        "attention_bias": False,
        "bos_token_id": 151643,
        "eos_token_id": 151645,
    }


MODELS: dict[str, ModelConfig] = {name: qwen3.parse_config(qwen3_config(name)) for name in QWEN3} | {
    name: read_config(OFFICIAL / f"{name}.json") for name in ("nemotron-3-nano-4b", "nemotron-3-nano-30b-a3b")
}


def bfloat16_layers(config: ModelConfig) -> frozenset[int]:
    """What NVIDIA's NVFP4 checkpoints of Nemotron 3 Nano leave in bfloat16: attention, and the Mamba-2 layer before it.

    Read in the 30B model's hf_quant_config.json (``exclude_modules``); the 4B model's was not found.
    """
    attention = [index for index, spec in enumerate(config.layers) if spec.kind == "attention"]
    before = [max(j for j in range(index) if config.layers[j].kind == "mamba2") for index in attention]
    return frozenset(attention + before)


def stored(precision: str, config: ModelConfig) -> WeightStorage:
    """How such a checkpoint stores the weights; its output projection is 16 bits wide."""
    if precision == "int4":  # AWQ: one float16 scale for 128
        return WeightStorage(name="int4", bits=4, block_size=128, scale_bits=16, head_bits=16)
    kept = frozenset() if config.family == "qwen3" else bfloat16_layers(config)
    return WeightStorage(
        name="nvfp4", bits=4, block_size=16, scale_bits=8, head_bits=16, multiplied="float4", kept_layers=kept
    )


@dataclass(frozen=True)
class Row:
    """One published measurement."""

    board: str
    model: str
    precision: str
    measured: float
    """Tokens per second where they are decoded, milliseconds where a prompt is read."""
    tokens: int | None = None
    """Of the prompt; None where they are decoded."""
    context: int = MEAN_CONTEXT
    """Positions in the caches when tokens are decoded."""
    fitted: bool = False
    """Whether the constants were fitted to it."""
    mode: str | None = None
    note: str = ""

    @property
    def config(self) -> ModelConfig:
        return MODELS[self.model]

    @property
    def place(self) -> tuple[Board, PowerMode]:
        board = BOARDS[self.board]
        return board, board.mode(self.mode)


def _nano(model: str, measured: float, tokens: int | None = None, note: str = "") -> Row:
    """The page does not say so, but its Orin Nano ran in the plain 15 W mode and not in Super mode: it encoded images
    1.84 times as slowly as the Orin NX (151.1 and 82.1 ms), whose GPU has as many cores, and 1173 / 625 is 1.88.
    """
    return Row("orin-nano-8gb", model, "int4", measured, tokens, mode="15W", note=note)


DECODE = (
    Row("agx-orin-64gb", "Qwen3-0.6B", "int4", 186.4, fitted=True),
    Row("agx-orin-64gb", "Qwen3-1.7B", "int4", 98.6),
    Row("agx-orin-64gb", "Qwen3-4B", "int4", 53.1),
    Row("agx-orin-64gb", "Qwen3-8B", "int4", 32.5, fitted=True),
    Row("agx-orin-64gb", "Qwen3-1.7B", "int4", 98.4, note="Qwen3-VL-2B"),
    Row("agx-orin-64gb", "Qwen3-4B", "int4", 52.4, note="Qwen3-VL-4B"),
    Row("agx-orin-64gb", "Qwen3-8B", "int4", 32.3, note="Qwen3-VL-8B"),
    Row("orin-nx-16gb", "Qwen3-0.6B", "int4", 117.4),
    Row("orin-nx-16gb", "Qwen3-1.7B", "int4", 60.4, fitted=True),
    Row("orin-nx-16gb", "Qwen3-4B", "int4", 31.6),
    Row("orin-nx-16gb", "Qwen3-8B", "int4", 19.0),
    Row("orin-nx-16gb", "Qwen3-1.7B", "int4", 60.1, note="Qwen3-VL-2B"),
    Row("orin-nx-16gb", "Qwen3-4B", "int4", 31.2, note="Qwen3-VL-4B"),
    Row("orin-nx-16gb", "Qwen3-8B", "int4", 18.9, note="Qwen3-VL-8B"),
    _nano("Qwen3-0.6B", 72.8),
    _nano("Qwen3-1.7B", 37.4),
    _nano("Qwen3-1.7B", 36.9, note="Qwen3-VL-2B"),
    Row("thor-t5000", "Qwen3-0.6B", "nvfp4", 303.1, fitted=True),
    Row("thor-t5000", "Qwen3-1.7B", "nvfp4", 154.2),
    Row("thor-t5000", "Qwen3-4B", "nvfp4", 80.5),
    Row("thor-t5000", "Qwen3-8B", "nvfp4", 46.8, fitted=True),
    Row("thor-t5000", "Qwen3-4B", "int4", 79.6),
    Row("thor-t5000", "Qwen3-8B", "int4", 49.3),
    Row("thor-t5000", "Qwen3-0.6B", "nvfp4", 245.4, context=2048),
    Row("thor-t5000", "Qwen3-1.7B", "nvfp4", 135.5, context=2048),
    Row("thor-t5000", "Qwen3-4B", "nvfp4", 73.7, context=2048),
    Row("thor-t5000", "Qwen3-8B", "nvfp4", 44.4, context=2048),
    Row("thor-t5000", "nemotron-3-nano-4b", "nvfp4", 67.9),
    Row("thor-t5000", "nemotron-3-nano-30b-a3b", "nvfp4", 77.3),
    Row("thor-t5000", "nemotron-3-nano-4b", "nvfp4", 67.3, context=2048),
    Row("thor-t5000", "nemotron-3-nano-30b-a3b", "nvfp4", 76.0, context=2048),
)

PREFILL = (
    Row("agx-orin-64gb", "Qwen3-0.6B", "int4", 14.8, 61, fitted=True),
    Row("agx-orin-64gb", "Qwen3-1.7B", "int4", 20.4, 61),
    Row("agx-orin-64gb", "Qwen3-4B", "int4", 42.6, 57),
    Row("agx-orin-64gb", "Qwen3-8B", "int4", 65.7, 61, fitted=True),
    Row("agx-orin-64gb", "Qwen3-1.7B", "int4", 50.0, 292, note="Qwen3-VL-2B"),
    Row("agx-orin-64gb", "Qwen3-4B", "int4", 123.7, 292, note="Qwen3-VL-4B"),
    Row("agx-orin-64gb", "Qwen3-8B", "int4", 225.1, 292, note="Qwen3-VL-8B", fitted=True),
    Row("orin-nx-16gb", "Qwen3-0.6B", "int4", 18.9, 61),
    Row("orin-nx-16gb", "Qwen3-1.7B", "int4", 35.4, 61, fitted=True),
    Row("orin-nx-16gb", "Qwen3-4B", "int4", 74.9, 57),
    Row("orin-nx-16gb", "Qwen3-8B", "int4", 127.2, 61),
    Row("orin-nx-16gb", "Qwen3-1.7B", "int4", 103.1, 292, note="Qwen3-VL-2B", fitted=True),
    Row("orin-nx-16gb", "Qwen3-4B", "int4", 244.6, 292, note="Qwen3-VL-4B"),
    Row("orin-nx-16gb", "Qwen3-8B", "int4", 462.1, 292, note="Qwen3-VL-8B"),
    _nano("Qwen3-0.6B", 28.7, 61),
    _nano("Qwen3-1.7B", 63.1, 61),
    _nano("Qwen3-1.7B", 190.9, 292, note="Qwen3-VL-2B"),
    Row("thor-t5000", "Qwen3-0.6B", "nvfp4", 8.0, 61, fitted=True),
    Row("thor-t5000", "Qwen3-1.7B", "nvfp4", 12.0, 61),
    Row("thor-t5000", "Qwen3-4B", "nvfp4", 20.5, 57),
    Row("thor-t5000", "Qwen3-8B", "nvfp4", 30.4, 61, fitted=True),
    Row("thor-t5000", "Qwen3-1.7B", "nvfp4", 10.7, 292, note="Qwen3-VL-2B"),
    Row("thor-t5000", "Qwen3-4B", "nvfp4", 20.4, 292, note="Qwen3-VL-4B"),
    Row("thor-t5000", "Qwen3-8B", "nvfp4", 30.2, 292, note="Qwen3-VL-8B", fitted=True),
    Row("thor-t5000", "Qwen3-0.6B", "nvfp4", 20.3, 2048, fitted=True),
    Row("thor-t5000", "Qwen3-1.7B", "nvfp4", 29.9, 2048),
    Row("thor-t5000", "Qwen3-4B", "nvfp4", 64.7, 2048),
    Row("thor-t5000", "Qwen3-8B", "nvfp4", 108.4, 2048, fitted=True),
    Row("thor-t5000", "Qwen3-4B", "int4", 33.5, 57),
    Row("thor-t5000", "Qwen3-8B", "int4", 56.0, 61, fitted=True),
    Row("thor-t5000", "Qwen3-4B", "int4", 85.2, 292, note="Qwen3-VL-4B"),
    Row("thor-t5000", "Qwen3-8B", "int4", 156.5, 292, note="Qwen3-VL-8B", fitted=True),
)

UNPREDICTED = (
    Row("thor-t5000", "nemotron-3-nano-4b", "nvfp4", 35.4, 66),
    Row("thor-t5000", "nemotron-3-nano-30b-a3b", "nvfp4", 73.9, 66),
    Row("thor-t5000", "nemotron-3-nano-4b", "nvfp4", 1150.8, 2048),
    Row("thor-t5000", "nemotron-3-nano-30b-a3b", "nvfp4", 167.3, 2048),
)
"""Prompts of models with Mamba-2 layers, which the constants were not fitted to and are not held to."""

PARAMETERS = {
    "Qwen3-0.6B": (0.6, 0.44),
    "Qwen3-1.7B": (1.7, 1.4),
    "Qwen3-4B": (4.0, 3.6),
    "Qwen3-8B": (8.2, 6.95),
}
"""Billions of parameters, and of those that are no embedding, as the model cards say."""


def predicted(row: Row) -> float:
    """Tokens per second, or milliseconds for a prompt."""
    config, (board, mode) = row.config, row.place
    weights = stored(row.precision, config)
    if row.tokens is None:
        return 1 / decode_seconds(config, weights, board, mode, row.context)
    seconds = prefill_seconds(config, weights, board, mode, row.tokens)
    assert seconds is not None
    return 1e3 * seconds


def table(rows: tuple[Row, ...]) -> str:
    """Measured and predicted as a Markdown table, as docs/boards.md has it."""
    prompts = rows[0].tokens is not None
    unit, size = ("ms", "prompt") if prompts else ("tokens/s", "context")
    lines = [
        f"| board | model | weights | {size} | measured {unit} | predicted | error | used |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        found = predicted(row)
        model = f"{row.model} (in {row.note})" if row.note else row.model
        length = row.tokens if prompts else row.context
        board = row.board + (f", {row.mode}" if row.mode else "")
        used = "to fit" if row.fitted else "to judge"
        numbers = f"{length} | {row.measured:.1f} | {found:.1f} | {found / row.measured - 1:+.1%}"
        lines.append(f"| {board} | {model} | {row.precision} | {numbers} | {used} |")
    return "\n".join(lines) + "\n"
