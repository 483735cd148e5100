"""One HTTP request and its response, over ASGI: headers in, body in, head and body out.

Knows: ASGI messages, limits on what a client may send, the headers an answer carries. Does not
know: routes, formats (an error's body is made by the codec of the route), who answers.
"""

from __future__ import annotations

import asyncio
import math
import random
import re
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, MutableMapping
from contextlib import AbstractAsyncContextManager
from types import TracebackType
from typing import Any, TypeVar

from llm_runner_router.errors import BadRequest, RunnerError, TooLarge
from llm_runner_router.types import Trace

from . import veil
from .base import Reply
from .problems import BodyTimeout, HeadersTooLarge, MethodNotAllowed, UnsupportedMedia

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Headers = list[tuple[bytes, bytes]]

T = TypeVar("T")

MAX_HEADERS = 100
MAX_HEADER_BYTES = 64 * 1024
MAX_HEADER_VALUE = 512
"""Bytes of one of our own response headers."""
GONE = "llmrr.gone"
"""ASGI extension of our listener: a function that takes what to call when the client leaves."""
DISCARD_SECONDS = 2.0
"""How long the rest of a body that is too large is read, so that the client sees our answer."""
LONGEST_TIMEOUT = 86_400.0

_random = random.Random()  # ids must differ, not be secret: no system call for each
_ID = re.compile(rb"[A-Za-z0-9_.:\-]{1,128}")
_TRACEPARENT = re.compile(rb"[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}")
_NOT_PRINTABLE = re.compile(r"[^\x20-\x7e]+")


class ClientGone(Exception):
    """The client left before its request was complete; there is nobody to answer."""


