"""The one HTTP client: a pool of connections behind a small interface of ours.

Knows: requests, responses, pooling, timeouts; the only border where a socket's errors become
`RunnerError`s. Does not know: JSON, SSE, keys, retries (the router's, never the client's).

No redirects are followed, no cookies kept, nothing is decompressed (`identity` is asked for).
"""

from __future__ import annotations

import asyncio
import math
import re
import select
import ssl
from collections.abc import AsyncIterator, Sequence
from types import TracebackType
from typing import Self

from msgspec import Struct

from llm_runner_router.errors import (
    BadResponse,
    ConfigError,
    ConnectFailed,
    DeadlineExceeded,
    RunnerError,
)

from .connection import Connection
from .dial import Address, dial, parse, trust

MAX_IDLE = 256
"""Idle connections kept per host: as many as smooth streams are promised."""
IDLE_SECONDS = 30.0
"""Idle connections are closed after this; common load balancers close after 60 s."""
MAX_ADDRESSES = 1024
_BREAK = re.compile(r"[\r\n\0]")


class Timeouts(Struct, frozen=True):
    """Limits on silence, in seconds: to connect, to the first byte of a body, inside a body."""

    connect: float = 10.0
    first_byte: float = 60.0
    idle: float = 60.0


class HttpClient:
    """One pool of HTTP/1.1 connections; use it as an async context manager, in one event loop."""

    def __init__(self, *, max_idle: int = MAX_IDLE, idle_seconds: float = IDLE_SECONDS) -> None:
        self._max_idle = max_idle
        self._idle_seconds = idle_seconds
        self._idle: dict[tuple[str, int, bool], list[Connection]] = {}
        self._busy: set[Connection] = set()
        self._addresses: dict[str, Address] = {}
        self._context: ssl.SSLContext | None = None
        self._sweeper: asyncio.TimerHandle | None = None
        self._closed = False

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        exc: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close every connection; running exchanges fail."""
        self._closed = True
        if self._sweeper is not None:
            self._sweeper.cancel()
            self._sweeper = None
        for connection in (*self._busy, *(c for idle in self._idle.values() for c in idle)):
            connection.abort()
        self._idle.clear()
        await asyncio.sleep(0)  # `connection_lost` is called by the loop's next turn

    def stream(
        self,
        method: str,
        url: str,
        *,
        headers: Sequence[tuple[str, str]] = (),
        body: bytes = b"",
        timeouts: Timeouts | None = None,
        deadline: float | None = None,
    ) -> Exchange:
        """A request whose response is read as it arrives: `async with client.stream(…) as r:`.

        Entering sends the request and waits for status and headers; leaving early closes the
        connection, leaving after the end returns it to the pool.

        Args:
            deadline: an instant of the loop's clock that bounds every wait.

        Raises:
            ConfigError: no such URL, or a header with a line break.
            ConnectFailed, UpstreamTimeout, StreamBroken, BadResponse, DeadlineExceeded: on
                entering or while reading.
        """
        address = self._addresses.get(url)
        if address is None:
            if len(self._addresses) >= MAX_ADDRESSES:
                self._addresses.clear()
            address = self._addresses[url] = parse(url)
        data = _request(method, address, headers, body)
        until = math.inf if deadline is None else deadline
        return Exchange(self, address, data, timeouts or Timeouts(), until)

    # ------------------------------------------------------------ the pool

    async def checkout(self, address: Address, connect: float, deadline: float) -> Connection:
        """A connection to `address`: an idle one that is alive, else a new one."""
        if self._closed:
            raise ConnectFailed("the client is closed")
        idle = self._idle.get(address.key)
        while idle:
            connection = idle.pop()
            if connection.alive and not _stirred(connection.fileno()):
                self._busy.add(connection)
                return connection
            connection.abort()  # stale, and nothing was sent on it: the next one is safe
        connection = await self._connect(address, connect, deadline)
        if self._closed:
            connection.abort()
            raise ConnectFailed("the client is closed")
        self._busy.add(connection)
        return connection

    async def _connect(self, address: Address, connect: float, deadline: float) -> Connection:
        loop = asyncio.get_running_loop()
        if address.tls and self._context is None:
            self._context = trust()
        at = loop.time() + connect
        try:
            async with asyncio.timeout_at(min(at, deadline)):
                return await dial(
                    address,
                    self._context if address.tls else None,
                    lambda: Connection(loop, address.host),
                )
        except TimeoutError as exc:
            if deadline <= at:
                raise DeadlineExceeded(
                    f"the request's deadline passed while connecting to {address.host}"
                ) from exc
            where = f"{address.host}:{address.port}"
            raise ConnectFailed(f"no connection to {where} within {connect:g} s") from exc

    def checkin(self, address: Address, connection: Connection) -> None:
        """Take a connection back: into the pool if its exchange ended cleanly, else close it."""
        self._busy.discard(connection)
        idle = self._idle.setdefault(address.key, [])
        if self._closed or not connection.reusable or len(idle) >= self._max_idle:
            connection.abort()
            return
        loop = asyncio.get_running_loop()
        connection.rest(loop.time())
        idle.append(connection)
        if self._sweeper is None:
            self._sweeper = loop.call_later(self._idle_seconds, self._sweep)

    def _sweep(self) -> None:
        """Close what has been idle for too long, and forget hosts without connections."""
        loop = asyncio.get_running_loop()
        oldest = loop.time() - self._idle_seconds
        self._sweeper = None
        for key, idle in list(self._idle.items()):
            kept = [c for c in idle if c.alive and c.idle_since > oldest]
            for connection in idle:
                if connection not in kept:
                    connection.abort()
            if kept:
                idle[:] = kept
            else:
                del self._idle[key]
        if self._idle:
            self._sweeper = loop.call_later(self._idle_seconds / 2, self._sweep)


class Exchange:
    """One request and its response as a context manager; made by `HttpClient.stream`."""

    __slots__ = ("_address", "_client", "_connection", "_data", "_deadline", "_timeouts")

    def __init__(
        self,
        client: HttpClient,
        address: Address,
        data: bytes,
        timeouts: Timeouts,
        deadline: float,
    ) -> None:
        self._client = client
        self._address = address
        self._data = data
        self._timeouts = timeouts
        self._deadline = deadline
        self._connection: Connection | None = None

    async def __aenter__(self) -> Response:
        loop = asyncio.get_running_loop()
        started = loop.time()
        if started >= self._deadline:
            raise DeadlineExceeded("the request's deadline passed before it was sent")
        timeouts = self._timeouts
        connection = await self._client.checkout(self._address, timeouts.connect, self._deadline)
        self._connection = connection
        try:
            connection.send(self._data)
            first = loop.time() + timeouts.first_byte
            await connection.wait_head(first, self._deadline)
        except BaseException:  # cancelled or failed: nobody will call __aexit__
            self._leave()
            raise
        return Response(connection, loop, first, timeouts.idle, self._deadline)

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        exc: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._leave()

    def _leave(self) -> None:
        # Without an await, so that a second cancellation cannot come between.
        connection, self._connection = self._connection, None
        if connection is not None:
            self._client.checkin(self._address, connection)


class Response:
    """Status, headers and body of a response. The body is read once, whole or in chunks."""

    __slots__ = ("_connection", "_deadline", "_first", "_idle", "_loop", "status")

    def __init__(
        self,
        connection: Connection,
        loop: asyncio.AbstractEventLoop,
        first: float,
        idle: float,
        deadline: float,
    ) -> None:
        self.status = connection.status
        self._connection = connection
        self._loop = loop
        self._first = first
        self._idle = idle
        self._deadline = deadline

    def header(self, name: str) -> str | None:
        """The first header of that name, whatever its case; None if there is none."""
        wanted = name.lower().encode("latin-1")
        for found, value in self._connection.headers:
            if found == wanted:
                return value.decode("latin-1")
        return None

    def chunks(self) -> AsyncIterator[bytes]:
        """The body as it arrives; small pieces that arrived together come together."""
        return self

    def limit_idle(self, seconds: float) -> None:
        """From here on, allow at most `seconds` of silence."""
        self._first = 0.0
        self._idle = min(self._idle, seconds)

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> bytes:
        # The limit on the first byte covers the headers too: they say nothing about an answer.
        until = self._first or self._loop.time() + self._idle
        data = await self._connection.read(until, self._deadline)
        self._first = 0.0
        if not data:
            raise StopAsyncIteration
        return data

    async def read(self, limit: int) -> bytes:
        """The whole body.

        Raises:
            BadResponse: it is longer than `limit` bytes.
        """
        pieces: list[bytes] = []
        total = 0
        async for piece in self:
            total += len(piece)
            if total > limit:
                raise BadResponse(f"the answer is longer than {limit} bytes")
            pieces.append(piece)
        return b"".join(pieces)

    async def settle(self, seconds: float) -> None:
        """Give an answer that is logically over a moment to end, so that its connection is kept."""
        if self._connection.complete:
            return
        until = self._loop.time() + seconds
        try:
            while await self._connection.read(until, self._deadline):
                if self._loop.time() >= until:
                    return
        except RunnerError:
            return  # then the connection is not kept; the answer itself is whole


def _request(
    method: str, address: Address, headers: Sequence[tuple[str, str]], body: bytes
) -> bytes:
    """The bytes of a request."""
    lines = [f"{method} {address.target} HTTP/1.1\r\nHost: {address.authority}\r\n"]
    for name, value in headers:
        if _BREAK.search(value) or _BREAK.search(name):
            raise ConfigError(f"the header {name!r} has a line break in its value")
        lines.append(f"{name}: {value}\r\n")
    if address.proxy is not None and not address.tls and address.proxy.authorization:
        lines.append(f"Proxy-Authorization: {address.proxy.authorization}\r\n")
    lines.append(f"Accept-Encoding: identity\r\nContent-Length: {len(body)}\r\n\r\n")
    try:
        return "".join(lines).encode("latin-1") + body
    except UnicodeEncodeError:
        # Not chained: the original repeats the text, and a header may be a key.
        raise ConfigError("a header value is not latin-1 text") from None


def _stirred(fd: int) -> bool:
    """Whether an idle socket has something to read: its end, or bytes nobody asked for."""
    if fd < 0:
        return True
    if hasattr(select, "poll"):
        poll = select.poll()
        poll.register(fd, select.POLLIN | select.POLLHUP | select.POLLERR)
        return bool(poll.poll(0))
    return bool(select.select([fd], [], [], 0)[0])
