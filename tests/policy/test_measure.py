"""Every attempt at a leaf is written down once, with how it ended and how fast it was."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest

from llm_runner_router.deltas import collect
from llm_runner_router.errors import Overloaded
from llm_runner_router.policy.measure import Measure
from llm_runner_router.strategies.stats import LiveStats
from llm_runner_router.testing import FakeClock, FakeTarget, Gate, Step, a_call, a_request
from llm_runner_router.types import Call, Delta, Usage, Wire


def measured(
    script: Sequence[Step], clock: FakeClock, enter: Sequence[Step] = ()
) -> tuple[Measure, LiveStats, FakeTarget]:
    stats = LiveStats(clock)
    target = FakeTarget("t", script, enter=enter)
    return Measure(target, stats, clock), stats, target


async def test_a_good_answer_and_its_speed() -> None:
    clock = FakeClock(100.0)
    usage = Usage(1, 5)
    target, stats, _ = measured([Delta(text="a"), Delta(finish="stop", usage=usage)], clock)
    call = Call(id="c", started=99.0)
    async with target.open(a_request(), call) as deltas:
        clock.advance(2)
        assert stats.snapshot("t").in_flight == 1
        await anext(deltas)
        clock.advance(4)
        await anext(deltas)
        assert [d async for d in deltas] == []
    (attempt,) = call.trace.attempts
    assert (attempt.target, attempt.outcome) == ("t", "ok")
    assert (attempt.started, attempt.ended) == (1.0, 7.0)
    found = stats.snapshot("t")
    assert (found.in_flight, found.requests, found.failures) == (0, 1, 0)
    assert found.first_token == 2.0
    assert found.speed == pytest.approx(1.0), "4 tokens after the first, in 4 seconds"


async def test_a_whole_body_says_nothing_about_the_first_token() -> None:
    clock = FakeClock()
    body = Delta(text="ab", finish="stop", usage=Usage(1, 6), wire=Wire("d", "body", b""))
    target, stats, _ = measured([body], clock)
    async with target.open(a_request(), a_call()) as deltas:
        clock.advance(3)
        await collect(deltas)
    found = stats.snapshot("t")
    assert (found.first_token, found.speed) == (None, 2.0)


async def test_without_usage_pieces_are_counted() -> None:
    clock = FakeClock()
    target, stats, _ = measured([Delta(text="a"), Delta(text="b"), Delta(finish="stop")], clock)
    async with target.open(a_request(), a_call()) as deltas:
        await collect(deltas)
    assert stats.snapshot("t").tokens == 2


@pytest.mark.parametrize("enter", [True, False])
async def test_a_failure(enter: bool) -> None:
    clock = FakeClock()
    error: list[Step] = [Overloaded("full")]
    target, stats, _ = measured([] if enter else error, clock, error if enter else ())
    call = a_call()
    with pytest.raises(Overloaded):
        async with target.open(a_request(), call) as deltas:
            await anext(deltas)
    (attempt,) = call.trace.attempts
    assert (attempt.outcome, attempt.message) == ("Overloaded", "full")
    assert (stats.snapshot("t").in_flight, stats.snapshot("t").errors) == (0, 1)


async def test_leaving_early_is_no_failure_of_the_target() -> None:
    clock = FakeClock()
    target, stats, _ = measured([Delta(text="a"), Delta(text="b")], clock)
    call = a_call()

    async def stumble() -> None:
        async with target.open(a_request(), call) as deltas:
            await anext(deltas)
            raise ZeroDivisionError  # the reader's own mistake

    with pytest.raises(ZeroDivisionError):
        await stumble()
    assert call.trace.attempts[0].outcome == "cancelled"
    assert stats.snapshot("t").errors == 0


async def test_a_cancelled_wait() -> None:
    clock = FakeClock()
    gate = Gate()
    target, stats, inner = measured([gate], clock)
    call = a_call()

    async def read() -> None:
        async with target.open(a_request(), call) as deltas:
            await anext(deltas)

    task = asyncio.create_task(read())
    await gate.reached.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert call.trace.attempts[0].outcome == "cancelled"
    assert (stats.snapshot("t").in_flight, inner.running) == (0, 0)


async def test_a_bug_in_a_target_has_a_name() -> None:
    target, _, _ = measured([KeyError("oops")], FakeClock())
    call = a_call()
    with pytest.raises(KeyError):
        async with target.open(a_request(), call) as deltas:
            await anext(deltas)
    assert call.trace.attempts[0].outcome == "KeyError"
