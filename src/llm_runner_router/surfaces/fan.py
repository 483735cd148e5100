"""Several prompts in one request, as legacy completions allow: one target, many requests.

Knows: how to answer requests side by side and tell their choices apart by index. Does not know
any wire format.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Collection, Sequence
from contextlib import asynccontextmanager

import msgspec

from llm_runner_router.types import Call, Delta, Request, Target, Trace, Usage

WIDTH = 16
"""Requests of one fan that are in work at the same time."""


@asynccontextmanager
async def fan(
    target: Target, requests: Sequence[Request], call: Call
) -> AsyncIterator[AsyncIterator[Delta]]:
    """Answer `requests` side by side; choice `i` of request `k` gets index `k * n + i`.

    The usages are added up and come once, at the end. The first failure fails the whole; leaving
    stops everything.
    """
    queue: asyncio.Queue[Delta | BaseException | None] = asyncio.Queue(maxsize=WIDTH)
    turns = asyncio.Semaphore(WIDTH)
    usages: dict[int, Usage] = {}

    async def answer(k: int, request: Request) -> None:
        base = k * request.sampling.n
        try:
            async with turns, target.open(request, _own(call, k)) as deltas:
                async for delta in deltas:
                    if delta.usage is not None:
                        usages[k] = delta.usage  # of its answer so far
                    await queue.put(_moved(delta, base))
        except Exception as exc:  # handed to the reader, who raises it
            await queue.put(exc)
        else:
            await queue.put(None)

    tasks = [asyncio.create_task(answer(k, request)) for k, request in enumerate(requests)]
    try:
        yield _Merged(queue, len(tasks), usages)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def _own(call: Call, k: int) -> Call:
    """Every request is written down by itself; the first keeps the notebook that is shown."""
    if k == 0:
        return call
    return msgspec.structs.replace(call, id=f"{call.id}-{k}", trace=Trace())


def _moved(delta: Delta, base: int) -> Delta:
    return msgspec.structs.replace(delta, index=delta.index + base, usage=None, wire=None)


class _Merged:
    """The deltas of all, as they come, and their usage at the end."""

    def __init__(
        self,
        queue: asyncio.Queue[Delta | BaseException | None],
        running: int,
        usages: dict[int, Usage],
    ) -> None:
        self._queue = queue
        self._running = running
        self._usages = usages
        self._told = False

    def __aiter__(self) -> AsyncIterator[Delta]:
        return self

    async def __anext__(self) -> Delta:
        while self._running:
            item = await self._queue.get()
            if isinstance(item, Delta):
                return item
            if item is not None:
                raise item
            self._running -= 1
        if self._told or not self._usages:
            raise StopAsyncIteration
        self._told = True
        return Delta(usage=_sum(self._usages.values()))


def _sum(usages: Collection[Usage]) -> Usage:
    return Usage(
        sum(u.prompt_tokens for u in usages),
        sum(u.completion_tokens for u in usages),
        sum(u.cached_tokens for u in usages),
        sum(u.reasoning_tokens for u in usages),
    )
