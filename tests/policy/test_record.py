"""One record per request, however it ends, and nothing of its content unless that is wanted."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import msgspec
import pytest

from llm_runner_router.deltas import collect
from llm_runner_router.errors import Overloaded, RateLimited
from llm_runner_router.policy.record import Record, RequestRecord
from llm_runner_router.testing import FakeClock, FakeTarget, Gate, Step, a_request, deltas_of
from llm_runner_router.types import Attempt, Call, Decision, Delta, Origin, Price, Trace, Usage

SECRET = "the secret prompt"


class Kept:
    """A sink that only keeps."""

    def __init__(self) -> None:
        self.records: list[RequestRecord] = []

    def put(self, record: RequestRecord) -> None:
        self.records.append(record)


class Bench:
    """A recorded target and everything around it."""

    def __init__(
        self, script: Sequence[Step], *, enter: Sequence[Step] = (), content: bool = False
    ) -> None:
        self.clock = FakeClock(50.0)
        self.sink = Kept()
        self.inner = FakeTarget("t", script, enter=enter, price=Price(1.0, 2.0))
        self.target = Record(self.inner, self.sink, self.clock, content, wall=lambda: 1234.5)
        trace = Trace()
        self.call = Call(id="c1", started=49.0, caller="me", trace=trace)

    async def read(self, *, stream: bool = True) -> None:
        request = msgspec.structs.replace(a_request(SECRET, model="asked"), stream=stream)
        async with self.target.open(request, self.call) as deltas:
            self.clock.advance(1)
            async for _ in deltas:
                self.clock.advance(1)

    @property
    def record(self) -> RequestRecord:
        (record,) = self.sink.records
        return record


async def test_a_good_answer() -> None:
    bench = Bench([Delta(text="a"), Delta(text="b", finish="stop", usage=Usage(10, 3))])
    bench.call.trace.decisions.append(Decision("fallback", "auto", "first", task="maths"))
    bench.call.trace.decisions.append(Decision("auto", "t", "cheapest"))
    bench.call.trace.attempts.append(Attempt("t", 0, 1, "ok"))
    await bench.read()
    assert bench.record == RequestRecord(
        id="c1",
        time=1234.5,
        asked="asked",
        status=200,
        total_ms=4000.0,
        caller="me",
        stream=True,
        target="t",
        model="t",
        strategy="auto",
        task="maths",
        reason="cheapest",
        attempts=(Attempt("t", 0, 1, "ok"),),
        usage=Usage(10, 3),
        cost=(10 * 1.0 + 3 * 2.0) / 1e6,
        first_token_ms=2000.0,
        tokens_per_second=1.0,
        finish="stop",
    )


async def test_what_a_runner_was_known_to_have_stands_beside_what_it_had() -> None:
    usage = Usage(100, 3, cached_tokens=96)
    bench = Bench([Delta(text="a"), Delta(finish="stop", usage=usage)])
    bench.inner.origin = Origin("t", "m", local=True, expected=90)
    await bench.read()
    assert bench.record.expected_cached == 90
    assert bench.record.usage == usage


async def test_nothing_of_the_content_is_kept_by_default() -> None:
    bench = Bench(deltas_of("the secret answer"))
    await bench.read()
    assert b"secret" not in msgspec.json.encode(bench.record)


async def test_content_is_kept_when_it_is_wanted() -> None:
    bench = Bench(deltas_of("the secret answer"), content=True)
    await bench.read()
    assert bench.record.messages[0].text == SECRET
    assert bench.record.answer is not None
    assert bench.record.answer.text == "the secret answer"
    restored = msgspec.json.decode(msgspec.json.encode(bench.record), type=RequestRecord)
    assert restored.messages == bench.record.messages


@pytest.mark.parametrize("enter", [True, False])
async def test_an_error(enter: bool) -> None:
    error: list[Step] = [RateLimited("slow down")]
    bench = Bench([] if enter else error, enter=error if enter else ())
    with pytest.raises(RateLimited):
        await bench.read()
    record = bench.record
    assert (record.status, record.error, record.message) == (429, "RateLimited", "slow down")
    assert not record.client_gone


async def test_an_error_in_the_middle_counts_what_went_out() -> None:
    bench = Bench([Delta(text="a"), Delta(text="b"), Overloaded("x")])
    with pytest.raises(Overloaded):
        await bench.read()
    assert bench.record.usage == Usage(0, 2)
    assert bench.record.estimated
    assert bench.record.status == 503


async def test_a_client_that_leaves() -> None:
    gate = Gate()
    bench = Bench([Delta(text="a"), gate])
    task = asyncio.create_task(bench.read())
    await gate.reached.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    record = bench.record
    assert (record.status, record.client_gone, record.error) == (499, True, None)
    assert (record.usage, record.estimated) == (Usage(0, 1), True)
    assert bench.inner.running == 0


async def test_a_reader_that_stops_early_is_gone_and_one_that_saw_the_finish_is_not() -> None:
    for script, status in (([Delta(text="a")], 499), ([Delta(finish="stop")], 200)):
        bench = Bench([*script, Delta(text="more")])
        async with bench.target.open(a_request(), bench.call) as deltas:
            await anext(deltas)
        assert bench.record.status == status


async def test_a_failure_of_the_encoder_is_an_error_of_ours() -> None:
    bench = Bench(deltas_of("a"))

    async def stumble() -> None:
        async with bench.target.open(a_request(), bench.call) as deltas:
            await anext(deltas)
            raise ZeroDivisionError("bug")

    with pytest.raises(ZeroDivisionError):
        await stumble()
    assert (bench.record.status, bench.record.error) == (500, "ZeroDivisionError")


async def test_it_passes_on_what_the_target_gives() -> None:
    bench = Bench(deltas_of("a b c"))
    async with bench.target.open(a_request(), bench.call) as deltas:
        assert (await collect(deltas)).text == "a b c"
