"""The HTTP side as one plain ASGI 3 application: the only place that routes.

Knows: paths, methods, the order of checks (who, then what, then how much), when a client leaves.
Does not know: formats (codecs), sockets (`server.py`), how targets are built (`app.py`).

The order for every request but those for public paths: key, route, room, body, decode, answer. The
path comes from the request line alone; the Host header decides nothing.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from contextlib import aclosing
from time import perf_counter
from typing import Any, TypeVar

import msgspec

from llm_runner_router.config import Server
from llm_runner_router.errors import BadRequest, NotFound, Overloaded, RunnerError, Unavailable
from llm_runner_router.types import Call, ModelCard, Request

from . import (
    anthropic,
    anthropic_write,
    bedrock_write,
    cohere_write,
    gemini_write,
    litellm,
    ollama_write,
    openai_chat,
    openai_completions,
    openai_embeddings,
    openai_json,
    openai_models,
    rerank,
    sse,
    tokenize,
)
from .admin import AdminRoutes
from .base import Gateway, Reply
from .batches_routes import BatchRoutes
from .bedrock_routes import BedrockRoutes
from .bedrock_routes import spoken as spoken_by_bedrock
from .codec import MAX_FALLBACKS
from .cohere_routes import CohereRoutes
from .cohere_routes import spoken as spoken_by_cohere
from .exchange import (
    ClientGone,
    Exchange,
    Headers,
    Receive,
    Scope,
    Send,
    answer_headers,
    fidelity,
    figures,
    names,
    now,
    readable,
)
from .fan import fan
from .files_routes import FileRoutes
from .gemini_routes import KEY as GOOGLE
from .gemini_routes import VERSION, GeminiRoutes, credentials, spoken
from .gemini_routes import voice as voice_of_google
from .host import Codec, Handler, Voice
from .litellm_routes import LiteLLMRoutes
from .ollama_routes import OllamaRoutes
from .problems import MethodNotAllowed
from .responses_routes import ResponseRoutes
from .veil import veiled

ANTHROPIC = b"anthropic-version"
"""A header that clients of Anthropic's API send with every request."""
BODY_SECONDS = 60.0
"""How long a body may take to arrive."""

T = TypeVar("T")

_log = logging.getLogger(__name__)


