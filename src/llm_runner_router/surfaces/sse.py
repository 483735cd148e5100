"""Server-sent events: how a stream of frames reaches a client that may be slow, silent or gone.

Knows: an `Exchange` and a clock. Does not know what is in a frame.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable

from llm_runner_router.errors import RunnerError

from .exchange import ClientGone, Exchange, Headers

PING = b": ping\n\n"
"""An SSE comment; clients ignore it, proxies see that the connection lives."""
STALL_SECONDS = 60.0
"""How long a client may take nothing at all before it counts as gone."""

HEADERS: Headers = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),
]


class Pulse:
    """Watches the silence of one stream with one timer.

    Sends a comment after `every` seconds without a frame (0: never), and gives the client up when
    a single send has not come through for `stall` seconds.
    """

    __slots__ = (
        "_every",
        "_exchange",
        "_loop",
        "_ping",
        "_since",
        "_stall",
        "_task",
        "_timer",
        "sending",
    )

    def __init__(self, exchange: Exchange, every: float, stall: float = STALL_SECONDS) -> None:
        task = asyncio.current_task()
        assert task is not None, "streams are sent in tasks"
        self._exchange = exchange
        self._task = task
        self._every = every
        self._stall = stall
        self._loop = asyncio.get_running_loop()
        self._since = self._loop.time()
        self.sending = False
        self._ping: asyncio.Task[None] | None = None
        self._timer = self._loop.call_later(every or stall, self._tick)

    async def send(self, data: bytes) -> None:
        """Send a frame; the silence starts again."""
        self._since = self._loop.time()
        self.sending = True
        await self._exchange.send(data)
        self.sending = False

    def stop(self) -> None:
        """No more comments; call it before the last frame."""
        self._timer.cancel()
        if self._ping is not None:
            self._ping.cancel()

    def _tick(self) -> None:
        silent = self._loop.time() - self._since
        if self.sending and silent >= self._stall:
            self._exchange.leave(self._task)
            return
        every = self._every
        if every and not self.sending and silent >= every * 0.99:
            # A ping that has not come through yet means that the client is behind: no second one.
            if self._ping is None or self._ping.done():
                self._ping = self._loop.create_task(self._exchange.send(PING))
            self._since = self._loop.time()
            silent = 0.0
        limit = self._stall if self.sending or not every else every
        self._timer = self._loop.call_later(max(limit - silent, 0.01), self._tick)


async def stream(
    exchange: Exchange,
    first: bytes,
    frames: AsyncIterator[bytes],
    every: float,
    failed: Callable[[Exception], RunnerError],
    write_error: Callable[[RunnerError], bytes],
) -> None:
    """Send `first` and the other frames; the head is already out.

    An error on the way becomes an error event, after which the stream ends. `failed` turns any
    exception into the error that the client is told.
    """
    pulse = Pulse(exchange, every)
    try:
        await pulse.send(first)
        async for frame in frames:
            await pulse.send(frame)
    except ClientGone:
        raise
    except Exception as exc:  # the client must be told of any failure; `failed` logs the unexpected
        pulse.stop()
        await exchange.end(write_error(failed(exc)))
    else:
        pulse.stop()
        await exchange.end()
    finally:
        pulse.stop()
