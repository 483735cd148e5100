"""Routes that clients and orchestrators of a LiteLLM proxy use: health, facts of models, keys.

Knows: their paths and shapes. Does not know: how a model is asked. No model is asked here: whether
one is well is known from its last answers.
Shapes are those of LiteLLM's documentation, `docs/proxy/health.md` and
`docs/proxy/model_management.md`, read in November 2026.
"""

from __future__ import annotations

from typing import Any
from urllib.parse import parse_qs

import msgspec
from msgspec import Struct

from llm_runner_router.errors import Unsupported
from llm_runner_router.types import Capabilities, ModelCard

from . import veil
from .base import Deployment, Gateway
from .exchange import Exchange
from .host import Handler
from .litellm import deployment

_ABILITIES = {
    "supports_function_calling": "tools",
    "supports_response_schema": "json",
    "supports_vision": "images",
    "supports_audio_input": "audio",
}
_PRICES = {
    "input_cost_per_token": "input",
    "output_cost_per_token": "output",
    "cache_read_input_token_cost": "cached",
    "cache_creation_input_token_cost": "cache_write",
}
_encode = msgspec.json.Encoder().encode


class _Row(Struct, frozen=True):
    model_name: str
    litellm_params: dict[str, str]
    model_info: dict[str, Any]


class _Rows(Struct, frozen=True):
    data: list[_Row]


class _Endpoint(Struct, frozen=True, omit_defaults=True):
    model: str
    model_id: str
    error: str = ""


class _Health(Struct, frozen=True):
    healthy_endpoints: list[_Endpoint]
    unhealthy_endpoints: list[_Endpoint]
    healthy_count: int
    unhealthy_count: int


class LiteLLMRoutes:
    """`/health*`, `/model/info`, and `/key/*`, which says what there is instead.

    Args:
        gateway: what answers.
    """

    def __init__(self, gateway: Gateway) -> None:
        self._admin = gateway.admin
        self.public: dict[str, dict[str, Handler]] = {
            "/health/liveliness": {"GET": _alive},
            "/health/liveness": {"GET": _alive},
            "/health/readiness": {"GET": _ready},
        }
        """Those that need no key: they tell nothing but that the server is up."""
        self.table: dict[str, dict[str, Handler]] = {
            "/health": {"GET": self._health},
            "/model/info": {"GET": self._info},
            "/key/{verb}": {"GET": _keys, "POST": _keys},
        }

    def find(self, path: str) -> dict[str, Handler] | None:
        """The handlers by method for `path`; None if it is not one of these."""
        if path.startswith("/key/"):
            return self.table["/key/{verb}"]
        return self.table.get(path)

    async def _health(self, exchange: Exchange, caller: str) -> None:
        well: list[_Endpoint] = []
        ill: list[_Endpoint] = []
        for one in {one.name: one for one in self._admin.deployments()}.values():
            problem = veil.text(one.problem)
            row = _Endpoint(veil.text(one.target), deployment(one.name), problem)
            (ill if problem else well).append(row)
        await exchange.json(200, _encode(_Health(well, ill, len(well), len(ill))))

    async def _info(self, exchange: Exchange, caller: str) -> None:
        query = parse_qs(exchange.scope.get("query_string", b"").decode("ascii", "replace"))
        asked = query.get("litellm_model_id", [None])[-1]
        rows = [
            _row(one)
            for one in self._admin.deployments()
            if asked in (None, deployment(one.name)) and one.card is not None
        ]
        await exchange.json(200, _encode(_Rows(rows)))


def _row(one: Deployment) -> _Row:
    card = one.card or ModelCard(one.name)
    able = card.capabilities
    only_vectors = able == Capabilities(embeddings=True)
    info: dict[str, Any] = {
        "id": deployment(one.name),
        "db_model": False,
        "mode": "embedding" if only_vectors else "chat",
        "max_input_tokens": card.context or None,
        "max_output_tokens": card.max_output or None,
    }
    for theirs, ours in _PRICES.items():
        price = None if card.price is None else getattr(card.price, ours)
        info[theirs] = None if price is None else float(f"{price / 1e6:.12g}")
    for theirs, ours in _ABILITIES.items():
        info[theirs] = getattr(able, ours)
    return _Row(one.model, {"model": veil.text(one.target)}, info)


async def _alive(exchange: Exchange, caller: str) -> None:
    await exchange.json(200, b'"I\'m alive!"')


async def _ready(exchange: Exchange, caller: str) -> None:
    await exchange.json(200, b'{"status":"healthy","db":"Not connected"}')


async def _keys(exchange: Exchange, caller: str) -> None:
    raise Unsupported(
        "keys are not made or listed here yet: there is one key, for everything",
        hint="it is in `LLMRR_API_KEY`, in `general_settings.master_key`, or in the key file",
    )
