"""Race: the first delta wins, and nothing of the others is left, however it ends."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager

import pytest

from llm_runner_router.deltas import collect
from llm_runner_router.errors import (
    BadRequest,
    ConfigError,
    ConnectFailed,
    RateLimited,
    RunnerError,
    StreamBroken,
    Unavailable,
)
from llm_runner_router.strategies.fallback import Fallback
from llm_runner_router.strategies.race import AHEAD, Race
from llm_runner_router.testing import FakeTarget, Gate, a_call, a_request, deltas_of
from llm_runner_router.types import Call, Delta, Request


async def test_the_first_delta_wins_whatever_the_order() -> None:
    slow, fast = Gate(), Gate()
    a = FakeTarget("a", [slow, *deltas_of("from a")])
    b = FakeTarget("b", [fast, *deltas_of("from b")])
    call = a_call()

    async def read() -> str:
        async with Race("r", [a, b]).open(a_request(), call) as deltas:
            return (await collect(deltas)).text

    task = asyncio.create_task(read())
    await slow.reached.wait()
    await fast.reached.wait()
    fast.open()
    assert await task == "from b"
    assert (a.cancelled, a.running, b.running) == (1, 0, 0)
    (decision,) = call.trace.decisions
    assert (decision.strategy, decision.chosen) == ("race", "b")
    assert decision.reason == "first of 2 to give a token"


async def test_a_loser_that_succeeded_in_the_same_tick_is_closed() -> None:
    contenders = [FakeTarget(name, deltas_of("one two three")) for name in "abc"]
    gc.disable()
    try:
        async with Race("r", contenders).open(a_request(), a_call()) as deltas:
            await anext(deltas)
        assert [c.running for c in contenders] == [0, 0, 0]
    finally:
        gc.enable()


async def test_losers_are_stopped_while_the_winner_still_speaks() -> None:
    held, more = Gate(), Gate()
    loser = FakeTarget("loser", [held])
    winner = FakeTarget("winner", [*deltas_of("one", finish=None), more, *deltas_of("two")])
    async with Race("r", [loser, winner]).open(a_request(), a_call()) as deltas:
        await anext(deltas)
        await more.reached.wait()
        for _ in range(3):
            await asyncio.sleep(0)
        assert (loser.running, winner.running) == (0, 1)
        more.open()
        assert (await collect(deltas)).text == "two"


async def test_a_failure_leaves_the_race_to_the_others() -> None:
    gate = Gate()
    a = FakeTarget("a", [ConnectFailed("down")])
    b = FakeTarget("b", [gate, *deltas_of("from b")])
    race = Race("r", [a, b])

    async def read() -> str:
        async with race.open(a_request(), a_call()) as deltas:
            return (await collect(deltas)).text

    task = asyncio.create_task(read())
    await gate.reached.wait()
    gate.open()
    assert await task == "from b"


async def error_of(*failures: BaseException) -> BaseException:
    targets = [FakeTarget(f"t{i}", [failure]) for i, failure in enumerate(failures)]
    with pytest.raises(Exception) as caught:  # noqa: PT011  # the caller looks at it
        async with Race("r", targets).open(a_request(), a_call()):
            raise AssertionError("entered")
    assert [t.running for t in targets] == [0] * len(targets)
    return caught.value


async def test_all_failed() -> None:
    error = await error_of(ConnectFailed("down"), RateLimited("slow", retry_after=3))
    assert isinstance(error, Unavailable)
    assert error.retry_after == 3
    assert isinstance(error.__cause__, ExceptionGroup)
    same = await error_of(RateLimited("slow"), RateLimited("slower"))
    assert isinstance(same, RunnerError)
    assert same.status == 429


async def test_a_wrong_request_ends_the_race_at_once() -> None:
    held = Gate()
    hanging = FakeTarget("hanging", [held])
    refusing = FakeTarget("refusing", [BadRequest("no")])
    with pytest.raises(BadRequest):
        async with Race("r", [hanging, refusing]).open(a_request(), a_call()):
            raise AssertionError("entered")
    assert hanging.running == 0


async def test_a_bug_comes_out() -> None:
    assert isinstance(await error_of(ZeroDivisionError(), ConnectFailed("x")), ZeroDivisionError)


async def test_a_contender_that_is_cancelled_from_inside_only_loses() -> None:
    """For example a task group inside it that gave up: no news would let the race hang."""
    error = await error_of(asyncio.CancelledError(), ConnectFailed("down"))
    assert isinstance(error, Unavailable)
    broken = FakeTarget("a", [*deltas_of("one", finish=None), asyncio.CancelledError()])
    with pytest.raises(StreamBroken):
        async with Race("r", [broken]).open(a_request(), a_call()) as deltas:
            await collect(deltas)


async def test_a_fast_winner_waits_for_a_slow_reader() -> None:
    script = [Delta(text=str(i)) for i in range(AHEAD * 4)] + [Delta(finish="stop")]
    given = 0

    def count(*_: object) -> Iterator[Delta]:
        nonlocal given
        for delta in script:
            given += 1
            yield delta

    async with Race("r", [FakeTarget("a", count)]).open(a_request(), a_call()) as deltas:
        await anext(deltas)
        for _ in range(AHEAD * 8):
            await asyncio.sleep(0)
        assert given <= AHEAD + 3, f"{given} deltas were taken for a reader that read one"
        assert (await collect(deltas)).text == "".join(d.text for d in script[1:])


async def test_only_the_winner_writes_decisions_and_notes() -> None:
    held = Gate()
    loser = Fallback("loser", [FakeTarget("x", [ConnectFailed("x")]), FakeTarget("y", [held])])
    winner = Fallback("winner", [FakeTarget("a", [ConnectFailed("a")]), FakeTarget("b")])
    call = a_call()
    async with Race("r", [loser, winner]).open(a_request(), call) as deltas:
        assert (await collect(deltas)).text == "b"
    assert [d.chosen for d in call.trace.decisions] == ["winner", "b"]


async def test_cancelling_twice_still_closes_everybody() -> None:
    closing = asyncio.Event()
    may_close = asyncio.Event()
    done: list[str] = []

    class Lingering:
        name = "lingering"

        @asynccontextmanager
        async def open(self, request: Request, call: Call) -> AsyncIterator[AsyncIterator[Delta]]:
            async with FakeTarget("inner", [Gate()]).open(request, call) as deltas:
                try:
                    yield deltas
                finally:
                    closing.set()
                    await asyncio.shield(may_close.wait())
                    done.append("closed")

    async def read() -> None:
        async with Race("r", [Lingering()]).open(a_request(), a_call()):
            raise AssertionError("entered")

    task = asyncio.create_task(read())
    for _ in range(3):
        await asyncio.sleep(0)
    task.cancel()
    await closing.wait()
    task.cancel()
    await asyncio.sleep(0)
    may_close.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert done == ["closed"]


def test_a_race_of_nobody_is_a_mistake_of_the_configuration() -> None:
    with pytest.raises(ConfigError):
        Race("r", [])
