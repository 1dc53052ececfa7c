"""What a bundle's acceptance check asks and compares: tokens, images or observations, and what the model made of them.

A kind of vectors knows three things: how to draw its questions, how to ask an engine, and how far two answers are
apart. ``acceptance.npz`` holds its arrays (:mod:`edge_sdk.deploy.acceptance`).
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from statistics import median
from typing import NamedTuple, Protocol

import numpy as np

from edge_sdk.backends import Engine, choose_engine
from edge_sdk.bundle import Bundle
from edge_sdk.images import pixel_values
from edge_sdk.model import ModelConfig
from edge_sdk.vision_spec import VisionSpec

PROMPTS, PROMPT_TOKENS, STEPS = 4, 24, 9
BLOCKS = 7
"""A picture is so many blocks of one colour high and wide: encoders tell edges from noise."""

Arrays = dict[str, np.ndarray]


class Answers(NamedTuple):
    """What an engine made of all questions."""

    engine: str
    values: np.ndarray
    """(runs, steps, values) float32: one vector for each step of each run from empty states."""
    step_ms: float
    """Median of a decoding step, or of a policy's inference."""


class Vectors(Protocol):
    """Questions of one kind, and the answers that were stored, None before there are any."""

    what: str
    """What is compared, for messages."""
    expected: np.ndarray | None
    """(runs, steps, values) float32."""

    def arrays(self) -> Arrays:
        """As they are stored, the expected answers left out."""
        ...

    def answers(self, bundle: Bundle, device: str, threads: int | None) -> Answers:
        """Asks an engine of this machine. Raises BackendError."""
        ...

    def error(self, found: np.ndarray) -> float:
        """How far answers are from the expected ones: the worst step's, 0 where they are equal."""
        ...


def worst(apart: np.ndarray, spread: np.ndarray | float) -> float:
    """The largest root mean square of (..., values), each over its spread; infinite where something is not a number."""
    errors = np.sqrt(np.square(apart).mean(-1)) / np.maximum(spread, np.finfo(np.float32).tiny)
    return float(np.nan_to_num(errors, nan=np.inf).max())


def logits_error(found: np.ndarray, expected: np.ndarray) -> float:
    """The worst step's error of logits (..., vocab), over the root mean square of that step's spread.

    Logits are compared around their mean, since softmax knows no constant.
    """
    centred = expected - expected.mean(-1, keepdims=True)
    return worst(found - found.mean(-1, keepdims=True) - centred, np.sqrt(np.square(centred).mean(-1)))


class LogitVectors:
    """Prompts, each behind an image where the model sees, and the logits of their last positions.

    All but the last steps - 1 tokens are fed at once and the others one by one, so that prefill and decoding are both
    compared.
    """

    what = "logits"

    def __init__(self, input_ids: np.ndarray, pictures: np.ndarray | None, expected: np.ndarray | None = None) -> None:
        """``input_ids``: (prompts, length) int64; ``pictures``: (prompts, height, width, 3) uint8, RGB."""
        self._ids, self._pictures, self.expected = input_ids, pictures, expected

    @classmethod
    def draw(cls, model: ModelConfig) -> LogitVectors:
        """Random ones."""
        rng = np.random.default_rng(0)
        length = min(PROMPT_TOKENS, model.max_length - (0 if model.vision is None else model.vision.tokens))
        ids = rng.integers(0, model.vocab_size, (PROMPTS, length))
        return cls(ids, None if model.vision is None else _pictures(rng, model.vision))

    @classmethod
    def read(cls, arrays: Mapping[str, np.ndarray], model: ModelConfig) -> LogitVectors:
        """Of a file. Raises KeyError and ValueError for what is none."""
        ids, expected = arrays["input_ids"], arrays["logits"]
        pictures = None if model.vision is None else arrays["pictures"]
        prompts, length = ids.shape
        right = ids.dtype == np.int64 and bool((ids >= 0).all() and (ids < model.vocab_size).all())
        right &= (
            expected.ndim == 3 and expected.shape[::2] == (prompts, model.vocab_size) and expected.dtype.kind == "f"
        )
        right &= prompts > 0 and 1 < expected.shape[1] <= length
        if pictures is not None:
            right &= pictures.dtype == np.uint8 and pictures.shape[::3] == (prompts, 3) and pictures.ndim == 4
        if not right:
            raise ValueError(f"logits of {ids.shape} and {expected.shape}")
        return cls(ids, pictures, expected)

    def arrays(self) -> Arrays:
        """See :class:`Vectors`."""
        return {"input_ids": self._ids} | ({} if self._pictures is None else {"pictures": self._pictures})

    def answers(self, bundle: Bundle, device: str, threads: int | None) -> Answers:
        """See :class:`Vectors`."""
        engine = choose_engine(bundle, device=device, threads=threads)
        steps = min(STEPS, self._ids.shape[1]) if self.expected is None else self.expected.shape[1]
        vision = bundle.manifest.model.vision
        logits, seconds = [], list[float]()
        for number, prompt in enumerate(self._ids):
            image = None
            if vision is not None and self._pictures is not None:
                image = engine.image_features(pixel_values(self._pictures[number], vision.images)[None])[0]
            found, took = _logits(engine, prompt, image, steps)
            logits.append(found)
            seconds += took
        return Answers(engine.name, np.stack(logits), median(seconds) * 1e3)

    def error(self, found: np.ndarray) -> float:
        """See :class:`Vectors`."""
        assert self.expected is not None
        return logits_error(found, self.expected)


def _logits(engine: Engine, prompt: np.ndarray, image: np.ndarray | None, steps: int) -> tuple[np.ndarray, list[float]]:
    """Logits (steps, vocab) of a prompt's (length) last positions, and the seconds of each single step.

    ``image``: its features (tokens, hidden), read before the prompt by a model that sees.
    """
    states = engine.empty_states(1)
    first = len(prompt) - steps + 1
    read = prompt[None, :first]
    if image is not None:
        read = np.concatenate([image[None], engine.embed(read)], axis=1)
    for start in range(0, read.shape[1], engine.prefill_block):
        made = engine.step(read[:, start : start + engine.prefill_block], states)
    logits, seconds = [made[0, -1].copy()], []
    for token in prompt[first:]:
        started = time.perf_counter()
        one = token.reshape(1, 1)
        logits.append(engine.step(one if image is None else engine.embed(one), states)[0, -1].copy())
        seconds.append(time.perf_counter() - started)
    engine.release(states)
    return np.stack(logits), seconds


def _pictures(rng: np.random.Generator, vision: VisionSpec) -> np.ndarray:
    """(prompts, height, width, 3) uint8, a little larger than what the encoder reads, so that they must be resized."""
    height, width = (size + size // 4 for size in (vision.images.height, vision.images.width))
    return blocks(rng, (PROMPTS, height, width, 3))


def blocks(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """Pictures (..., height, width, channels) uint8 of a few blocks of random colours."""
    *before, height, width, channels = shape
    small = rng.integers(0, 256, (*before, BLOCKS, BLOCKS, channels), np.uint8)
    down, right = np.arange(height) * BLOCKS // height, np.arange(width) * BLOCKS // width
    return small[..., down[:, None], right, :]
