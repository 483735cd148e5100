"""The routes of Gemini's API: content, tokens and vectors of the model that the path names.

Knows: `/models/{model}:{verb}`, its query, where the key may stand. Does not know: how requests and
answers are written (`gemini.py`, `gemini_embed.py`), models as a list (`http.py` has one route for
clients of all formats).
"""

from __future__ import annotations

from collections.abc import Mapping
from urllib.parse import parse_qs

from llm_runner_router.types import Request

from . import gemini, gemini_embed, gemini_write, sse
from .base import Gateway, Reply
from .exchange import Exchange, answer_headers, fidelity, figures, now, readable
from .host import Handler, Host, Voice

VERSION = "/v1beta/"
"""Google's clients ask below this."""
KEY = b"x-goog-api-key"
"""The header in which they send their key, unless they put it into the query."""
_VERBS = frozenset(
    "generateContent streamGenerateContent countTokens embedContent batchEmbedContents".split()
)
_STREAM = "streamGenerateContent"


class GeminiRoutes:
    """What is below `/models/` with a verb.

    Args:
        gateway: what answers.
        host: the application around.
    """

    def __init__(self, gateway: Gateway, host: Host) -> None:
        self._gateway = gateway
        self._host = host
        self.table: dict[str, dict[str, Handler]] = {
            "/models/{model}:generateContent": {"POST": self._content},
            "/models/{model}:streamGenerateContent": {"POST": self._content},
            "/models/{model}:countTokens": {"POST": self._count},
            "/models/{model}:embedContent": {"POST": self._embed},
            "/models/{model}:batchEmbedContents": {"POST": self._embed},
        }

    def find(self, path: str) -> dict[str, Handler] | None:
        """The handlers by method for `path` (without version); None if it is not one of these."""
        return self.table["/models/{model}:" + path.rpartition(":")[2]] if spoken(path) else None

    async def _content(self, exchange: Exchange, caller: str) -> None:
        model, verb = _named(exchange)
        stream, listed = verb == _STREAM, _in_list(exchange)
        with self._host.room():

            def decode(body: bytes) -> Request:
                return gemini.decode(body, model, stream=stream)

            request = readable(exchange, decode, await self._host.body(exchange))
            await self._host.answer(
                exchange,
                caller,
                gemini.LIST if listed else gemini,
                (request,),
                exchange.id.removeprefix("req-"),
                sse.LIST if listed else sse.LINES,
            )

    async def _count(self, exchange: Exchange, caller: str) -> None:
        model, _ = _named(exchange)
        with self._host.room():
            body = await self._host.body(exchange)
            asked = readable(exchange, lambda data: gemini.decode_count(data, model), body)
            async with exchange.watching():
                tokens, counted = await self._gateway.count(asked)
                head = [(b"x-llmrr-counted", b"exactly" if counted else b"estimated")]
                await exchange.json(200, gemini.encode_count(tokens), head)

    async def _embed(self, exchange: Exchange, caller: str) -> None:
        model, verb = _named(exchange)
        with self._host.room():

            def decode(body: bytes) -> gemini_embed.Asked:
                return gemini_embed.decode(body, model, many=verb == "batchEmbedContents")

            asked = readable(exchange, decode, await self._host.body(exchange))
            embedder = self._gateway.embedder(model)
            call = self._host.call(exchange, caller, None)
            reply = Reply("", now(), call.trace)
            async with exchange.watching():
                result = gemini_embed.marked(await embedder.embed(asked.request, call), asked)
                reply.origin, reply.usage = result.origin, result.usage
                head = [*answer_headers(reply), *fidelity(reply), *figures(reply, 0)]
                await exchange.json(200, gemini_embed.encode(result, asked), head)


def spoken(path: str) -> bool:
    """Whether only Google's API has such a path."""
    return "/models/" in path and path.rpartition(":")[2] in _VERBS


def voice(exchange: Exchange) -> Voice:
    """What writes errors for the client of these paths."""
    return gemini.LIST if _in_list(exchange) else gemini_write


def _in_list(exchange: Exchange) -> bool:
    """Whether the answer is a stream without SSE."""
    verb = exchange.path.rstrip("/").rpartition(":")[2]
    return verb == _STREAM and _query(exchange, "alt") != "sse"


def credentials(exchange: Exchange) -> Mapping[bytes, bytes]:
    """The headers, with the key that Google's clients may have put into the query.

    A query may be written down on its way; here it is not, and only these routes look into it.
    """
    path = exchange.path
    if KEY in exchange.headers or not (path.startswith(VERSION) or spoken(path)):
        return exchange.headers
    key = _query(exchange, "key")
    return exchange.headers if key is None else {**exchange.headers, KEY: key.encode()}


def _query(exchange: Exchange, name: str) -> str | None:
    """A parameter of the query; the last one counts."""
    query = exchange.scope.get("query_string", b"").decode("ascii", "replace")
    found = parse_qs(query).get(name)
    return found[-1] if found else None


def _named(exchange: Exchange) -> tuple[str, str]:
    """The model and the verb of a path."""
    model, _, verb = exchange.path.rstrip("/").partition("/models/")[2].rpartition(":")
    return model, verb
