"""The smallest correct chat proxy, once as ASGI and once as RSGI application.

Knows: read the body, pass it on, pass back a plain answer or a stream, stop when the client
leaves. Does not know which client library asks (`clients.py`) or how it is served (`serve.py`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from bench.wire import asked

from . import clients

Message = MutableMapping[str, Any]
_JSON = [(b"content-type", b"application/json")]
_SSE = [(b"content-type", b"text/event-stream; charset=utf-8")]


class Asgi:
    """The proxy as an ASGI 3 application."""

    def __init__(self, kind: str, url: str) -> None:
        self._kind = kind
        self._url = url
        self._client: clients.Client | None = None

    async def __call__(
        self,
        scope: Message,
        receive: Callable[[], Awaitable[Message]],
        send: Callable[[Message], Awaitable[None]],
    ) -> None:
        if scope["type"] != "http":
            return
        client = self._client = self._client or clients.make(self._kind, self._url)
        body, more = b"", True
        while more:
            message = await receive()
            body += message.get("body", b"")
            more = message.get("more_body", False)
        if asked(body).stream:
            await _while_there(receive, self._stream(client, body, send))
            return
        status, answer = await client.whole(body)
        length = (b"content-length", str(len(answer)).encode())
        start = {"type": "http.response.start", "status": status, "headers": [*_JSON, length]}
        await send(start)
        await send({"type": "http.response.body", "body": answer})

    async def _stream(
        self, client: clients.Client, body: bytes, send: Callable[[Message], Awaitable[None]]
    ) -> None:
        async with client.stream(body) as (status, pieces):
            await send({"type": "http.response.start", "status": status, "headers": _SSE})
            async for piece in pieces:
                await send({"type": "http.response.body", "body": piece, "more_body": True})
        await send({"type": "http.response.body", "body": b""})


async def _while_there(receive: Callable[[], Awaitable[Message]], work: Any) -> None:
    """Run `work` until it ends or the client leaves."""
    working = asyncio.ensure_future(work)
    leaving = asyncio.ensure_future(receive())
    await asyncio.wait((working, leaving), return_when=asyncio.FIRST_COMPLETED)
    for task in (working, leaving):
        task.cancel()
    await asyncio.gather(working, leaving, return_exceptions=True)


class Rsgi:
    """The proxy as an RSGI application (granian's own interface)."""

    def __init__(self, kind: str, url: str) -> None:
        self._kind = kind
        self._url = url
        self._client: clients.Client | None = None

    async def __rsgi__(self, scope: Any, protocol: Any) -> None:
        client = self._client = self._client or clients.make(self._kind, self._url)
        body = await protocol()
        if not asked(body).stream:
            status, answer = await client.whole(body)
            protocol.response_bytes(status, [("content-type", "application/json")], answer)
            return
        working = asyncio.ensure_future(self._stream(client, body, protocol))
        leaving = asyncio.ensure_future(protocol.client_disconnect())
        await asyncio.wait((working, leaving), return_when=asyncio.FIRST_COMPLETED)
        for task in (working, leaving):
            task.cancel()
        await asyncio.gather(working, leaving, return_exceptions=True)

    async def _stream(self, client: clients.Client, body: bytes, protocol: Any) -> None:
        async with client.stream(body) as (status, pieces):
            headers = [("content-type", "text/event-stream; charset=utf-8")]
            transport = protocol.response_stream(status, headers)
            async for piece in pieces:
                await transport.send_bytes(piece)
