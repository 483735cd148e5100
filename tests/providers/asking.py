"""What the tests of `RemoteTarget` share: a target at a raw upstream, questions, faults."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import msgspec
import pytest

from llm_runner_router.config import Secret
from llm_runner_router.deltas import Answer, collect
from llm_runner_router.errors import (
    RunnerError,
)
from llm_runner_router.providers.http import HttpClient, Timeouts
from llm_runner_router.providers.remote import RemoteTarget
from llm_runner_router.types import (
    Call,
    Message,
    Request,
    Target,
)

from .upstream import (
    Answer as Reply,
)
from .upstream import (
    Seen,
    Upstream,
)

KEY = "sk-canary-7f3a9b2c4d5e6f708192a3b4c5d6e7f8"
SHORT = Timeouts(connect=1, first_byte=0.1, idle=0.1)
ASK = Request("asked", (Message("user", "hi"),), stream=True, include_usage=True)
ASK_WHOLE = msgspec.structs.replace(ASK, stream=False)


@asynccontextmanager
async def target_for(answer: Reply, **facts: Any) -> AsyncIterator[tuple[RemoteTarget, Upstream]]:
    async with Upstream(answer) as upstream, HttpClient() as client:
        settings: dict[str, Any] = {
            "name": "up/m",
            "base_url": f"{upstream.url}/v1",
            "model": "m",
            "api_key": Secret(KEY),
            "client": client,
            **facts,
        }
        yield RemoteTarget(**settings), upstream


def a_call(**fields: Any) -> Call:
    return Call(**{"id": "req-1", "started": 0.0, **fields})


async def ask(target: Target, request: Request = ASK, call: Call | None = None) -> Answer:
    async with target.open(request, call or a_call()) as deltas:
        return await collect(deltas)


async def broken(target: Target, request: Request = ASK, call: Call | None = None) -> RunnerError:
    with pytest.raises(RunnerError) as caught:
        await ask(target, request, call)
    return caught.value


def faulty(events: list[bytes], then: str) -> Reply:
    """Sends `events`, then closes, resets, hangs, or ends without `[DONE]`."""

    async def answer(seen: Seen) -> None:
        await seen.head()
        for data in events:
            await seen.chunk(data)
        if then == "end":
            await seen.end()
        elif then == "close":
            seen.close()
        elif then == "reset":
            await asyncio.sleep(0.01)  # a reset may overtake what was not read yet
            seen.reset()
        else:
            await seen.gone()

    return answer


async def hang(seen: Seen) -> None:
    await seen.gone()


async def head_then_hang(seen: Seen) -> None:
    await seen.head()
    await seen.gone()
