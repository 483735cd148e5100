"""The conformance suite finds what it is there to find: targets with one fault each."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import msgspec
import pytest

from llm_runner_router.deltas import prime
from llm_runner_router.errors import BadRequest, RunnerError
from llm_runner_router.strategies.fallback import Fallback
from llm_runner_router.surfaces import openai_chat, openai_completions
from llm_runner_router.surfaces.base import Reply
from llm_runner_router.testing import (
    FakeEmbedder,
    FakeTarget,
    MakeTarget,
    a_call,
    check_embedder,
    check_situation,
    check_surface,
    check_target,
)
from llm_runner_router.types import Call, Delta, Embeddings, EmbedRequest, Request, Target


class Faulty:
    """A target with the usual shape; the tests below break one thing each."""

    def __init__(self, *targets: Target) -> None:
        self.name = "faulty"
        self.targets = targets
        self.kept: list[Any] = []


class NaiveRace(Faulty):
    """Cancels the losers, forgets those that succeeded in the same tick (style.md, trap 1)."""

    @asynccontextmanager
    async def open(self, request: Request, call: Call) -> AsyncIterator[AsyncIterator[Delta]]:
        async def enter(target: Target) -> tuple[AsyncExitStack, AsyncIterator[Delta]]:
            stack = AsyncExitStack()
            try:
                deltas = await stack.enter_async_context(target.open(request, call))
                return stack, await prime(deltas)
            except BaseException:
                await stack.aclose()
                raise

        tasks = [asyncio.create_task(enter(target)) for target in self.targets]
        done, pending = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in pending:
            task.cancel()
        await asyncio.gather(*pending, return_exceptions=True)
        stack, deltas = await next(iter(done))
        async with stack:
            yield deltas


class Unclosed(Faulty):
    """Never leaves what it entered."""

    @asynccontextmanager
    async def open(self, request: Request, call: Call) -> AsyncIterator[AsyncIterator[Delta]]:
        manager = self.targets[0].open(request, call)
        self.kept.append(manager)
        yield await manager.__aenter__()


class LeavesATask(Faulty):
    """Starts something and forgets it."""

    @asynccontextmanager
    async def open(self, request: Request, call: Call) -> AsyncIterator[AsyncIterator[Delta]]:
        self.kept.append(asyncio.create_task(asyncio.Event().wait()))
        async with self.targets[0].open(request, call) as deltas:
            yield deltas


class ForgetsToAwait(Faulty):
    """Makes a coroutine that nobody awaits."""

    @asynccontextmanager
    async def open(self, request: Request, call: Call) -> AsyncIterator[AsyncIterator[Delta]]:
        asyncio.sleep(0)  # type: ignore[unused-coroutine]  # the fault
        async with self.targets[0].open(request, call) as deltas:
            yield deltas


class BlamesTheTarget(Faulty):
    """Yields inside its `try`: the reader's error looks like the target's."""

    @asynccontextmanager
    async def open(self, request: Request, call: Call) -> AsyncIterator[AsyncIterator[Delta]]:
        for target in self.targets:
            try:
                async with target.open(request, call) as deltas:
                    yield await prime(deltas)
                    return
            except RunnerError:
                continue
        raise BadRequest("all failed")


class SwitchesInStream(Faulty):
    """Goes on with another target after the first delta."""

    @asynccontextmanager
    async def open(self, request: Request, call: Call) -> AsyncIterator[AsyncIterator[Delta]]:
        async def both() -> AsyncIterator[Delta]:
            for target in self.targets:
                try:
                    async with target.open(request, call) as deltas:
                        async for delta in deltas:
                            yield delta
                    return
                except RunnerError:
                    continue

        yield both()


class SwallowsCancelling(Faulty):
    """Does not stop when it is told to."""

    @asynccontextmanager
    async def open(self, request: Request, call: Call) -> AsyncIterator[AsyncIterator[Delta]]:
        async def stubborn(deltas: AsyncIterator[Delta]) -> AsyncIterator[Delta]:
            try:
                async for delta in deltas:
                    yield delta
            except asyncio.CancelledError:
                return

        async with self.targets[0].open(request, call) as deltas:
            yield stubborn(deltas)


class ChangesStatus(Faulty):
    """Makes its own error out of a bad request."""

    @asynccontextmanager
    async def open(self, request: Request, call: Call) -> AsyncIterator[AsyncIterator[Delta]]:
        async with self.targets[0].open(request, call) as deltas:
            try:
                primed = await prime(deltas)
            except BadRequest as exc:
                raise RunnerError("something failed") from exc
            yield primed


class DropsOrigin(Faulty):
    """Loses who answered."""

    @asynccontextmanager
    async def open(self, request: Request, call: Call) -> AsyncIterator[AsyncIterator[Delta]]:
        async def anonymous(deltas: AsyncIterator[Delta]) -> AsyncIterator[Delta]:
            async for delta in deltas:
                yield msgspec.structs.replace(delta, origin=None)

        async with self.targets[0].open(request, call) as deltas:
            yield anonymous(deltas)


FAULTS: list[tuple[MakeTarget, str, str]] = [
    (lambda fake: NaiveRace(fake("a"), fake("b")), "whole", "still open"),
    (lambda fake: Unclosed(fake("a")), "whole", "still open"),
    (lambda fake: Unclosed(fake("a")), "left_early", "still open"),
    (lambda fake: LeavesATask(fake("a")), "whole", "tasks were left"),
    (lambda fake: ForgetsToAwait(fake("a")), "whole", "never awaited"),
    (lambda fake: BlamesTheTarget(fake("a"), fake("b")), "reader_fails", "didn't stop"),
    (lambda fake: SwitchesInStream(fake("a"), fake("b")), "fails_in_stream", "as if it were whole"),
    (lambda fake: SwallowsCancelling(fake("a")), "cancelled_in_stream", "cancelling gave"),
    (lambda fake: ChangesStatus(fake("a")), "refuses", "expected BadRequest"),
    (lambda fake: DropsOrigin(fake("a")), "whole", "who answered"),
]


@pytest.mark.parametrize(("make", "situation", "words"), FAULTS)
async def test_a_fault_is_found(make: MakeTarget, situation: str, words: str) -> None:
    enabled = gc.isenabled()
    before = asyncio.all_tasks()
    with pytest.raises((AssertionError, RuntimeError), match=words):
        await check_situation(situation, make)
    assert gc.isenabled() == enabled, "the collector was not put back"
    for task in asyncio.all_tasks() - before:  # what the fault left
        task.cancel()
    await asyncio.sleep(0)


async def test_a_leaf_without_fakes_is_checked_where_nothing_is_scripted() -> None:
    class Leaf:
        name = "leaf"

        @asynccontextmanager
        async def open(self, request: Request, call: Call) -> AsyncIterator[AsyncIterator[Delta]]:
            async with FakeTarget("leaf").open(request, call) as deltas:
                yield deltas

    await check_target(lambda fake: Leaf())


async def test_check_target_runs_everything() -> None:
    await check_target(lambda fake: Fallback("f", [fake("a"), fake("b")]))


# ---------------------------------------------------------------- embedders and surfaces


async def test_the_fake_embedder_passes() -> None:
    await check_embedder(FakeEmbedder("e"))


class Neighbourly(FakeEmbedder):
    """Gives vectors that depend on what else is asked."""

    async def embed(self, request: EmbedRequest, call: Call) -> Embeddings:
        result = await super().embed(request, call)
        shift = float(len(request.inputs))
        vectors = tuple(tuple(x + shift for x in v) for v in result.vectors)
        return msgspec.structs.replace(result, vectors=vectors)


class Short(FakeEmbedder):
    """Forgets the last input."""

    async def embed(self, request: EmbedRequest, call: Call) -> Embeddings:
        result = await super().embed(request, call)
        return msgspec.structs.replace(result, vectors=result.vectors[:-1])


@pytest.mark.parametrize(
    ("embedder", "words"), [(Neighbourly("e"), "neighbours"), (Short("e"), "one vector per input")]
)
async def test_a_faulty_embedder_is_found(embedder: FakeEmbedder, words: str) -> None:
    with pytest.raises(AssertionError, match=words):
        await check_embedder(embedder, a_call())


async def test_our_surfaces_pass() -> None:
    def reply() -> Reply:
        return Reply("id", 0)

    await check_surface(
        openai_chat, [b'{"model": "m", "messages": [{"role": "user", "content": "hi"}]}'], reply
    )
    await check_surface(openai_completions, [b'{"model": "m", "prompt": "hi"}'], reply)
