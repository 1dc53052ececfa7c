"""The ASGI application: routes, who may call them, and the life of a request."""

from __future__ import annotations

import asyncio
import hmac
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing, asynccontextmanager, suppress
from pathlib import Path
from typing import Any, Generic, Optional, TypeVar

import msgspec
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from edge_sdk.errors import EdgeError
from edge_sdk.figures import FigureFile, Figures
from edge_sdk.language import LanguageModel
from edge_sdk.server.answers import ChatChoice, Envelope, TextChoice, usage
from edge_sdk.server.errors import RequestError, as_request_error
from edge_sdk.server.metrics import Metrics, Record
from edge_sdk.server.requests import ChatRequest, TextRequest, decode
from edge_sdk.server.translate import Limits, Plan, plan_chat, plan_text
from edge_sdk.server.work import Begun, Job, Piece, Workers

log = logging.getLogger("edge_sdk.server")

BODY_TIMEOUT_S = 30.0
GONE = 499
"""The log's status of a request whose client has gone, as nginx has it."""
UNGUARDED = "/health"
"""What may be asked without a token: it says nothing but that the server is there."""

R = TypeVar("R", ChatRequest, TextRequest)
Planner = Callable[[R, LanguageModel, Limits], Plan]


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """How a model is served."""

    name: str
    """What clients call the model."""
    token: str | None = None
    """What they must show as a bearer token, if anything."""
    at_once: int = 4
    """Requests that are answered side by side, a token in turn."""
    waiting: int = 16
    """Requests that wait for one of these to end; one more is refused at once."""
    limits: Limits = Limits()
    figures: Optional[Path] = None
    """The folder where it says how fast it answers, see :mod:`edge_sdk.figures`."""


def create_app(model: LanguageModel, settings: Settings) -> ASGIApp:
    """The application around a model."""
    workers = Workers(settings.at_once, settings.waiting)
    metrics = Metrics(workers, model.engine.name)
    card = {"id": settings.name, "object": "model", "created": int(time.time()), "owned_by": "edge-sdk"}

    async def health(_: Request) -> Response:
        return _json({"status": "ok", "engine": model.engine.name})

    async def models(_: Request) -> Response:
        return _json({"object": "list", "data": [card]})

    async def one_model(request: Request) -> Response:
        _check_name(request.path_params["name"], settings.name)
        return _json(card)

    async def measured(_: Request) -> Response:
        return Response(generate_latest(metrics.registry), media_type=CONTENT_TYPE_LATEST)

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        if settings.figures is None:
            yield
            return
        with FigureFile(settings.figures, settings.name, now):
            yield

    def now() -> Figures:
        return Figures(name=settings.name, tokens_per_second=metrics.tokens_per_second())

    chat = Endpoint(ChatRequest, plan_chat, ChatChoice, model, settings, workers, metrics)
    text = Endpoint(TextRequest, plan_text, TextChoice, model, settings, workers, metrics)
    app = Starlette(
        routes=[
            Route("/health", health),
            Route("/metrics", measured),
            Route("/v1/models", models),
            Route("/v1/models/{name:path}", one_model),
            Route("/v1/chat/completions", chat, methods=["POST"]),
            Route("/v1/completions", text, methods=["POST"]),
        ],
        lifespan=lifespan,
        exception_handlers={RequestError: _refuse, HTTPException: _refuse, Exception: _fail},
    )
    return app if settings.token is None else Guard(app, settings.token)


class Guard:
    """Lets through who shows the token."""

    def __init__(self, app: ASGIApp, token: str) -> None:
        self._app, self._expected = app, f"Bearer {token}".encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"] != UNGUARDED:
            shown = dict(scope["headers"]).get(b"authorization", b"")
            if not hmac.compare_digest(shown, self._expected):  # in a time that does not tell how much was right
                await _error(RequestError(401, "A bearer token is needed, and this is not it."))(scope, receive, send)
                return
        await self._app(scope, receive, send)


