"""Questions in one dialect to an upstream of another, through two real servers.

    RemoteTarget of A ─► gateway, way in A ─► RemoteTarget of B ─► server, way in B ─► script

The first and the last are only there to speak the wire: what the script was asked and what came
back are values, so that what was lost on the way shows. Real clients and strict upstreams hold each
dialect to its documentation elsewhere (`tests/server`, `tests/providers`).
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import msgspec
from msgspec import Struct

from llm_runner_router.config import Secret, Server
from llm_runner_router.deltas import Answer, collect
from llm_runner_router.providers.hosts import find
from llm_runner_router.providers.http import HttpClient
from llm_runner_router.providers.remote import RemoteTarget
from llm_runner_router.server import serve
from llm_runner_router.surfaces.testing import KEY, FakeGateway
from llm_runner_router.testing import FakeTarget
from llm_runner_router.types import Call, Mark, Request

DIALECTS = {
    "OpenAI chat": ("openai", "/v1"),
    "OpenAI responses": ("openai-responses", "/v1"),
    "Anthropic": ("anthropic", "/v1"),
    "Gemini": ("google", "/v1beta"),
    "Cohere": ("cohere", "/v2"),
    "Bedrock": ("bedrock", ""),
}
"""Name to a host that speaks it, and where its routes are below a server of ours."""
MODEL = "m"


class Seen(Struct, frozen=True):
    """What became of one question."""

    asked: Request
    """As it arrived at the end."""
    answer: Answer
    """As it came back."""
    marks: dict[str, Mark]
    """What the gateway noted of its way to the upstream."""


class Pair:
    """A way in and a way out, and who is at the end of it."""

    def __init__(self, asker: RemoteTarget, end: FakeTarget, middle: _Noting) -> None:
        self._asker = asker
        self._end = end
        self.middle = middle

    async def ask(self, request: Request) -> Seen:
        """Ask, and see what became of it.

        Raises:
            RunnerError: what a client is told.
        """
        call = Call(id="req-1", started=0.0)
        async with self._asker.open(request, call) as deltas:
            answer = await collect(deltas)
        return Seen(self._end.requests[-1], answer, self.middle.marks)


class _Noting:
    """A target that remembers what was noted of a request on its way."""

    def __init__(self, target: RemoteTarget) -> None:
        self._target = target
        self.name = target.name
        self.marks: dict[str, Mark] = {}
        self.asked: Request | None = None

    @asynccontextmanager
    async def open(self, request: Request, call: Call) -> AsyncIterator[AsyncIterator[Any]]:
        self.asked = request
        async with self._target.open(request, call) as deltas:
            yield self._noted(deltas)

    async def _noted(self, deltas: AsyncIterator[Any]) -> AsyncIterator[Any]:
        async for delta in deltas:
            if delta.origin is not None:
                self.marks = delta.origin.fidelity
            yield delta


def _remote(dialect: str, url: str, client: HttpClient) -> RemoteTarget:
    name, prefix = DIALECTS[dialect]
    host = find(name)
    assert host is not None
    base = f"{url}{prefix}"
    return RemoteTarget(
        name=MODEL, model=MODEL, client=client, host=host, base_url=base, api_key=Secret(KEY)
    )


@asynccontextmanager
async def pair(way_in: str, way_out: str, script: Any) -> AsyncIterator[Pair]:
    """A client of `way_in`, a gateway, an upstream of `way_out` that follows `script`."""
    end = FakeTarget(MODEL, script)
    settings = Server(port=0, drain=0)
    async with HttpClient() as client, serve(FakeGateway({MODEL: end}), settings) as upstream:
        middle = _Noting(_remote(way_out, upstream, client))
        async with serve(FakeGateway({MODEL: middle}), settings) as gateway:
            yield Pair(_remote(way_in, gateway, client), end, middle)


def without_wire(request: Request) -> Request:
    """What a request asks, without how it was said."""
    return msgspec.structs.replace(request, wire=None, extra={}, stream=False, include_usage=False)