class Exchange:
    """A request that is being answered."""

    __slots__ = (
        *("_send", "asked", "done", "gone", "headers"),
        *("id", "marks", "path", "receive", "scope", "started", "unread"),
    )

    def __init__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.scope = scope
        self.path: str = scope["path"]
        self.headers: dict[bytes, bytes] = dict(scope["headers"])
        shown = self.headers.get(b"x-request-id", b"")
        self.id = shown.decode() if _ID.fullmatch(shown) else f"req-{_random.getrandbits(96):024x}"
        self.asked = False
        """The gateway was asked: what fails now may name files of this machine."""
        self.started = False
        """The response's head is out."""
        self.done = False
        """All of the response is out."""
        self.gone = False
        self.unread = False
        """More of a body that is read in pieces may come."""
        self.marks: Callable[[RunnerError], Headers] | None = None
        """What the API that is spoken says of an error in headers."""
        self.receive = receive
        self._send = send

    # ------------------------------------------------------------ what the client says

    def check_headers(self) -> None:
        """Refuse absurd amounts of headers.

        Raises:
            HeadersTooLarge
        """
        raw = self.scope["headers"]
        if len(raw) > MAX_HEADERS:
            raise HeadersTooLarge(f"{len(raw)} request headers; at most {MAX_HEADERS}")
        if sum(len(name) + len(value) for name, value in raw) > MAX_HEADER_BYTES:
            raise HeadersTooLarge(f"the request headers are over {MAX_HEADER_BYTES} bytes")

    def text(self, name: bytes) -> str | None:
        """A header's value, if it is there and plain text."""
        value = self.headers.get(name)
        if value is None or not value.isascii():
            return None
        return value.decode().strip()[:MAX_HEADER_VALUE] or None

    def timeout(self) -> float | None:
        """Seconds from `x-llmrr-timeout`, or from LiteLLM's `x-litellm-timeout`.

        Raises:
            BadRequest: not a positive number.
        """
        name = b"x-llmrr-timeout"
        if name not in self.headers:
            name = b"x-litellm-timeout"
        if name not in self.headers:
            return None
        value = self.text(name) or ""
        try:
            seconds = float(value)
        except ValueError:
            seconds = math.nan
        if not 0 < seconds <= LONGEST_TIMEOUT:
            raise BadRequest(
                f"the header `{name.decode()}` must be seconds above 0, not {value!r}",
                param=name.decode(),
            )
        return seconds

    def traceparent(self) -> str | None:
        """The W3C trace context, if it is well formed."""
        value = self.headers.get(b"traceparent", b"")
        return value.decode() if _TRACEPARENT.fullmatch(value) else None

    async def body(self, limit: int, seconds: float) -> bytes:
        """The whole request body.

        Raises:
            TooLarge: over `limit` bytes, announced or sent.
            BodyTimeout: not complete within `seconds`.
            UnsupportedMedia: compressed.
            ClientGone
        """
        self._check_coding()
        announced = self.headers.get(b"content-length", b"0")
        if announced.isdigit() and int(announced[:20]) > limit:
            await self._too_large(limit, more=b"expect" not in self.headers)
        try:
            async with asyncio.timeout(seconds):
                return await self._read(limit)
        except TimeoutError:
            raise BodyTimeout(f"the body did not arrive within {seconds:g} s") from None

    async def pieces(self, limit: int, seconds: float) -> AsyncGenerator[bytes]:
        """The request body as it comes, for bodies that are not held in memory.

        After an error, `discard` what is `unread`.

        Raises:
            TooLarge, BodyTimeout, UnsupportedMedia, ClientGone: as `body`.
        """
        self._check_coding()
        size, self.unread = 0, True
        until = asyncio.get_running_loop().time() + seconds
        while self.unread:
            try:
                async with asyncio.timeout_at(until):
                    message = await self.receive()
            except TimeoutError:
                raise BodyTimeout(f"the body did not arrive within {seconds:g} s") from None
            if message["type"] != "http.request":
                self.unread = False
                raise ClientGone
            self.unread = message.get("more_body", False)
            size += len(message.get("body", b""))
            if size > limit:
                raise TooLarge(f"the body is over {limit} bytes", hint="send it in parts")
            yield message.get("body", b"")

    def _check_coding(self) -> None:
        encoding = self.headers.get(b"content-encoding", b"identity").lower()
        if encoding not in (b"identity", b""):
            raise UnsupportedMedia("compressed request bodies are not read", hint="send it plain")

    async def _read(self, limit: int) -> bytes:
        parts: list[bytes] = []
        size = 0
        while True:
            message = await self.receive()
            if message["type"] != "http.request":
                raise ClientGone
            data = message.get("body", b"")
            size += len(data)
            if size > limit:
                parts.clear()
                await self._too_large(limit, more=message.get("more_body", False))
            if not message.get("more_body", False):
                return b"".join((*parts, data)) if parts else data
            parts.append(data)

    async def discard(self, more: bool = True) -> None:
        """Let the client finish for a moment, or it would see a reset instead of the answer."""
        try:
            async with asyncio.timeout(DISCARD_SECONDS):
                while more:
                    more = (await self.receive()).get("more_body", False)
        except TimeoutError:
            pass

    async def _too_large(self, limit: int, more: bool) -> None:
        await self.discard(more)
        raise TooLarge(
            f"the body is over {limit} bytes", hint="raise `server.max_body` in the configuration"
        )

    # ------------------------------------------------------------ how long the client stays

    def watching(self) -> AbstractAsyncContextManager[None]:
        """Cancel the work inside when the client leaves; call it after the body is read.

        Raises:
            ClientGone: in place of the cancellation.
        """
        return _Watching(self)

    # ------------------------------------------------------------ what the client gets

    async def start(self, status: int, headers: Headers) -> None:
        """Send the head."""
        self.started = True
        headers.append((b"x-request-id", self.id.encode()))
        await self._send({"type": "http.response.start", "status": status, "headers": headers})

    async def send(self, data: bytes) -> None:
        """Send a piece of the body and wait while the client is behind."""
        await self._send({"type": "http.response.body", "body": data, "more_body": True})

    async def end(self, data: bytes = b"") -> None:
        """Send the last piece."""
        self.done = True
        await self._send({"type": "http.response.body", "body": data, "more_body": False})

    async def json(self, status: int, data: bytes, headers: Headers | None = None) -> None:
        """Send a complete JSON response."""
        head = [
            (b"content-type", b"application/json"),
            (b"content-length", str(len(data)).encode()),
            *(headers or ()),
        ]
        await self.start(status, head)
        await self.end(data)

    async def empty(self) -> None:
        """Say that it is done, which needs no body."""
        await self.start(200, [(b"content-length", b"0")])
        await self.end()

    async def fail(
        self, exc: RunnerError, write: Callable[[RunnerError], bytes], trace: Trace | None = None
    ) -> None:
        """Send an error before anything else was sent."""
        head = error_headers(exc, trace)
        if self.marks is not None:
            head += self.marks(exc)
        await self.json(exc.status, write(exc), head)


class _Watching:
    """Waits for the client to leave while the block runs.

    Our own listener calls back when a connection is lost (`GONE`); that spares a task for every
    request. Another ASGI server is asked with `receive`, in a task.
    """

    __slots__ = ("_exchange", "_task", "_watcher")

    def __init__(self, exchange: Exchange) -> None:
        self._exchange = exchange
        self._watcher: asyncio.Task[None] | None = None

    async def __aenter__(self) -> None:
        task = asyncio.current_task()
        assert task is not None, "requests are answered in tasks"
        self._task = task
        listen = self._listen()
        if listen is not None:
            listen(self._left)
        else:
            self._watcher = asyncio.create_task(self._watch())

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        listen = self._listen()
        if listen is not None:
            listen(None)
        if self._watcher is not None:
            self._watcher.cancel()
        if isinstance(error, asyncio.CancelledError) and self._exchange.gone:
            self._task.uncancel()
            raise ClientGone from None

    def _listen(self) -> Callable[[Callable[[], None] | None], None] | None:
        found: Callable[[Callable[[], None] | None], None] | None
        found = (self._exchange.scope.get("extensions") or {}).get(GONE)
        return found

    async def _watch(self) -> None:
        while (await self._exchange.receive())["type"] != "http.disconnect":
            pass
        self._left()

    def _left(self) -> None:
        # A connection that closes after a complete response is no reason to stop anything.
        if not self._exchange.done:
            self._exchange.gone = True
            self._task.cancel()


