"""Random trees of strategies over random scripts, left or cancelled at random moments.

Whatever happens: everything that was opened is closed once, no task is left, the answer is that of
one single target, and only expected errors come out.
"""

from __future__ import annotations

import asyncio
import gc
from random import Random

import pytest

from llm_runner_router.errors import BadRequest, ConnectFailed, RunnerError, StreamBroken
from llm_runner_router.strategies.fallback import Fallback
from llm_runner_router.strategies.race import Race
from llm_runner_router.strategies.sticky import Sticky
from llm_runner_router.strategies.weighted import Weighted
from llm_runner_router.testing import FakeTarget, Gate, Step, a_call, a_request
from llm_runner_router.types import Delta, Target

SCHEDULES = 400


class World:
    """One random tree, and the gates its leaves wait at."""

    def __init__(self, seed: int) -> None:
        self.rng = Random(seed)
        self.leaves: list[FakeTarget] = []
        self.gates: list[Gate] = []
        self.root = self._tree(self.rng.randint(0, 3))

    def _tree(self, depth: int) -> Target:
        rng = self.rng
        if depth == 0 or rng.random() < 0.2:
            return self._leaf()
        targets = [self._tree(depth - 1) for _ in range(rng.randint(1, 3))]
        name = f"s{rng.random()}"
        match rng.randrange(4):
            case 0:
                return Fallback(name, targets)
            case 1:
                return Race(name, targets)
            case 2:
                return Weighted(name, [(target, 1.0) for target in targets], rng)
            case _:
                return Sticky(name, [(target, 1.0) for target in targets], "session", rng)

    def _leaf(self) -> FakeTarget:
        name = f"leaf{len(self.leaves)}"
        leaf = FakeTarget(name, self._script(name), enter=self._waits())
        self.leaves.append(leaf)
        return leaf

    def _waits(self) -> list[Step]:
        if self.rng.random() < 0.7:
            return []
        self.gates.append(Gate())
        return [self.gates[-1]]

    def _script(self, name: str) -> list[Step]:
        steps: list[Step] = []
        for i in range(self.rng.randint(0, 12)):
            steps += self._waits()
            if self.rng.random() < 0.1:
                steps.append(self.rng.choice([ConnectFailed("down"), StreamBroken("cut")]))
            elif self.rng.random() < 0.02:
                steps.append(BadRequest("no"))
            steps.append(Delta(text=f"{name}:{i};"))
        return [*steps, *self._waits(), Delta(finish="stop")]


async def reader(world: World, reads: int, got: list[str]) -> None:
    async with world.root.open(a_request(), a_call()) as deltas:
        async for delta in deltas:
            if delta.text:
                got.append(delta.text)
            reads -= 1
            if reads <= 0:
                return


async def play(seed: int) -> None:
    world = World(seed)
    rng = world.rng
    got: list[str] = []
    before = asyncio.all_tasks()
    task = asyncio.create_task(reader(world, rng.choice([1, 3, 100]), got))
    cancel_after = rng.choice([None, None, rng.randint(0, 60)])
    for moment in range(10_000):
        if task.done():
            break
        if moment == cancel_after:
            task.cancel()
        waiting = [gate for gate in world.gates if gate.reached.is_set()]
        if waiting and rng.random() < 0.5:
            rng.choice(waiting).open()
        await asyncio.sleep(0)
    assert task.done(), "it hangs"
    error = None if task.cancelled() else task.exception()
    assert error is None or isinstance(error, RunnerError), f"{error!r} came out"
    assert not task.cancelled() or cancel_after is not None
    assert {leaf.name: leaf.running for leaf in world.leaves if leaf.running} == {}
    assert asyncio.all_tasks() - before - {task} == set()
    assert len({text.partition(":")[0] for text in got}) <= 1, f"two targets in one answer: {got}"
    numbers = [int(text.rstrip(";").partition(":")[2]) for text in got]
    assert numbers == list(range(len(numbers))), f"deltas were lost or moved: {got}"


@pytest.mark.parametrize("part", range(4))
async def test_nothing_is_left_whatever_happens(part: int) -> None:
    gc.disable()
    try:
        for seed in range(part, SCHEDULES, 4):
            try:
                await play(seed)
            except AssertionError as error:
                error.add_note(f"seed {seed}")
                raise
    finally:
        gc.enable()