class HttpApp:
    """The ASGI application.

    Args:
        gateway: what answers.
        settings: limits.
        shutdown: called when an operator asks the server to stop; None refuses that.
        body_seconds: how long a body may take to arrive.
    """

    def __init__(
        self,
        gateway: Gateway,
        settings: Server,
        *,
        shutdown: Callable[[], None] | None = None,
        body_seconds: float = BODY_SECONDS,
    ) -> None:
        self.gateway = gateway
        self.settings = settings
        self.body_seconds = body_seconds
        self._created = now()
        self._busy = 0
        self._admin = AdminRoutes(gateway, self.body, shutdown)
        self._responses = ResponseRoutes(gateway, self)
        self._files = FileRoutes(gateway, self, body_seconds)
        self._batches = BatchRoutes(gateway, self)
        self._gemini = GeminiRoutes(gateway, self)
        self._ollama = OllamaRoutes(gateway, self)
        self._cohere = CohereRoutes(gateway, self)
        self._bedrock = BedrockRoutes(gateway, self)
        self._litellm = LiteLLMRoutes(gateway)
        self._routes: dict[str, dict[str, Handler]] = {
            "/chat/completions": {"POST": self._chat},
            "/completions": {"POST": self._completions},
            "/embeddings": {"POST": self._embeddings},
            "/messages": {"POST": self._messages},
            "/messages/count_tokens": {"POST": self._count},
            "/rerank": {"POST": self._rerank},
            "/tokenize": {"POST": self._tokenize},
            "/detokenize": {"POST": self._detokenize},
            "/models": {"GET": self._models},
            "/livez": {"GET": _alive},
            "/readyz": {"GET": _alive},
            "/openapi.json": {"GET": self._document},
            **self._admin.table,
        }
        self._greeting: dict[str, dict[str, Handler]] = {"/": {"GET": _greet}}
        self._one_model: dict[str, dict[str, Handler]] = {"/models/{model}": {"GET": self._model}}
        # Whether the server is up, and a page that is the same everywhere: they need no key.
        self._public: dict[str, dict[str, Handler]] = {
            "/healthz": {"GET": _alive},
            "/docs": {"GET": _docs},
            **self._litellm.public,
        }
        self._described: bytes | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        if scope["type"] != "http":
            raise RuntimeError(f"only HTTP is served here, not {scope['type']}")
        exchange = Exchange(scope, receive, send)
        if spoken_by_bedrock(exchange.path):
            exchange.marks = bedrock_write.marks
        try:
            public = self._public.get(exchange.path)
            if public is not None:
                await _by_method(public, exchange)(exchange, "")
                return
            caller = self.gateway.authenticate(credentials(exchange))
            exchange.check_headers()
            await self._route(exchange)(exchange, caller)
        except ClientGone:
            pass
        except asyncio.CancelledError:
            # Only the server cancels a whole request: its time to drain is over.
            stopping = Unavailable("the server is stopping", retry_after=1)
            if not exchange.done:
                await _failed(exchange, stopping)
        except Exception as exc:  # the last border: a failure must not close the connection unsaid
            await _failed(exchange, _told(exc, exchange))

    @property
    def busy(self) -> int:
        """Requests in work."""
        return self._busy

    async def aclose(self) -> None:
        """End what goes on without a client."""
        await self._responses.aclose()

    # ------------------------------------------------------------ routing

    def _route(self, exchange: Exchange) -> Handler:
        path = exchange.path
        if path.startswith("/v1/"):
            path = path[3:]
        elif path.startswith(VERSION + "models"):
            path = path.removeprefix(VERSION[:-1])
        if len(path) > 1 and path.endswith("/"):
            path = path.rstrip("/")
        methods = self._routes.get(path)
        if methods is None and exchange.path == "/":
            methods = self._greeting["/"]
        if methods is None and path.startswith("/models/"):
            methods = self._gemini.find(path) or self._one_model["/models/{model}"]
        if methods is None:
            openai = (self._responses, self._files, self._batches)
            others = (*openai, self._ollama, self._cohere, self._bedrock, self._litellm)
            methods = next((found for one in others if (found := one.find(path))), None)
        if methods is None:
            raise self._no_route(path)
        return _by_method(methods, exchange)

    def tables(self) -> tuple[dict[str, dict[str, Handler]], ...]:
        """Every route there is, as template of its path (without `/v1`) → method → handler.

        What is not in one of these is not answered, and what is has its `Operation` in
        `openapi/apis/`.
        """
        return (
            self._public,
            self._greeting,
            self._routes,
            self._one_model,
            self._responses.table,
            self._files.table,
            self._batches.table,
            self._gemini.table,
            self._ollama.table,
            self._cohere.table,
            self._bedrock.table,
            self._litellm.table,
        )

    def _no_route(self, path: str) -> NotFound:
        from difflib import get_close_matches  # only mistakes pay for the import

        near = get_close_matches(path[:100], list(self._routes), n=1, cutoff=0.4)
        hint = f"did you mean `/v1{near[0]}`?" if near else "the API is under `/v1`"
        if near and near[0].startswith("/llmrr"):
            hint = f"did you mean `{near[0]}`?"
        return NotFound(f"there is no route `{path[:200]}`", hint=hint, code="unknown_route")

    async def body(self, exchange: Exchange) -> bytes:
        """The body of a request, within the limits."""
        return await exchange.body(self.settings.max_body, self.body_seconds)

    # ------------------------------------------------------------ routes

    async def _document(self, exchange: Exchange, caller: str) -> None:
        if self._described is None:
            from .openapi.document import encoded  # only who asks for it pays for it

            self._described = await asyncio.to_thread(encoded)
        await exchange.json(200, self._described)

    async def _chat(self, exchange: Exchange, caller: str) -> None:
        with self.room():
            body = await self.body(exchange)
            request = readable(exchange, openai_chat.decode, body)
            await self.answer(exchange, caller, openai_chat, (request,), _id("chatcmpl", exchange))

    async def _completions(self, exchange: Exchange, caller: str) -> None:
        with self.room():
            body = await self.body(exchange)
            requests = readable(exchange, openai_completions.decode_all, body)
            await self.answer(exchange, caller, openai_completions, requests, _id("cmpl", exchange))

    async def _messages(self, exchange: Exchange, caller: str) -> None:
        with self.room():
            request = readable(exchange, anthropic.decode, await self.body(exchange))
            await self.answer(exchange, caller, anthropic, (request,), _id("msg", exchange))

    async def _count(self, exchange: Exchange, caller: str) -> None:
        with self.room():
            asked = readable(exchange, anthropic.decode_count, await self.body(exchange))
            async with exchange.watching():
                tokens, counted = await self.gateway.count(asked)
                head = [(b"x-llmrr-counted", b"exactly" if counted else b"estimated")]
                await exchange.json(200, anthropic.encode_count(tokens), head)

    async def _embeddings(self, exchange: Exchange, caller: str) -> None:
        with self.room():
            body = await self.body(exchange)
            asked = readable(exchange, openai_embeddings.decode, body)
            embedder = self.gateway.embedder(asked.request.model)
            call = self.call(exchange, caller, asked.request.user)
            reply = Reply("", self._created, call.trace)
            began = perf_counter()
            async with exchange.watching():
                result = await embedder.embed(asked.request, call)
                reply.origin, reply.usage = result.origin, result.usage
                head = [*answer_headers(reply), *fidelity(reply), *figures(reply, 0)]
                head += self.habits(exchange, asked.request.model, reply, perf_counter() - began)
                await exchange.json(200, openai_embeddings.encode(result, asked), head)

    async def _rerank(self, exchange: Exchange, caller: str) -> None:
        with self.room():
            asked = readable(exchange, rerank.decode, await self.body(exchange))
            reranker = self.gateway.reranker(asked.request.model)
            call = self.call(exchange, caller, None)
            reply = Reply("", self._created, call.trace)
            async with exchange.watching():
                result = await reranker.rerank(asked.request, call)
                reply.origin, reply.usage = result.origin, result.usage
                head = [*answer_headers(reply), *figures(reply, 0)]
                await exchange.json(200, rerank.encode(result, asked, call.id), head)

    async def _tokenize(self, exchange: Exchange, caller: str) -> None:
        with self.room():
            asked = readable(exchange, tokenize.decode, await self.body(exchange))
            async with exchange.watching():
                found = await self.gateway.tokenize(asked.request)
                await exchange.json(200, tokenize.encode(found, asked))

    async def _detokenize(self, exchange: Exchange, caller: str) -> None:
        with self.room():
            model, ids = readable(exchange, tokenize.decode_ids, await self.body(exchange))
            async with exchange.watching():
                text = await self.gateway.detokenize(model, ids)
                await exchange.json(200, tokenize.encode_text(model, text))

    async def _models(self, exchange: Exchange, caller: str) -> None:
        cards = self.gateway.cards()
        voice = _voice(exchange)
        write = openai_models.encode_list
        if voice is not openai_json:
            write = anthropic_write.models if voice is anthropic_write else gemini_write.models
            write = cohere_write.models if voice is cohere_write else write
        await exchange.json(200, write(cards, self._created))

    async def _model(self, exchange: Exchange, caller: str) -> None:
        name = exchange.path.partition("/models/")[2]
        exchange.asked = True
        card = next((card for card in self.gateway.cards() if card.name == name), None)
        if card is None:
            self.gateway.target(name)  # raises with the nearest names; an alias has no card
            card = ModelCard(name)
        voice = _voice(exchange)
        write = openai_models.encode_one
        if voice is not openai_json:
            write = anthropic_write.model if voice is anthropic_write else gemini_write.model
            write = cohere_write.model if voice is cohere_write else write
        await exchange.json(200, write(card, self._created))

    # ------------------------------------------------------------ answering

    def room(self) -> _Room:
        """A place for a request in work.

        Raises:
            Overloaded: all are taken.
        """
        return _Room(self)

    def told(self, exc: Exception, exchange: Exchange | None = None) -> RunnerError:
        """The error that a client is told; without `exchange`, one who asked for an answer."""
        return _told(exc, exchange)

    def call(self, exchange: Exchange, caller: str, user: str | None) -> Call:
        """A call for this request."""
        return self.gateway.start_call(
            id=exchange.id,
            caller=caller,
            session=exchange.text(b"x-session-id")
            or exchange.text(b"x-litellm-session-id")
            or user,
            timeout=exchange.timeout(),
            traceparent=exchange.traceparent(),
        )

    def habits(
        self, exchange: Exchange, model: str, reply: Reply, seconds: float | None = None
    ) -> Headers:
        """What clients of LiteLLM look for beside our own headers, for those who do."""
        if not litellm.wanted(exchange, self.settings.litellm_headers):
            return []
        return litellm.answer_headers(exchange, model, reply, seconds)

    async def answer(
        self,
        exchange: Exchange,
        caller: str,
        codec: Codec,
        requests: Sequence[Request],
        id: str,
        form: sse.Form = sse.EVENTS,
    ) -> None:
        """Answer a request, or several in one body, by the target that it names."""
        wanted = exchange.text(b"x-llmrr-fallbacks")
        if wanted and not requests[0].fallbacks:
            chain = names(wanted.split(","))
            if len(chain) > MAX_FALLBACKS:
                raise BadRequest(
                    f"the header `x-llmrr-fallbacks` takes up to {MAX_FALLBACKS} names",
                    param="x-llmrr-fallbacks",
                )
            requests = [msgspec.structs.replace(r, fallbacks=chain) for r in requests]
        request = requests[0]
        target = self.gateway.target(request.model)
        call = self.call(exchange, caller, request.user)
        reply = Reply(id, now(), call.trace)
        began = perf_counter()
        opened = target.open(request, call) if len(requests) == 1 else fan(target, requests, call)
        try:
            async with exchange.watching():
                async with opened as deltas:
                    frames: Any = codec.encode(deltas, request, reply)
                    async with aclosing(frames):
                        # The first frame in hand is the commit point: before it an error is a
                        # status, after it an event.
                        first = await anext(frames)
                        if request.stream:
                            head = form.headers + answer_headers(reply) + fidelity(reply)
                            head += self.habits(exchange, request.model, reply)
                            await exchange.start(200, head)
                            every = self.settings.keep_alive_comment
                            await sse.stream(
                                exchange,
                                first,
                                frames,
                                every,
                                lambda exc: _told(exc, exchange),
                                codec.stream_error,
                                form.ping,
                            )
                            return
                # The place at the target is free before a slow client has read the answer.
                head = answer_headers(reply) + fidelity(reply)
                seconds = perf_counter() - began
                head += figures(reply, seconds)
                head += self.habits(exchange, request.model, reply, seconds)
                await exchange.json(200, first, head)
        except RunnerError as exc:
            if exchange.started:
                raise
            await exchange.fail(_told(exc, exchange), codec.error, call.trace)


