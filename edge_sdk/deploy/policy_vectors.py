"""What the acceptance check asks of a policy: observations that were recorded or drawn, and the actions that follow."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from edge_sdk.backends import max_positions
from edge_sdk.bundle import Bundle
from edge_sdk.control.model_policy import ModelPolicy
from edge_sdk.control.policy import ObservationSpec
from edge_sdk.deploy.vectors import Answers, Arrays, blocks, worst
from edge_sdk.errors import ConfigError, explain
from edge_sdk.instruction import InstructionCodec
from edge_sdk.model import ModelConfig
from edge_sdk.policy_spec import OBSERVATION_PREFIX, PolicySpec

EPISODES, STEPS = 4, 8
WORDS = 6
"""Tokens of an instruction that is drawn."""


class Recorded(NamedTuple):
    """A part of an episode, one observation for each of the policy's inferences."""

    instruction: str
    observations: Mapping[str, np.ndarray]
    """By name (steps, *shape), as ``ObservationSpec`` has them."""


class ActionVectors:
    """Episodes of observations, and the chunk of actions that follows from each of them.

    Every second inference is told that the first quarter of its chunk is committed, as real-time chunking tells it.
    """

    what = "actions"

    def __init__(
        self,
        spec: PolicySpec,
        instructions: Sequence[str],
        observations: Mapping[str, np.ndarray],
        expected: np.ndarray | None = None,
    ) -> None:
        """``observations``: by name (episodes, steps, *shape); ``expected``: (episodes, steps, chunk, action_dim)."""
        self._spec, self._instructions, self._observations = spec, instructions, observations
        self.expected = expected

    @classmethod
    def draw(cls, bundle: Bundle, recorded: Sequence[Recorded] = ()) -> ActionVectors:
        """Of recorded episodes; where there are none, around what the schema's statistics say of observations.

        Raises ConfigError for episodes that are not of the policy's schema.
        """
        spec = bundle.manifest.model.policy
        assert spec is not None
        codec = InstructionCodec(bundle.path) if spec.instruction else None
        parts = recorded or _drawn(spec, codec)
        instructions = [part.instruction if spec.instruction else "" for part in parts]
        steps = min(_steps(spec, part) for part in parts)
        if (limit := max_positions(bundle.manifest.model)) is not None:
            steps = min(steps, limit - max(_length(codec, text) for text in instructions))
        observations = {
            one.name: np.stack([part.observations[one.name][:steps] for part in parts])
            for one in spec.schema.observations
        }
        return cls(spec, instructions, observations)

    @classmethod
    def read(cls, arrays: Mapping[str, np.ndarray], model: ModelConfig) -> ActionVectors:
        """Of a file. Raises KeyError and ValueError for what is none."""
        spec = model.policy
        if spec is None:
            raise ValueError("those of a policy")
        observations = {one.name: arrays[OBSERVATION_PREFIX + one.name] for one in spec.schema.observations}
        instructions, actions = arrays["instructions"], arrays["actions"]
        episodes, steps, *chunk = actions.shape
        right = instructions.dtype.kind == "U" and instructions.shape == (episodes,) and episodes * steps > 0
        right &= chunk == [spec.schema.chunk_length, spec.schema.action_dim] and actions.dtype.kind == "f"
        for one in spec.schema.observations:
            found = observations[one.name]
            right &= found.shape == (episodes, steps, *one.shape) and found.dtype == one.dtype
        if not right:
            raise ValueError(f"actions of {actions.shape}")
        return cls(spec, instructions.tolist(), observations, actions)

    def arrays(self) -> Arrays:
        """See :class:`~edge_sdk.deploy.vectors.Vectors`."""
        named = {OBSERVATION_PREFIX + name: array for name, array in self._observations.items()}
        return {"instructions": np.array(self._instructions, np.str_)} | named

    def answers(self, bundle: Bundle, device: str, threads: int | None) -> Answers:
        """See :class:`~edge_sdk.deploy.vectors.Vectors`; a policy runs on the CPU whatever the device."""
        policy = ModelPolicy(bundle, threads=threads or 1)
        found = [self._episode(policy, number) for number in range(len(self._instructions))]
        return Answers(policy.engine.name, np.stack(found), policy.measure_step_ms())

    def _episode(self, policy: ModelPolicy, number: int) -> np.ndarray:
        """(steps, chunk, action_dim)"""
        policy.instruct(self._instructions[number])
        policy.reset()
        observed = {name: array[number] for name, array in self._observations.items()}
        (steps,) = {len(array) for array in observed.values()}
        chunks: list[np.ndarray] = []
        for step in range(steps):
            committed = None
            if step % 2:
                before = chunks[-1] if self.expected is None else self.expected[number, step - 1]
                committed = before[self._spec.stride :][: len(before) // 4]
            observation = {name: array[step] for name, array in observed.items()}
            chunks.append(policy.infer(observation, committed).copy())
        return np.stack(chunks)

    def error(self, found: np.ndarray) -> float:
        """The worst chunk's, of normalised actions, over the root mean square of all expected ones' spread."""
        assert self.expected is not None
        scaling = self._spec.schema.action.normalization.scaling()
        expected = scaling.normalize(self.expected)
        apart = scaling.normalize(found) - expected
        spread = np.sqrt(np.square(expected - expected.mean((0, 1, 2))).mean())
        return worst(apart.reshape(*apart.shape[:2], -1), spread)


def _steps(spec: PolicySpec, part: Recorded) -> int:
    """Of a part of an episode. Raises ConfigError where it is not of the policy's schema."""
    steps = {len(array) for array in part.observations.values()}
    if len(steps) != 1 or steps == {0}:
        expected = "as many of each observation, at least one"
        raise ConfigError(explain("An episode", expected=expected, found=sorted(steps), todo="Name other episodes."))
    spec.schema.check_observation({name: array[0] for name, array in part.observations.items()})
    return steps.pop()


def _drawn(spec: PolicySpec, codec: InstructionCodec | None) -> list[Recorded]:
    """What might have been recorded; ``codec`` is of a policy that reads an instruction."""
    rng = np.random.default_rng(0)
    return [
        Recorded(
            "" if codec is None else _instruction(codec, rng),
            {one.name: _observed(one, rng) for one in spec.schema.observations},
        )
        for _ in range(EPISODES)
    ]


def _observed(spec: ObservationSpec, rng: np.random.Generator) -> np.ndarray:
    """(steps, *shape): normalised, vectors are of a standard deviation of 0.5 around 0."""
    if spec.kind == "image":
        return blocks(rng, (STEPS, *spec.shape))
    return spec.normalization.scaling().unnormalize(0.5 * rng.standard_normal((STEPS, *spec.shape)))


def _instruction(codec: InstructionCodec, rng: np.random.Generator) -> str:
    """Some tokens as a text."""
    tokenizer = codec.tokenizer
    return str(tokenizer.decode(rng.integers(0, tokenizer.get_vocab_size(), WORDS).tolist()))


def _length(codec: InstructionCodec | None, instruction: str) -> int:
    """Of an instruction in tokens."""
    return len(codec.encode(instruction)) if codec is not None and instruction else 0
