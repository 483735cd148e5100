"""Thousands of random schedules: whatever happens in whatever order, the scheduler's laws hold.

A small world plays the processes: it starts, loads, fails, crashes and stops runners as the
effects say, with random delays, while requests come, leave and finish. After every event the laws
are checked; at the end the world calms down and everybody must have got an answer.
"""

from __future__ import annotations

import random
from math import inf

import pytest

from llm_runner_router.engine.effects import (
    Effect,
    Grant,
    Group,
    Limits,
    Need,
    Refuse,
    Start,
    Stop,
)
from llm_runner_router.engine.scheduler import Scheduler

SCHEDULES = 2400
STEPS = 100


class World:
    """Performs effects and checks every law after every event."""

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)
        rng = self.rng
        self.budget = rng.randrange(8, 30)
        self.limits = Limits(
            budget=self.budget,
            keep_alive=rng.choice((0, 5, 50)),
            max_queue=rng.choice((0, 1, 3, 8)),
            queue_timeout=rng.choice((10, 60)),
            patience=rng.choice((0, 2)),
            crash_window=20,
            crashes=3,
            backoff=1,
        )
        self.groups = [Group(name, rng.choice((1, 1, 2))) for name in "gh"[: rng.randrange(3)]]
        self.needs = [
            Need(
                key,
                bytes=rng.randrange(1, 14),
                slots=rng.randrange(1, 4),
                pinned=rng.random() < 0.15,
                model=key if rng.random() < 0.8 else "two purposes",
                groups=tuple(group for group in self.groups if rng.random() < 0.5),
            )
            for key in "abcde"[: rng.randrange(1, 6)]
        ]
        self.scheduler = Scheduler(self.limits)
        self.now = 0.0
        self.runners: dict[int, Need] = {}
        self.state: dict[int, str] = {}
        self.bytes: dict[int, int] = {}
        self.holding: dict[int, int] = {}
        self.waiting: dict[int, Need] = {}
        self.low: set[int] = set()
        self.ended: dict[int, str] = {}
        self.left: set[int] = set()
        self.tickets = 0
        self.history: list[str] = []

    # ------------------------------------------------------------ events

    def do(self, what: str, effects: list[Effect]) -> None:
        self.history.append(f"{self.now:.1f} {what} -> {effects}")
        for effect in effects:
            self.perform(effect)
        self.check()

    def perform(self, effect: Effect) -> None:
        match effect:
            case Start(runner=runner, key=key):
                need = next(n for n in self.needs if n.key == key)
                loading = [r for r, n in self.runners.items() if n.key == key]
                assert not any(self.state[r] == "loading" for r in loading), "two loads at once"
                assert runner not in self.state, "a number was used twice"
                self.runners[runner] = need
                self.bytes[runner] = need.bytes
                self.state[runner] = "loading"
            case Stop(runner=runner, why=why):
                assert self.state[runner] in ("loading", "ready"), "stopped twice"
                if why != "closing":
                    held = [t for t, r in self.holding.items() if r == runner]
                    assert not held, f"stopped ({why}) while it served {held}"
                if why in ("evicted", "idle"):
                    assert not self.runners[runner].pinned, f"a pinned model was {why}"
                self.state[runner] = "stopping"
            case Grant(ticket=ticket, runner=runner):
                assert self.state[runner] == "ready", f"granted a {self.state[runner]} runner"
                assert self.waiting.pop(ticket).key == self.runners[runner].key
                if ticket in self.low:
                    self.check_low(runner)
                self.holding[ticket] = runner
                self.end(ticket, "granted")
            case Refuse(ticket=ticket, why=why, retry_after=retry):
                del self.waiting[ticket]
                if why in ("overloaded", "timeout", "parked"):
                    assert retry is not None
                    assert retry >= 1
                self.end(ticket, "refused")

    def end(self, ticket: int, how: str) -> None:
        assert ticket not in self.ended, f"{ticket} ended twice"
        self.ended[ticket] = how

    # ------------------------------------------------------------ laws

    def check_low(self, runner: int) -> None:
        """A request of low priority may take a slot of `runner` now."""
        need = self.runners[runner]
        assert not self.queued(need.key), "it overtook somebody"
        held = [t for t, r in self.holding.items() if r == runner]
        assert not self.low.intersection(held), "two of low priority at once"
        assert not held or len(held) + 1 < need.slots, "it took the last slot"

    def queued(self, key: str) -> list[int]:
        """Those who wait for `key`, of usual priority."""
        return [t for t, n in self.waiting.items() if n.key == key and t not in self.low]

    def check(self) -> None:
        used = sum(self.bytes[runner] for runner in self.runners)
        assert used <= self.budget, f"{used} of {self.budget} bytes"
        for group in self.groups:
            there = {n.name for n in self.runners.values() if group in n.groups}
            assert len(there) <= group.at_once, f"{there} of {group}"
        for runner, need in self.runners.items():
            active = sum(1 for r in self.holding.values() if r == runner)
            assert active <= need.slots, f"{active} requests on {need.slots} slots"
        for need in self.needs:
            usual = len(self.queued(need.key))
            low = sum(1 for n in self.waiting.values() if n.key == need.key) - usual
            for waiting in (usual, low):
                most = self.limits.max_queue + need.slots
                assert waiting <= most, f"{waiting} wait for {need.key}"
        self.check_no_lost_wakeup()

    def check_no_lost_wakeup(self) -> None:
        """Nobody waits beside a free slot of the model's current runner."""
        for view in self.scheduler.models():
            if view.current is not None and view.queued:
                active = sum(1 for r in self.holding.values() if r == view.current)
                if not self.queued(view.key):
                    assert active, f"{view.key} is idle"
                    continue
                assert active == self.runners[view.current].slots, f"{view.key} has a free slot"
            if view.queued and view.current is None and view.coming is None:
                ends = any(s in ("stopping", "loading") for s in self.state.values())
                due = self.scheduler.next_event(self.now) is not None
                assert ends or due or self.holding, f"nothing will wake {view.key}"

    # ------------------------------------------------------------ chance

    def step(self) -> None:
        self.now += self.rng.choice((0, 0, 0.1, 0.5, 3))
        rng, s = self.rng, self.scheduler
        choice = rng.random()
        loading = [r for r, state in self.state.items() if state == "loading"]
        stopping = [r for r, state in self.state.items() if state == "stopping"]
        ready = [r for r, state in self.state.items() if state == "ready"]
        if choice < 0.35:
            self.request()
        elif choice < 0.5 and loading:
            self.loaded(rng.choice(loading))
        elif choice < 0.54 and loading:
            runner = rng.choice(loading)
            self.forget(runner)
            self.do(f"load_failed {runner}", s.on_load_failed(runner, "broken", self.now))
        elif choice < 0.62 and stopping:
            self.exit(rng.choice(stopping))
        elif choice < 0.64 and ready:
            self.exit(rng.choice(ready))
        elif choice < 0.80 and self.holding:
            self.release(rng.choice(list(self.holding)))
        elif choice < 0.86 and self.waiting:
            ticket = rng.choice(list(self.waiting))
            del self.waiting[ticket]
            self.end(ticket, "cancelled")
            self.do(f"cancel {ticket}", s.on_cancel(ticket, self.now))
        elif choice < 0.88:
            key = rng.choice(self.needs).key
            self.do(f"stop {key}", s.on_stop(key, self.now))
        elif choice < 0.90:
            key = rng.choice(self.needs).key
            self.do(f"replan {key}", s.on_replan(key, self.now))
        elif choice < 0.91:
            name, seconds = rng.choice(self.needs).name, rng.choice((None, 0, 1, 20, inf))
            self.do(f"keep {name} {seconds}", s.on_keep(name, seconds, self.now))
        else:
            self.do("tick", s.on_tick(self.now))

    def request(self) -> None:
        self.tickets += 1
        need = self.rng.choice(self.needs)
        low = self.rng.random() < 0.3
        self.waiting[self.tickets] = need
        if low:
            self.low.add(self.tickets)
        effects = self.scheduler.on_request(self.tickets, need, self.now, low=low)
        self.do(f"request {self.tickets} {need.key}{' low' * low}", effects)

    def loaded(self, runner: int) -> None:
        self.state[runner] = "ready"
        self.do(f"loaded {runner}", self.scheduler.on_loaded(runner, self.now))
        if self.rng.random() < 0.5 and runner in self.runners:
            count = self.rng.randrange(1, 16)
            self.bytes[runner] = min(self.bytes[runner], count)
            self.do(f"measured {count}", self.scheduler.on_measured(runner, count, self.now))

    def exit(self, runner: int) -> None:
        crashed = self.state[runner] == "ready"
        self.forget(runner)
        self.do(
            f"exit {runner}", self.scheduler.on_exit(runner, "gone" if crashed else "", self.now)
        )

    def forget(self, runner: int) -> None:
        del self.runners[runner], self.state[runner]
        # Those it served find out and give their leases back later; the slots are gone already.
        for ticket in [t for t, r in self.holding.items() if r == runner]:
            del self.holding[ticket]
            self.left.add(ticket)

    def release(self, ticket: int) -> None:
        del self.holding[ticket]
        self.do(f"release {ticket}", self.scheduler.on_release(ticket, self.now))

    def calm_down(self) -> None:
        """Every load succeeds, every stop ends, every request finishes: all must be answered."""
        for _ in range(2000):
            for ticket in list(self.left):
                self.left.discard(ticket)
                self.do(f"late release {ticket}", self.scheduler.on_release(ticket, self.now))
            for runner, state in list(self.state.items()):
                if state == "stopping":
                    self.exit(runner)
                elif state == "loading":
                    self.loaded(runner)
            for ticket in list(self.holding):
                self.release(ticket)
            if not self.waiting and not self.holding:
                return
            due = self.scheduler.next_event(self.now)
            busy = any(state in ("loading", "stopping") for state in self.state.values())
            assert due is not None or busy or self.holding, f"stuck: {self.waiting}"
            if due is not None and not busy and not self.holding:
                self.now = due
                self.do("tick", self.scheduler.on_tick(self.now))
        raise AssertionError(f"never answered: {self.waiting}")


