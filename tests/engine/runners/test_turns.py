"""Sequences that answers take turns with: what is kept of them, whoever leaves when."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from llm_runner_router.engine.runners.sampling import Logits
from llm_runner_router.engine.runners.turns import Pool, Turns

WAIT = 10.0


class Tape:
    """A session that remembers its tokens and rewinds when it is allowed to."""

    def __init__(self) -> None:
        self.tokens: list[int] = []
        self.rewinding = threading.Event()
        self.may_rewind = threading.Event()
        self.may_rewind.set()
        self.fails = False
        self.closed = False

    def feed(self, tokens: Sequence[int]) -> Logits:
        self.tokens += tokens
        return np.zeros(4, np.float32)

    def rewind(self, length: int) -> int:
        self.rewinding.set()
        assert self.may_rewind.wait(WAIT)
        if self.fails:
            raise RuntimeError("the cache cannot be cut")
        del self.tokens[length:]
        return length

    def close(self) -> None:
        self.closed = True


class Tapes:
    """Makes tapes, as a model makes sessions."""

    def __init__(self) -> None:
        self.made: list[Tape] = []

    def session(self) -> Tape:
        self.made.append(Tape())
        return self.made[-1]


@pytest.fixture
def tapes() -> Tapes:
    return Tapes()


async def fill(pool: Pool, turns: Turns, tokens: list[int]) -> int:
    """Use a session for `tokens`; how many were there already."""
    async with pool.session(tokens) as held:
        await turns.run(lambda: held.feed(tokens[held.cached :]))
        return held.cached


def pool_of(tapes: Any, turns: Turns) -> Pool:
    return Pool(tapes, 1, turns)


async def test_who_leaves_while_a_sequence_is_cut_leaves_no_wrong_beginning(tapes: Tapes) -> None:
    turns = Turns()
    pool = pool_of(tapes, turns)
    await fill(pool, turns, [1, 2, 3, 4, 5, 6])
    tape = tapes.made[0]
    tape.may_rewind.clear()
    leaving = asyncio.create_task(fill(pool, turns, [1, 2, 3, 9]))
    assert await asyncio.to_thread(tape.rewinding.wait, WAIT)
    leaving.cancel()
    await asyncio.sleep(0)
    tape.may_rewind.set()
    with pytest.raises(asyncio.CancelledError):
        await leaving
    wanted = [1, 2, 3, 4, 5, 6, 7]
    cached = await fill(pool, turns, wanted)
    used = tapes.made[-1]
    assert used.tokens == wanted, "what the engine has is what was asked for"
    assert cached <= len(wanted) - 1


async def test_a_sequence_that_could_not_be_cut_is_not_used_again(tapes: Tapes) -> None:
    turns = Turns()
    pool = pool_of(tapes, turns)
    await fill(pool, turns, [1, 2, 3, 4])
    tapes.made[0].fails = True
    with pytest.raises(RuntimeError):
        await fill(pool, turns, [1, 2, 9])
    assert tapes.made[0].closed
    assert await fill(pool, turns, [1, 2, 3, 4]) == 0
    assert len(tapes.made) == 2


async def test_who_is_cancelled_twice_still_waits_for_the_work_and_closes_after_it(
    tapes: Tapes,
) -> None:
    """The sequence is closed when nothing computes with it any more."""
    turns = Turns()
    pool = pool_of(tapes, turns)
    begun, go_on, was_closed = threading.Event(), threading.Event(), []

    async def compute() -> None:
        async with pool.session([1, 2]) as held:

            def slow() -> None:
                begun.set()
                assert go_on.wait(WAIT)
                was_closed.append(tapes.made[0].closed)
                raise RuntimeError("it failed")  # so that the sequence is not kept

            held._kept.sound = False
            await turns.run(slow)

    task = asyncio.create_task(compute())
    assert await asyncio.to_thread(begun.wait, WAIT)
    for _ in range(3):
        task.cancel()
        await asyncio.sleep(0)
        await asyncio.sleep(0)
    assert not tapes.made[0].closed
    go_on.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert was_closed == [False]
    assert tapes.made[0].closed
