"""How a hybrid model is a control policy: what it sees and does, and how it gets from observations to actions."""

from __future__ import annotations

import math
from itertools import pairwise

import msgspec

from edge_sdk.control.normalization import require
from edge_sdk.control.policy import ObservationSpec, PolicyConfig
from edge_sdk.tensor_spec import TensorSpec

OBSERVATION_PREFIX = "observation."
"""What stands before an observation's name in the names of the graph's inputs."""

NO_TOKEN = -1
"""In input_ids: this position is an observation."""

TIME_FEATURES = 32
"""Sines and cosines that tell a flow-matching decoder the time."""

TIME_WIDTH = 64
"""Of the hidden layer that they enter."""


class EncoderSpec(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """From an observation to what enters the first layer: the sum of what its vectors and each image make."""

    width: int = 128
    """Of the one hidden layer that all vectors enter together; 0 is a linear map."""
    channels: tuple[int, ...] = (16, 32, 64)
    """Of an image's convolutions, each of stride 2. Each last channel says where in the image it is strongest."""
    kernel: int = 3

    def __post_init__(self) -> None:
        require(self.width >= 0, "EncoderSpec.width", "at least 0", self.width)
        positive = len(self.channels) > 0 and min(self.channels) > 0
        require(positive, "EncoderSpec.channels", "positive numbers", list(self.channels))
        require(self.kernel > 0 and self.kernel % 2 == 1, "EncoderSpec.kernel", "an odd number", self.kernel)

    def parameters(self, schema: PolicyConfig, hidden: int) -> int:
        """Number of weights that a schema's observations take."""
        size = sum(spec.shape[0] for spec in vectors(schema))
        first = (size + 1) * self.width if self.width else 0
        total = 0 if size == 0 else first + ((self.width or size) + 1) * hidden
        for spec in images(schema):
            widths = (spec.shape[-1], *self.channels)
            total += sum(after * (before * self.kernel**2 + 1) for before, after in pairwise(widths))
            total += (2 * self.channels[-1] + 1) * hidden
        return total


class DecoderSpec(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """From what the last layer says of a position to a chunk of actions: blocks of attention and an MLP.

    One token stands for each action of the chunk; they are as wide as the model and all see each other.
    """

    layers: int = 2
    heads: int = 4
    head_dim: int = 32
    intermediate: int = 256
    flow_steps: int = 4
    """Euler steps from noise to actions, with flow matching."""

    def __post_init__(self) -> None:
        for name in ("layers", "heads", "head_dim", "intermediate", "flow_steps"):
            require(getattr(self, name) > 0, f"DecoderSpec.{name}", "a positive number", getattr(self, name))

    def parameters(self, schema: PolicyConfig, hidden: int) -> int:
        """Number of weights that decode a schema's actions."""
        block = 2 * hidden + 4 * self.heads * self.head_dim * hidden + 2 * self.intermediate * hidden
        actions = (schema.action_dim + 1) * hidden + (hidden + 1) * schema.action_dim
        time = (TIME_FEATURES + 1) * TIME_WIDTH + (TIME_WIDTH + 1) * hidden
        flow = time if schema.head == "flow_matching" else 0
        return schema.chunk_length * hidden + self.layers * block + hidden + actions + flow


class PolicySpec(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A policy around the layers of a ModelConfig: one position per observation, after those of an instruction."""

    schema: PolicyConfig
    instruction: bool = False
    """Whether an episode begins with a text, as positions of tokens before the first observation."""
    stride: int = 1
    """Actions' ticks from one observation to the next, as it was trained: the control loop's ``replan_ticks``."""
    encoder: EncoderSpec = EncoderSpec()
    decoder: DecoderSpec = DecoderSpec()

    def __post_init__(self) -> None:
        require(self.stride > 0, "PolicySpec.stride", "a positive number", self.stride)

    @property
    def flow(self) -> bool:
        """Whether actions come from noise."""
        return self.schema.head == "flow_matching"

    def inputs(self) -> tuple[TensorSpec, ...]:
        """Inputs of the graph but for the states, in order."""
        chunk = ("batch", "kept", self.schema.chunk_length, self.schema.action_dim)
        observations = [
            TensorSpec(
                OBSERVATION_PREFIX + spec.name,
                "uint8" if spec.kind == "image" else "float32",
                ("batch", "length", *spec.shape),
            )
            for spec in self.schema.observations
        ]
        return (
            *observations,
            *([TensorSpec("input_ids", "int64", ("batch", "length"))] if self.instruction else []),
            TensorSpec("past_length", "int64", ("batch",)),
            TensorSpec("action_positions", "int64", ("kept",)),
            TensorSpec("committed", "float32", chunk),
            TensorSpec("committed_length", "int64", ("batch", "kept")),
            *([TensorSpec("noise", "float32", chunk)] if self.flow else []),
        )

    def outputs(self) -> tuple[TensorSpec, ...]:
        """Outputs of the graph but for the states."""
        chunk = ("batch", "kept", self.schema.chunk_length, self.schema.action_dim)
        return (TensorSpec("actions", "float32", chunk),)

    def parameters(self, hidden: int) -> int:
        """Number of weights of the encoder and the decoder."""
        return self.encoder.parameters(self.schema, hidden) + self.decoder.parameters(self.schema, hidden)


def vectors(schema: PolicyConfig) -> list[ObservationSpec]:
    """The observations that are vectors, in order."""
    return [spec for spec in schema.observations if spec.kind == "vector"]


def images(schema: PolicyConfig) -> list[ObservationSpec]:
    """The observations that are images, in order."""
    return [spec for spec in schema.observations if spec.kind == "image"]


def reduced_shape(spec: ObservationSpec, encoder: EncoderSpec) -> tuple[int, int]:
    """Height and width of an image behind its convolutions."""
    step = 2 ** len(encoder.channels)
    return math.ceil(spec.shape[0] / step), math.ceil(spec.shape[1] / step)