def play(seed: int) -> World:
    world = World(seed)
    try:
        for _ in range(STEPS):
            world.step()
        world.calm_down()
        assert len(world.ended) == world.tickets, "somebody got no answer"
        world.do("close", world.scheduler.on_close(world.now))
        assert not any(state in ("ready", "loading") for state in world.state.values())
    except AssertionError as exc:
        tail = "\n".join(world.history[-25:])
        raise AssertionError(f"seed {seed}: {exc}\n{world.needs}\n{world.limits}\n{tail}") from exc
    return world


@pytest.mark.parametrize("part", range(6))
def test_random_schedules_keep_the_laws(part: int) -> None:
    ends: dict[str, int] = {}
    for seed in range(part * SCHEDULES // 6, (part + 1) * SCHEDULES // 6):
        for how in play(seed).ended.values():
            ends[how] = ends.get(how, 0) + 1
    assert set(ends) == {"granted", "refused", "cancelled"}
    assert ends["granted"] > 2000, f"the schedules serve too little to prove anything: {ends}"


@pytest.mark.long
@pytest.mark.timeout(900)
@pytest.mark.parametrize("part", range(8))
def test_many_more_schedules(part: int) -> None:
    for seed in range(100_000 + part * 5000, 100_000 + (part + 1) * 5000):
        play(seed)
