"""Which leaf of a model is stored how: what ``edge-export quantize`` writes and ``edge-export onnx`` applies."""

from __future__ import annotations

import hashlib
from collections import Counter
from pathlib import Path
from typing import Literal

import msgspec
import torch
from safetensors.torch import load_file
from torch import nn

from edge_export.models import make_model
from edge_export.quantize import Bfloat16Embedding, Convert, QuantExperts, QuantLinear
from edge_export.torch_layers import Experts
from edge_sdk.errors import ConfigError, explain
from edge_sdk.files import sha256
from edge_sdk.model import CacheDType, ModelConfig, StateDType

Level = Literal["int4", "int8", "float32"]

BITS: dict[Level, int] = {"int4": 4, "int8": 8, "float32": 32}

FILE = "plan.json"
LEAVES = "leaves"


class QuantizeRequest(msgspec.Struct, frozen=True, kw_only=True):
    """What ``edge-export quantize`` is asked for; the key that an interrupted run is gone on with."""

    weights: Literal["int4", "int8"]
    method: Literal["rtn", "gptq"]
    block_size: int
    cache_dtype: CacheDType
    state_dtype: StateDType
    budget_gb: float | None
    data: str
    samples: int
    max_length: int
    report_only: bool

    def leaves(self, config: ModelConfig) -> dict[str, Level]:
        """The levels that are asked for by name; with a budget, which chooses them, the largest that are written."""
        level: Level = self.weights if self.budget_gb is None else "int8"
        return dict.fromkeys(quantizable(config), level) | {"lm_head": "int8"}


class Plan(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How each projection, experts and the head are stored, and caches and states from step to step.

    Embeddings are bfloat16, all else is float32.
    """

    checkpoint: str
    """Fingerprint of the checkpoint that it is for."""
    block_size: int
    method: Literal["rtn", "gptq"]
    leaves: dict[str, Level]
    cache_dtype: CacheDType = "float16"
    state_dtype: StateDType = "float32"

    @property
    def label(self) -> str:
        """The weights in a word, for the manifest."""
        counts = Counter(self.leaves.values())
        mixed = "+".join(level for level in BITS if counts[level])
        return f"{mixed}-block{self.block_size}-{self.method}"

    def convert(self, folder: Path | None) -> Convert:
        """What becomes of a model's leaves, with the integers that stand in ``folder``; None: rounded to nearest."""

        def make(name: str, module: nn.Module) -> nn.Module | None:
            if isinstance(module, nn.Embedding):
                return Bfloat16Embedding(module)
            if not isinstance(module, (nn.Linear, Experts)) or self.leaves[name] == "float32":
                return None
            made = round_leaf(module, BITS[self.leaves[name]], self.block_size)
            if folder is not None and (stored := leaf_path(folder, name)).exists():
                made.load_state_dict(load_file(stored), strict=False)  # a bias is not in it
            return made

        return make


def round_leaf(module: nn.Linear | Experts, bits: int, block_size: int) -> QuantLinear | QuantExperts:
    """A leaf rounded to nearest."""
    kind = QuantExperts if isinstance(module, Experts) else QuantLinear
    return kind(module, bits, block_size)  # type: ignore[arg-type]


def leaf_path(folder: Path, name: str) -> Path:
    """Where the integers of a leaf stand, if they are not those of rounding to nearest."""
    return folder / LEAVES / f"{name}.safetensors"


def quantizable(config: ModelConfig) -> dict[str, nn.Linear | Experts]:
    """The leaves that a plan decides on, by name, without values."""
    with torch.device("meta"):
        model = make_model(config)
    return {name: leaf for name, leaf in model.named_modules() if isinstance(leaf, (nn.Linear, Experts))}


def levels(leaf: nn.Module) -> tuple[Level, ...]:
    """From the smallest on. Experts are all of integers: a graph holds one variant of an operator."""
    return ("int4", "int8") if isinstance(leaf, Experts) else ("int4", "int8", "float32")


def leaf_bytes(leaf: nn.Linear | Experts, level: Level, block_size: int) -> int:
    """Of a leaf in the graph's file, its bias left out."""
    weights = (leaf.up_weight, leaf.down_weight) if isinstance(leaf, Experts) else (leaf.weight,)
    numbers = sum(weight.numel() for weight in weights)
    return numbers * BITS[level] // 8 + (0 if level == "float32" else numbers // block_size * 4)


def other_bytes(config: ModelConfig) -> int:
    """Of everything that a plan does not decide on."""
    with torch.device("meta"):
        model = make_model(config)
    decided = {f"{name}.{part}" for name, leaf in quantizable(config).items() for part, _ in leaf.named_parameters()}
    decided -= {name for name in decided if name.endswith(".bias")}
    state = {name: tensor for name, tensor in model.state_dict().items() if name not in decided}
    return sum(tensor.numel() * (2 if name == "embeddings.weight" else 4) for name, tensor in state.items())


def total_bytes(config: ModelConfig, leaves: dict[str, Level], block_size: int) -> int:
    """Of the graph's weights."""
    modules = quantizable(config)
    decided = sum(leaf_bytes(modules[name], level, block_size) for name, level in leaves.items())
    return decided + other_bytes(config)


def read_plan(folder: Path) -> Plan:
    """The plan in a folder. Raises ConfigError if it is none."""
    path = folder / FILE
    try:
        return msgspec.json.decode(path.read_bytes(), type=Plan)
    except (OSError, msgspec.DecodeError) as error:
        raise ConfigError(
            explain(str(path), expected="a plan", found=error, todo="Run `edge-export quantize` again.")
        ) from None


def require_plan_for(plan: Plan, checkpoint: Path, config: ModelConfig, digest: str | None = None) -> None:
    """Raises ConfigError for a plan of another model or, where the fingerprint is given, of another checkpoint."""
    if (digest is not None and plan.checkpoint != digest) or plan.leaves.keys() != quantizable(config).keys():
        raise ConfigError(
            explain(
                "The plan",
                expected=f"one for {checkpoint}",
                found="one for another checkpoint",
                todo="Run `edge-export quantize` again.",
            )
        )


def plan_digest(folder: Path) -> str:
    """Hash of a plan and of all the integers beside it."""
    parts = [folder / FILE, *sorted((folder / LEAVES).glob("*"))]
    return hashlib.sha256("".join(sha256(part) for part in parts).encode()).hexdigest()