class Endpoint(Generic[R]):
    """Answers requests of one kind, an ASGI application of its own."""

    def __init__(
        self,
        kind: type[R],
        planner: Planner[R],
        choice: type[ChatChoice] | type[TextChoice],
        model: LanguageModel,
        settings: Settings,
        workers: Workers,
        metrics: Metrics,
    ) -> None:
        self._kind: type[R] = kind
        self._planner: Planner[R] = planner
        self._choice = choice
        self._model, self._settings, self._workers, self._metrics = model, settings, workers, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        record = Record(path=scope["path"])
        reply = Reply(scope, receive, send, record)
        try:
            body = await asyncio.wait_for(
                _read_body(Request(scope, receive), self._settings.limits.body_bytes), BODY_TIMEOUT_S
            )
            request = decode(body, self._kind)
            _check_name(request.model, self._settings.name)
            if not await _while_connected(receive, self._answer(request, reply, record)):
                record.status = GONE
        except ClientDisconnect:
            record.status = GONE
        except (asyncio.TimeoutError, TimeoutError):
            await reply.fail(RequestError(408, "The request's body did not come."))
        except EdgeError as error:
            await reply.fail(as_request_error(error))
        except Exception:  # a bug here: the client is told that much and the log the rest
            log.exception("a request failed")
            await reply.fail(RequestError(500, "The server failed. Its log says why."))
        finally:
            self._metrics.note(record)

    async def _answer(self, request: R, reply: Reply, record: Record) -> None:
        async with self._workers.place() as turn:
            plan = await asyncio.to_thread(self._planner, request, self._model, self._settings.limits)
            async with turn:
                record.queue_ms = record.since_ms()
                job = Job(self._model, plan.prompts, plan.options, plan.count, plan.pictures)
                await self._relay(job, plan, request, reply, record)

    async def _relay(self, job: Job, plan: Plan, request: R, reply: Reply, record: Record) -> None:
        """Hands on what the job makes, piece by piece or at the end."""
        codec, count = self._model.codec, plan.count * len(plan.prompts)
        choices = [self._choice(index, plan, codec) for index in range(count)]
        envelope = Envelope(self._choice, self._settings.name, f"edge-{self._model.bundle.model_id[:12]}")
        async with aclosing(self._workers.run(job)) as made:
            async for item in made:
                if isinstance(item, Begun):
                    record.prompt_tokens += item.prompt_tokens
                    pieces = [] if reply.started else [piece for choice in choices for piece in choice.opening()]
                elif isinstance(item, Piece):
                    record.time_to_first_token_ms = record.time_to_first_token_ms or record.since_ms()
                    pieces = choices[item.choice].feed(item.token)
                else:
                    record.add(item.completion, item.cached_tokens)
                    pieces = choices[item.choice].finish(item.completion)
                if request.stream:
                    for piece in pieces:
                        await reply.event(envelope.around([piece], None, "piece"))
        counts = usage(record.prompt_tokens, record.cached_tokens, record.completion_tokens)
        if not request.stream:
            await reply.whole(envelope.around([choice.whole() for choice in choices], counts, "whole"))
            return
        if request.stream_options is not None and request.stream_options.include_usage:
            await reply.event(envelope.around([], counts, "piece"))
        await reply.end()


class Reply:
    """What goes back to a client: one JSON document, or server-sent events."""

    def __init__(self, scope: Scope, receive: Receive, send: Send, record: Record) -> None:
        self._scope, self._receive, self._send, self._record = scope, receive, send, record
        self.started = False
        """Whether events were sent."""

    async def whole(self, content: dict[str, Any]) -> None:
        """The answer at once."""
        self._record.status = 200
        await _json(content)(self._scope, self._receive, self._send)

    async def event(self, content: dict[str, Any]) -> None:
        """A piece of it."""
        if not self.started:
            self.started, self._record.status = True, 200
            headers = [(b"content-type", b"text/event-stream; charset=utf-8"), (b"cache-control", b"no-cache")]
            await self._send({"type": "http.response.start", "status": 200, "headers": headers})
        await self._put(msgspec.json.encode(content))

    async def end(self) -> None:
        """No more pieces."""
        await self._put(b"[DONE]")
        await self._send({"type": "http.response.body", "body": b""})

    async def fail(self, error: RequestError) -> None:
        """An error; an answer that has begun ends with it."""
        self._record.status = error.status
        if self.started:
            await self._put(msgspec.json.encode(error.body()))
            await self._send({"type": "http.response.body", "body": b""})
        else:
            await _error(error)(self._scope, self._receive, self._send)

    async def _put(self, data: bytes) -> None:
        await self._send({"type": "http.response.body", "body": b"data: " + data + b"\n\n", "more_body": True})


async def _while_connected(receive: Receive, answering: Awaitable[None]) -> bool:
    """Answers, or stops as soon as the client has gone and returns False. Raises what the answering does."""
    work = asyncio.ensure_future(answering)
    gone = asyncio.ensure_future(_disconnected(receive))
    try:
        await asyncio.wait({work, gone}, return_when=asyncio.FIRST_COMPLETED)
    finally:  # also where the server itself is stopped
        gone.cancel()
        if not work.done():
            work.cancel()
            with suppress(asyncio.CancelledError):
                await work
    if work.cancelled():
        return False
    work.result()
    return True


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _read_body(request: Request, limit: int) -> bytes:
    """The body. Raises RequestError for one that is too long or of another kind than JSON."""
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
        raise RequestError(415, "expected the content type application/json")  # which other web pages may not send
    parts, size = [], 0
    async for part in request.stream():
        size += len(part)
        if size > limit:
            raise RequestError(413, f"The request: expected at most {limit} bytes, found more. Shorten it.")
        parts.append(part)
    return b"".join(parts)


def _check_name(asked: str, name: str) -> None:
    if asked != name:
        raise RequestError(404, f"The model {asked!r} is not here, {name!r} is.", code="model_not_found", param="model")


def _json(content: dict[str, Any], status: int = 200, headers: dict[str, str] | None = None) -> Response:
    return Response(msgspec.json.encode(content), status, headers, "application/json")


def _error(error: RequestError) -> Response:
    return _json(error.body(), error.status, error.headers())


async def _refuse(_: Request, error: Exception) -> Response:
    if isinstance(error, HTTPException):
        error = RequestError(error.status_code, error.detail)
    assert isinstance(error, RequestError)
    return _error(error)


async def _fail(_: Request, error: Exception) -> Response:
    return _error(RequestError(500, "The server failed. Its log says why."))
