"""HTTP for sources: one GET, its head, and its body in large pieces.

Knows: redirects, proxies, deadlines, and which secrets may go where. Does not know: models, parts,
retries (`download.py`). Each exchange has a connection of its own and runs in a thread: the
standard library takes what the kernel has straight into one buffer, which is several times faster
per byte than an event loop that sees 64 KiB at a time, and leaves the event loop alone.
"""

from __future__ import annotations

import asyncio
import http.client
import select
import socket
import ssl
import time
import urllib.request
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, suppress
from email.message import Message
from email.utils import parsedate_to_datetime
from functools import cache
from typing import Any, TypeVar
from urllib.parse import quote, urljoin, urlsplit

from llm_runner_router import __version__
from llm_runner_router.errors import (
    BadResponse,
    ConnectFailed,
    NotFound,
    RateLimited,
    RunnerError,
    StreamBroken,
    Unavailable,
    UpstreamError,
    UpstreamRefused,
    UpstreamTimeout,
)
from llm_runner_router.models.manifest import RemoteFile

T = TypeVar("T")

REDIRECTS = 6
CHUNK = 1 << 20
"""Bytes per piece of a body."""
PIECE_SECONDS = 0.1
"""A piece is handed on after this time even if it is not full, so that progress is seen."""
INSTANT = 0.01
"""Seconds a piece that is not full waits for more: handing it on costs two changes of thread."""
CONNECT_SECONDS = 15.0
SILENCE_SECONDS = 30.0
HEAD_SECONDS = 60.0
"""For connecting and the head of an answer: one that drips is never silent."""
DOCUMENT_SECONDS = 120.0
"""For the whole body of an answer that is read at once."""
MAX_DOCUMENT = 64 << 20
_QUOTED = "!#$%&'()*+,/:;=?@[]~"
"""What an address may hold as it is, the percent signs of what is quoted already among it."""
SECRETS = frozenset({"authorization", "cookie", "proxy-authorization"})
TRUE = frozenset({"1", "on", "yes", "true"})


class NoRanges(UpstreamError):
    """The source can only give whole files."""

    default_code = "no_ranges"


class Changed(UpstreamError):
    """The content at the source is not the one the download began with."""

    default_code = "source_changed"


class Response:
    """A response whose body has not been read."""

    def __init__(
        self, exchange: _Exchange, url: str, run: Callable[[Callable[[], int]], Awaitable[int]]
    ) -> None:
        body = exchange.response
        assert body is not None, "an exchange that was asked has a response"
        self.status = body.status
        self.headers = body.headers
        self.url = url
        """Where it came from, after redirects."""
        self._exchange = exchange
        self._run = run
        self._buffer = memoryview(b"")

    async def read(self) -> memoryview:
        """Up to `CHUNK` bytes, valid until the next call; nothing means the end, right or wrong.

        One buffer serves the whole body: a fresh one for each piece costs a page fault per 4 KiB.

        Raises:
            StreamBroken, UpstreamTimeout
        """
        if not self._buffer:
            self._buffer = memoryview(bytearray(CHUNK))
        count = await self._run(lambda: self._exchange.fill(self._buffer))
        return self._buffer[:count]

    async def document(self, limit: int = MAX_DOCUMENT) -> bytes:
        """The whole body.

        Raises:
            BadResponse: it is longer than `limit`.
            StreamBroken: it ends too early.
            UpstreamTimeout: it takes longer than `DOCUMENT_SECONDS`.
        """
        pieces: list[bytes] = []
        size = 0
        async with _deadline(self.url, DOCUMENT_SECONDS):
            while piece := await self.read():
                size += len(piece)
                if size > limit:
                    what = f"{shown(self.url)} answers more than {limit} bytes"
                    raise BadResponse(what, hint=ODD)
                pieces.append(bytes(piece))
        length = number(self.headers.get("content-length"))
        if length is not None and size != length:
            raise StreamBroken(
                f"{shown(self.url)} ended after {size} of {length} bytes", hint=AGAIN
            )
        return b"".join(pieces)


