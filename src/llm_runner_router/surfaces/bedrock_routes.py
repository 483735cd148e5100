"""The routes of Bedrock's Converse API: answers and tokens of the model that the path names.

Knows: `/model/{id}/{verb}`. Does not know: how requests and answers are written (`bedrock.py`).
"""

from __future__ import annotations

from llm_runner_router.eventstream import MEDIA_TYPE
from llm_runner_router.types import Request

from . import bedrock, sse
from .base import Gateway
from .exchange import Exchange, readable
from .host import Handler, Host

_ROOT = "/model/"
_VERBS = frozenset(("converse", "converse-stream", "count-tokens"))
FRAMES = sse.Form([(b"content-type", MEDIA_TYPE.encode()), *sse.HEADERS[1:]], b"")
"""Binary frames, between which nothing can stand."""


class BedrockRoutes:
    """What is below `/model/`.

    Args:
        gateway: what answers.
        host: the application around.
    """

    def __init__(self, gateway: Gateway, host: Host) -> None:
        self._gateway = gateway
        self._host = host
        self.table: dict[str, dict[str, Handler]] = {
            "/model/{model}/converse": {"POST": self._converse},
            "/model/{model}/converse-stream": {"POST": self._converse},
            "/model/{model}/count-tokens": {"POST": self._count},
        }

    def find(self, path: str) -> dict[str, Handler] | None:
        """The handlers by method for `path`; None if it is not one of these."""
        verb = path.rpartition("/")[2]
        return self.table["/model/{model}/" + verb] if spoken(path) and verb in _VERBS else None

    async def _converse(self, exchange: Exchange, caller: str) -> None:
        model, verb = _named(exchange)
        stream = verb == "converse-stream"
        with self._host.room():

            def decode(body: bytes) -> Request:
                return bedrock.decode(body, model, stream=stream)

            request = readable(exchange, decode, await self._host.body(exchange))
            id = exchange.id.removeprefix("req-")
            await self._host.answer(exchange, caller, bedrock, (request,), id, FRAMES)

    async def _count(self, exchange: Exchange, caller: str) -> None:
        model, _ = _named(exchange)
        with self._host.room():
            body = await self._host.body(exchange)
            asked = readable(exchange, lambda data: bedrock.decode_count(data, model), body)
            async with exchange.watching():
                tokens, counted = await self._gateway.count(asked)
                head = [(b"x-llmrr-counted", b"exactly" if counted else b"estimated")]
                await exchange.json(200, bedrock.count(tokens), head)


def spoken(path: str) -> bool:
    """Whether a client of AWS's asks there, also for what does not exist here."""
    return path.startswith(_ROOT) and "/" in path[len(_ROOT) :]


def _named(exchange: Exchange) -> tuple[str, str]:
    """The model and the verb of a path; a model's name may have slashes."""
    model, _, verb = exchange.path.rstrip("/").removeprefix(_ROOT).rpartition("/")
    return model, verb
