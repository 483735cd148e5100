"""Several prompts in one request."""

from __future__ import annotations

import msgspec
import pytest

from llm_runner_router.deltas import collect
from llm_runner_router.errors import Overloaded
from llm_runner_router.surfaces.fan import WIDTH, fan
from llm_runner_router.testing import FakeTarget, Gate, a_call, deltas_of
from llm_runner_router.types import Call, Delta, Request, Sampling, Usage


def prompts(count: int, n: int = 1) -> list[Request]:
    return [Request("m", prompt=str(k), sampling=Sampling(n=n)) for k in range(count)]


def echo(request: Request, call: Call) -> list[Delta]:
    deltas: list[Delta] = []
    for index in range(request.sampling.n):
        so_far = Usage(index + 1, 2 * (index + 1))
        deltas += deltas_of(f"{request.prompt}/{index}", usage=so_far, index=index)
    return deltas


async def test_every_prompt_has_its_own_indices_and_the_usage_is_the_sum() -> None:
    target = FakeTarget("t", echo)
    async with fan(target, prompts(40, n=2), a_call()) as deltas:
        answer = await collect(deltas)
    assert [c.text for c in answer.choices] == [f"{k}/{i}" for k in range(40) for i in range(2)]
    assert answer.usage == Usage(40 * 2, 80 * 2)
    assert target.most_running <= WIDTH
    assert target.running == 0
    ids = {call.id for call in target.calls}
    assert len(ids) == 40, "each is recorded by itself"


async def test_the_first_failure_fails_all_and_stops_the_others() -> None:
    gate = Gate()

    def script(request: Request, call: Call) -> list[Delta | Exception | Gate]:
        return [Overloaded("full")] if request.prompt == "1" else [gate]

    target = FakeTarget("t", script)
    with pytest.raises(Overloaded):
        async with fan(target, prompts(3), a_call()) as deltas:
            await collect(deltas)
    assert target.running == 0


async def test_leaving_stops_everything() -> None:
    gate = Gate()
    target = FakeTarget("t", [Delta(text="x"), gate])
    async with fan(target, prompts(4), a_call()) as deltas:
        assert (await anext(deltas)).text == "x"
        await gate.reached.wait()
    assert target.running == 0


async def test_wire_bytes_do_not_survive_since_they_have_the_wrong_index() -> None:
    from llm_runner_router.types import Wire

    whole = Delta(text="x", finish="stop", wire=Wire("openai_completions", "body", b"{}"))
    async with fan(FakeTarget("t", [whole]), prompts(2), a_call()) as deltas:
        async for delta in deltas:
            assert msgspec.structs.asdict(delta)["wire"] is None
