"""HTTP clients behind the two verbs that a proxy needs: a whole answer, a stream of pieces.

Knows: pyreqwest, aiohttp, and a client on bare asyncio protocols as the floor of what Python can
do. Does not know servers.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from importlib import import_module
from typing import Protocol, cast
from urllib.parse import urlsplit

import httptools

Headers = dict[str, str]
HEADERS: Headers = {"content-type": "application/json", "authorization": "Bearer bench"}
PIECES = 64
"""Pieces of a stream that may wait for a slow reader."""


class Client(Protocol):
    """What a proxy needs."""

    async def whole(self, body: bytes) -> tuple[int, bytes]:
        """Status and body of a plain answer."""
        ...

    def stream(self, body: bytes) -> AbstractAsyncContextManager[tuple[int, AsyncIterator[bytes]]]:
        """Status and pieces as they come; leaving closes the connection unless all was read."""
        ...


def make(name: str, url: str) -> Client:
    """A client by name; call it inside the event loop."""
    kinds: dict[str, Callable[[str], Client]]
    kinds = {"pyreqwest": Pyreqwest, "aiohttp": Aiohttp, "bare": Bare}
    return kinds[name](url)


class Pyreqwest:
    """reqwest (Rust) with one pooled client."""

    def __init__(self, url: str) -> None:
        from pyreqwest.client import ClientBuilder

        self._url = url
        self._client = ClientBuilder().default_headers(HEADERS).no_proxy().build()

    async def whole(self, body: bytes) -> tuple[int, bytes]:
        response = await self._client.post(self._url).body_bytes(body).build().send()
        return response.status, bytes(await response.bytes())

    @asynccontextmanager
    async def stream(self, body: bytes) -> AsyncIterator[tuple[int, AsyncIterator[bytes]]]:
        request = self._client.post(self._url).body_bytes(body).build_streamed()
        async with request as response:
            reader = response.body_reader

            async def pieces() -> AsyncIterator[bytes]:
                while (piece := await reader.read_chunk()) is not None:
                    yield bytes(piece)

            yield response.status, pieces()


class Aiohttp:
    """aiohttp with one session."""

    def __init__(self, url: str) -> None:
        # By name: the product's own environment, where types are checked, has no aiohttp.
        aiohttp = import_module("aiohttp")
        self._url = url
        connector = aiohttp.TCPConnector(limit=0)
        self._session = aiohttp.ClientSession(
            connector=connector, headers=HEADERS, auto_decompress=False
        )

    async def whole(self, body: bytes) -> tuple[int, bytes]:
        async with self._session.post(self._url, data=body) as response:
            return response.status, await response.read()

    @asynccontextmanager
    async def stream(self, body: bytes) -> AsyncIterator[tuple[int, AsyncIterator[bytes]]]:
        async with self._session.post(self._url, data=body) as response:
            yield response.status, response.content.iter_any()


# ---------------------------------------------------------------- the floor


class _Line(asyncio.Protocol):
    """One connection of `Bare`."""

    def __init__(self) -> None:
        self.transport: asyncio.Transport | None = None
        self.status = 0
        self.done = False
        self.pieces: deque[bytes] = deque()
        self.change: asyncio.Future[None] | None = None
        self._parser = httptools.HttpResponseParser(self)

    def begin(self) -> None:
        self.status, self.done = 0, False
        self.pieces.clear()

    async def changed(self) -> None:
        self.change = asyncio.get_running_loop().create_future()
        await self.change

    def _tell(self) -> None:
        if self.change is not None and not self.change.done():
            self.change.set_result(None)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)

    def connection_lost(self, exc: Exception | None) -> None:
        self.transport = None
        self._tell()

    def data_received(self, data: bytes) -> None:
        self._parser.feed_data(data)
        self._tell()

    def on_headers_complete(self) -> None:
        self.status = self._parser.get_status_code()

    def on_body(self, body: bytes) -> None:
        self.pieces.append(body)
        if len(self.pieces) > PIECES and self.transport is not None:
            self.transport.pause_reading()

    def on_message_complete(self) -> None:
        self.done = True


class Bare:
    """A client on bare asyncio protocols with httptools."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        self._host, self._port = parts.hostname or "127.0.0.1", parts.port or 80
        lines = [f"POST {parts.path} HTTP/1.1", f"host: {parts.netloc}"]
        lines += [f"{name}: {value}" for name, value in HEADERS.items()]
        self._head = "\r\n".join(lines).encode() + b"\r\ncontent-length: %d\r\n\r\n"
        self._free: list[_Line] = []

    async def _send(self, body: bytes) -> _Line:
        line = self._free.pop() if self._free else None
        if line is None or line.transport is None:
            loop = asyncio.get_running_loop()
            _, line = await loop.create_connection(_Line, self._host, self._port)
        line.begin()
        assert line.transport is not None
        line.transport.write(self._head % len(body) + body)
        return line

    async def whole(self, body: bytes) -> tuple[int, bytes]:
        line = await self._send(body)
        while not line.done:
            if line.transport is None:
                raise ConnectionError("the upstream closed early")
            await line.changed()
        self._free.append(line)
        return line.status, b"".join(line.pieces)

    @asynccontextmanager
    async def stream(self, body: bytes) -> AsyncIterator[tuple[int, AsyncIterator[bytes]]]:
        line = await self._send(body)
        try:
            while not line.status:
                await line.changed()
            yield line.status, self._pieces(line)
        finally:
            if line.done and not line.pieces:
                self._free.append(line)
            elif line.transport is not None:
                line.transport.abort()

    async def _pieces(self, line: _Line) -> AsyncIterator[bytes]:
        while True:
            if line.pieces:
                piece = b"".join(line.pieces)
                line.pieces.clear()
                if line.transport is not None and not line.transport.is_reading():
                    line.transport.resume_reading()
                yield piece
            elif line.done:
                return
            elif line.transport is None:
                raise ConnectionError("the upstream closed early")
            else:
                await line.changed()
