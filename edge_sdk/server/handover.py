"""A server that may share its sockets with the one that takes its place, so that no client notices the change."""

from __future__ import annotations

import asyncio
import socket

import uvicorn
from starlette.types import ASGIApp, Message, Receive, Scope, Send

LAST_CALL_S = 1.0
"""Between the last connection that is taken and the closing of those on which nothing is asked."""


class LastCall:
    """An application that, once :attr:`announced`, has clients open another connection after each answer.

    (RFC 9112, section 9.6.) That one the next server takes.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app, self.announced = app, False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def sent(message: Message) -> None:
            if self.announced and message["type"] == "http.response.start":
                message = {**message, "headers": [*message.get("headers", ()), (b"connection", b"close")]}
            await send(message)

        await self._app(scope, receive, sent)


class HandoverServer(uvicorn.Server):
    """Ends in two steps: it takes no more connections, and a moment later closes those on which nothing is asked.

    So whoever has just connected can ask, and whoever asks again and again is sent to the next server in between.
    """

    def __init__(self, config: uvicorn.Config, last_call: LastCall) -> None:
        super().__init__(config)
        self._last_call = last_call

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Called when the process was told to end."""
        self._last_call.announced = True
        for server in self.servers:
            server.close()
        await asyncio.sleep(LAST_CALL_S)
        await super().shutdown(sockets)
