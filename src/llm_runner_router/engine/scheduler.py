"""Who is loaded, who waits, who is evicted: a state machine without I/O.

Knows: models by key, runners by number, requests by ticket, bytes, time as an argument. Does not
know: processes, files, HTTP, clocks. Events come in through `on_…`, effects come out as a list;
whoever owns the scheduler (`residency.py`) performs them in order and reports back by events.

    request ─ waits in its model's queue ─► Grant ─► release            or Refuse, or cancel
    runner  ─ Start ─► loading ─► ready ─► retiring (finishes its requests) ─► stopping ─► exit

Laws, which the tests check on random schedules:
- bytes of all runners that are not gone never exceed the budget;
- a runner has at most its slots of requests, a model at most one loading runner;
- every request ends once: granted, refused or cancelled; nothing waits while it could be served;
- neither a pinned runner nor one with requests is evicted;
- of a group of models, no more are there than may be at once;
- a request of low priority is granted when no other waits for the model, one at a time for each
  runner, and the last free slot only where nothing else is served; it drains no model in use.

Roads not taken: eviction by count (llama.cpp's router mode) ignores that models differ a
thousandfold in size; a lock per model (ollama) makes the order of wake-ups luck.
"""

from __future__ import annotations

from collections import deque
from math import inf

import msgspec

from .effects import (
    Effect,
    Grant,
    Group,
    Left,
    Limits,
    ModelView,
    Need,
    Refuse,
    RunnerView,
    Start,
    Stop,
    Why,
)
from .evict import Crowd, Resident, make_room
from .state import ModelState, RunnerState, WaiterState


