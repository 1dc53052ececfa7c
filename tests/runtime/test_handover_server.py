"""A server that leaves its socket to another: what was asked is answered, by one of the two."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import uvicorn
from starlette.types import Receive, Scope, Send

from edge_sdk.server.handover import HandoverServer, LastCall

ASK = b"GET / HTTP/1.1\r\nhost: board\r\n\r\n"


class App:
    """Answers with its name once it may."""

    def __init__(self, name: str) -> None:
        self.name, self.asked, self.may = name, asyncio.Event(), asyncio.Event()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        self.asked.set()
        await self.may.wait()
        headers = [(b"content-length", str(len(self.name)).encode())]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": self.name.encode()})


@asynccontextmanager
async def serving(app: App, listening: socket.socket) -> AsyncIterator[HandoverServer]:
    """A server on a socket that others have too, as a process of its own would have it."""
    wrapped = LastCall(app)
    server = HandoverServer(uvicorn.Config(wrapped, log_config=None, lifespan="off"), wrapped)
    task = asyncio.create_task(server.serve(sockets=[listening.dup()]))
    while not server.started:
        await asyncio.sleep(0.01)
    try:
        yield server
    finally:
        server.should_exit = True
        await task


class Client:
    """One connection."""

    def __init__(self, port: int) -> None:
        self._port = port

    async def connect(self) -> None:
        self._reader, self._writer = await asyncio.open_connection("127.0.0.1", self._port)

    def ask(self) -> None:
        self._writer.write(ASK)

    async def answer(self) -> tuple[str, bool]:
        """What is said, and whether the server closes the connection then."""
        head = (await self._reader.readuntil(b"\r\n\r\n")).decode().lower()
        length = int(head.split("content-length: ")[1].split()[0])
        return (await self._reader.readexactly(length)).decode(), "connection: close" in head

    async def is_closed(self) -> bool:
        return await self._reader.read(1) == b""


async def handed_over() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port, old, new = listening.getsockname()[1], App("old"), App("new")
        new.may.set()
        clients = {name: Client(port) for name in ("waits", "silent", "idle", "late")}
        async with serving(old, listening) as server:
            for name in ("waits", "silent", "idle"):
                await clients[name].connect()
            clients["waits"].ask()
            await old.asked.wait()
            async with serving(new, listening):
                server.should_exit = True
                while server.servers[0].is_serving():
                    await asyncio.sleep(0.01)
                await clients["late"].connect()
                clients["late"].ask()
                assert await clients["late"].answer() == ("new", False)
                clients["silent"].ask()  # it connected before, and asks only now
                old.may.set()
                assert await clients["silent"].answer() == ("old", True)
                assert await clients["waits"].answer() == ("old", True)
                assert await clients["idle"].is_closed()
                clients["late"].ask()
                assert await clients["late"].answer() == ("new", False)


def test_no_request_is_lost_between_two_servers() -> None:
    asyncio.run(asyncio.wait_for(handed_over(), 120))