def _id(kind: str, exchange: Exchange) -> str:
    """The id of an answer, by that of its request."""
    return f"{kind}-{exchange.id.removeprefix('req-')}"


class _Room:
    """One of the places for requests in work.

    Raises:
        Overloaded: all are taken.
    """

    __slots__ = ("_app",)

    def __init__(self, app: HttpApp) -> None:
        self._app = app

    def __enter__(self) -> None:
        if self._app._busy >= self._app.settings.max_requests:
            raise Overloaded(
                f"{self._app.settings.max_requests} requests are already in work", retry_after=1
            )
        self._app._busy += 1

    def __exit__(self, *_: object) -> None:
        self._app._busy -= 1


async def _failed(exchange: Exchange, exc: RunnerError) -> None:
    """Tell the client as well as the state of the response allows."""
    voice = _voice(exchange)
    if not exchange.started:
        await exchange.fail(exc, voice.error)
    elif not exchange.done:
        await exchange.end(voice.stream_error(exc))
    else:
        _log.error("a target failed after its answer was complete: %s", exc)


def _voice(exchange: Exchange) -> Voice:
    """Whose errors the client of this path understands, whatever went wrong with it."""
    path = exchange.path
    if path.removeprefix("/v1").startswith("/messages") or ANTHROPIC in exchange.headers:
        return anthropic_write
    if GOOGLE in exchange.headers or path.startswith(VERSION) or spoken(path):
        return voice_of_google(exchange)
    if spoken_by_cohere(exchange):
        return cohere_write
    if spoken_by_bedrock(path):
        return bedrock_write
    return ollama_write if path.startswith("/api/") else openai_json


