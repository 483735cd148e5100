"""The private HTTP server of a runner: connections, requests, JSON and event streams.

Knows: HTTP/1.1 through httptools, the key, when a client has gone. Does not know: OpenAI's API
(`api.py`), models. It listens on loopback for one client, the gateway, so it has no TLS, no
compression and no HTTP/2.
"""

from __future__ import annotations

import asyncio
import hmac
import logging
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import httptools
import msgspec
from msgspec import Struct

from .refusal import Refusal

MAX_BODY = 64 * 1024 * 1024
"""Bytes of a request's body."""
MAX_HEAD = 64 * 1024
"""Bytes of a request's first line and headers."""
_REASONS = {200: b"OK", 400: b"Bad Request", 401: b"Unauthorized", 404: b"Not Found"}
_log = logging.getLogger(__name__)
_encode = msgspec.json.Encoder().encode


class Request(Struct):
    """A whole request. Header names are in lower case."""

    method: str = ""
    path: str = ""
    headers: dict[str, str] = {}
    body: bytes = b""


class Reply:
    """How a handler answers: once with `json`, or with `start`, `event` … and `done`."""

    def __init__(self, transport: asyncio.Transport, ready: asyncio.Event) -> None:
        self._transport = transport
        self._ready = ready
        self.started = False

    def json(self, value: Any, status: int = 200) -> None:
        """The whole answer."""
        body = _encode(value)
        self._head(status, b"application/json", b"content-length: %d\r\n" % len(body), body)

    def start(self) -> None:
        """Begin an event stream."""
        self._head(200, b"text/event-stream", b"transfer-encoding: chunked\r\n", b"")

    async def event(self, value: Any) -> None:
        """One event; waits while the client does not read."""
        data = b"data: " + _encode(value) + b"\n\n"
        self._transport.write(b"%x\r\n%b\r\n" % (len(data), data))
        await self._ready.wait()

    def done(self) -> None:
        """End the event stream cleanly."""
        self._transport.write(b"e\r\ndata: [DONE]\n\n\r\n0\r\n\r\n")

    def broken(self, value: Any) -> None:
        """End the event stream with an error."""
        data = b"data: " + _encode(value) + b"\n\n"
        self._transport.write(b"%x\r\n%b\r\n0\r\n\r\n" % (len(data), data))

    def _head(self, status: int, kind: bytes, length: bytes, body: bytes) -> None:
        self.started = True
        reason = _REASONS.get(status, b"Error")
        self._transport.write(
            b"HTTP/1.1 %d %b\r\ncontent-type: %b\r\n%b\r\n%b" % (status, reason, kind, length, body)
        )


Handler = Callable[[Request, Reply], Awaitable[None]]


class HttpServer:
    """Serves handlers by method and path.

    Args:
        routes: `"POST /v1/embeddings"` to its handler.
        api_key: must come with every request but those for `/health`.
    """

    def __init__(self, routes: Mapping[str, Handler], api_key: str) -> None:
        self._routes = routes
        self._key = f"Bearer {api_key}".encode()
        self._server: asyncio.Server | None = None
        self.open: set[asyncio.Transport] = set()
        """Connections there are."""

    async def listen(self, port: int = 0) -> str:
        """Listen on a loopback port, 0 for a free one; gives the address."""
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(lambda: _Connection(self), "127.0.0.1", port)
        found = self._server.sockets[0].getsockname()[1]
        return f"http://127.0.0.1:{found}"

    async def close(self) -> None:
        """Stop listening, and end what is being answered."""
        if self._server is not None:
            self._server.close()
            for transport in tuple(self.open):
                transport.abort()
            await self._server.wait_closed()

    async def answer(self, request: Request, reply: Reply) -> None:
        """Answer one request, whatever happens."""
        try:
            handler = self._find(request)
            await handler(request, reply)
        except Refusal as exc:
            self._fail(reply, exc)
        except Exception as exc:  # an engine may raise anything; the next request may go well
            _log.exception("%s %s", request.method, request.path)
            words = f"{type(exc).__name__}: {exc}"
            self._fail(reply, Refusal(words[:2000], status=500, type="server_error"))

    def _find(self, request: Request) -> Handler:
        if request.path != "/health":
            given = request.headers.get("authorization", "").encode()
            if not hmac.compare_digest(given, self._key):
                raise Refusal("Invalid API Key", status=401, type="authentication_error")
        handler = self._routes.get(f"{request.method} {request.path}")
        if handler is None:
            raise Refusal("File Not Found", status=404, type="not_found_error")
        return handler

    def _fail(self, reply: Reply, exc: Refusal) -> None:
        if reply.started:
            reply.broken(exc.body())
        else:
            reply.json(exc.body(), exc.status)


class _Connection(asyncio.Protocol):
    """One connection: requests come one after another, and its end stops the work."""

    def __init__(self, server: HttpServer) -> None:
        self._server = server
        self._parser = httptools.HttpRequestParser(self)
        self._request = Request()
        self._body: list[bytes] = []
        self._size = 0
        self._ready = asyncio.Event()
        self._ready.set()
        self._task: asyncio.Task[None] | None = None
        self._next: list[Request] = []
        self._last = False
        """The client wants the connection closed after this answer."""

    # ------------------------------------------------------------ asyncio

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._server.open.add(transport)

    def connection_lost(self, exc: Exception | None) -> None:
        self._server.open.discard(self._transport)
        self._ready.set()
        self._next.clear()
        if self._task is not None:
            self._task.cancel()

    def pause_writing(self) -> None:
        self._ready.clear()

    def resume_writing(self) -> None:
        self._ready.set()

    def data_received(self, data: bytes) -> None:
        self._size += len(data)
        if self._size > MAX_BODY + MAX_HEAD:
            self._transport.abort()
            return
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError:
            self._transport.write(b"HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\n\r\n")
            self._transport.close()

    # ------------------------------------------------------------ httptools

    def on_message_begin(self) -> None:
        self._request = Request(headers={})
        self._body = []

    def on_url(self, url: bytes) -> None:
        self._request.path += url.decode("latin-1")

    def on_header(self, name: bytes, value: bytes) -> None:
        self._request.headers[name.decode("latin-1").lower()] = value.decode("latin-1")

    def on_body(self, body: bytes) -> None:
        self._body.append(body)

    def on_message_complete(self) -> None:
        request = self._request
        request.method = self._parser.get_method().decode("ascii")
        request.path = request.path.partition("?")[0]
        request.body = b"".join(self._body)
        self._size = 0
        if self._task is None:
            self._begin(request)
        elif len(self._next) < 4:  # nobody who is served here sends ahead
            self._next.append(request)
        else:
            self._transport.abort()

    def _begin(self, request: Request) -> None:
        self._last = request.headers.get("connection", "").lower() == "close"
        self._task = asyncio.get_running_loop().create_task(
            self._server.answer(request, Reply(self._transport, self._ready))
        )
        self._task.add_done_callback(self._over)

    def _over(self, task: asyncio.Task[None]) -> None:
        self._task = None
        if not task.cancelled() and task.exception() is not None:
            self._transport.abort()
        elif self._last:
            self._transport.close()
        elif self._next and not self._transport.is_closing():
            self._begin(self._next.pop(0))
