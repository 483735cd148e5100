"""Embeddings have a deadline and a record, like answers."""

from __future__ import annotations

import asyncio

import msgspec
import pytest

from llm_runner_router.errors import DeadlineExceeded, Overloaded
from llm_runner_router.policy.embed import GuardedEmbedder
from llm_runner_router.policy.record import RequestRecord
from llm_runner_router.testing import FakeClock, FakeEmbedder, Gate, a_call
from llm_runner_router.types import Call, Embeddings, EmbedRequest

ASKED = EmbedRequest("e", ("a b",))


class Kept:
    def __init__(self) -> None:
        self.records: list[RequestRecord] = []

    def put(self, record: RequestRecord) -> None:
        self.records.append(record)


class Slow:
    """Waits for a gate, then fails with a timeout of its own."""

    name = "slow"

    def __init__(self) -> None:
        self.gate = Gate()

    async def embed(self, request: EmbedRequest, call: Call) -> Embeddings:
        await self.gate.wait()
        raise TimeoutError("upstream's own")


async def test_a_good_embedding() -> None:
    kept, clock = Kept(), FakeClock(1.0)
    result = await GuardedEmbedder(FakeEmbedder("e"), kept, 5, clock).embed(ASKED, a_call())
    assert len(result.vectors) == 1
    (record,) = kept.records
    assert (record.status, record.target, record.total_ms) == (200, "e", 1000.0)
    assert record.usage is not None


async def test_an_error_is_recorded() -> None:
    kept = Kept()
    guarded = GuardedEmbedder(FakeEmbedder("e", error=Overloaded("full")), kept, 5, FakeClock())
    with pytest.raises(Overloaded):
        await guarded.embed(ASKED, a_call())
    (record,) = kept.records
    assert (record.status, record.error, record.message) == (503, "Overloaded", "full")


async def test_the_deadline() -> None:
    kept, loop = Kept(), asyncio.get_running_loop()
    call = Call(id="c", started=loop.time(), deadline=loop.time() + 0.02)
    with pytest.raises(DeadlineExceeded):
        await GuardedEmbedder(Slow(), kept, 1000, loop.time).embed(ASKED, call)
    with pytest.raises(DeadlineExceeded):
        await GuardedEmbedder(Slow(), kept, 0, loop.time).embed(ASKED, a_call())
    assert [record.status for record in kept.records] == [504, 504]


async def test_a_timeout_that_is_not_ours_stays_what_it_is() -> None:
    kept, slow, loop = Kept(), Slow(), asyncio.get_running_loop()
    slow.gate.open()
    call = msgspec.structs.replace(a_call(), started=loop.time())
    with pytest.raises(TimeoutError, match="upstream's own"):
        await GuardedEmbedder(slow, kept, 1000, loop.time).embed(ASKED, call)
    assert (kept.records[0].status, kept.records[0].error) == (500, "TimeoutError")


async def test_a_client_that_leaves() -> None:
    kept, slow, loop = Kept(), Slow(), asyncio.get_running_loop()
    call = msgspec.structs.replace(a_call(), started=loop.time())
    task = asyncio.create_task(GuardedEmbedder(slow, kept, 1000, loop.time).embed(ASKED, call))
    await slow.gate.reached.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert (kept.records[0].status, kept.records[0].client_gone) == (499, True)