async def _greet(exchange: Exchange, caller: str) -> None:
    """What clients of Ollama look for before they ask anything."""
    text = b"Ollama is running"
    head = [(b"content-type", b"text/plain; charset=utf-8"), (b"content-length", b"17")]
    await exchange.start(200, head)
    await exchange.end(text)


def _by_method(methods: dict[str, Handler], exchange: Exchange) -> Handler:
    """The handler for the exchange's method.

    Raises:
        MethodNotAllowed
    """
    method: str = exchange.scope["method"]
    handler = methods.get(method) or (methods.get("GET") if method == "HEAD" else None)
    if handler is None:
        allowed = ", ".join(methods)
        raise MethodNotAllowed(
            f"`{exchange.path[:200]}` takes {allowed}, not {method[:20]}", allow=allowed
        )
    return handler


async def _docs(exchange: Exchange, caller: str) -> None:
    from .openapi.page import page  # only who asks for it pays for it

    body, headers = page()
    await exchange.start(200, [*headers, (b"content-length", str(len(body)).encode())])
    await exchange.end(body)


async def _alive(exchange: Exchange, caller: str) -> None:
    await exchange.json(200, b'{"status":"ok"}')


def _told(exc: Exception, exchange: Exchange | None = None) -> RunnerError:
    """The error a client is told; what nobody expected is logged and not shown.

    Whoever asks for an answer is told no path of this machine, which the log has. What is wrong
    with a request is told in the client's own words, and the operator's routes tell all.
    """
    if isinstance(exc, RunnerError):
        told = veiled(exc) if exchange is None or exchange.asked else exc
        if told is not exc:
            _log.warning("%s: %s", exchange.id if exchange else "in the background", exc)
        return told
    if isinstance(exc, RecursionError):
        # Only what clients send is walked recursively, and JSON may be nested deeper than that.
        return BadRequest("the request is nested too deeply", code="invalid_json")
    _log.error("unexpected error while answering", exc_info=exc)
    return RunnerError("an internal error happened; the server's log says more")
