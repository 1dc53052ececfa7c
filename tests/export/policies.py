"""Tiny random policies, and their bundles, for whoever needs one in a second or two."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import torch
from tokenizers import Tokenizer, models, pre_tokenizers

from edge_export.checkpoint import save_model
from edge_export.families import policy
from edge_export.pack import Storage, export_graph, make_bundle
from edge_export.torch_policy import HybridPolicy
from edge_sdk import Bundle
from edge_sdk.control.normalization import Normalization
from edge_sdk.control.policy import ActionDim, ActionSpec, ObservationSpec, PolicyConfig

WORDS = ("reach", "the", "left", "right", "target", "then", "stop", "[UNK]")

MAMBA = {"type": "mamba2", "heads": 4, "head_dim": 16, "groups": 2, "state": 16}
ATTENTION = {"type": "attention", "heads": 4, "kv_heads": 2, "head_dim": 16}
MLP = {"type": "mlp", "intermediate": 96}

VECTOR = ObservationSpec(
    name="state",
    shape=(3,),
    units=("rad", "rad/s", "m"),
    normalization=Normalization(mode="MEAN_STD", stats={"mean": (0.1, -1.0, 20.0), "std": (0.5, 2.0, 4.0)}),
)
RANGE = ObservationSpec(
    name="goal", shape=(2,), normalization=Normalization(mode="MIN_MAX", stats={"min": (-2.0, 0.0), "max": (2.0, 5.0)})
)
CAMERA = ObservationSpec(
    name="images.front",
    shape=(20, 28, 3),
    kind="image",
    normalization=Normalization(mode="MEAN_STD", stats={"mean": (0.4, 0.5, 0.6), "std": (0.2, 0.3, 0.25)}),
)


def schema(
    head: str = "regression",
    observations: tuple[ObservationSpec, ...] = (VECTOR, RANGE),
    chunk_length: int = 6,
    rate_hz: float = 50.0,
) -> PolicyConfig:
    """Two actions, normalised by their range."""
    dims = (
        ActionDim(name="shoulder", unit="rad", lower=-1.5, upper=1.5),
        ActionDim(name="grip", unit="N", lower=0.0, upper=10.0),
    )
    normalization = Normalization(mode="MIN_MAX", stats={"min": (-1.5, 0.0), "max": (1.5, 10.0)})
    action = ActionSpec(dims=dims, rate_hz=rate_hz, normalization=normalization)
    return PolicyConfig(observations=observations, action=action, chunk_length=chunk_length, budget_ms=50, head=head)


def raw_config(described: PolicyConfig, *, instruction: bool = False, **changes: Any) -> dict[str, Any]:
    """A policy's config.json of few and narrow layers; ``changes`` are other values of ModelConfig or of PolicySpec."""
    of_policy = {name: changes.pop(name) for name in ("stride", "encoder", "decoder") if name in changes}
    small = {
        "encoder": {"width": 32, "channels": [4, 8]},
        "decoder": {"layers": 2, "heads": 2, "head_dim": 16, "intermediate": 64, "flow_steps": 3},
    }
    return {
        "model_type": "policy",
        "hidden": 64,
        "vocab_size": len(WORDS) if instruction else 0,
        "layers": [MAMBA, MLP, ATTENTION],
        "max_length": 256,
        "policy": {"schema": msgspec.to_builtins(described), "instruction": instruction, **small, **of_policy},
        **changes,
    }


def make_policy(described: PolicyConfig, seed: int = 0, **settings: Any) -> HybridPolicy:
    """A random policy; ``settings`` as :func:`raw_config`'s."""
    model = HybridPolicy(policy.parse_config(raw_config(described, **settings)))
    model.reset_parameters(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name:
                parameter.uniform_(0.5, 1.5)
            elif name.endswith(".bias"):
                parameter.uniform_(-0.2, 0.2)
    return model.eval()


def write_tokenizer(folder: Path) -> None:
    """Words of an instruction."""
    words = {word: index for index, word in enumerate(WORDS)}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.save(str(folder / "tokenizer.json"))


def bundle_of(model: HybridPolicy, folder: Path, storage: Storage | None = None) -> Bundle:
    """A policy's bundle, and beside it the checkpoint and the graph that it was made of."""
    save_model(model, folder / "checkpoint")
    if model.spec.instruction:
        write_tokenizer(folder / "checkpoint")
    export_graph(folder / "checkpoint", folder / "onnx", storage or Storage(cache_dtype="float32"))
    return make_bundle(folder / "checkpoint", folder / "onnx", folder / "bundle")


def policy_bundle(folder: Path, head: str = "regression", *, seed: int = 0, **settings: Any) -> Bundle:
    """The bundle of a random policy that reads two vectors; ``settings`` as :func:`raw_config`'s."""
    observations = settings.pop("observations", (VECTOR, RANGE))
    return bundle_of(make_policy(schema(head, observations), seed, **settings), folder)
