"""Requests with different adapters take turns, in the order in which they came."""

from __future__ import annotations

import asyncio
from random import Random

import pytest

from llm_runner_router.engine.sets import Sets


class Visit:
    """A request that stays until it is told to leave."""

    def __init__(self, sets: Sets, wanted: str, seen: list[str], name: str = "") -> None:
        self._leave = asyncio.Event()
        self.inside = False
        self.task = asyncio.create_task(self._run(sets, wanted, seen, name or wanted))

    async def _run(self, sets: Sets, wanted: str, seen: list[str], name: str) -> None:
        async with sets.turn(wanted):
            seen.append(name)
            self.inside = True
            await self._leave.wait()
        self.inside = False

    async def leave(self) -> None:
        self._leave.set()
        await self.task


async def settle() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


async def test_those_of_one_set_are_in_together_and_others_wait_for_them() -> None:
    sets, seen = Sets(), list[str]()
    first, second, other = (Visit(sets, name, seen) for name in "aab")
    await settle()
    assert seen == ["a", "a"]
    await first.leave()
    await settle()
    assert not other.inside
    await second.leave()
    await settle()
    assert other.inside
    await other.leave()


async def test_nobody_is_passed_by_those_who_came_later() -> None:
    sets, seen = Sets(), list[str]()
    visits = [Visit(sets, name, seen, f"{name}{i}") for i, name in enumerate("abaabb")]
    await settle()
    assert seen == ["a0"], "the next a came after b"
    await visits[0].leave()
    await settle()
    assert seen == ["a0", "b1"]
    await visits[1].leave()
    await settle()
    assert seen == ["a0", "b1", "a2", "a3"]
    await asyncio.gather(*(visit.leave() for visit in visits))
    assert seen == ["a0", "b1", "a2", "a3", "b4", "b5"]


async def test_who_leaves_the_queue_makes_room_for_those_behind() -> None:
    sets, seen = Sets(), list[str]()
    first, gone, behind = (Visit(sets, name, seen) for name in "aba")
    await settle()
    gone.task.cancel()
    await settle()
    assert behind.inside, "nothing stands between it and the first any more"
    await asyncio.gather(first.leave(), behind.leave())
    assert seen == ["a", "a"]


async def test_who_is_let_in_and_cancelled_at_once_is_not_inside() -> None:
    sets, seen = Sets(), list[str]()
    first, second, third = (Visit(sets, name, seen) for name in "abc")
    await settle()
    await first.leave()
    second.task.cancel()  # its turn was given to it in the step before
    await asyncio.gather(second.task, return_exceptions=True)
    await settle()
    assert third.inside
    await third.leave()


@pytest.mark.parametrize("seed", range(20))
async def test_whatever_happens_everybody_has_a_turn_and_sets_never_mix(seed: int) -> None:
    random, sets, inside, served = Random(seed), Sets(), list[str](), 0

    async def ask(wanted: str, steps: int) -> None:
        nonlocal served
        async with sets.turn(wanted):
            inside.append(wanted)
            try:
                for _ in range(steps):
                    assert set(inside) == {wanted}
                    await asyncio.sleep(0)
                served += 1
            finally:
                inside.remove(wanted)

    tasks, cancelled = [], 0
    for _ in range(60):
        tasks.append(asyncio.create_task(ask(random.choice("abc"), random.randrange(4))))
        if random.random() < 0.5:
            await asyncio.sleep(0)
        if random.random() < 0.3:
            random.choice(tasks).cancel()
    done = await asyncio.gather(*tasks, return_exceptions=True)
    cancelled = sum(isinstance(one, asyncio.CancelledError) for one in done)
    assert served == 60 - cancelled
    async with asyncio.timeout(1), sets.turn("d"):
        pass