def readable(exchange: Exchange, decode: Callable[[bytes], T], body: bytes) -> T:
    """Decode `body`; if it is no JSON and does not claim to be, say that instead."""
    try:
        decoded = decode(body)
        exchange.asked = True
        return decoded
    except BadRequest as exc:
        kind = exchange.headers.get(b"content-type", b"")
        if exc.code == "invalid_json" and kind and b"json" not in kind:
            raise UnsupportedMedia(
                f"the body is {kind[:80].decode('ascii', 'replace')!r}, not JSON",
                hint="send `Content-Type: application/json`",
            ) from exc
        raise


def error_headers(exc: RunnerError, trace: Trace | None) -> Headers:
    """What an error says beside its body."""
    headers: Headers = []
    if exc.retry_after is not None:
        headers.append((b"retry-after", str(max(1, math.ceil(exc.retry_after))).encode()))
    if exc.target:
        headers.append((b"x-llmrr-target", printable(exc.target)))
    if isinstance(exc, MethodNotAllowed):
        headers.append((b"allow", exc.allow.encode()))
    if exc.status == 401:
        headers.append((b"www-authenticate", b"Bearer"))
    if exc.status in (408, 413, 431):
        headers.append((b"connection", b"close"))
    if trace is not None and trace.attempts:
        headers.append((b"x-llmrr-attempts", str(len(trace.attempts)).encode()))
    return headers


def printable(text: str) -> bytes:
    """`text` as a header value: printable ASCII, one line, bounded."""
    if not text.isascii() or not text.isprintable():
        text = _NOT_PRINTABLE.sub("?", text)
    return text[:MAX_HEADER_VALUE].strip().encode("ascii")


def answer_headers(reply: Reply) -> Headers:
    """Who answers and why, as far as it is known when the head goes out."""
    trace = reply.trace
    headers: Headers = []
    if reply.origin is not None:
        headers.append((b"x-llmrr-model", printable(veil.text(reply.origin.model))))
        headers.append((b"x-llmrr-target", printable(veil.text(reply.origin.target))))
    if trace.decisions:
        last = trace.decisions[-1]
        headers.append((b"x-llmrr-strategy", printable(last.strategy)))
        headers.append((b"x-llmrr-reason", printable(veil.text(last.reason))))
        task = next((d.task for d in trace.decisions if d.task), None)
        if task:
            headers.append((b"x-llmrr-task", printable(task)))
    failed = sum(attempt.outcome != "ok" for attempt in trace.attempts)
    headers.append((b"x-llmrr-attempts", str(failed + 1).encode()))
    for name, note in trace.notes.items():
        headers.append((b"x-llmrr-" + _name(name), printable(veil.text(note))))
    return headers


def fidelity(reply: Reply) -> Headers:
    """What became of the parameters of a request for text: `dropped=seed, n; translated=stop`."""
    if reply.origin is None:
        return []
    fates: dict[str, list[str]] = {}
    for param, mark in reply.origin.fidelity.items():
        fates.setdefault(mark.fate, []).append(param)
    told = "; ".join(f"{fate}={', '.join(fates[fate])}" for fate in sorted(fates)) or "honoured"
    return [(b"x-llmrr-fidelity", printable(told))]


def _name(name: str) -> bytes:
    return re.sub(rb"[^a-z0-9-]+", b"-", name.lower().encode("ascii", "replace"))


def figures(reply: Reply, seconds: float) -> Headers:
    """What is known only when the whole answer is there. `seconds` is how long it took."""
    headers: Headers = []
    cost = reply.cost
    if cost is not None:
        headers.append((b"x-llmrr-cost", f"{cost:.9f}".rstrip("0").rstrip(".").encode()))
    if reply.usage is not None and reply.usage.completion_tokens and seconds > 0:
        speed = reply.usage.completion_tokens / seconds
        headers.append((b"x-llmrr-tokens-per-second", f"{speed:.1f}".encode()))
    return headers


def now() -> int:
    """Unix seconds, as OpenAI's `created` wants them."""
    return int(time.time())


def names(values: Iterable[str]) -> tuple[str, ...]:
    """The non-empty parts of a comma list."""
    return tuple(value for value in (v.strip() for v in values) if value)
