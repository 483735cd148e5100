"""The routes of Cohere's v2 API: chats, vectors, rankings.

Knows: `/v2/*`, how to tell Cohere's clients. Does not know: how requests and answers are written
(`cohere.py`, `cohere_others.py`), models as a list (`http.py` has one route for all clients).
"""

from __future__ import annotations

from . import cohere, cohere_others
from .base import Gateway, Reply
from .exchange import Exchange, answer_headers, fidelity, figures, now, readable
from .host import Handler, Host

VERSION = "/v2/"
"""Cohere's clients ask below this, but for models."""


def spoken(exchange: Exchange) -> bool:
    """Whether the client is one of Cohere's, whatever it asks for: they all say so."""
    named = exchange.headers.get(b"x-fern-sdk-name", b"")
    return exchange.path.startswith(VERSION) or named.startswith(b"cohere")


class CohereRoutes:
    """What is below `/v2/`.

    Args:
        gateway: what answers.
        host: the application around.
    """

    def __init__(self, gateway: Gateway, host: Host) -> None:
        self._gateway = gateway
        self._host = host
        self.table: dict[str, dict[str, Handler]] = {
            "/v2/chat": {"POST": self._chat},
            "/v2/embed": {"POST": self._embed},
            "/v2/rerank": {"POST": self._rerank},
        }

    def find(self, path: str) -> dict[str, Handler] | None:
        """The handlers by method for `path`; None if it is not one of these."""
        return self.table.get(path)

    async def _chat(self, exchange: Exchange, caller: str) -> None:
        with self._host.room():
            request = readable(exchange, cohere.decode, await self._host.body(exchange))
            id = exchange.id.removeprefix("req-")
            await self._host.answer(exchange, caller, cohere, (request,), id)

    async def _embed(self, exchange: Exchange, caller: str) -> None:
        with self._host.room():
            body = await self._host.body(exchange)
            asked = readable(exchange, cohere_others.decode_embed, body)
            embedder = self._gateway.embedder(asked.request.model)
            call = self._host.call(exchange, caller, None)
            reply = Reply("", now(), call.trace)
            async with exchange.watching():
                found = await embedder.embed(asked.request, call)
                found = cohere_others.marked(found, asked.lost)
                reply.origin, reply.usage = found.origin, found.usage
                head = [*answer_headers(reply), *fidelity(reply), *figures(reply, 0)]
                data = cohere_others.encode_embed(found, asked, exchange.id)
                await exchange.json(200, data, head)

    async def _rerank(self, exchange: Exchange, caller: str) -> None:
        with self._host.room():
            body = await self._host.body(exchange)
            asked = readable(exchange, cohere_others.decode_rerank, body)
            reranker = self._gateway.reranker(asked.request.model)
            call = self._host.call(exchange, caller, None)
            reply = Reply("", now(), call.trace)
            async with exchange.watching():
                found = await reranker.rerank(asked.request, call)
                found = cohere_others.marked(found, asked.lost)
                reply.origin, reply.usage = found.origin, found.usage
                head = [*answer_headers(reply), *fidelity(reply), *figures(reply, 0)]
                await exchange.json(200, cohere_others.encode_rerank(found, exchange.id), head)
