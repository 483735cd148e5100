"""One deadline for a whole answer, kept at every wait, and never in the reader's own work."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import msgspec
import pytest

from llm_runner_router.deltas import collect
from llm_runner_router.errors import DeadlineExceeded, Overloaded
from llm_runner_router.policy.deadline import Deadline
from llm_runner_router.testing import FakeClock, FakeTarget, Gate, a_call, a_request, deltas_of
from llm_runner_router.types import Call, Delta, Request

SHORT = 0.02
LONG = 1000.0


def real(target: FakeTarget, seconds: float) -> tuple[Deadline, Call]:
    clock = asyncio.get_running_loop().time
    return Deadline(target, seconds, clock), Call(id="c", started=clock())


async def test_an_answer_in_time_is_untouched() -> None:
    target, call = real(FakeTarget("t", deltas_of("a b")), LONG)
    async with target.open(a_request(), call) as deltas:
        assert (await collect(deltas)).text == "a b"
    assert target.name == "t"


async def test_time_runs_out_while_opening() -> None:
    inner = FakeTarget("t", enter=[Gate()])
    target, call = real(inner, SHORT)
    with pytest.raises(DeadlineExceeded, match=r"0\.02 s"):
        async with target.open(a_request(), call):
            raise AssertionError("it cannot open")
    assert (inner.running, inner.cancelled) == (0, 1)


async def test_time_runs_out_while_waiting_for_a_delta() -> None:
    inner = FakeTarget("t", [Delta(text="x"), Gate()])
    target, call = real(inner, SHORT)
    async with target.open(a_request(), call) as deltas:
        assert (await anext(deltas)).text == "x"
        with pytest.raises(DeadlineExceeded) as caught:
            await anext(deltas)
        assert caught.value.target == "t"
        with pytest.raises(DeadlineExceeded):
            await anext(deltas)
    assert (inner.running, inner.cancelled) == (0, 1)
    task = asyncio.current_task()
    assert task is not None
    assert task.cancelling() == 0, "our own cancellation was taken back"


async def test_the_readers_own_work_is_not_interrupted() -> None:
    inner = FakeTarget("t", deltas_of("a b"))
    clock = FakeClock()
    async with Deadline(inner, 5, clock).open(a_request(), a_call()) as deltas:
        await anext(deltas)
        clock.advance(6)
        await asyncio.sleep(0)  # the reader works on; only its next question is refused
        with pytest.raises(DeadlineExceeded):
            await anext(deltas)


async def test_a_deadline_that_has_passed_starts_nothing() -> None:
    inner = FakeTarget("t")
    clock = FakeClock(10.0)
    with pytest.raises(DeadlineExceeded):
        async with Deadline(inner, 5, clock).open(a_request(), a_call()):
            raise AssertionError("it cannot open")
    assert inner.opened == 0


@pytest.mark.parametrize(("asked", "effective"), [(None, 5.0), (3.0, 3.0), (9.0, 5.0)])
async def test_the_earlier_deadline_counts(asked: float | None, effective: float) -> None:
    inner = FakeTarget("t")
    call = msgspec.structs.replace(a_call(), deadline=asked)
    async with Deadline(inner, 5, FakeClock()).open(a_request(), call) as deltas:
        await collect(deltas)
    assert inner.calls[0].deadline == effective
    assert inner.calls[0].trace is call.trace


async def test_a_cancellation_from_outside_stays_one() -> None:
    gate = Gate()
    inner = FakeTarget("t", [gate])

    async def read() -> None:
        target, call = real(inner, LONG)
        async with target.open(a_request(), call) as deltas:
            await anext(deltas)

    task = asyncio.create_task(read())
    await gate.reached.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert inner.running == 0


class Stubborn:
    """Swallows a cancellation and gives something else instead."""

    name = "stubborn"

    def __init__(self, instead: Delta | Exception) -> None:
        self._instead = instead

    @asynccontextmanager
    async def open(self, request: Request, call: Call) -> AsyncIterator[AsyncIterator[Delta]]:
        yield self._deltas()

    async def _deltas(self) -> AsyncIterator[Delta]:
        try:
            await Gate().wait()
        except asyncio.CancelledError:
            if isinstance(self._instead, Exception):
                raise self._instead from None
            yield self._instead


@pytest.mark.parametrize("instead", [Delta(text="x"), Overloaded("x")])
async def test_a_target_that_swallows_the_cancellation_gains_nothing(
    instead: Delta | Exception,
) -> None:
    clock = asyncio.get_running_loop().time
    target = Deadline(Stubborn(instead), SHORT, clock)
    async with target.open(a_request(), Call(id="c", started=clock())) as deltas:
        with pytest.raises(DeadlineExceeded):
            await anext(deltas)
    task = asyncio.current_task()
    assert task is not None
    assert task.cancelling() == 0


async def test_the_targets_own_error_comes_through() -> None:
    target, call = real(FakeTarget("t", [Overloaded("full")]), LONG)
    with pytest.raises(Overloaded):
        async with target.open(a_request(), call) as deltas:
            await anext(deltas)
