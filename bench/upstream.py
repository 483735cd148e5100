"""A mock OpenAI host for benchmarks: bare asyncio protocols, so that it is never the bottleneck.

Knows: HTTP/1.1 with keep-alive, what `wire.py` scripts. Does not know who asks. It runs in a
process of its own: `python -m bench.upstream` prints `{"port": N}` and serves until its standard
input closes, so it cannot outlive the one who started it.
"""

from __future__ import annotations

import asyncio
import sys
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from typing import cast

import httptools
import msgspec
from msgspec import Struct

from . import wire

_JSON = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n"
_NO_ROUTE = b'{"error":{"message":"no such route","type":"invalid_request_error"}}'
_MISSING = (
    b"HTTP/1.1 404 Not Found\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n"
    % len(_NO_ROUTE)
) + _NO_ROUTE
_SSE = (
    b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\n"
    b"cache-control: no-cache\r\ntransfer-encoding: chunked\r\n\r\n"
)
_END = b"0\r\n\r\n"
_CHAT = "/v1/chat/completions"


class Stats(Struct):
    """What has happened so far; `GET /stats` shows it."""

    requests: int = 0
    open_streams: int = 0
    left_early: int = 0
    """Streams whose reader closed the connection before the end."""


class Upstream(asyncio.Protocol):
    """One connection."""

    def __init__(self, stats: Stats) -> None:
        self._stats = stats
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None
        self._parser = httptools.HttpRequestParser(self)
        self._url = b""
        self._body = b""
        self._waiting: deque[tuple[str, bytes]] = deque()
        self._stream: _Stream | None = None

    # ------------------------------------------------------------ asyncio

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's has no such base class

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        if self._stream is not None:
            self._stream.stop()
            self._stats.open_streams -= 1
            self._stats.left_early += 1
            self._stream = None

    def data_received(self, data: bytes) -> None:
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError:
            if self._transport is not None:
                self._transport.close()

    # ------------------------------------------------------------ httptools

    def on_message_begin(self) -> None:
        self._url, self._body = b"", b""

    def on_url(self, url: bytes) -> None:
        self._url += url

    def on_body(self, body: bytes) -> None:
        self._body = self._body + body if self._body else body

    def on_message_complete(self) -> None:
        request = (self._url.decode(), self._body)
        if self._stream is None:
            self._answer(*request)
        else:
            self._waiting.append(request)

    # ------------------------------------------------------------ answers

    def _answer(self, path: str, body: bytes) -> None:
        if path == _CHAT:
            self._stats.requests += 1
            asked = wire.asked(body)
            if asked.stream:
                self._begin(asked)
            else:
                self._json(wire.answer_body(asked.model))
        elif path == "/stats":
            self._json(msgspec.json.encode(self._stats))
        elif path == "/v1/models":
            model = {"id": "mock", "object": "model", "created": 0, "owned_by": "mock"}
            self._json(msgspec.json.encode({"object": "list", "data": [model]}))
        else:
            self._write(_MISSING)

    def _json(self, body: bytes) -> None:
        self._write(_JSON % len(body) + body)

    def _write(self, data: bytes) -> None:
        if self._transport is not None:
            self._transport.write(data)

    def _begin(self, asked: wire.Asked) -> None:
        assert self._transport is not None
        self._stats.open_streams += 1
        self._stream = _Stream(self._loop, self._transport, asked, self._ended)
        self._stream.start()

    def _ended(self) -> None:
        self._stats.open_streams -= 1
        self._stream = None
        if self._waiting:
            self._answer(*self._waiting.popleft())


class _Stream:
    """Writes events at fixed times, so that a late event does not push the later ones back."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        transport: asyncio.Transport,
        asked: wire.Asked,
        done: Callable[[], None],
    ) -> None:
        self._loop = loop
        self._transport = transport
        self._events = wire.stream_events(asked.model, asked.usage)
        self._script = wire.script_of(asked.model)
        self._done = done
        self._next = 0
        self._began = 0.0
        self._timer: asyncio.TimerHandle | None = None

    def start(self) -> None:
        """Think; then the head and the first event, the following ones `gap` apart."""
        if self._script.think:
            self._timer = self._loop.call_later(self._script.think, self._speak)
        else:
            self._speak()

    def _speak(self) -> None:
        self._transport.write(_SSE)
        self._began = self._loop.time()
        if self._script.gap == 0:
            for event in self._events:
                self._transport.write(_framed(event))
            self._finish()
        else:
            self._step()

    def stop(self) -> None:
        """Write no more."""
        if self._timer is not None:
            self._timer.cancel()

    def _step(self) -> None:
        late = self._loop.time() - self._began
        # Text events are timed; the last ones (finish, usage, end) follow at once, as with hosts.
        while self._next < len(self._events):
            due = self._next * self._script.gap
            if due > late and not self._last_ones():
                self._timer = self._loop.call_at(self._began + due, self._step)
                return
            self._transport.write(_framed(self._events[self._next]))
            self._next += 1
        self._finish()

    def _last_ones(self) -> bool:
        return b'"content"' not in self._events[self._next]

    def _finish(self) -> None:
        self._transport.write(_END)
        self._done()


def _framed(event: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(event), event)


async def listen(port: int = 0) -> tuple[asyncio.Server, int, Stats]:
    """Serve on 127.0.0.1 in the running loop; the caller closes the server."""
    stats = Stats()
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: Upstream(stats), "127.0.0.1", port, backlog=2048)
    return server, int(server.sockets[0].getsockname()[1]), stats


async def _serve() -> None:
    server, port, _ = await listen()
    print(msgspec.json.encode({"port": port}).decode(), flush=True)
    async with server:
        await asyncio.to_thread(sys.stdin.read)


def main() -> None:
    """Serve until standard input closes."""
    factory = None
    with suppress(ImportError):
        import uvloop

        factory = uvloop.new_event_loop
    with asyncio.Runner(loop_factory=factory) as runner:
        runner.run(_serve())


if __name__ == "__main__":
    main()
