"""Several choices of one request: as many requests side by side, told apart by index.

The engine has its own way (`n`), but counts the tokens of one choice only and refuses more choices
than it has slots; here each choice takes a slot like any other request, and all are counted. Knows:
targets and deltas. Does not know: engines.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager

import msgspec

from llm_runner_router.types import Delta, Request, Usage

AHEAD = 32
"""Deltas that may wait for the reader."""

Open = Callable[[Request], AbstractAsyncContextManager[AsyncIterator[Delta]]]


@asynccontextmanager
async def choices(open_one: Open, request: Request) -> AsyncIterator[AsyncIterator[Delta]]:
    """Answer `request` with `sampling.n` choices; choice `i` draws with `seed + i`.

    The usage comes once, at the end: the prompt counted once, as OpenAI does, and the tokens of
    all choices. The first failure fails the whole; leaving stops everything.
    """
    queue: asyncio.Queue[Delta | Exception | None] = asyncio.Queue(maxsize=AHEAD)
    count = request.sampling.n

    async def answer(index: int) -> None:
        try:
            async with open_one(_single(request, index)) as deltas:
                async for delta in deltas:
                    await queue.put(msgspec.structs.replace(delta, index=index, wire=None))
        except Exception as exc:  # whatever it is, the reader raises it
            await queue.put(exc)
        else:
            await queue.put(None)

    tasks = [asyncio.create_task(answer(index)) for index in range(count)]
    try:
        yield _Merged(queue, count)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def _single(request: Request, index: int) -> Request:
    seed = request.sampling.seed
    sampling = msgspec.structs.replace(
        request.sampling, n=1, seed=None if seed is None else seed + index
    )
    extra = {name: value for name, value in request.extra.items() if name != "best_of"}
    return msgspec.structs.replace(request, sampling=sampling, extra=extra, wire=None)


class _Merged:
    """The deltas of all choices as they come, then their usage."""

    def __init__(self, queue: asyncio.Queue[Delta | Exception | None], running: int) -> None:
        self._queue = queue
        self._running = running
        self._usages: list[Usage] = []

    def __aiter__(self) -> AsyncIterator[Delta]:
        return self

    async def __anext__(self) -> Delta:
        while self._running:
            item = await self._queue.get()
            if isinstance(item, Exception):
                raise item
            if item is None:
                self._running -= 1
                continue
            if item.usage is not None:
                self._usages.append(item.usage)
                item = msgspec.structs.replace(item, usage=None)
            return item
        if not self._usages:
            raise StopAsyncIteration
        usages, self._usages = self._usages, []
        return Delta(
            usage=Usage(
                prompt_tokens=usages[0].prompt_tokens,
                completion_tokens=sum(u.completion_tokens for u in usages),
                cached_tokens=usages[0].cached_tokens,
                reasoning_tokens=sum(u.reasoning_tokens for u in usages),
            )
        )
