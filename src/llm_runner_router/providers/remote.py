"""A model behind a URL, as a `Target`, an `Embedder` and a `Reranker`.

Knows: one account (URL, key, headers), one model, how to turn a failure into an error that names
the target and tells no key. Does not know: other targets, retries, what is said
(`dialects/`), whether the URL is a provider's or a runner process's of our own.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import re
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from typing import Protocol, TypeVar
from urllib.parse import quote

from msgspec.structs import replace

from llm_runner_router.config import Secret
from llm_runner_router.errors import (
    BadRequest,
    BadResponse,
    ConfigError,
    RunnerError,
    StreamBroken,
    Unsupported,
    UpstreamError,
    UpstreamTimeout,
)
from llm_runner_router.fidelity import Receipt
from llm_runner_router.types import (
    Call,
    Delta,
    Embeddings,
    EmbedRequest,
    Origin,
    Price,
    Ranking,
    Request,
    RerankRequest,
    TokenizeRequest,
    Usage,
)

from . import dialects
from .dialects import rerank
from .dialects.base import WireRequest
from .entra import Entra
from .hosts import Host
from .http import HttpClient, Response, Timeouts
from .reader import StreamReader
from .sigv4 import SigV4

T = TypeVar("T")

MAX_BODY = 64 * 1024 * 1024
MAX_ERROR_BODY = 64 * 1024
WHOLE = 5
"""A whole answer may take this many times as long to begin as a streamed one: it begins when all
of its tokens are there."""
LOCAL_TIMEOUTS = Timeouts(connect=5.0, first_byte=600.0, idle=120.0)
"""A runner is silent while it reads a long prompt on a busy machine; its owner watches the process,
and the deadline of the request holds."""
AFTER_FINISH = 2.0
"""Seconds of silence after the last finish reason until a missing `[DONE]` is not waited for."""
SETTLE = 0.1
"""Seconds that a response gets to end after `[DONE]`, so that its connection can be kept."""

_SECRET_HEADER = re.compile(r"key|auth|token|secret|cookie", re.IGNORECASE)
_TRACEPARENT = re.compile(r"[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}(-[0-9a-f-]{1,200})?")
_ID = re.compile(r"[\x21-\x7e]{1,200}")


class Signer(Protocol):
    """Says in headers who asks, for hosts where that depends on what is asked."""

    @property
    def secrets(self) -> tuple[str, ...]:
        """What no message may repeat."""
        ...

    async def sign(self, url: str, body: bytes, deadline: float | None) -> list[tuple[str, str]]:
        """The headers for a `POST` of `body` to `url`.

        Raises:
            RunnerError: there is nobody to ask as.
        """
        ...


class RemoteTarget:
    """One model at one base URL.

    Args:
        name: the target's name, for example `openai/gpt-4o-mini`.
        base_url: up to and including the version, for example `https://api.openai.com/v1`; None
            takes the host's.
        api_key: sent in the host's header and nowhere else; never part of a message or a repr.
        model: the model's name on the wire.
        host: facts about the host; default is OpenAI's own way.
        price: what it costs; goes into `Origin`.
        timeouts: limits on silence.
        local: it is a runner of ours.
        headers: further request headers.
        max_output: tokens that the model can write at most, 0 = unknown.

    Raises:
        ConfigError: no such URL, or a key or header that cannot be sent.
    """

    def __init__(  # noqa: PLR0913 - an account has that many facts; all are keywords
        self,
        *,
        name: str,
        base_url: str | None = None,
        model: str,
        client: HttpClient,
        api_key: Secret | None = None,
        host: Host | None = None,
        price: Price | None = None,
        timeouts: Timeouts | None = None,
        local: bool = False,
        headers: Mapping[str, str] | None = None,
        max_output: int = 0,
    ) -> None:
        self._name = name
        self._model = model
        self._client = client
        host = host or Host(name="openai", top_k=local)
        self._dialect = dialects.find(host.dialect)
        self._quirks = replace(host.quirks, max_output=max_output)
        self._base, self._query = _split(base_url, host, model)
        self._urls: dict[str, str] = {}
        self._timeouts = timeouts or (LOCAL_TIMEOUTS if local else Timeouts())
        self._whole = replace(self._timeouts, first_byte=self._timeouts.first_byte * WHOLE)
        self._origin = Origin(target=name, model=model, local=local, price=price)
        key = api_key.reveal().strip() if api_key else ""
        self._fixed = _fixed_headers(host, key, headers or {})
        self._secrets = _secrets(key, headers or {})
        self._signer: Signer | None = None
        if not {name.lower() for name, _ in self._fixed} & {"authorization", "api-key"}:
            self._signer = _signer(host, self._base, client)

    @property
    def name(self) -> str:
        """The target's name, unique in an app."""
        return self._name

    def __repr__(self) -> str:
        """Without key and headers."""
        return f"RemoteTarget({self._name!r}, {self._base!r}, {self._model!r})"

    # ------------------------------------------------------------ answering

    @asynccontextmanager
    async def open(self, request: Request, call: Call) -> AsyncIterator[AsyncIterator[Delta]]:
        """Send the request and give its deltas; leaving early closes the connection.

        Raises:
            RunnerError: on entering or while iterating; `target` names this one. A stream that
                breaks off raises and never just ends.
        """
        async with AsyncExitStack() as stack:
            try:
                receipt = Receipt()
                wire = self._dialect.build(request, self._model, self._quirks, receipt)
                receipt.check(request)
                response = await stack.enter_async_context(
                    self._client.stream(
                        "POST",
                        self._url(wire.path),
                        headers=await self._headers(call, wire, request.stream),
                        body=wire.body,
                        timeouts=self._timeouts if request.stream else self._whole,
                        deadline=call.deadline,
                    )
                )
                origin = self._origin
                if receipt.marks:
                    origin = replace(origin, fidelity=receipt.marks)
                deltas = await self._begin(response, request, wire, origin)
            except RunnerError as exc:
                self._own(exc)
                raise
            # Outside of the `try`: an error in the reader's block is not this target's.
            yield deltas
            if isinstance(deltas, _Stream) and deltas.done:
                await response.settle(SETTLE)

    async def _begin(
        self, response: Response, request: Request, wire: WireRequest, origin: Origin
    ) -> AsyncIterator[Delta]:
        if response.status != 200:
            raise await self._refusal(response)
        kind = (response.header("content-type") or "").lower()
        if request.stream and "json" not in kind:
            if "html" in kind:
                raise BadResponse("a web page came instead of a stream of events")
            events, framing = self._dialect.events(wire), self._dialect.framing()
            reader = StreamReader(events, framing, request.sampling.n, self._redact)
            # A runner of ours that prepares a long prompt says so with comments; a host that only
            # comments may be asked for nothing but patience, which has its limit.
            patience = math.inf if self._origin.local else self._timeouts.first_byte
            return _Stream(response, reader, origin, self._own, patience)
        body = await response.read(MAX_BODY)
        deltas = self._parsed(lambda data: self._dialect.parse_body(data, wire), body)
        first = replace(deltas[0], origin=origin)
        return _Ready((first, *deltas[1:]))

    async def embed(self, request: EmbedRequest, call: Call) -> Embeddings:
        """Embed every input of `request`.

        Raises:
            RunnerError: as `open` does.
        """
        dialect = self._dialect
        step = dialect.most_inputs or len(request.inputs)
        found = []
        for start in range(0, len(request.inputs), step):
            some = request.inputs[start : start + step]
            wire = dialect.build_embed(replace(request, inputs=some), self._model)
            parse = partial(dialect.parse_embed, count=len(some))
            found.append(await self._whole_answer(wire, call, parse))
        origin, marks = self._origin, dialect.embed_marks(request)
        if marks:
            origin = replace(origin, fidelity=marks)
        return replace(_joined(found), origin=origin)

    async def count(self, request: TokenizeRequest, call: Call) -> int:
        """How many tokens the prompt has, as the host counts them.

        Raises:
            Unsupported: the host does not tell, or could not be shown all of the prompt.
            RunnerError: as `open` does.
        """
        receipt = Receipt()
        wire = self._dialect.build_count(request, self._model, receipt)
        lost = next((name for name, mark in receipt.marks.items() if mark.fate == "dropped"), None)
        if lost is not None:
            raise Unsupported("a part of the prompt cannot be shown to the host", param=lost)
        return await self._whole_answer(wire, call, self._dialect.parse_count)

    async def rerank(self, request: RerankRequest, call: Call) -> Ranking:
        """Order the documents of `request`.

        Raises:
            RunnerError: as `open` does.
        """
        wire = rerank.build(request, self._model)
        found = await self._whole_answer(wire, call, lambda data: rerank.parse(data, request))
        return replace(found, origin=self._origin)

    async def _whole_answer(self, wire: WireRequest, call: Call, parse: Callable[[bytes], T]) -> T:
        """Ask for one value, and read it."""
        try:
            async with self._client.stream(
                "POST",
                self._url(wire.path),
                headers=await self._headers(call, wire, stream=False),
                body=wire.body,
                timeouts=self._whole,
                deadline=call.deadline,
            ) as response:
                if response.status != 200:
                    raise await self._refusal(response)
                body = await response.read(MAX_BODY)
            return self._parsed(parse, body)
        except RunnerError as exc:
            self._own(exc)
            raise

    async def _refusal(self, response: Response) -> RunnerError:
        """The error that a response other than 200 means."""
        try:
            body = await response.read(MAX_ERROR_BODY)
        except (BadResponse, StreamBroken, UpstreamTimeout):
            body = b""  # its status says enough
        return self._dialect.parse_error(
            response.status, response.header, self._redact(body), now=time.time()
        )

    # ------------------------------------------------------------ what is sent

    def _url(self, path: str) -> str:
        url = self._urls.get(path)
        if url is None:
            query = self._query.replace("?", "&", 1) if "?" in path else self._query
            url = self._urls[path] = f"{self._base}{path}{query}"
        return url

    async def _headers(self, call: Call, wire: WireRequest, stream: bool) -> list[tuple[str, str]]:
        accept = self._dialect.accept if stream else "application/json"
        headers = [*self._fixed, ("Accept", accept), *wire.headers]
        if _ID.fullmatch(call.id):
            headers.append(("X-Request-Id", call.id))
        if call.traceparent is not None and _TRACEPARENT.fullmatch(call.traceparent):
            headers.append(("Traceparent", call.traceparent))
        if self._signer is not None:
            headers += await self._signer.sign(self._url(wire.path), wire.body, call.deadline)
        return headers

    # ------------------------------------------------------------ what is told

    def _hidden(self) -> tuple[str, ...]:
        """What must not be told."""
        return self._secrets if self._signer is None else self._secrets + self._signer.secrets

    def _redact(self, data: bytes) -> bytes:
        for secret in self._hidden():
            data = data.replace(secret.encode(), b"***")
        return data

    def _parsed(self, parse: Callable[[bytes], T], data: bytes) -> T:
        """`parse(data)`; if that fails, the failure of the redacted data.

        The second try stands outside the first one's handler, so that the error which quotes the
        secret is not kept in the context of the error that does not.
        """
        with contextlib.suppress(RunnerError):
            return parse(data)
        return parse(self._redact(data))

    def _own(self, error: RunnerError) -> RunnerError:
        """`error`, with this target's name and without its key."""
        if error.target is None:
            error.target = self._name
            if not isinstance(error, BadRequest):
                error.message = f"{self._name}: {error.message}"
        for attribute in ("message", "hint", "param", "code"):
            text = getattr(error, attribute)
            for secret in self._hidden() if text else ():
                text = text.replace(secret, "***")
            setattr(error, attribute, text)
        error.args = (error.message,)
        return error


