"""Answers made in threads: so many at once, so many that wait in the order of their coming, and no more."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from typing import Union

import msgspec

from edge_sdk.answer import Completion, Stream, Token
from edge_sdk.errors import BusyError, PromptError, explain
from edge_sdk.language import LanguageModel
from edge_sdk.options import Options
from edge_sdk.server.errors import RequestError
from edge_sdk.session import Session
from edge_sdk.vision import Picture


class Begun(msgspec.Struct, frozen=True):
    """A prompt was taken in; it fits."""

    prompt_tokens: int


class Piece(msgspec.Struct, frozen=True):
    """A token of one of the answers."""

    choice: int
    token: Token


class Ended(msgspec.Struct, frozen=True):
    """One of the answers is complete; ``cached_tokens`` are of its prompt."""

    choice: int
    completion: Completion
    cached_tokens: int


Item = Union[Begun, Piece, Ended]


class Job:
    """The answers to one request, ``count`` to each prompt; made by one thread and cancelled by another."""

    def __init__(
        self,
        model: LanguageModel,
        prompts: list[str | list[int]],
        options: Options,
        count: int,
        pictures: Sequence[Picture] = (),
    ) -> None:
        """``pictures``: what a single prompt shows."""
        self._model, self._prompts, self._options, self._count = model, prompts, options, count
        self._pictures = pictures
        self._cancelled = threading.Event()
        self._stream: Stream | None = None

    def cancel(self) -> None:
        """Ends everything after the step that runs now."""
        self._cancelled.set()
        if self._stream is not None:
            self._stream.cancel()

    def run(self) -> Iterator[Item]:
        """What is made, one by one. Raises EdgeError, for what is wrong with the request before the first item."""
        for number, prompt in enumerate(self._prompts):
            with self._model.session() as session:
                try:
                    session.append(prompt, self._pictures)
                except PromptError as error:
                    raise RequestError(400, str(error), code="context_length_exceeded", param="messages") from error
                prompt_tokens = session.waiting
                stream = self._watched(session.stream(None, self._options.numbered(0)))  # refuses wrong options
                yield Begun(prompt_tokens)
                if self._count == 1:
                    yield from self._tokens(number, stream, session)
                    continue
                session.prepare(interrupted=self._cancelled.is_set)
                for index in range(self._count):
                    if self._cancelled.is_set():
                        return
                    with session.fork() as fork:
                        stream = self._watched(fork.stream(None, self._options.numbered(index)))
                        yield from self._tokens(number * self._count + index, stream, session)

    def _tokens(self, choice: int, stream: Stream, session: Session) -> Iterator[Item]:
        for token in stream:
            yield Piece(choice, token)
        known = 0 if choice % self._count else session.cached_tokens  # the prompt was read once for all choices
        yield Ended(choice, stream.result(), known)

    def _watched(self, stream: Stream) -> Stream:
        self._stream = stream
        if self._cancelled.is_set():  # between the check before and this
            stream.cancel()
        return stream


class Workers:
    """Threads that run jobs."""

    def __init__(self, at_once: int, waiting: int) -> None:
        self._at_once, self._most = at_once, at_once + waiting
        self._present = 0
        self._turn = asyncio.Semaphore(at_once)
        self._threads = ThreadPoolExecutor(at_once, thread_name_prefix="answer")

    @property
    def running(self) -> int:
        """Requests that are being answered."""
        return min(self._present, self._at_once)

    @property
    def waiting(self) -> int:
        """Requests that wait for one of these to end."""
        return self._present - self.running

    @asynccontextmanager
    async def place(self) -> AsyncIterator[asyncio.Semaphore]:
        """A place among those who are answered or wait; gives the semaphore to wait at. Raises BusyError at once."""
        if self._present >= self._most:
            raise BusyError(
                explain(
                    "The server",
                    expected=f"at most {self._most} requests at a time",
                    found="one more",
                    todo="Try again later.",
                )
            )
        self._present += 1
        try:
            yield self._turn
        finally:
            self._present -= 1

    async def run(self, job: Job) -> AsyncGenerator[Item, None]:
        """What a job makes; closing this cancels it and waits until its thread has let go of it."""
        loop = asyncio.get_running_loop()
        made: asyncio.Queue[Item | Exception | None] = asyncio.Queue()

        def work() -> None:
            last: Exception | None = None
            try:
                for item in job.run():
                    loop.call_soon_threadsafe(made.put_nowait, item)
            except Exception as error:  # handed over to who waits for the answer
                last = error
            loop.call_soon_threadsafe(made.put_nowait, last)

        thread = loop.run_in_executor(self._threads, work)
        try:
            while (item := await made.get()) is not None:
                if isinstance(item, Exception):
                    raise item
                yield item
        finally:
            job.cancel()
            await thread
