"""A policy bundle on an engine: from observations to chunks of actions, in memory that was laid out beforehand."""

from __future__ import annotations

import logging
import statistics
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from edge_sdk.backends import Snapshot, max_positions
from edge_sdk.backends.host_memory import fill
from edge_sdk.backends.ort import OrtEngine, OrtStates
from edge_sdk.backends.ort_bindings import Bindings
from edge_sdk.bundle import Bundle
from edge_sdk.control.normalization import require
from edge_sdk.control.policy import Policy, PolicyConfig
from edge_sdk.control.robot import FloatArray
from edge_sdk.errors import BundleError, ConfigError, PromptError, explain
from edge_sdk.instruction import InstructionCodec
from edge_sdk.policy_spec import NO_TOKEN, OBSERVATION_PREFIX, PolicySpec
from edge_sdk.state_file import Conversation, read_state, write_state

WARM_UP_STEPS, WARM_UP_S = 21, 1.0
"""Steps that are measured when a policy is loaded, and the time after which no further one is begun."""

log = logging.getLogger("edge_sdk")


class ModelPolicy:
    """Implements :class:`edge_sdk.control.policy.Policy`; used by one thread at a time, but for :meth:`instruct`.

    The memory of the states, for the longest episode where a model has attention caches, and of all that goes in and
    out is taken and bound here; a step copies the observation into it, computes, and allocates nothing.
    """

    def __init__(
        self, bundle: Bundle, *, instruction: str = "", threads: int = 1, seed: int = 0, kernels: str = "auto"
    ) -> None:
        """As :func:`load_policy`; ``kernels`` as :class:`edge_sdk.backends.ort.OrtEngine` has them."""
        spec = bundle.manifest.model.policy
        if spec is None:
            raise BundleError(
                explain(str(bundle.path), expected="a policy", found="a language model", todo="Use edge_sdk.load.")
            )
        self.bundle, self.spec = bundle, spec
        self.engine = OrtEngine(bundle, threads=threads, kernels=kernels)
        self.max_positions = max_positions(bundle.manifest.model)
        """Tokens of the instruction and observations that an episode may have; None where there is no limit."""
        self._states = self._empty_states(self.max_positions or 0)
        self._position = Position(self.engine, spec, kept=1)
        self._noise = Noise(seed)
        self.instruct(instruction)
        self.reset()

    @property
    def config(self) -> PolicyConfig:
        """What it sees and does."""
        return self.spec.schema

    @property
    def position(self) -> int:
        """Tokens of the instruction and observations that the states hold."""
        return int(self._states.past_length[0])

    def instruct(self, instruction: str) -> None:
        """Reads what the next episodes are to do, from the next :meth:`reset` on; from any thread.

        Nothing is said where it is empty. Raises ConfigError where the model reads no instruction and PromptError
        where it leaves no room for observations.
        """
        ids = self._encode(instruction)
        states = self._empty_states(len(ids))
        position = Position(self.engine, self.spec, kept=0)
        for token in ids:
            position.inputs["input_ids"].fill(token)
            position.run(states)
        self._beginning = states.snapshot()
        """The states that an episode begins with."""

    def reset(self) -> None:
        """Begins an episode: the states are those after the instruction."""
        self.restore(self._beginning)

    def infer(self, observation: Mapping[str, np.ndarray], committed: FloatArray | None = None) -> FloatArray:
        """The next actions (chunk_length, action_dim), read-only, in memory that the next inference overwrites.

        The first ones are ``committed`` (n, action_dim), as they were given. Raises ConfigError for an observation or
        committed actions of other shapes than the schema's, and PromptError when an episode is longer than the
        context of a model with attention.
        """
        position = self.position
        if position == self.max_positions:
            todo = "Reset the policy, or export it with a larger max_length."
            raise PromptError(explain("An episode", expected=f"at most {position} positions", found="more", todo=todo))
        self._position.observe(observation)
        self._position.commit(committed)
        if self.spec.flow:
            self._noise.draw(position, self._position.inputs["noise"])
        self._position.run(self._states)
        return self._position.chunk

    def snapshot(self) -> Snapshot:
        """A copy of the states. The noise of a step follows from the seed and the position, so that is all."""
        return self._states.snapshot()

    def restore(self, snapshot: Snapshot) -> None:
        """Back to these states, of this bundle and any seed."""
        self._states.fill(snapshot.arrays, snapshot.length)

    def save(self, path: str | Path) -> None:
        """Writes the states to a file, which appears whole or not at all. Raises OSError."""
        write_state(Path(path), self.bundle.model_id, [], self.snapshot(), Conversation())

    def load(self, path: str | Path) -> None:
        """Back to the states of a file of this bundle. Raises StateError for a damaged one or one of another bundle."""
        _, _, snapshot = read_state(Path(path), self.bundle.model_id, self.bundle.manifest.model)
        self.restore(snapshot)

    def measure_step_ms(self) -> float:
        """The median time of a step in milliseconds, at the end of the longest episode; then begins an episode."""
        observation = {spec.name: np.zeros(spec.shape, spec.dtype) for spec in self.config.observations}
        self.reset()
        self.infer(observation)  # the first one takes longer
        taken_ns: list[int] = []
        while len(taken_ns) < WARM_UP_STEPS and sum(taken_ns) < WARM_UP_S * 1e9:
            if self.max_positions is not None:
                self._states.past_length[:] = self.max_positions - 1
            started_ns = time.perf_counter_ns()
            self.infer(observation)
            taken_ns.append(time.perf_counter_ns() - started_ns)
        self.reset()
        return statistics.median(taken_ns) / 1e6

    def _encode(self, instruction: str) -> list[int]:
        if not instruction:
            return []
        if not self.spec.instruction:
            todo = "Give none, or train a policy that reads one."
            raise ConfigError(explain("An instruction", expected="none by this policy", found=instruction, todo=todo))
        ids = InstructionCodec(self.bundle.path).encode(instruction)
        if self.max_positions is not None and len(ids) >= self.max_positions:
            expected = f"fewer than {self.max_positions} tokens"
            raise PromptError(explain("The instruction", expected=expected, found=len(ids), todo="Shorten it."))
        return ids

    def _empty_states(self, positions: int) -> OrtStates:
        """Zeros, with room for so many positions, whose pages are touched: no step is to wait for one."""
        states = self.engine.empty_states(1)
        if positions:
            states.make_room(np.array([positions]))
            fill(states.specs, self.engine.place.arrays(states.sets[states.turn]), (), 0, behind=True)
        return states


