"""The thread beside the actuation: observes, infers, and hands over the chunk."""

from __future__ import annotations

import logging
import math
import threading
from collections import deque
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from edge_sdk.control.chunks import Chunk, ChunkQueue
from edge_sdk.control.clock import Clock
from edge_sdk.control.observers import InferenceRecord, Observer
from edge_sdk.control.policy import Policy
from edge_sdk.control.report import Ended, Tally
from edge_sdk.control.robot import TIME_KEY, ClosedError, FloatArray, Robot
from edge_sdk.errors import ConfigError, explain

LOGGER = logging.getLogger(__name__)

DELAYS = 10
"""So many of the last inferences' delays are looked at; the longest is expected of the next one (arXiv 2506.07339)."""


class Failure(NamedTuple):
    """What ended the inferences."""

    ended: Ended
    error: str
    at_ns: int


class Inference:
    """One inference at a time, each begun by the actuation thread for the tick that is its next one."""

    def __init__(
        self,
        policy: Policy,
        robot: Robot,
        clock: Clock,
        queue: ChunkQueue,
        tally: Tally,
        *,
        observers: Sequence[Observer],
        period_ns: int,
        commit: bool,
    ) -> None:
        self._policy, self._robot, self._clock, self._queue = policy, robot, clock, queue
        self._tally, self._observers, self._commit = tally, observers, commit
        self._budget_ns = round(policy.config.budget_ms * 1e6)
        self._delays = deque([math.ceil(self._budget_ns / period_ns)], maxlen=DELAYS)
        self._go, self._answered = threading.Event(), threading.Event()
        self._closing, self._new_episode = False, True
        self._thread = threading.Thread(target=self._work, name="edge-inference", daemon=True)
        self.first_tick = self.next_tick = 0
        """The tick that the last inference was begun for, and the one that comes next now."""
        self.started_ns: int | None = None
        """When the one that is being made was begun."""
        self.failure: Failure | None = None

    def start(self) -> None:
        """Begins the thread, and returns when there is a chunk for tick 0 or a failure."""
        self._thread.start()
        self.begin(0)
        self._clock.wait(self._answered)

    def begin(self, first_tick: int) -> None:
        """Asks for a chunk that begins at a tick; only when none is being made."""
        self.first_tick = self.next_tick = first_tick
        self.started_ns = self._clock.now_ns()
        self._go.set()

    def begin_episode(self) -> None:
        """The policy forgets its state before the next inference."""
        self._new_episode = True

    @property
    def silent_from_ns(self) -> int | None:
        """Since when a chunk is overdue: the end of the budget of the one being made, or a failure."""
        failure, started_ns = self.failure, self.started_ns
        if failure is not None:
            return failure.at_ns
        return None if started_ns is None else started_ns + self._budget_ns

    def close(self, timeout_s: float) -> bool:
        """Ends the thread; False where it still computes after the time."""
        self._closing = True
        self._go.set()
        self._clock.join(self._thread, timeout_s)
        return not self._thread.is_alive()

    def _work(self) -> None:
        warm = False
        while True:  # after a failure too: it ends when it is closed
            self._clock.wait(self._go)
            self._go.clear()
            if self._closing:
                return
            if not warm:  # the first inference of an engine takes longer than those after it
                self._infer(warm_up=True)
                warm = self._new_episode = True  # what it saw is forgotten
                self.started_ns = self._clock.now_ns()
            if self.failure is None:
                self._infer()
            self._answered.set()

    def _infer(self, *, warm_up: bool = False) -> None:
        """One inference; a warm-up's chunk is thrown away."""
        ended: Ended = "robot"
        try:
            started_ns, asked_ns = self.started_ns or 0, self._clock.now_ns()
            observation = self._robot.observe()
            self._policy.config.check_observation(observation)
            observed_ns = self._clock.now_ns()
            ended = "policy"
            begins_episode, committed, actions = self._ask_policy(observation)
            if warm_up:
                return
            done_ns = self._clock.now_ns()
            chunk = Chunk(self.first_tick, actions, _taken_ns(observation, asked_ns), self._tally.inferences)
            self._queue.add(chunk, next_tick=self.next_tick)
            delay = self.next_tick - self.first_tick
            self._delays.append(max(1, delay))
            self._tally.inference(done_ns - started_ns, observed_ns - asked_ns, self._budget_ns, delay)
            self.started_ns = None
            ended = "observer"
            record = InferenceRecord(
                inference=chunk.inference,
                begins_episode=begins_episode,
                first_tick=chunk.first_tick,
                observation_ns=chunk.observation_ns,
                started_ns=started_ns,
                observed_ns=observed_ns,
                done_ns=done_ns,
                observation=observation,
                committed=committed,
                chunk=actions,
            )
            for observer in self._observers:
                observer.inference(record)
        except Exception as error:
            if not isinstance(error, ClosedError):
                LOGGER.exception("The %s raised an error", ended)
            self.failure = Failure(ended, f"{type(error).__name__}: {error}", self._clock.now_ns())

    def _ask_policy(self, observation: Mapping[str, np.ndarray]) -> tuple[bool, FloatArray | None, FloatArray]:
        """Whether it was reset, what it was told of the actions to come, and its chunk."""
        begins_episode = self._new_episode
        if begins_episode:
            self._new_episode = False
            self._policy.reset()
        committed = self._queue.committed(self.first_tick, max(self._delays)) if self._commit else None
        return begins_episode, committed, self._checked(self._policy.infer(observation, committed))

    def _checked(self, actions: FloatArray) -> FloatArray:
        """A copy of a policy's answer, which must have its shape."""
        config = self._policy.config
        shape = (config.chunk_length, config.action_dim)
        copied = np.array(actions, dtype=np.float32)
        if copied.shape != shape:
            todo = "Correct the policy or its policy.json."
            raise ConfigError(explain("The policy's chunk", expected=f"shape {shape}", found=copied.shape, todo=todo))
        return copied


def _taken_ns(observation: Mapping[str, np.ndarray], asked_ns: int) -> int:
    """When an observation was taken: what the robot says, or when it was asked."""
    said = observation.get(TIME_KEY)
    return asked_ns if said is None else int(said)
