"""The routes of OpenAI's batches API: begin, list, look, cancel.

Knows: what a client may wish for. Does not know: how batches are run (`batch_run.py`).
"""

from __future__ import annotations

import re

import msgspec
from msgspec import Struct

from llm_runner_router.errors import BadRequest

from .base import Gateway
from .batch_answer import ENDPOINTS
from .batch_run import Wish
from .codec import parse
from .exchange import Exchange, readable
from .files_routes import kept_for, listed, number, query_of
from .host import Handler, Host

PAGE = 20
MAX_PAGE = 100
LONGEST_WINDOW = 30 * 86_400
WINDOW = r"^[0-9]{1,4}[smhd]$"
_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86_400}
MAX_PAIRS, MAX_KEY, MAX_VALUE = 16, 64, 512
"""Metadata, as OpenAI limits it."""


class _Expires(Struct, frozen=True):
    anchor: str
    seconds: int


class _Body(Struct, frozen=True):
    input_file_id: str
    endpoint: str
    completion_window: str = "24h"
    metadata: dict[str, str] | None = None
    output_expires_after: _Expires | None = None


_decoder = msgspec.json.Decoder(_Body)


def decode(body: bytes) -> Wish:
    """Read what somebody wishes for.

    Raises:
        BadRequest: malformed, of wrong types, or out of bounds; `param` says where.
    """
    asked = parse(_decoder, body)
    if asked.endpoint not in ENDPOINTS:
        raise BadRequest(
            f"'endpoint' must be {', '.join(ENDPOINTS)}, not {asked.endpoint[:80]!r}",
            param="endpoint",
        )
    window = asked.completion_window
    seconds = int(window[:-1]) * _UNITS[window[-1]] if re.fullmatch(WINDOW, window) else 0
    if not 0 < seconds <= LONGEST_WINDOW:
        raise BadRequest(
            f"'completion_window' must be like 24h or 30m, up to 30d, not {window[:20]!r}",
            param="completion_window",
        )
    pairs = asked.metadata or {}
    if len(pairs) > MAX_PAIRS or any(
        len(key) > MAX_KEY or len(value) > MAX_VALUE for key, value in pairs.items()
    ):
        raise BadRequest(
            f"'metadata' takes {MAX_PAIRS} pairs of up to {MAX_KEY} and {MAX_VALUE} characters",
            param="metadata",
        )
    after = asked.output_expires_after
    keep = kept_for(after.anchor, after.seconds, "output_expires_after") if after else None
    return Wish(asked.input_file_id, asked.endpoint, window, float(seconds), asked.metadata, keep)


class BatchRoutes:
    """`/v1/batches` and what is below it.

    Args:
        gateway: what runs them.
        host: the application around.
    """

    def __init__(self, gateway: Gateway, host: Host) -> None:
        self._gateway = gateway
        self._host = host
        self.table: dict[str, dict[str, Handler]] = {
            "/batches": {"POST": self._create, "GET": self._list},
            "/batches/{batch_id}": {"GET": self._get},
            "/batches/{batch_id}/cancel": {"POST": self._cancel},
        }

    def find(self, path: str) -> dict[str, Handler] | None:
        """The handlers by method for `path` (without `/v1`); None if it is not one of these."""
        found = self.table.get(path)
        if found is not None or not path.startswith("/batches/"):
            return found
        id, slash, last = path.removeprefix("/batches/").partition("/")
        return self.table.get(f"/batches/{{batch_id}}{slash}{last}") if id else None

    async def _create(self, exchange: Exchange, caller: str) -> None:
        with self._host.room():
            wish = readable(exchange, decode, await self._host.body(exchange))
            made = await self._gateway.batches.create(caller, wish)
            await exchange.json(200, msgspec.json.encode(made))

    async def _list(self, exchange: Exchange, caller: str) -> None:
        query = query_of(exchange)
        size = number(query, "limit", PAGE, MAX_PAGE)
        page, more = await self._gateway.batches.page(caller, query.get("after"), size)
        await exchange.json(200, listed(page, more))

    async def _get(self, exchange: Exchange, caller: str) -> None:
        found = await self._gateway.batches.get(caller, _id(exchange))
        await exchange.json(200, msgspec.json.encode(found))

    async def _cancel(self, exchange: Exchange, caller: str) -> None:
        found = await self._gateway.batches.cancel(caller, _id(exchange))
        await exchange.json(200, msgspec.json.encode(found))


def _id(exchange: Exchange) -> str:
    return exchange.path.rstrip("/").partition("/batches/")[2].partition("/")[0]