class Http:
    """Makes exchanges. `environ` gives proxies; nothing else is read from it."""

    def __init__(
        self,
        environ: Mapping[str, str],
        *,
        silence: float = SILENCE_SECONDS,
        patience: float = HEAD_SECONDS,
    ) -> None:
        self._environ = environ
        self._silence = silence
        self._patience = patience
        self._pool = ThreadPoolExecutor(32, "llmrr-http")

    def close(self) -> None:
        """Take no more work; safe to repeat."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    @asynccontextmanager
    async def get(
        self, url: str, headers: Mapping[str, str] | None = None, *, method: str = "GET"
    ) -> AsyncIterator[Response]:
        """One exchange, with redirects followed; leaving it ends it.

        Headers that carry secrets are sent to the host of `url` only.

        Raises:
            ConnectFailed, UpstreamTimeout, BadResponse
        """
        sent = {
            "User-Agent": f"llm-runner-router/{__version__}",
            "Accept-Encoding": "identity",
            "Connection": "close",
            **(headers or {}),
        }
        first = _origin(url)
        for _ in range(REDIRECTS):
            if _origin(url) != first:
                sent = {k: v for k, v in sent.items() if k.lower() not in SECRETS}
            exchange = _Exchange(url, self._environ, self._silence)
            try:
                async with _deadline(url, self._patience):
                    body = await self._run(exchange, lambda: exchange.ask(method, sent))  # noqa: B023  # runs now
                following = _redirect(body, url)
                if following is None:
                    yield Response(exchange, url, lambda call: self._run(exchange, call))  # noqa: B023  # used within this turn
                    return
                url = following
            finally:
                exchange.abort()
        raise BadResponse(f"{shown(url)}: more than {REDIRECTS} redirects", hint=ODD)

    async def _run(self, exchange: _Exchange, call: Callable[[], T]) -> T:
        """`call` in a thread; if nobody waits for it any more, its socket is taken away."""
        loop = asyncio.get_running_loop()
        future = loop.run_in_executor(self._pool, lambda: exchange.guarded(call))
        try:
            return await asyncio.shield(future)
        except asyncio.CancelledError:
            exchange.abort()
            future.add_done_callback(lambda done: done.cancelled() or done.exception())
            raise


class _Exchange:
    """One request on one connection; everything but `abort` runs in a thread."""

    def __init__(self, url: str, environ: Mapping[str, str], silence: float) -> None:
        self._url = url
        self._environ = environ
        self._silence = silence
        self._connection: http.client.HTTPConnection | None = None
        self.response: http.client.HTTPResponse | None = None
        self._socket: socket.socket | None = None
        self._aborted = False

    def ask(self, method: str, headers: Mapping[str, str]) -> http.client.HTTPResponse:
        parts = urlsplit(quote(self._url, safe=_QUOTED))
        target = parts._replace(scheme="", netloc="", fragment="").geturl() or "/"
        connection, extra, absolute = _dial(parts, self._environ)
        self._connection = connection
        connection.connect()
        self._socket = connection.sock
        self._socket.settimeout(self._silence)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._check_wanted()
        if absolute:
            host = parts.netloc.rpartition("@")[2]  # a password is not for the proxy
            target = parts._replace(fragment="", netloc=host).geturl()
        connection.request(method, target, headers={**headers, **extra})
        self.response = connection.getresponse()
        self._check_wanted()
        return self.response

    def _check_wanted(self) -> None:
        """What was made after nobody wanted it any more is closed by whoever made it."""
        if self._aborted:
            self.abort()
            raise ConnectionAbortedError("cancelled")

    def fill(self, view: memoryview) -> int:
        """Put what comes within a moment into `view`; how much it was, 0 at the end."""
        body = self.response
        if body is None or body.fp is None:
            return 0
        if body.chunked:
            data = body.read1(len(view))
            view[: len(data)] = data
            return len(data)
        if body.length is not None:
            view = view[: body.length]
        until = time.monotonic() + PIECE_SECONDS
        at = 0
        while at < len(view) and (not at or (time.monotonic() < until and self._ready())):
            # `readinto1` of the buffered reader goes around its buffer for more than that holds.
            count = body.fp.readinto1(view[at:])
            if not count:
                break
            at += count
            if body.length is not None:
                body.length -= count
        return at

    def _ready(self) -> bool:
        """Whether more is there, or comes within an instant."""
        source = self._socket
        if source is None or source.fileno() < 0:
            return False
        if isinstance(source, ssl.SSLSocket) and source.pending():
            return True
        return bool(select.select([source], [], [], INSTANT)[0])

    def guarded(self, call: Callable[[], T]) -> T:
        """`call`, its failures as ours.

        Raises:
            ConnectFailed, UpstreamTimeout, StreamBroken, BadResponse
        """
        where = shown(self._url)
        try:
            return call()
        except TimeoutError as exc:
            raise UpstreamTimeout(f"{where} was silent for too long", hint=AGAIN) from exc
        except http.client.IncompleteRead as exc:
            raise StreamBroken(f"{where} ended in the middle", hint=AGAIN) from exc
        except http.client.HTTPException as exc:
            if isinstance(exc, http.client.RemoteDisconnected):
                raise StreamBroken(f"{where} closed the connection", hint=AGAIN) from exc
            raise BadResponse(f"{where} does not speak HTTP: {exc!r}", hint=ODD) from exc
        except (OSError, ValueError, AttributeError) as exc:
            # ValueError and AttributeError come from a file that `abort` closed under the reader.
            if self.response is not None:
                raise StreamBroken(f"{where} broke off: {exc}", hint=AGAIN) from exc
            raise ConnectFailed(f"cannot reach {where}: {exc}", hint=PROXY) from exc

    def abort(self) -> None:
        """End it, also under a thread that reads; safe to repeat."""
        self._aborted = True
        with suppress(OSError):
            if self._socket is not None:
                self._socket.shutdown(socket.SHUT_RDWR)  # wakes a thread that waits for it
        for end in (self._connection, self.response, self._socket):
            with suppress(OSError, AttributeError, ValueError):
                if end is not None:
                    end.close()


# ---------------------------------------------------------------- answers


def check_status(response: Response, what: str, *, key: str = "", page: str = "") -> None:
    """Nothing if the answer is the thing asked for.

    Args:
        what: what was asked for, for messages.
        key: name of the variable with the token for this host.
        page: where a licence is accepted.

    Raises:
        NotFound, UpstreamRefused, RateLimited, Changed, Unavailable, BadResponse
    """
    status = response.status
    if status in (200, 206):
        return
    where = urlsplit(response.url).hostname or shown(response.url)
    if status in (401, 403):
        advice = f"set {key}" if key else "it needs a login"
        if page:
            advice += f", and accept its licence at {page} if it has one"
        raise UpstreamRefused(f"{where} refuses {what} ({status})", hint=advice)
    if status in (404, 410):
        raise NotFound(f"{where} has no {what}", hint="check the spelling", param="model")
    error: RunnerError
    if status == 429:
        error = RateLimited(f"{where} asks to slow down ({what})", hint=LATER)
    elif status == 416:
        error = Changed(f"{where} has fewer bytes of {what} than before", hint=AGAIN)
    elif status >= 500 or status in (408, 425):
        error = UpstreamError(f"{where} cannot answer now: {status} ({what})", hint=LATER)
    else:
        raise BadResponse(f"{where} answers {status} to {what}", hint=ODD)
    error.retry_after = retry_after(response.headers.get("retry-after"), time.time())
    raise error


def retry_after(text: str | None, now: float) -> float | None:
    """Seconds to wait, from a `Retry-After` of seconds or a date."""
    if not text:
        return None
    with suppress(ValueError):
        return max(0.0, float(text))
    with suppress(ValueError, TypeError):
        return max(0.0, parsedate_to_datetime(text).timestamp() - now)
    return None


def number(text: str | None) -> int | None:
    """The number of a header; None for anything else, also for one that no file could have."""
    return int(text) if text and text.isascii() and text.isdigit() and len(text) < 19 else None


@asynccontextmanager
async def _deadline(url: str, seconds: float) -> AsyncIterator[None]:
    try:
        async with asyncio.timeout(seconds):
            yield
    except TimeoutError as exc:
        raise UpstreamTimeout(
            f"{shown(url)} did not finish its answer in {seconds:g} s", hint=AGAIN
        ) from exc


def validator(headers: Message) -> str:
    """What a continued download must meet again (RFC 9110, 13.1.5): a strong ETag, else a date."""
    etag = headers.get("etag", "") or ""
    return etag if etag.startswith('"') else (headers.get("last-modified", "") or "")


@asynccontextmanager
async def body(
    http_: Http,
    file: RemoteFile,
    headers: Mapping[str, str],
    from_byte: int,
    to_byte: int | None,
    *,
    key: str = "",
    page: str = "",
) -> AsyncIterator[AsyncIterator[memoryview]]:
    """A range of a file, checked to be the range asked for and as long as promised.

    `key` and `page` are told to whom is refused, as in `check_status`.

    Raises:
        NoRanges, Changed, and what `check_status` raises.
    """
    what = f"file {file.path!r}"
    asked = dict(headers)
    ranged = from_byte > 0 or to_byte is not None
    if ranged:
        asked["Range"] = f"bytes={from_byte}-{'' if to_byte is None else to_byte - 1}"
        if file.etag:
            asked["If-Range"] = file.etag
    async with http_.get(file.url, asked) as response:
        check_status(response, what, key=key, page=page)
        if response.headers.get("content-encoding", "identity") not in ("identity", ""):
            raise BadResponse(f"{shown(response.url)} compresses {what} unasked", hint=ODD)
        now = validator(response.headers)
        if file.etag and now and now != file.etag:
            raise Changed(f"{what} has changed at {shown(response.url)}", hint=AGAIN)
        expected = _expected(response, file, from_byte, to_byte, ranged=ranged)
        yield _pieces(response, what, expected)


async def _pieces(response: Response, what: str, expected: int | None) -> AsyncIterator[memoryview]:
    count = 0
    while piece := await response.read():
        count += len(piece)
        if expected is not None and count > expected:
            raise BadResponse(f"{shown(response.url)} gives more of {what} than it said", hint=ODD)
        yield piece
    if expected is not None and count < expected:
        raise StreamBroken(
            f"{shown(response.url)} ended after {count} of {expected} bytes of {what}", hint=AGAIN
        )


def _expected(
    response: Response, file: RemoteFile, from_byte: int, to_byte: int | None, *, ranged: bool
) -> int | None:
    """Bytes the body must have; None where nobody said."""
    headers = response.headers
    what, size = f"file {file.path!r}", file.size
    where = shown(response.url)
    if ranged and response.status == 200:
        raise NoRanges(f"{where} cannot give parts of {what}", hint=AGAIN)
    if not ranged and response.status == 206:
        raise BadResponse(f"{where} gives a part of {what}, not the whole", hint=ODD)
    end = size if to_byte is None else to_byte
    expected = None if end is None else end - from_byte
    if ranged:
        span = headers.get("content-range", "")
        start, _, rest = span.removeprefix("bytes ").partition("-")
        stop, _, total = rest.partition("/")
        good = start == str(from_byte) and (end is None or stop == str(end - 1))
        if not good or (size is not None and total not in ("*", str(size))):
            raise BadResponse(f"{where} gives the range {span!r} of {what}", hint=ODD)
        last = number(stop)
        if expected is None and last is not None:
            expected = last + 1 - from_byte
    length = number(headers.get("content-length"))
    if length is not None and expected is not None and length != expected:
        raise Changed(f"{where} has {length} bytes of {what} instead of {expected}", hint=AGAIN)
    return length if expected is None else expected


def offline(environ: Mapping[str, str], *names: str) -> None:
    """Nothing, unless a variable says that this machine is offline.

    Raises:
        Unavailable: it does; says which.
    """
    for name in ("LLMRR_OFFLINE", *names):
        if environ.get(name, "").strip().lower() in TRUE:
            raise Unavailable(f"offline: {name} is set", hint=f"unset {name} to download")


def shown(url: str) -> str:
    """An address for messages: without user, query and fragment, where secrets may stand."""
    try:
        parts = urlsplit(url)
    except ValueError:
        return "an address that is none"
    host = parts.netloc.rpartition("@")[2]
    return f"`{parts.scheme}://{host}{parts.path}`"[:200]


AGAIN = "run it again; what is there is kept"
LATER = "try again later"
ODD = "the server, or a proxy before it, may be broken"
PROXY = "check the address, the network, and HTTPS_PROXY"


# ---------------------------------------------------------------- in a thread


def _redirect(response: http.client.HTTPResponse, url: str) -> str | None:
    """Where it sends us, if it does.

    Raises:
        BadResponse: to something that is no web address, or from `https` to `http`.
    """
    if response.status not in (301, 302, 303, 307, 308):
        return None
    # Headers are read as Latin-1; what is no ASCII in an address is meant as the bytes it came as.
    target = quote((response.headers.get("location") or "").encode("latin-1"), safe=_QUOTED)
    old = urlsplit(url)
    try:
        following = urljoin(url, target) if target else ""
        new = urlsplit(following)
        usable = new.scheme in ("http", "https") and bool(new.hostname) and new.port != 0
    except ValueError:  # brackets, or a port, that are none
        usable = False
    if not usable:
        raise BadResponse(f"{shown(url)} redirects to nothing usable", hint=ODD)
    if old.scheme == "https" and new.scheme == "http":
        raise BadResponse(f"{shown(url)} redirects to an unprotected address", hint=ODD)
    return following


def _origin(url: str) -> tuple[str, str, int]:
    """What secrets belong to.

    Raises:
        ConnectFailed: it is no address.
    """
    try:
        parts = urlsplit(url)
        port = parts.port or (443 if parts.scheme == "https" else 80)
    except ValueError as exc:
        raise ConnectFailed(f"not an address: {exc}", hint=PROXY) from exc
    return parts.scheme, (parts.hostname or "").lower(), port


@cache
def _tls() -> ssl.SSLContext:
    return ssl.create_default_context()


def _dial(
    parts: Any, environ: Mapping[str, str]
) -> tuple[http.client.HTTPConnection, dict[str, str], bool]:
    """A connection (not yet made), headers for a proxy, and whether it wants whole addresses.

    Raises:
        ConnectFailed: the address or the proxy's is none.
    """
    host = parts.hostname or ""
    try:
        port = parts.port or (443 if parts.scheme == "https" else 80)
        proxy = _proxy(parts.scheme, host, environ)
        via = urlsplit(proxy) if proxy else None
        via_port = (via.port or 80) if via else 0
    except ValueError as exc:
        raise ConnectFailed(f"not an address: {exc}", hint=PROXY) from exc
    extra: dict[str, str] = {}
    if via is None:
        if parts.scheme == "https":
            tls = http.client.HTTPSConnection(host, port, timeout=CONNECT_SECONDS, context=_tls())
            return tls, extra, False
        return http.client.HTTPConnection(host, port, timeout=CONNECT_SECONDS), extra, False
    if via.scheme not in ("http", "") or not via.hostname:
        raise ConnectFailed(f"a proxy of kind {via.scheme!r} is not supported", hint=PROXY)
    if via.username:
        from base64 import b64encode
        from urllib.parse import unquote

        pair = f"{unquote(via.username)}:{unquote(via.password or '')}"
        extra["Proxy-Authorization"] = "Basic " + b64encode(pair.encode()).decode()
    if parts.scheme == "http":
        plain = http.client.HTTPConnection(via.hostname, via_port, timeout=CONNECT_SECONDS)
        return plain, extra, True
    tunnel = http.client.HTTPSConnection(
        via.hostname, via_port, timeout=CONNECT_SECONDS, context=_tls()
    )
    tunnel.set_tunnel(host, port, extra)
    return tunnel, {}, False


def _proxy(scheme: str, host: str, environ: Mapping[str, str]) -> str:
    """The proxy for a host, as everybody reads it from the environment; empty: none."""
    lower = {name.lower(): value for name, value in environ.items() if value}
    proxy = lower.get(f"{scheme}_proxy") or lower.get("all_proxy") or ""
    if not proxy:
        return ""
    bypass = urllib.request.proxy_bypass_environment(host, {"no": lower.get("no_proxy", "")})  # type: ignore[attr-defined]  # missing in typeshed
    if bypass:
        return ""
    return proxy if "://" in proxy else f"http://{proxy}"
