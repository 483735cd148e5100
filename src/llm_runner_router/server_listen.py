"""The listening side of the server: connections, their guards, and how they end.

Knows: uvicorn's httptools protocol and its ASGI tasks. Does not know: signals, files, routes.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Callable
from email.utils import formatdate
from typing import Any, cast

import httptools
import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.server import ServerState

from .config import Server
from .errors import BadRequest, RunnerError
from .surfaces.base import Gateway
from .surfaces.exchange import GONE, MAX_HEADER_BYTES
from .surfaces.http import BODY_SECONDS, HttpApp
from .surfaces.openai_json import error
from .surfaces.problems import HeadersTooLarge

HEAD_SECONDS = 10.0
"""How long a connection may take to send the head of a request."""
STALL_SECONDS = 60.0
"""How long a client may take nothing of what we send before the connection is dropped."""
KEEP_ALIVE_SECONDS = 75
"""How long an idle connection stays open; longer than the pools of usual clients keep theirs."""
CANCEL_SECONDS = 2.0
"""How long cancelled requests get to unwind."""

_REASONS = {400: b"Bad Request", 431: b"Request Header Fields Too Large"}


class _Corked:
    """A transport that holds a response's head back until the first bytes of its body.

    uvicorn writes them one after the other; together they are one system call, one packet and one
    wake-up of the client instead of two. It answers for the methods uvicorn's protocol uses.
    """

    __slots__ = (
        "_head",
        "_transport",
        "get_extra_info",
        "is_closing",
        "pause_reading",
        "resume_reading",
        "set_protocol",
    )

    def __init__(self, transport: asyncio.Transport) -> None:
        self._transport = transport
        self._head: bytes | None = None
        self.get_extra_info = transport.get_extra_info
        self.is_closing = transport.is_closing
        self.pause_reading = transport.pause_reading
        self.resume_reading = transport.resume_reading
        self.set_protocol = transport.set_protocol

    def write(self, data: bytes) -> None:
        """Send `data`, after a head that was held back; or hold it, if it is one."""
        head, self._head = self._head, None
        if head is not None:
            self._transport.writelines((head, data))
        elif data.startswith(b"HTTP/1.1 ") and data[9:10] != b"1" and data.endswith(b"\r\n\r\n"):
            self._head = data
        else:
            self._transport.write(data)

    def flush(self) -> None:
        """Send a head that is held back: the response has no body."""
        if self._head is not None:
            self.write(b"")

    def close(self) -> None:
        """Close, once everything is sent."""
        self.flush()
        self._transport.close()

    def abort(self) -> None:
        """Close at once."""
        self._transport.abort()


class GuardedProtocol(HttpToolsProtocol):
    """uvicorn's protocol for clients that are slow or hostile.

    A head or a body that does not arrive in time, a head that is too large and a client that does
    not read are ended here; without this a connection that never says anything stays for ever.
    A usual request arrives in one piece and arms no timer.
    """

    head_seconds = HEAD_SECONDS
    body_seconds = BODY_SECONDS + 5  # the application answers 408 before this
    stall_seconds = STALL_SECONDS

    _in_head = True
    _in_body = False
    _head_bytes = 0
    _mute = False
    _guard: asyncio.TimerHandle | None = None
    _guards = "head"
    _stall: asyncio.TimerHandle | None = None
    _gone: Callable[[], None] | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as in uvicorn
        """A client connects; it has to say something soon."""
        super().connection_made(cast(asyncio.Transport, _Corked(transport)))
        self._arm("head", self.head_seconds)

    def connection_lost(self, exc: Exception | None) -> None:
        """The connection is over."""
        self._disarm()
        if self._stall is not None:
            self._stall.cancel()
        super().connection_lost(exc)
        gone, self._gone = self._gone, None
        if gone is not None:
            gone()

    def data_received(self, data: bytes) -> None:
        """Bytes arrive; afterwards exactly one guard is armed if a message is incomplete."""
        if self._in_head:
            self._head_bytes += len(data)
        self._feed(data)
        if self.transport.is_closing():
            return
        if self._in_body:
            self._arm("body", self.body_seconds)
        elif not self._in_head:
            self._disarm()
        elif self._head_bytes > MAX_HEADER_BYTES:
            self._refuse(HeadersTooLarge(f"the head is over {MAX_HEADER_BYTES} bytes"))
        else:
            self._arm("head", self.head_seconds)

    def on_message_begin(self) -> None:
        """The first byte of a request."""
        if not self._mute:
            self._in_head = True
            super().on_message_begin()
            cast(dict[str, Any], self.scope)["extensions"] = {GONE: self._tell_when_gone}

    def on_headers_complete(self) -> None:
        """The head is there."""
        if self._mute:
            self._mute = False
            return
        self._in_head, self._in_body, self._head_bytes = False, True, 0
        super().on_headers_complete()

    def on_header(self, name: bytes, value: bytes) -> None:
        """A field of the head; one after the body is dropped, or it would change the head."""
        if not self._in_body:
            super().on_header(name, value)
            return
        self._head_bytes += len(name) + len(value)
        if self._head_bytes > MAX_HEADER_BYTES:
            self.transport.abort()

    def on_message_complete(self) -> None:
        """The body is there."""
        self._in_body, self._head_bytes = False, 0
        self._disarm()
        super().on_message_complete()

    def on_response_complete(self) -> None:
        """The answer is out, also one that is a head alone."""
        cast(_Corked, self.transport).flush()
        super().on_response_complete()

    def pause_writing(self) -> None:
        """The client is behind."""
        super().pause_writing()
        if self._stall is None:
            self._stall = self.loop.call_later(self.stall_seconds, self.transport.abort)

    def resume_writing(self) -> None:
        """The client has caught up."""
        super().resume_writing()
        if self._stall is not None:
            self._stall.cancel()
            self._stall = None

    def send_400_response(self, msg: str) -> None:
        """What is not HTTP gets our error shape all the same."""
        self._refuse(BadRequest("this is not valid HTTP", code="invalid_http"))

    def _tell_when_gone(self, gone: Callable[[], None] | None) -> None:
        """Call `gone` once when the client leaves; None takes that back."""
        if gone is not None and self.transport.is_closing():
            self.loop.call_soon(gone)
        else:
            self._gone = gone

    def _feed(self, data: bytes) -> None:
        self._unset_keepalive_if_required()
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            self._without_upgrade(data[upgrade.args[0] :])
        except httptools.HttpParserError:
            self.send_400_response("")

    def _without_upgrade(self, rest: bytes) -> None:
        """Go on in HTTP/1.1 when a client offers another protocol (Java's client offers h2c).

        The parser gives up on such a request after its head and calls it complete, so that the
        body would be lost; a new parser reads it, after a head that only says how long it is.
        """
        self.parser = httptools.HttpRequestParser(self)
        self._mute = True
        asked, self.headers = self.headers, []
        self.parser.feed_data(
            b"POST / HTTP/1.1\r\n"
            + b"".join(
                name + b": " + value + b"\r\n"
                for name, value in asked
                if name in (b"content-length", b"transfer-encoding")
            )
        )
        self.cycle.more_body = self._in_body = True
        # The blank line ends the head; without a body it also ends the message.
        self._feed(b"\r\n" + rest)

    def _refuse(self, exc: RunnerError) -> None:
        if self.cycle is None or self.cycle.response_complete:
            body = error(exc)
            head = b"HTTP/1.1 %d %s\r\ncontent-type: application/json\r\ncontent-length: %d\r\n"
            values = (exc.status, _REASONS[exc.status], len(body))
            self.transport.write(head % values + b"connection: close\r\n\r\n" + body)
        self.transport.close()

    def _arm(self, what: str, seconds: float) -> None:
        if self._guard is not None:
            if self._guards == what:
                return
            self._guard.cancel()
        self._guards = what
        self._guard = self.loop.call_later(seconds, self.transport.abort)

    def _disarm(self) -> None:
        if self._guard is not None:
            self._guard.cancel()
            self._guard = None


class Listener:
    """Serves a gateway on a socket.

    Args:
        gateway: what answers.
        settings: limits.
        listening: a bound, listening, non-blocking socket; the caller closes it.
        shutdown: what an operator's request to stop calls.
    """

    def __init__(
        self,
        gateway: Gateway,
        settings: Server,
        listening: socket.socket,
        *,
        shutdown: Callable[[], None] | None = None,
        protocol: type[GuardedProtocol] = GuardedProtocol,
    ) -> None:
        self.app = HttpApp(gateway, settings, shutdown=shutdown)
        self._listening = listening
        self._protocol = protocol
        self._state = ServerState()
        self._server: asyncio.Server | None = None
        self._clock: asyncio.TimerHandle | None = None
        logging.getLogger("uvicorn.error").setLevel(logging.ERROR)
        self._config = uvicorn.Config(
            self.app,
            http=protocol,
            ws="none",
            lifespan="off",
            interface="asgi3",
            log_config=None,
            access_log=False,
            proxy_headers=False,
            server_header=False,
            timeout_keep_alive=KEEP_ALIVE_SECONDS,
        )

    async def start(self) -> None:
        """Accept connections."""
        self._config.load()
        loop = asyncio.get_running_loop()
        self._tick(loop)
        self._server = await loop.create_server(self._connect, sock=self._listening)

    async def close(self, drain: float, now: asyncio.Event | None = None) -> None:
        """Stop accepting, let running answers finish for `drain` seconds, end the others.

        Args:
            drain: seconds.
            now: set it to stop waiting.
        """
        if self._server is not None:
            self._server.close()
        for connection in list(self._state.connections):
            connection.shutdown()
        await self._wait(drain, now)
        for task in self._state.tasks:
            task.cancel()
        await self._wait(CANCEL_SECONDS, None)
        await self.app.aclose()
        for connection in list(self._state.connections):
            connection.transport.abort()
        if self._clock is not None:
            self._clock.cancel()
        await asyncio.sleep(0)  # the loop calls `connection_lost` in its next turn

    def _connect(self) -> asyncio.Protocol:
        return self._protocol(config=self._config, server_state=self._state, app_state={})

    async def _wait(self, seconds: float, now: asyncio.Event | None) -> None:
        tasks = set(self._state.tasks)
        if not tasks:
            return
        done = asyncio.ensure_future(asyncio.wait(tasks))
        hurry = asyncio.ensure_future((now or asyncio.Event()).wait())
        await asyncio.wait((done, hurry), timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        for future in (done, hurry):
            future.cancel()
        await asyncio.gather(done, hurry, return_exceptions=True)

    def _tick(self, loop: asyncio.AbstractEventLoop) -> None:
        self._state.default_headers = [(b"date", formatdate(usegmt=True).encode())]
        self._clock = loop.call_later(1.0, self._tick, loop)