def _joined(found: list[Embeddings]) -> Embeddings:
    """The vectors of several requests as those of one."""
    if len(found) == 1:
        return found[0]
    vectors = tuple(vector for one in found for vector in one.vectors)
    if len({len(vector) for vector in vectors}) > 1:
        raise BadResponse("embeddings of unequal length")
    return Embeddings(vectors, Usage(sum(one.usage.prompt_tokens for one in found)))


class _Ready:
    """Deltas that are all there."""

    __slots__ = ("_deltas",)

    def __init__(self, deltas: tuple[Delta, ...]) -> None:
        self._deltas = iter(deltas)

    def __aiter__(self) -> AsyncIterator[Delta]:
        return self

    async def __anext__(self) -> Delta:
        for delta in self._deltas:
            return delta
        raise StopAsyncIteration


class _Stream:
    """Deltas as they arrive; several events of one network chunk are parsed in one go."""

    __slots__ = (
        "_chunks",
        "_clock",
        "_origin",
        "_own",
        "_pending",
        "_reader",
        "_response",
        "_until",
    )

    def __init__(
        self,
        response: Response,
        reader: StreamReader,
        origin: Origin,
        own: Callable[[RunnerError], RunnerError],
        patience: float,
    ) -> None:
        self._clock = asyncio.get_running_loop().time
        self._until = self._clock() + patience
        self._response = response
        self._chunks = response.chunks()
        self._reader = reader
        self._origin: Origin | None = origin
        self._own = own
        self._pending: deque[Delta] = deque()

    @property
    def done(self) -> bool:
        """The stream ended cleanly."""
        return self._reader.done and self._reader.failure is None

    def __aiter__(self) -> AsyncIterator[Delta]:
        return self

    async def __anext__(self) -> Delta:
        while not self._pending:
            reader = self._reader
            if reader.done:
                self._pending.extend(reader.end())
                if self._pending:
                    break
                if reader.failure is not None:
                    raise self._own(reader.failure)
                raise StopAsyncIteration
            await self._more()
        delta = self._pending.popleft()
        if self._origin is not None:
            delta = replace(delta, origin=self._origin)
            self._origin = None
            if not self._reader.finished:
                self._until = math.inf
        return delta

    async def _more(self) -> None:
        """Read on; the end of the bytes, good or bad, is judged by the reader."""
        reader = self._reader
        try:
            chunk = await anext(self._chunks)
        except StopAsyncIteration:
            self._pending.extend(reader.end())
        except UpstreamError as exc:
            self._pending.extend(reader.end(exc))
        except RunnerError as exc:
            self._own(exc)
            raise
        else:
            finished = reader.finished
            self._pending.extend(reader.feed(chunk))
            if reader.finished and not finished:
                self._response.limit_idle(AFTER_FINISH)
                self._until = self._clock() + AFTER_FINISH
            elif not self._pending and self._clock() >= self._until:
                self._give_up()

    def _give_up(self) -> None:
        """Only comments came, for too long: the end after a finish, a failure before."""
        if self._reader.finished:
            self._pending.extend(self._reader.end())
            return
        raise self._own(UpstreamTimeout("only comments came instead of the first token"))


