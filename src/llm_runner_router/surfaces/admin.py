"""The operator's routes, `/llmrr/*`. They need the key like every other route.

Knows: `base.Admin` and JSON. Does not know how anything is loaded or stopped.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any
from urllib.parse import parse_qs

import msgspec
from msgspec import Struct

from llm_runner_router.errors import BadRequest, Forbidden
from llm_runner_router.types import Decision, Message, Request

from . import openai_chat
from .base import Gateway
from .codec import check_model, parse
from .exchange import Exchange

Handler = Callable[[Exchange, str], Awaitable[None]]

DEFAULT_RECORDS = 50
MAX_RECORDS = 1000


class _Model(Struct, frozen=True):
    model: str


class _Prompt(Struct, frozen=True):
    prompt: str | None = None
    model: str = "auto"
    messages: msgspec.Raw = msgspec.Raw()  # `Raw | None` would take null only


class _Explained(Struct, frozen=True):
    model: str
    decision: Decision | None


_model = msgspec.json.Decoder(_Model)
_prompt = msgspec.json.Decoder(_Prompt)


class AdminRoutes:
    """`ps`, `status`, `records`, `load`, `stop`, `explain`, `shutdown`.

    Args:
        gateway: whose `admin` is asked.
        read: the body of an exchange, within the limits.
        shutdown: asks the server to stop; None refuses.
    """

    def __init__(
        self,
        gateway: Gateway,
        read: Callable[[Exchange], Awaitable[bytes]],
        shutdown: Callable[[], None] | None,
    ) -> None:
        self._admin = gateway.admin
        self._read = read
        self._shutdown = shutdown
        self.table: dict[str, dict[str, Handler]] = {
            "/llmrr/ps": {"GET": self._ps},
            "/llmrr/status": {"GET": self._status},
            "/llmrr/records": {"GET": self._records},
            "/llmrr/load": {"POST": self._load},
            "/llmrr/stop": {"POST": self._stop},
            "/llmrr/explain": {"POST": self._explain},
            "/llmrr/shutdown": {"POST": self._stop_server},
        }

    async def _ps(self, exchange: Exchange, caller: str) -> None:
        await _json(exchange, self._admin.ps())

    async def _status(self, exchange: Exchange, caller: str) -> None:
        await _json(exchange, self._admin.status())

    async def _records(self, exchange: Exchange, caller: str) -> None:
        query = parse_qs(exchange.scope.get("query_string", b"").decode("ascii", "replace"))
        text = query.get("limit", [str(DEFAULT_RECORDS)])[-1]
        if not text.isdecimal() or not 1 <= int(text[:6]) <= MAX_RECORDS:
            raise BadRequest(f"'limit' must be between 1 and {MAX_RECORDS}", param="limit")
        await _json(exchange, self._admin.records(int(text)))

    async def _load(self, exchange: Exchange, caller: str) -> None:
        name = await self._named(exchange)
        async with exchange.watching():
            result = await self._admin.load(name)
            await _json(exchange, result)

    async def _stop(self, exchange: Exchange, caller: str) -> None:
        name = await self._named(exchange)
        async with exchange.watching():
            result = await self._admin.stop(name)
            await _json(exchange, result)

    async def _explain(self, exchange: Exchange, caller: str) -> None:
        body = await self._read(exchange)
        asked = parse(_prompt, body)
        if bytes(asked.messages) not in (b"", b"null"):
            request = openai_chat.decode(body)
        elif asked.prompt is not None:
            check_model(asked.model)
            request = Request(asked.model, messages=(Message("user", asked.prompt),))
        else:
            raise BadRequest("'prompt' or 'messages' is missing", param="prompt")
        await _json(exchange, _Explained(request.model, self._admin.explain(request)))

    async def _stop_server(self, exchange: Exchange, caller: str) -> None:
        if self._shutdown is None:
            raise Forbidden("this server cannot be stopped from here")
        await _json(exchange, {"status": "stopping"})
        self._shutdown()

    async def _named(self, exchange: Exchange) -> str:
        name = parse(_model, await self._read(exchange)).model
        check_model(name)
        return name


async def _json(exchange: Exchange, value: Any) -> None:
    await exchange.json(200, msgspec.json.encode(value))
