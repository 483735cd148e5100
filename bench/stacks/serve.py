"""Serve one candidate: `python -m bench.stacks.serve SERVER CLIENT URL PORT`.

SERVER is `uvicorn`, `granian-asgi`, `granian-rsgi` or `bare`; CLIENT is `pyreqwest`, `aiohttp` or
`bare`. One worker, one event loop, no access log.
"""

from __future__ import annotations

import asyncio
import sys
from importlib import import_module
from typing import Any, cast

import httptools

from bench.wire import asked

from . import clients
from .proxy import Asgi, Rsgi


def main(server: str, client: str, url: str, port: int) -> None:
    """Serve until SIGTERM."""
    if server == "uvicorn":
        import uvicorn

        uvicorn.run(
            Asgi(client, url),
            port=port,
            http="httptools",
            loop="uvloop",
            ws="none",
            lifespan="off",
            log_level="error",
            access_log=False,
        )
    elif server == "bare":
        import uvloop

        uvloop.run(_bare(clients.make(client, url), port))
    else:
        import uvloop

        uvloop.run(_granian(server.removeprefix("granian-"), client, url, port))


async def _granian(interface: str, client: str, url: str, port: int) -> None:
    # The embedded server: in this process, on this loop, so that CPU and memory are one process's.
    # By name: the product's own environment, where types are checked, has no granian.
    interfaces = import_module("granian.constants").Interfaces
    embed = import_module("granian.server.embed")
    app: Any = Rsgi(client, url) if interface == "rsgi" else Asgi(client, url)
    server = embed.Server(
        app,
        port=port,
        interface=interfaces(interface if interface == "rsgi" else "asginl"),
        websockets=False,
        backlog=2048,
        backpressure=2048,
        log_enabled=False,
    )
    await server.serve()


# ---------------------------------------------------------------- the floor


class _Bare(asyncio.Protocol):
    """A proxy on bare asyncio protocols: the floor of what Python can do."""

    def __init__(self, client: clients.Client) -> None:
        self._client = client
        self._transport: asyncio.Transport | None = None
        self._parser = httptools.HttpRequestParser(self)
        self._body = b""
        self._task: asyncio.Task[None] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        if self._task is not None:
            self._task.cancel()

    def data_received(self, data: bytes) -> None:
        self._parser.feed_data(data)

    def on_message_begin(self) -> None:
        self._body = b""

    def on_body(self, body: bytes) -> None:
        self._body = self._body + body if self._body else body

    def on_message_complete(self) -> None:
        answer = self._stream if asked(self._body).stream else self._whole
        self._task = asyncio.get_running_loop().create_task(answer(self._body))

    def _write(self, data: bytes) -> None:
        if self._transport is not None:
            self._transport.write(data)

    async def _whole(self, body: bytes) -> None:
        status, answer = await self._client.whole(body)
        head = b"HTTP/1.1 %d OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n"
        self._write(head % (status, len(answer)) + answer)

    async def _stream(self, body: bytes) -> None:
        async with self._client.stream(body) as (status, pieces):
            head = b"HTTP/1.1 %d OK\r\ncontent-type: text/event-stream\r\n"
            self._write(head % status + b"transfer-encoding: chunked\r\n\r\n")
            async for piece in pieces:
                self._write(b"%x\r\n%b\r\n" % (len(piece), piece))
        self._write(b"0\r\n\r\n")


async def _bare(client: clients.Client, port: int) -> None:
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: _Bare(client), "127.0.0.1", port, backlog=2048)
    async with server:
        await server.serve_forever()


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4]))
