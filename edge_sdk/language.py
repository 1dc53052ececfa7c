"""Language inference: load a bundle, open a session, stream tokens."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Literal

import msgspec
import numpy as np

from edge_sdk.backends import Engine, States, choose_engine
from edge_sdk.bundle import Bundle
from edge_sdk.errors import ConfigError, PromptError, explain
from edge_sdk.model import ModelConfig
from edge_sdk.text import Message, TextCodec

Prompt = str | bytes | Sequence[Message]
FinishReason = Literal["stop", "length"]


class Token(msgspec.Struct, frozen=True):
    """A generated token; ``text`` is what it adds to the answer, empty while a character is incomplete."""

    index: int
    token_id: int
    text: str


class Completion(msgspec.Struct, frozen=True, kw_only=True):
    """An answer and how fast it came."""

    text: str
    token_ids: tuple[int, ...]
    finish_reason: FinishReason
    """``stop``: the model ended its answer; ``length``: max_new_tokens or the context was used up."""
    prompt_tokens: int
    time_to_first_token_ms: float
    tokens_per_second: float
    """Decode speed, the first token not counted; 0 where there is no second one."""


class Session:
    """One conversation: the states after everything that was said in it. Also a context manager."""

    def __init__(self, model: LanguageModel) -> None:
        self.model = model
        self.position = 0
        """Tokens that the states hold."""
        self.finish_reason: FinishReason = "length"
        """Why the last answer ended; while one is streamed, ``length``."""
        self._states: States | None = model.engine.empty_states(batch=1)

    def __enter__(self) -> Session:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._states = None

    def stream(self, prompt: Prompt, max_new_tokens: int = 256) -> Iterator[Token]:
        """Reads the prompt and yields the answer's tokens, greedily chosen, until the model ends it.

        Raises PromptError for an empty prompt, one that is not UTF-8, or one longer than the context.
        """
        _check_budget(max_new_tokens)
        ids = self.model.encode(prompt, self.position)
        return self._decode(ids, max_new_tokens)

    def generate(self, prompt: Prompt, max_new_tokens: int = 256) -> Completion:
        """As :meth:`stream`, all at once and timed."""
        _check_budget(max_new_tokens)
        ids = self.model.encode(prompt, self.position)
        started = first = last = time.perf_counter()
        tokens: list[Token] = []
        for token in self._decode(ids, max_new_tokens):
            last = time.perf_counter()
            first = first if tokens else last
            tokens.append(token)
        return Completion(
            text="".join(token.text for token in tokens),
            token_ids=tuple(token.token_id for token in tokens),
            finish_reason=self.finish_reason,
            prompt_tokens=len(ids),
            time_to_first_token_ms=(first - started) * 1e3,
            tokens_per_second=(len(tokens) - 1) / (last - first) if last > first else 0.0,
        )

    def _decode(self, ids: list[int], max_new_tokens: int) -> Iterator[Token]:
        stream, ends = self.model.codec.stream(), self.model.config.eos_token_ids
        self.finish_reason = "length"
        token_id = self._feed(ids)
        room = min(max_new_tokens, self.model.engine.max_length - self.position)
        for index in range(room):
            if token_id in ends:
                self.finish_reason = "stop"
                return
            yield Token(index, token_id, stream.step(token_id))
            if index + 1 < room:
                token_id = self._feed([token_id])

    def _feed(self, ids: list[int]) -> int:
        """Advances the states over ``ids``; returns the likeliest next token. Raises ConfigError when closed."""
        if self._states is None:
            raise ConfigError(explain("The session", expected="an open one", found="closed", todo="Open a new one."))
        token = prefill(self.model.engine, np.array([ids], dtype=np.int64), self._states)
        self.position = int(self._states.past_length[0])
        return int(token[0])


def _check_budget(max_new_tokens: int) -> None:
    if max_new_tokens < 1:
        raise ConfigError(
            explain("max_new_tokens", expected="at least 1", found=max_new_tokens, todo="Ask for more tokens.")
        )


class LanguageModel:
    """A loaded bundle; makes sessions."""

    def __init__(self, bundle: Bundle, engine: Engine) -> None:
        self.bundle, self.engine = bundle, engine
        self.config: ModelConfig = bundle.manifest.model
        self.codec = TextCodec(bundle.path)

    def session(self) -> Session:
        """A new conversation."""
        return Session(self)

    def encode(self, prompt: Prompt, position: int = 0) -> list[int]:
        """Token ids of a prompt that is to follow ``position`` tokens. Raises PromptError if it cannot be run."""
        ids, limit = self.codec.encode_prompt(prompt), self.engine.max_length - position - 1
        if len(ids) > limit:
            raise PromptError(
                explain(
                    "The prompt",
                    expected=f"at most {limit} tokens (the context holds {self.engine.max_length})",
                    found=f"{len(ids)} tokens",
                    todo="Shorten it or open a new session.",
                )
            )
        return ids

    def generate(self, prompt: Prompt, max_new_tokens: int = 256) -> Completion:
        """Answers one prompt in a session of its own. Raises PromptError as :meth:`Session.stream`."""
        with self.session() as session:
            return session.generate(prompt, max_new_tokens)

    def generate_batch(self, prompts: Sequence[Prompt], max_new_tokens: int = 256) -> list[str]:
        """Answers to many prompts; those of equal length run side by side. Raises PromptError."""
        groups: dict[int, list[tuple[int, list[int]]]] = {}
        for index, prompt in enumerate(prompts):
            ids = self.encode(prompt)
            groups.setdefault(len(ids), []).append((index, ids))
        answers = [""] * len(prompts)
        for length, group in groups.items():
            budget = min(max_new_tokens, self.engine.max_length - length)
            rows = greedy_batch(self.engine, np.array([ids for _, ids in group]), budget, self.config.eos_token_ids)
            for (index, _), row in zip(group, rows):
                answers[index] = self.codec.decode(row)
        return answers


def prefill(engine: Engine, ids: np.ndarray, states: States) -> np.ndarray:
    """Advances the states over ids (batch, length) block by block; returns the likeliest next tokens (batch)."""
    last = (ids.shape[1] - 1) // engine.prefill_block * engine.prefill_block
    for start in range(0, last, engine.prefill_block):
        engine.step(ids[:, start : start + engine.prefill_block], states, logits="none")
    return engine.next_tokens(ids[:, last:], states)


def greedy_batch(engine: Engine, ids: np.ndarray, max_new_tokens: int, ends: Sequence[int]) -> list[list[int]]:
    """Greedy continuations of ids (batch, length), each cut before its first end token."""
    states = engine.empty_states(len(ids))
    tokens = prefill(engine, ids, states)
    columns, ended = [], np.zeros(len(ids), dtype=bool)
    for _ in range(max_new_tokens):
        columns.append(tokens)
        ended |= np.isin(columns[-1], ends)
        if ended.all() or len(columns) == max_new_tokens:
            break
        tokens = prefill(engine, tokens[:, None], states)
    rows = np.stack(columns, axis=1)
    stops = np.isin(rows, ends)
    lengths = np.where(stops.any(1), stops.argmax(1), rows.shape[1])
    return [row[:length].tolist() for row, length in zip(rows, lengths)]


def load(
    path: str | Path, *, device: str = "auto", threads: int | None = None, verify_hashes: bool = True
) -> LanguageModel:
    """Opens and checks a bundle and prepares an engine for it.

    ``device``: ``auto``, ``cpu``, ``cuda`` or ``tensorrt``. ``threads``: of the engine, all cores if None.
    Raises BundleError for a damaged bundle and BackendError where no engine can run it.
    """
    bundle = Bundle.open(path, verify_hashes=verify_hashes)
    return LanguageModel(bundle, choose_engine(bundle, device=device, threads=threads))
