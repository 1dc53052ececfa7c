"""An answer while it is made: the loop from logits to tokens to text, and what is known at its end."""

from __future__ import annotations

import asyncio
import inspect
import threading
import time
from collections.abc import AsyncIterator, Generator, Iterator
from typing import TYPE_CHECKING, Any, Literal

import msgspec

from edge_sdk.options import Options
from edge_sdk.sampling import Choice, Sampler
from edge_sdk.stops import StopTexts
from edge_sdk.text import TextStream

if TYPE_CHECKING:
    from edge_sdk.session import Session
    from edge_sdk.structured import Constraint
    from edge_sdk.text import TextStream

FinishReason = Literal["stop", "length", "deadline", "cancelled"]


class Token(msgspec.Struct, frozen=True):
    """A generated token; ``text`` is what it adds to the answer, empty while a character is incomplete."""

    index: int
    token_id: int
    text: str
    logprob: float | None = None
    """By the model's own logits, in nats; None unless asked for."""
    alternatives: tuple[tuple[int, float], ...] = ()
    """The likeliest token ids in its place and their log-probabilities."""


class Completion(msgspec.Struct, frozen=True, kw_only=True):
    """An answer and how fast it came."""

    text: str
    token_ids: tuple[int, ...]
    finish_reason: FinishReason
    """``stop``: the model ended its answer, or a stop text did; ``length``: max_new_tokens or the context was used up;
    ``deadline``: the time was; ``cancelled``: somebody did not want more."""
    prompt_tokens: int
    """Tokens that the prompt added to the conversation."""
    cached_tokens: int
    """How many of them were known from earlier prompts and not read again."""
    time_to_first_token_ms: float
    tokens_per_second: float
    """Decode speed, the first token not counted; 0 where there is no second one."""


class Stream(Iterator[Token], AsyncIterator[Token]):
    """The tokens of one answer, made one by one as they are asked for, in ``for`` and in ``async for``; or awaited."""

    def __init__(self, session: Session, options: Options, started: float) -> None:
        """``started``: when the answer was asked for, as time.monotonic() gave it. Raises ConfigError."""
        self.options = options
        self.finish_reason: FinishReason | None = None
        """Why the answer ended; None while it has not."""
        self._session, self._started = session, started
        self._prompt_tokens = session.waiting
        self._cancelled = threading.Event()
        self._cached_tokens = 0
        self._times_s: list[float] = []
        self.tokens: list[Token] = []
        """Those that were asked for so far."""
        self._sampler = Sampler(options, session.everything, session.model.config.vocab_size)
        self._room = min(options.max_new_tokens, session.max_context - len(session.everything))
        self._constraint = self._begin_grammar()
        self._made = self._make()

    def cancel(self) -> None:
        """Ends the answer after the step that runs now; may be called from any thread."""
        self._cancelled.set()

    def close(self) -> None:
        """Ends the answer where it is and gives its place to others; for the thread that iterates over it."""
        self.cancel()
        if inspect.getgeneratorstate(self._made) != inspect.GEN_RUNNING:  # it is while a step of it fails
            self._made.close()
        self.finish_reason = self.finish_reason or "cancelled"

    def result(self) -> Completion:
        """The whole answer, once it is there; makes what was not asked for yet."""
        for _ in self:
            pass
        assert self.finish_reason is not None
        times = self._times_s
        spent = times[-1] - times[0] if times else 0.0
        return Completion(
            text="".join(token.text for token in self.tokens),
            token_ids=tuple(token.token_id for token in self.tokens),
            finish_reason=self.finish_reason,
            prompt_tokens=self._prompt_tokens,
            cached_tokens=self._cached_tokens,
            time_to_first_token_ms=(times[0] - self._started) * 1e3 if times else 0.0,
            tokens_per_second=(len(times) - 1) / spent if spent else 0.0,
        )

    def __next__(self) -> Token:
        token = next(self._made)
        self.tokens.append(token)
        return token

    async def __anext__(self) -> Token:
        try:
            token = await asyncio.to_thread(next, self, None)
        except asyncio.CancelledError:
            self.cancel()
            raise
        if token is None:
            raise StopAsyncIteration
        return token

    def __await__(self) -> Generator[Any, None, Completion]:
        """As :meth:`result`, while other tasks run; a task that is cancelled cancels the answer."""

        async def finish() -> Completion:
            async for _ in self:
                pass
            return self.result()

        return finish().__await__()

    def _interruption(self) -> FinishReason | None:
        """Why no further step may begin."""
        if self._cancelled.is_set():
            return "cancelled"
        limit_ms = self.options.deadline_ms
        if limit_ms is not None and time.monotonic() >= self._started + limit_ms / 1e3:
            return "deadline"
        return None

    def _make(self) -> Generator[Token]:
        """The tokens; those whose text may begin a stop text are held back until that is decided."""
        stops, held, shown = StopTexts(self.options.stop), list[Token](), ""
        for index, (choice, text) in enumerate(self._choose()):
            shown += stops.feed(text)
            held.append(Token(index, choice.token_id, "", choice.logprob, choice.alternatives))
            if stops.found is not None:
                self.finish_reason = "stop"
            if not stops.holds:
                yield from _with_text(held, shown)
                held, shown = [], ""
            if stops.found is not None:
                break
        yield from _with_text(held, shown + stops.finish())

    def _choose(self) -> Iterator[tuple[Choice, str]]:
        """Chosen tokens and their texts, until the model, a limit or somebody ends the answer."""
        session, decoder = self._session, self._session.model.codec.stream()
        session.begin_answer()
        with session.model.steps.place(session.priority, self._interruption):
            yield from self._choose_in_place(decoder)

    def _choose_in_place(self, decoder: TextStream) -> Iterator[tuple[Choice, str]]:
        session, ends = self._session, self._session.model.config.eos_token_ids
        sampler, constraint = self._sampler, self._constraint
        for left in range(self._room, 0, -1):
            choice = session.next_choice(sampler, self._interruption, constraint, left)
            if choice is None:
                self.finish_reason = self._interruption()
                for token_id in constraint.closing() if constraint else ():
                    yield self._say(Choice(token_id), decoder)
                return
            if choice.token_id in ends:
                self.finish_reason = "stop"
                return
            sampler.note(choice.token_id)
            yield self._say(choice, decoder)
            if constraint is not None and constraint.finished:
                self.finish_reason = "stop"
                return
        self.finish_reason = "length"

    def _begin_grammar(self) -> Constraint | None:
        """What the grammar asks for, behind the reasoning if the prompt has opened that. Raises ConfigError."""
        grammar, model = self.options.grammar, self._session.model
        if grammar is None:
            return None
        if not grammar.end_of_reasoning and model.codec.format.reasons_first(self._session.text):
            grammar = grammar.after_reasoning()
        constraint = model.grammars.compile(grammar)
        constraint.check_budget(self._room)
        return constraint

    def _say(self, choice: Choice, decoder: TextStream) -> tuple[Choice, str]:
        """Adds a token to the conversation."""
        self._times_s.append(time.monotonic())
        self._cached_tokens = self._session.cached_tokens
        text = decoder.step(choice.token_id)
        self._session.add_answered(choice.token_id, text)
        return choice, text


def _with_text(tokens: list[Token], text: str) -> Iterator[Token]:
    """The tokens, the last of them with a text."""
    yield from tokens[:-1]
    if tokens:
        yield msgspec.structs.replace(tokens[-1], text=text)
