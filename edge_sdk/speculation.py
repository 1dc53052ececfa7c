"""The graphs beside model.onnx, as they follow from the model: for drafting (docs/speculation.md) and for images."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, get_args

import msgspec

from edge_sdk.errors import ConfigError, explain
from edge_sdk.model import Mamba2Spec, ModelConfig, MtpSpec, state_specs
from edge_sdk.tensor_spec import TensorSpec
from edge_sdk.vision_spec import VisionSpec

Speculation = Literal["auto", "off", "lookup", "head"]
"""What drafts tokens: whatever pays, nothing, earlier occurrences of the last tokens, or the model's own head."""

CHOICES: tuple[Speculation, ...] = get_args(Speculation)

ROLLBACK = "rollback.onnx"
"""The Mamba-2 scans alone, which make the states after those drafted tokens that were right."""

DRAFT = "draft.onnx"
"""The model's own head for drafting tokens (MtpSpec)."""

EMBED = "embed.onnx"
"""Tokens to the embeddings that a model which sees takes in their place."""

VISION = "vision.onnx"
"""Prepared pictures to what such a model takes in the place of their tokens (docs/vision.md)."""


class GraphSpec(msgspec.Struct, frozen=True):
    """What goes into a graph and comes out, in order."""

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]


def extra_graphs(config: ModelConfig) -> dict[str, GraphSpec]:
    """The graphs of a model besides model.onnx, by file name; their weights stand in the same external data."""
    graphs: dict[str, GraphSpec] = {}
    if config.speculation and any(isinstance(spec, Mamba2Spec) for spec in config.layers):
        graphs[ROLLBACK] = rollback_spec(config)
    if config.speculation and config.mtp is not None:
        graphs[DRAFT] = draft_spec(config, config.mtp)
    if config.vision is not None:
        graphs |= vision_specs(config, config.vision)
    return graphs


def vision_specs(config: ModelConfig, vision: VisionSpec) -> dict[str, GraphSpec]:
    """The two graphs that make a model's embeddings."""
    ids = TensorSpec("input_ids", "int64", ("batch", "length"))
    pixels = TensorSpec("pixel_values", "float32", ("images", 3, vision.images.height, vision.images.width))
    features = TensorSpec("image_features", "float32", ("images", vision.tokens, config.hidden))
    return {EMBED: GraphSpec((ids,), config.inputs()[:1]), VISION: GraphSpec((pixels,), (features,))}


def verifiable(config: ModelConfig) -> bool:
    """Whether tokens can be fed on trial: attention needs nothing for that, what scans need must have been exported.

    Of a model that sees none are: images' ids in its conversations are no tokens that could be drafted.
    """
    if config.vision is not None:
        return False
    scans = [spec for spec in config.layers if without_caches(state_specs("", [spec], config))]
    return all(isinstance(spec, Mamba2Spec) for spec in scans) and (config.speculation or not scans)


def check(config: ModelConfig, speculation: str, kind: str) -> None:
    """Raises ConfigError where a model cannot be run as asked for, on an engine of this kind; ``auto`` always can."""
    if speculation not in CHOICES:
        raise _refused(" or ".join(CHOICES), speculation, "Choose one of these.")
    if speculation in ("auto", "off"):
        return
    if kind != "ort-cpu":
        raise _refused("the CPU's engine", kind, "Load it with device cpu, or with speculation auto or off.")
    if config.vision is not None:
        raise _refused("a model of text", "one that sees", "Load it with speculation auto or off.")
    if not verifiable(config):
        todo = "Export the model with `edge-export onnx --speculation`, or load it with speculation auto or off."
        raise _refused("a bundle with rollback.onnx", "none", todo)
    if speculation == "head" and DRAFT not in extra_graphs(config):
        todo = "Load it with speculation auto or lookup; a checkpoint with a head is exported with --speculation."
        raise _refused("a bundle with a drafting head", "none", todo)


def _refused(expected: str, found: str, todo: str) -> ConfigError:
    return ConfigError(explain("speculation", expected=expected, found=found, todo=todo))


def rollback_spec(config: ModelConfig) -> GraphSpec:
    """Scans' states before some positions, and the projections of these, to the states after them."""
    return GraphSpec(
        inputs=(*config.projected_specs("length"), *without_caches(config.past_specs())),
        outputs=without_caches(config.present_specs()),
    )


def without_caches(specs: Sequence[TensorSpec]) -> tuple[TensorSpec, ...]:
    """The states that every token overwrites; of a cache, ``past_length`` says how much of it counts."""
    return tuple(spec for spec in specs if "capacity" not in spec.shape)


def only_caches(specs: Sequence[TensorSpec]) -> tuple[TensorSpec, ...]:
    """The states that have a place for every position."""
    return tuple(spec for spec in specs if "capacity" in spec.shape)


def draft_spec(config: ModelConfig, head: MtpSpec) -> GraphSpec:
    """Hidden states of positions and the tokens that follow them, to the logits of the tokens after those.

    The states are the head's own; its layers are counted from 0.
    """
    return GraphSpec(
        inputs=(
            TensorSpec("hidden_states", "float32", ("batch", "length", config.hidden)),
            *config.inputs()[:3],  # input_ids, past_length, logit_positions
            *state_specs("past_key_values", head.layers, config),
        ),
        outputs=(
            TensorSpec("logits", "float32", ("batch", "kept", config.vocab_size)),
            TensorSpec("next_hidden_states", "float32", ("batch", "kept", config.hidden)),
            *state_specs("present", head.layers, config),
        ),
    )