class Scheduler:
    """The state machine. Every `on_…` returns the effects to perform, in order."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self._models: dict[str, ModelState] = {}
        self._runners: dict[int, RunnerState] = {}
        self._granted: dict[int, int] = {}
        self._keep: dict[str, float] = {}
        """Seconds that models stay by their names, where somebody wished for others than usual."""
        self._next = 1
        self._closed = False
        self._out: list[Effect] = []

    # ------------------------------------------------------------ events

    def on_request(self, ticket: int, need: Need, now: float, *, low: bool = False) -> list[Effect]:
        """Somebody wants `need`; with `low` after everybody else, and in a queue as long as theirs.

        1. Closing, 2. larger than the budget or shut out by a pinned one, 3. parked after crashes,
        4. queue full: refused. 5. Otherwise it waits its turn, which may come at once.
        """
        model = self._model(need)
        model.held = False
        model.uses = model.uses.another(now)
        if self._closed:  # 1
            self._refuse(ticket, "closing", "the gateway is shutting down")
        elif (message := self._too_big(need)) is not None:  # 2
            self._refuse(ticket, "too_big", message)
        elif now < model.parked_until:  # 3
            self._refuse_parked(ticket, model, now)
        elif self._is_full(model, low):  # 4
            wait = self._estimate(model)
            queued = len(model.waiters)
            self._refuse(ticket, "overloaded", f"{queued} requests already wait for it", wait)
        else:  # 5
            at = len(model.waiters) if low else sum(not w.low for w in model.waiters)
            model.waiters.insert(at, WaiterState(ticket, now, low))
        return self._flush(now)

    def on_pin(self, need: Need, now: float) -> list[Effect]:
        """Keep `need` loaded from now on, also when nobody asks."""
        self._model(need)
        return self._flush(now)

    def on_keep(self, name: str, seconds: float | None, now: float) -> list[Effect]:
        """Unload the model called `name` when it was idle for `seconds`; None: as usual."""
        if seconds is None:
            self._keep.pop(name, None)
        else:
            self._keep[name] = seconds
        return self._flush(now)

    def on_loaded(self, runner: int, now: float) -> list[Effect]:
        """The process answers; an older runner of the model takes no new requests."""
        found = self._runners.get(runner)
        if found is not None and found.state == "loading":
            model = self._models[found.key]
            found.state, found.last_used = "ready", now
            found.bytes = found.need.bytes
            took = now - found.since
            model.reload = took if not model.reload else model.reload + 0.3 * (took - model.reload)
            model.coming = None
            if model.current is not None:
                self._retire(self._runners[model.current], "replaced")
            model.current = runner
        return self._flush(now)

    def on_measured(self, runner: int, count: int, now: float) -> list[Effect]:
        """What a loaded runner takes at most, without its engine's code, was measured: less than
        was reserved becomes free.

        More is not noted here: memory that is taken already cannot be refused.
        """
        found = self._runners.get(runner)
        if found is not None:
            found.bytes = min(found.bytes, max(0, count))
        return self._flush(now)

    def on_load_failed(self, runner: int, message: str, now: float) -> list[Effect]:
        """The process ended or was given up before it answered."""
        found = self._runners.pop(runner, None)
        if found is None:
            return self._flush(now)
        model = self._models[found.key]
        if found.state == "loading":
            model.coming = None
            self._note_failure(model, message, now)
            if model.current is None:
                for waiter in model.waiters:
                    self._refuse(waiter.ticket, "load_failed", message)
                model.waiters.clear()
        return self._flush(now)

    def on_exit(self, runner: int, message: str, now: float) -> list[Effect]:
        """The process of a runner that had been ready is gone, wanted or not."""
        found = self._runners.pop(runner, None)
        if found is None:
            return self._flush(now)
        for ticket in found.active:
            self._granted.pop(ticket, None)
        model = self._models[found.key]
        if model.coming == runner:
            model.coming = None
        if model.current == runner:
            model.current = None
        if found.state != "stopping":
            self._note_failure(model, message, now)
        return self._flush(now)

    def on_release(self, ticket: int, now: float) -> list[Effect]:
        """A granted request is done, however it ended."""
        runner = self._runners.get(self._granted.pop(ticket, 0))
        if runner is not None:
            since = runner.active.pop(ticket)
            runner.low = None if runner.low == ticket else runner.low
            runner.last_used = now
            model = self._models[runner.key]
            model.seconds += 0.2 * (now - since - model.seconds)
            if not runner.active and runner.state == "retiring":
                self._stop(runner, runner.draining)
        return self._flush(now)

    def on_cancel(self, ticket: int, now: float) -> list[Effect]:
        """A request leaves, waiting or granted."""
        if ticket in self._granted:
            return self.on_release(ticket, now)
        for model in self._models.values():
            for waiter in model.waiters:
                if waiter.ticket == ticket:
                    model.waiters.remove(waiter)
                    return self._flush(now)
        return self._flush(now)

    def on_stop(self, key: str, now: float) -> list[Effect]:
        """Unload a model: at once if idle, else after the requests it is answering.

        Those that wait for it are served by a new runner, as if they had come later.
        """
        model = self._models.get(key)
        if model is not None:
            model.held = not model.waiters
            for number in (model.current, model.coming):
                if number is not None:
                    self._retire(self._runners[number], "stopped")
            model.current = model.coming = None
        return self._flush(now)

    def on_replan(self, key: str, now: float, *, need: Need | None = None) -> list[Effect]:
        """Load the model again beside itself, to swap; nothing if there is no room for both.

        `need` is what it takes from now on, if that has changed.
        """
        model = self._models.get(key)
        if model is not None and need is not None:
            model.need = need
        if model is not None and model.current is not None and model.coming is None:
            if self._missing(model.need) <= 0 and not self._hungry():
                self._start(model, now)
        return self._flush(now)

    def on_tick(self, now: float) -> list[Effect]:
        """Time passed: waiters that waited too long, models that were idle too long.

        Instants are compared as `next_event` adds them up: with the difference instead, rounding
        let a tick find nothing to do at the very instant it was called for, again and again.
        """
        for model in self._models.values():
            while model.waiters and now >= model.waiters[0].since + self.limits.queue_timeout:
                waiter = model.waiters.popleft()
                message = f"no slot became free within {self.limits.queue_timeout:g} s"
                self._refuse(waiter.ticket, "timeout", message, self._estimate(model))
        for runner in self._runners.values():
            expires = self._expires(runner)
            if expires is not None and now >= expires and not self._models[runner.key].waiters:
                self._retire(runner, "idle")
        return self._flush(now)

    def on_close(self, now: float) -> list[Effect]:
        """Refuse everybody and stop everything; nothing is started any more."""
        self._closed = True
        for model in self._models.values():
            for waiter in model.waiters:
                self._refuse(waiter.ticket, "closing", "the gateway is shutting down")
            model.waiters.clear()
        for runner in self._runners.values():
            if runner.state != "stopping":
                self._stop(runner, "closing")
        return self._flush(now)

    # ------------------------------------------------------------ looking

    def next_event(self, now: float) -> float | None:
        """The next instant at which `on_tick` would do something; None if never."""
        due: list[float] = []  # what a tick does even when it comes late
        later: list[float] = []  # what is over once its time has passed
        for model in self._models.values():
            if model.waiters:
                due.append(model.waiters[0].since + self.limits.queue_timeout)
                later.append(model.waiters[0].since + self.limits.patience)
            if model.current is None and (model.waiters or self._keeps(model)):
                later += [model.not_before, model.parked_until]
        for runner in self._runners.values():
            expires = self._expires(runner)
            if expires is not None and not self._models[runner.key].waiters:
                due.append(expires)
        return min([max(t, now) for t in due] + [t for t in later if t > now], default=None)

    def models(self) -> tuple[ModelView, ...]:
        """All models that were ever asked for, for display."""
        return tuple(
            ModelView(
                key=key,
                current=m.current,
                coming=m.coming,
                queued=len(m.waiters),
                restarts=m.restarts,
                parked_until=m.parked_until or None,
                last_error=m.last_error,
            )
            for key, m in self._models.items()
        )

    def runners(self) -> tuple[RunnerView, ...]:
        """All runners that are not gone, for display."""
        return tuple(
            RunnerView(
                r.number,
                r.key,
                r.state,
                len(r.active),
                self._taken(r),
                self._expires(r),
                r.made_room,
            )
            for r in self._runners.values()
        )

    # ------------------------------------------------------------ the turn

    def _flush(self, now: float) -> list[Effect]:
        """Give what can be given, then hand the effects out."""
        if not self._closed:
            self._grant(now)
            self._load(now)
            self._unload_idle()
        out, self._out = self._out, []
        return out

    def _grant(self, now: float) -> None:
        """Free slots go to those who waited longest for the model, of low priority last."""
        for model in self._models.values():
            runner = self._runners.get(model.current or 0)
            if runner is None:
                continue
            while model.waiters and len(runner.active) < runner.need.slots:
                waiter = model.waiters[0]
                if waiter.low:
                    free = runner.need.slots - len(runner.active)
                    if runner.low is not None or (runner.active and free == 1):
                        break
                    runner.low = waiter.ticket
                model.waiters.popleft()
                runner.active[waiter.ticket] = now
                runner.last_used = now
                self._granted[waiter.ticket] = runner.number
                self._out.append(Grant(waiter.ticket, runner.number))

    def _load(self, now: float) -> None:
        """Start what is waited for, oldest first; the first that lacks memory gets it next.

        1. There is room: start. 2. Idle models make room: stop them, and wait for their exit.
        3. Runners that are ending will make room: wait. 4. Models in use would have to make room:
        after `patience` they take no new requests, so that they become idle.
        Nobody behind may take the room meanwhile.
        """
        for model in self._hungry_by_age(now):
            missing = self._missing(model.need)
            if missing <= 0 and not self._crowds(model.need, ()):  # 1
                self._start(model, now)
                continue
            leaving = ("stopping",)
            missing, crowds = missing - self._bytes(leaving), self._crowds(model.need, leaving)
            chosen = make_room(missing, self._residents(now), crowds)
            for number in chosen:  # 2
                self._evict(self._runners[number], model, now)
            patient = not model.waiters or model.waiters[0].low
            if (missing > 0 or crowds) and not chosen and not patient:  # 4, else 3
                if now >= model.waiters[0].since + self.limits.patience:
                    self._drain(model, missing, now)
            return

    def _drain(self, model: ModelState, missing: int, now: float) -> None:
        """Let runners in use finish and go, those first that cost least to load again.

        None goes if that is not enough, because a pinned model is in the way, for example.
        """
        missing -= self._bytes(("retiring",))
        crowds = self._crowds(model.need, ("stopping", "retiring"))
        able = [msgspec.structs.replace(r, active=0) for r in self._residents(now)]
        for number in make_room(missing, able, crowds):
            self._evict(self._runners[number], model, now)

    def _evict(self, runner: RunnerState, model: ModelState, now: float) -> None:
        """Let `runner` go for `model`, and note what that will cost."""
        lost = self._models[runner.key]
        model.gone_for_it = (
            *model.gone_for_it[-7:],
            f"{runner.key}: {_mib(self._taken(runner))}, loads in {lost.reload:.2f} s,"
            f" asked {lost.uses.lately(now):.1f} times lately",
        )
        self._retire(runner, "evicted")

    def _hungry_by_age(self, now: float) -> list[ModelState]:
        found = [
            m
            for m in self._models.values()
            if m.current is None
            and m.coming is None
            and (m.waiters or self._keeps(m))
            and now >= m.not_before
            and now >= m.parked_until
        ]
        return sorted(
            found,
            key=lambda m: (m.waiters[0].low, m.waiters[0].since) if m.waiters else (False, now),
        )

    def _hungry(self) -> bool:
        return any(m.waiters and m.current is None for m in self._models.values())

    def _unload_idle(self) -> None:
        """Those that are not to stay a moment."""
        for runner in list(self._runners.values()):
            model = self._models[runner.key]
            if self._stays(model) == 0 and self._expires(runner) is not None and not model.waiters:
                self._retire(runner, "idle")

    # ------------------------------------------------------------ steps

    def _model(self, need: Need) -> ModelState:
        model = self._models.get(need.key)
        if model is None:
            model = self._models[need.key] = ModelState(need, deque())
        model.need = need
        return model

    def _start(self, model: ModelState, now: float) -> None:
        need, number = model.need, self._next
        self._next += 1
        self._runners[number] = RunnerState(
            number,
            need,
            need.peak,
            "loading",
            now,
            since=now,
            made_room=model.gone_for_it,
        )
        model.gone_for_it = ()
        model.coming = number
        self._out.append(Start(number, need.key))

    def _retire(self, runner: RunnerState, why: Left) -> None:
        """Take no new requests; stop now if there are none."""
        model = self._models[runner.key]
        if model.current == runner.number:
            model.current = None
        if runner.state == "stopping":
            return
        if runner.active:
            runner.state, runner.draining = "retiring", why
        else:
            self._stop(runner, why)

    def _stop(self, runner: RunnerState, why: Left) -> None:
        model = self._models[runner.key]
        if model.current == runner.number:
            model.current = None
        if model.coming == runner.number:
            model.coming = None
        runner.state = "stopping"
        self._out.append(Stop(runner.number, why))

    def _refuse(self, ticket: int, why: Why, message: str, retry: float | None = None) -> None:
        self._out.append(Refuse(ticket, why, message, retry))

    def _refuse_parked(self, ticket: int, model: ModelState, now: float) -> None:
        left = max(1.0, model.parked_until - now)
        message = (
            f"it failed {self.limits.crashes} times within {self.limits.crash_window:g} s"
            f" and rests; last: {model.last_error}"
        )
        self._refuse(ticket, "parked", message, left)

    def _note_failure(self, model: ModelState, message: str, now: float) -> None:
        """Back off, and park a model that keeps failing; those who wait are told."""
        model.last_error = message
        model.restarts += 1
        recent = [t for t in model.failures if now - t < self.limits.crash_window]
        model.failures = [*recent, now]
        if len(model.failures) >= self.limits.crashes:
            model.parked_until = now + self.limits.crash_window
            model.failures = []
            for waiter in model.waiters if model.current is None else ():
                self._refuse_parked(waiter.ticket, model, now)
            if model.current is None:
                model.waiters.clear()
        elif recent:
            model.not_before = now + self.limits.backoff * 2 ** (len(recent) - 1)

    # ------------------------------------------------------------ numbers

    def _missing(self, need: Need) -> int:
        """Bytes that are not there for one more runner; 0 or less if it fits."""
        used = sum(self._taken(r) for r in self._runners.values())
        code = 0 if self._alike(need.engine) else need.code
        return used + need.peak + code - self.limits.budget

    def _taken(self, runner: RunnerState) -> int:
        """What it counts for: its own, and its part of its engine's code.

        What becomes free when one of several goes is a little less; the next look sees that.
        """
        need = runner.need
        return runner.bytes + need.code // max(1, self._alike(need.engine))

    def _alike(self, engine: str) -> int:
        """How many runners have the code of `engine`."""
        return sum(r.need.engine == engine for r in self._runners.values())

    def _bytes(self, states: tuple[str, ...]) -> int:
        return sum(self._taken(r) for r in self._runners.values() if r.state in states)

    def _residents(self, now: float) -> list[Resident]:
        """Ready runners; one whose model is waited for is in use."""
        return [
            Resident(
                runner=r.number,
                bytes=self._taken(r),
                last_used=r.last_used,
                active=len(r.active) + len(model.waiters),
                pinned=model.need.pinned,
                reload=model.reload,
                expected=model.uses.lately(now),
            )
            for r in self._runners.values()
            if r.state == "ready" and (model := self._models[r.key])
        ]

    def _crowds(self, need: Need, leaving: tuple[str, ...]) -> list[Crowd]:
        """The groups of `need` that are full without it, not counting runners that are `leaving`.

        A model that is loaded twice, for two purposes or to be replaced, counts once.
        """
        crowds: list[Crowd] = []
        for group in need.groups:
            models: dict[str, list[int]] = {}
            for runner in self._runners.values():
                other = self._models[runner.key].need
                if other.name != need.name and group in other.groups:
                    if runner.state not in leaving:
                        models.setdefault(other.name, []).append(runner.number)
            excess = len(models) + 1 - group.at_once
            if excess > 0:
                crowds.append(Crowd(tuple(tuple(m) for m in models.values()), excess))
        return crowds

    def _too_big(self, need: Need) -> str | None:
        """Why the model can never be loaded beside what is pinned; None if it can."""
        for group in need.groups:
            if (names := self._pinned_in(group, need)) and len(names) >= group.at_once:
                return (
                    f"of its group `{group.name}` {group.at_once} may be loaded at once, and"
                    f" pinned are {', '.join(sorted(names))}"
                )
        budget = self.limits.budget
        others = [
            m.need
            for key, m in self._models.items()
            if m.need.pinned and key != need.key and (m.current or m.coming)
        ]
        shared = {n.engine: n.code for n in others if n.engine != need.engine}
        pinned = sum(n.bytes for n in others) + sum(shared.values())
        whole = need.peak + need.code
        if whole + pinned <= budget:
            return None
        beside = f", and {_mib(pinned)} are taken by pinned models" if pinned else ""
        return f"it needs {_mib(whole)} of memory; the budget is {_mib(budget)}{beside}"

    def _pinned_in(self, group: Group, need: Need) -> set[str]:
        """Other models of the group that are loaded and stay so."""
        return {
            m.need.name
            for m in self._models.values()
            if m.need.pinned
            and group in m.need.groups
            and m.need.name != need.name
            and (m.current or m.coming)
        }

    def _is_full(self, model: ModelState, low: bool) -> bool:
        """The queue is at its limit; slots that are free, or will be once loaded, count extra."""
        runner = self._runners.get(model.current or 0)
        taken = len(runner.active) if runner is not None else 0
        alike = sum(w.low == low for w in model.waiters)
        return alike >= self.limits.max_queue + model.need.slots - taken

    def _estimate(self, model: ModelState) -> float:
        """Seconds until a newcomer would have its turn, 1 to 60."""
        turns = (len(model.waiters) + 1) / max(1, model.need.slots)
        return max(1.0, min(60.0, turns * model.seconds))

    def _keeps(self, model: ModelState) -> bool:
        return model.need.pinned and not model.held

    def _expires(self, runner: RunnerState) -> float | None:
        model = self._models[runner.key]
        stays = self._stays(model)
        if runner.state != "ready" or runner.active or model.need.pinned or stays == inf:
            return None
        return runner.last_used + stays

    def _stays(self, model: ModelState) -> float:
        return self._keep.get(model.need.name, self.limits.keep_alive)


def _mib(count: int) -> str:
    return f"{count / 2**20:,.0f} MiB"