def _signer(host: Host, base: str, client: HttpClient) -> Signer | None:
    """Who speaks for an account without a key; None: nobody is asked to."""
    if host.auth == "sigv4":
        return SigV4(base)
    return Entra(base, client) if host.auth == "entra" else None


def _split(base_url: str | None, host: Host, model: str) -> tuple[str, str]:
    """What comes before and after the path of a request."""
    base_url = base_url or host.base_url
    if not base_url:
        raise ConfigError(
            f"the provider {host.name!r} needs a base_url", hint=host.docs or "set base_url"
        )
    base, _, query = base_url.partition("?")
    prefix = host.path.replace("{model}", quote(model, safe=""))
    query = "&".join(filter(None, (query, "" if query else host.query)))
    return base.rstrip("/") + prefix, f"?{query}" if query else ""


def _fixed_headers(host: Host, key: str, given: Mapping[str, str]) -> list[tuple[str, str]]:
    headers = {"content-type": ("Content-Type", "application/json")}
    headers["user-agent"] = ("User-Agent", "llm-runner-router")
    if key:
        if not key.isascii() or not key.isprintable():
            raise ConfigError(f"the API key of {host.name!r} has characters no key has")
        headers[host.key_header.lower()] = (host.key_header, f"{host.key_prefix}{key}")
    for name, value in {**host.headers, **given}.items():
        if not re.fullmatch(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+", name) or re.search(r"[\r\n\0]", value):
            raise ConfigError(f"the header {name!r} cannot be sent")
        headers[name.lower()] = (name, value)
    for name in ("accept", "host", "content-length", "transfer-encoding", "connection"):
        headers.pop(name, None)  # these belong to the request itself
    return list(headers.values())


def _secrets(key: str, headers: Mapping[str, str]) -> tuple[str, ...]:
    """What must not be told, longest first, so that a part is not replaced before the whole."""
    found = {key} | {value for name, value in headers.items() if _SECRET_HEADER.search(name)}
    found |= {value.rpartition(" ")[2] for value in found}
    return tuple(sorted((v for v in found if len(v) >= 4), key=len, reverse=True))
