"""Serves a loaded model until the process ends: what a Python engine's `serve` comes down to.

Knows: the order, the API, the event loop. Does not know: which engine.

    def serve(order, tell):
        serving.serve(order, tell, load)       # load(Order) -> Loaded
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import gc
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
    give_back()
    asyncio.run(_serve(api(loaded, told), told, tell))


def give_back() -> None:
    """Give memory that only loading needed back to the system, where that is known to be possible.

    Objects in cycles keep a mapped file (torch, 140 M weights of F16 made F32: 267 MiB), and glibc
    keeps what was freed between two things that are in use.
    """
    gc.collect()
    if sys.platform == "linux":
        with contextlib.suppress(OSError, AttributeError):  # musl has no such function
            ctypes.CDLL(None).malloc_trim(0)


async def _serve(api: Api, order: Order, tell: Tell) -> None:
    server = HttpServer(api.routes(), order.api_key)
    address = await server.listen()
    tell({"event": "listening", "address": address})
    try:
        await asyncio.Event().wait()
    finally:
        await server.close()
        api.close()
