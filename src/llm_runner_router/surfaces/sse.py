"""Streams of answers: how frames reach a client that may be slow, silent or gone.

Knows: an `Exchange`, a clock, what a stream may look like. Does not know what is in a frame.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable

from msgspec import Struct

from llm_runner_router.errors import RunnerError

from .exchange import ClientGone, Exchange, Headers

PING = b": ping\n\n"
"""An SSE comment; clients ignore it, proxies see that the connection lives."""

HEADERS: Headers = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),
]


class Form(Struct, frozen=True):
    """How a stream goes out."""

    headers: Headers
    ping: bytes
    """What means nothing between two frames; sent when there was silence for long. Empty: nothing
    does."""


EVENTS = Form(HEADERS, PING)
LINES = Form(HEADERS, b"\n")
"""For clients that take a comment for data: Google's do, and skip empty lines."""
NDJSON = Form([(b"content-type", b"application/x-ndjson"), *HEADERS[1:]], b"")
"""Lines of JSON, between which nothing can stand."""
LIST = Form([(b"content-type", b"application/json"), *HEADERS[1:]], b"\n")
"""One JSON list that grows."""


class Pulse:
    """Sends `ping` whenever a stream was silent for `every` seconds, with one timer.

    It begins once the head is out: before that, silence may still become an error status.
    """

    __slots__ = ("_bytes", "_every", "_exchange", "_loop", "_ping", "_since", "_timer", "sending")

    def __init__(self, exchange: Exchange, every: float, ping: bytes = PING) -> None:
        self._exchange = exchange
        self._every = every
        self._bytes = ping
        self._loop = asyncio.get_running_loop()
        self._since = self._loop.time()
        self.sending = False
        """A frame is on its way; a comment would only queue behind it."""
        self._ping: asyncio.Task[None] | None = None
        self._timer = self._loop.call_later(every, self._tick)

    def sent(self) -> None:
        """A frame is out; the silence starts again."""
        self.sending = False
        self._since = self._loop.time()

    def stop(self) -> None:
        """No more comments; call it before the last frame."""
        self._timer.cancel()
        if self._ping is not None:
            self._ping.cancel()

    def _tick(self) -> None:
        left = self._every - (self._loop.time() - self._since)
        if left <= 0:
            # A comment that has not come through yet means that the client is behind: no second.
            if not self.sending and (self._ping is None or self._ping.done()):
                self._ping = self._loop.create_task(self._exchange.send(self._bytes))
            self._since = self._loop.time()
            left = self._every
        self._timer = self._loop.call_later(left, self._tick)


async def stream(
    exchange: Exchange,
    first: bytes,
    frames: AsyncIterator[bytes],
    every: float,
    failed: Callable[[Exception], RunnerError],
    write_error: Callable[[RunnerError], bytes],
    ping: bytes = PING,
) -> None:
    """Send `first` and the other frames; the head is already out.

    An error on the way becomes an error event, after which the stream ends. `failed` turns any
    exception into the error that the client is told.
    """
    pulse = Pulse(exchange, every, ping) if every and ping else None
    last = b""
    try:
        await exchange.send(first)
        async for frame in frames:
            if pulse is None:
                await exchange.send(frame)
            else:
                pulse.sending = True
                await exchange.send(frame)
                pulse.sent()
    except ClientGone:
        raise
    except Exception as exc:  # the client must be told of any failure; `failed` logs the unexpected
        last = write_error(failed(exc))
    finally:
        if pulse is not None:
            pulse.stop()
    await exchange.end(last)
