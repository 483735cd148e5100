"""One HTTP/1.1 connection as a client: writes a request, hands out the response as it arrives.

Knows: bytes on a socket, `httptools`, back-pressure, waiting with a limit. Does not know: pools,
URLs, redirects (nobody follows them), what a body means.

Why our own and not a library: leaving a request early must close the connection at once, also
before the response has begun (a runner would go on computing for nobody). `pyreqwest` 0.15 detaches
such a request instead of aborting it; see docs/decisions. A protocol on `httptools` is also the
cheapest form in Python.
"""

from __future__ import annotations

import asyncio
import math
from typing import cast

import httptools

from llm_runner_router.errors import (
    BadResponse,
    ConnectFailed,
    DeadlineExceeded,
    RunnerError,
    StreamBroken,
    UpstreamTimeout,
)

MAX_HEAD = 64 * 1024
"""Bytes of status line and headers."""
READ_AHEAD = 64 * 1024
"""Bytes of body held here before reading stops; one socket read (≤ 256 KiB) may come on top."""


class Connection(asyncio.Protocol):
    """A connection and the one exchange that is running on it.

    `send` starts an exchange, `wait_head` waits for status and headers, `read` for the body.
    Times are instants of the loop's clock. All state belongs to the event loop's thread.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, host: str) -> None:
        self._loop = loop
        self._host = host
        self._transport: asyncio.Transport | None = None
        self._parser = httptools.HttpResponseParser(self)
        self._waiter: asyncio.Future[bool] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = 0.0
        self._until = 0.0
        self._paused = False
        self._lost = False
        self.idle_since = 0.0
        self.used = False
        """It has carried an exchange before."""
        self._begin()

    def _begin(self) -> None:
        self.status = 0
        self.headers: list[tuple[bytes, bytes]] = []
        self._chunks: list[bytes] = []
        self._held = 0
        self._head_bytes = 0
        self._head_done = False
        self._framed = False  # the message says itself where it ends
        self._complete = False
        self._keep = False
        self._extra = False  # bytes after the end of the message
        self._error: RunnerError | None = None
        self._busy = False

    # ------------------------------------------------------------ what the client calls

    def send(self, data: bytes) -> None:
        """Start an exchange by writing a whole request."""
        assert self._transport is not None
        self._begin()
        self._busy = True
        self._transport.write(data)

    async def wait_head(self, until: float, deadline: float) -> None:
        """Wait for status and headers until the earlier of two instants.

        Raises:
            UpstreamTimeout, DeadlineExceeded: time is over.
            ConnectFailed: the connection ended before a byte of the response.
            StreamBroken, BadResponse: it ended or turned to garbage inside the head.
        """
        while not self._head_done:
            if self._error is not None:
                raise self._error
            await self._wait(until, deadline)

    async def read(self, until: float, deadline: float) -> bytes:
        """All of the body that has arrived and was not read; waits if there is none.

        Returns:
            The bytes, or `b""` at the end of the body.

        Raises:
            UpstreamTimeout, DeadlineExceeded: silence.
            StreamBroken: the connection ended inside the body.
            BadResponse: the framing is broken.
        """
        while True:
            chunks = self._chunks
            if chunks:
                data = chunks[0] if len(chunks) == 1 else b"".join(chunks)
                self._chunks = []
                self._held = 0
                if self._paused:
                    self._resume()
                return data
            if self._complete:
                return b""
            if self._error is not None:
                raise self._error
            await self._wait(until, deadline)

    @property
    def complete(self) -> bool:
        """The whole response has arrived and was read."""
        return self._complete and not self._chunks

    @property
    def reusable(self) -> bool:
        """Another exchange may follow on this connection."""
        return (
            self.complete
            and self._keep
            and self._framed
            and not self._extra
            and not self._lost
            and self._transport is not None
            and not self._transport.is_closing()
            and self._transport.get_write_buffer_size() == 0
        )

    def rest(self, now: float) -> None:
        """The exchange is over; what arrives from here on makes the connection useless."""
        self._begin()
        self.idle_since = now
        self.used = True

    @property
    def alive(self) -> bool:
        """Not known to be closed."""
        return not self._lost and self._transport is not None and not self._transport.is_closing()

    def fileno(self) -> int:
        """The socket's descriptor, -1 if there is none."""
        sock = self._transport.get_extra_info("socket") if self._transport else None
        return -1 if sock is None else int(sock.fileno())

    def abort(self) -> None:
        """Close at once; the other side sees it immediately."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._transport is not None:
            self._transport.abort()

    # ------------------------------------------------------------ waiting

    async def _wait(self, until: float, deadline: float) -> None:
        # One timer per connection that is re-armed only when it fires too early: waiting for a
        # chunk costs a future and a comparison, not a timer (nor a task, as `wait_for` would).
        limit = min(until, deadline)
        if limit != math.inf:
            self._until = limit
            if self._timer is None or self._timer_at > limit:
                self._arm(limit)
        else:
            self._until = math.inf
        waiter = self._waiter = self._loop.create_future()
        try:
            expired = await waiter
        finally:
            self._waiter = None
        if expired:
            if deadline <= until:
                raise DeadlineExceeded("the request's deadline passed while waiting for upstream")
            part = "inside its answer" if self._head_done else "before its answer began"
            raise UpstreamTimeout(f"{self._host} was silent for too long {part}")

    def _arm(self, at: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer_at = at
        self._timer = self._loop.call_at(at, self._tick)

    def _tick(self) -> None:
        self._timer = None
        waiter = self._waiter
        if waiter is None or self._until == math.inf:
            return
        # The loop may call a timer a clock tick early; asking again would only repeat that.
        if self._loop.time() + 0.001 < self._until:
            self._arm(self._until)
        elif not waiter.done():
            waiter.set_result(True)

    def _wake(self) -> None:
        waiter = self._waiter
        if waiter is not None and not waiter.done():
            waiter.set_result(False)

    def _resume(self) -> None:
        self._paused = False
        if self._transport is not None and not self._transport.is_closing():
            self._transport.resume_reading()

    def _fail(self, error: RunnerError, cause: BaseException | None = None) -> None:
        if self._error is None and not self._complete:
            error.__cause__ = cause
            self._error = error
        self._wake()

    # ------------------------------------------------------------ what the loop calls

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """The socket is there."""
        # A cast: uvloop's transports do not derive from asyncio's.
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        """Bytes came."""
        if not self._busy or self._complete:
            self._extra = True  # nobody asked; a connection out of step is worse than none
            self.abort()
            return
        if not self._head_done:
            self._head_bytes += len(data)
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as exc:
            self._fail(BadResponse(f"{self._host} does not speak HTTP: {exc}"), exc)
            self.abort()
            return
        if not self._head_done and self._head_bytes > MAX_HEAD:
            self._fail(BadResponse(f"{self._host} sent more than {MAX_HEAD} bytes of headers"))
            self.abort()
            return
        if self._held > READ_AHEAD and not self._paused and self._transport is not None:
            self._paused = True
            self._transport.pause_reading()
        self._wake()

    def eof_received(self) -> bool:
        """The other side will send no more; the transport closes itself."""
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        """The socket is gone."""
        self._lost = True
        if not self._busy or self._complete:
            return
        if self._head_done and not self._framed and exc is None:
            self._complete = True  # a body without a length ends with the connection
            self._wake()
        elif self._head_done:
            self._fail(StreamBroken(f"{self._host} broke off inside its answer"), exc)
        elif self._head_bytes:
            self._fail(StreamBroken(f"{self._host} broke off inside its headers"), exc)
        else:
            self._fail(ConnectFailed(f"{self._host} closed the connection unanswered"), exc)

    # ------------------------------------------------------------ what the parser calls

    def on_message_begin(self) -> None:
        """A response begins; a second one was not asked for."""
        if self._complete:
            self._extra = True

    def on_header(self, name: bytes, value: bytes) -> None:
        """One header."""
        if self._head_done:
            return  # a trailer
        name = name.lower()
        if name == b"content-length" or name == b"transfer-encoding":
            self._framed = True
        self.headers.append((name, value))

    def on_headers_complete(self) -> None:
        """Status and headers are whole; informational ones are skipped."""
        status = self._parser.get_status_code()
        if self._complete:
            return
        if status < 200:
            self.headers = []
            return
        if status in (204, 304):
            self._framed = True
        self.status = status
        self._head_done = True

    def on_body(self, body: bytes) -> None:
        """A piece of the body."""
        if not self._complete:
            self._chunks.append(body)
            self._held += len(body)

    def on_message_complete(self) -> None:
        """The response is whole."""
        if self._head_done and not self._complete:
            self._complete = True
            self._keep = self._parser.should_keep_alive()