class Position:
    """One position of an episode: what a policy's graph reads and writes besides the states, bound to it once."""

    def __init__(self, engine: OrtEngine, spec: PolicySpec, *, kept: int) -> None:
        """``kept``: 1 where a chunk is wanted, else 0. It stays with the first states that it is run on."""
        sizes = {"batch": 1, "length": 1, "kept": kept}
        self.inputs = {
            one.name: np.zeros(one.sized(**sizes), one.dtype) for one in spec.inputs() if one.name != "past_length"
        }
        """By name. The one position is number 0 of action_positions."""
        outputs = {one.name: np.zeros(one.sized(**sizes), one.dtype) for one in spec.outputs()}
        if spec.instruction:
            self.inputs["input_ids"].fill(NO_TOKEN)
        self.chunk: FloatArray = outputs["actions"].reshape(-1, spec.schema.action_dim)
        """(chunk_length, action_dim), read-only."""
        self.chunk.flags.writeable = False
        self._schema = spec.schema
        self._observed = [
            (one.name, self.inputs[OBSERVATION_PREFIX + one.name][0, 0]) for one in self._schema.observations
        ]
        self._committed = self.inputs["committed"].reshape(-1, spec.schema.action_dim)
        self._bindings = Bindings(engine, self.inputs, outputs)

    def observe(self, observation: Mapping[str, np.ndarray]) -> None:
        """Copies an observation. Raises ConfigError where it is not of the schema."""
        for name, buffer in self._observed:
            array = observation.get(name)
            if array is None or array.shape != buffer.shape or array.dtype != buffer.dtype:
                self._schema.check_observation(observation)
            buffer[...] = array

    def commit(self, committed: FloatArray | None) -> None:
        """Copies committed actions (n, action_dim), or the first of them that a chunk has room for; None are none."""
        count = 0
        if committed is not None:
            if committed.shape[1:] != self._committed.shape[1:]:
                expected = f"shape (n, {self._schema.action_dim})"
                todo = "Correct the caller."
                raise ConfigError(explain("Committed actions", expected=expected, found=committed.shape, todo=todo))
            count = min(len(committed), len(self._committed))
            self._committed[:count] = committed[:count]
        self.inputs["committed_length"].fill(count)

    def run(self, states: OrtStates) -> None:
        """Feeds it, and advances the states."""
        self._bindings.run(states, states.written)
        states.advance(1)


class Noise:
    """Standard normal numbers that follow from a seed and a position, by the counter of a Philox generator.

    Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3". So a state's position says all that is needed to
    draw the same again.
    """

    def __init__(self, seed: int) -> None:
        require(seed >= 0, "seed", "at least 0", seed)
        self._bits = np.random.Philox(seed)
        self._generator = np.random.Generator(self._bits)
        self._begin: Any = self._bits.state

    def draw(self, position: int, out: FloatArray) -> None:
        """Fills ``out``, of any shape."""
        self._begin["state"]["counter"][-1] = position  # the highest word, which drawing does not reach
        self._bits.state = self._begin
        self._generator.standard_normal(out=out, dtype=np.float32)


def stride_of(policy: Policy) -> int | None:
    """Ticks from one inference to the next that a bundle's policy was trained for; None of any other policy."""
    return policy.spec.stride if isinstance(policy, ModelPolicy) else None


def load_policy(path: str | Path, *, instruction: str = "", threads: int = 1, seed: int = 0) -> ModelPolicy:
    """Opens and checks a policy's bundle, and prepares it for a :class:`~edge_sdk.control.loop.ControlLoop`.

    ``instruction``: what to do, where the policy reads one; see :meth:`ModelPolicy.instruct`. ``threads``: of the
    engine; more than one speeds up large models, but takes the cores that the control loop wakes up on. ``seed``: of
    the noise that flow matching begins with; each episode draws the same.

    Says in the log how long a step takes here, and warns where that is more than the policy's budget. Raises
    BundleError for a damaged bundle, or one of a language model, BackendError where onnxruntime cannot run it,
    MemoryLimitError where its states do not fit, and as :meth:`ModelPolicy.instruct`.
    """
    bundle = Bundle.open(path)
    policy = ModelPolicy(bundle, instruction=instruction, threads=threads, seed=seed)
    bundle.check_still_there()
    step_ms, budget_ms = policy.measure_step_ms(), policy.config.budget_ms
    if step_ms > budget_ms:
        log.warning(
            "a step takes %.2f ms here, more than the policy's budget of %g ms: its actions will come too late",
            step_ms,
            budget_ms,
        )
    else:
        log.info("a step takes %.2f ms here, of a budget of %g ms", step_ms, budget_ms)
    return policy
