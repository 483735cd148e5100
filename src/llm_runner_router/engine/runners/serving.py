"""Serves a loaded model until the process ends: what a Python engine's `serve` comes down to.

Knows: the order, the API, the event loop. Does not know: which engine.

    def serve(order, tell):
        serving.serve(order, tell, load)       # load(Order) -> Loaded
"""

from __future__ import annotations

import asyncio
import logging
import sys
from collections.abc import Callable
from typing import Any

import msgspec

from .api import Api
from .http import HttpServer
from .session import Loaded, Order

Tell = Callable[[dict[str, Any]], None]


def serve(
    order: dict[str, Any],
    tell: Tell,
    load: Callable[[Order], Loaded],
    api: Callable[[Loaded, Order], Api] = Api,
) -> None:
    """Load the model and answer on a private address; does not return.

    Args:
        order: what `engine.endpoint.order` made.
        tell: reports the address.
        load: loads the model; what it raises is reported.
        api: makes the routes; for an engine that draws tokens by itself.
    """
    logging.basicConfig(stream=sys.stderr, format="%(levelname)s %(message)s")
    told = msgspec.convert(order, Order)
    loaded = load(told)
    asyncio.run(_serve(api(loaded, told), told, tell))


async def _serve(api: Api, order: Order, tell: Tell) -> None:
    server = HttpServer(api.routes(), order.api_key)
    address = await server.listen()
    tell({"event": "listening", "address": address})
    try:
        await asyncio.Event().wait()
    finally:
        await server.close()
        api.close()
