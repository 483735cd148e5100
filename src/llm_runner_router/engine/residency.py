"""The one owner of the scheduler: it performs the effects and tells what happened.

Knows: runners, plans, leases. Does not know: requests' contents, HTTP, how a process becomes a
runner (`loader.py`). Everybody else asks for a lease and gives it back; state is read from outside
only to show it.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import psutil

from llm_runner_router.config import Engine
from llm_runner_router.errors import (
    DeadlineExceeded,
    EngineError,
    RunnerError,
    Unavailable,
)
from llm_runner_router.models.info import LocalModel
from llm_runner_router.types import Call, Outlook

from . import base, devices, llamacpp, placing, threads
from .effects import Effect, Grant, Limits, Refuse, Start, Stop
from .live import Endpoint as Endpoint
from .live import Known, Lease, Live, Purpose, outlook, purpose_of
from .live import key as key_of
from .loader import Loader
from .prefixes import Marker, Marks
from .refused import refusal
from .scheduler import Scheduler
from .select import EngineSelector
from .slots import CALM, HURRY, Prompts
from .status import RunnerStatus as RunnerStatus
from .status import rows

Event = Callable[[float], list[Effect]]

SAMPLE = 2.0
"""Seconds between two looks at the machine's load."""
PURPOSES: tuple[Purpose, ...] = ("chat", "embed", "rerank")
FRESH = 0.25
"""A look older than this is repeated before a model is loaded."""
FAR = 1.25
"""So many times what was expected is worth a line in the log."""
STOPPING = 12.0
"""Seconds that `stop` waits for the process to be gone; requests in work may take longer."""
_log = logging.getLogger(__name__)


class Residency:
    """Local models and their processes. Use as an async context manager, in one event loop.

    Args:
        settings: budget, slots, queue, timeouts, threads.
        clock: monotonic seconds; the clock of `Call.deadline`.
        environ: our environment; runners get harmless names of it only.
        logs: folder for the engines' logs, made if need be; None keeps only the last lines in
            memory.
        prompts: folder for prompts of unloaded models, made if need be; None keeps none.
        machine: looks at the machine, given the busy cores.
        engines: who runs what; default is all that there are.
    """

    def __init__(
        self,
        settings: Engine,
        *,
        clock: Callable[[], float] = time.monotonic,
        environ: Mapping[str, str] = os.environ,
        logs: Path | None = None,
        prompts: Path | None = None,
        machine: Callable[[float], devices.Machine] | None = None,
        engines: EngineSelector | None = None,
    ) -> None:
        self._settings = settings
        self._clock = clock
        self._logs = logs
        self._look = machine or (lambda busy: devices.look(busy=busy))
        self._engines = engines or EngineSelector(lambda: self._look(0))
        self._meter = devices.LoadMeter(clock)
        self._retune = threads.Retune()
        budget = settings.memory if settings.memory is not None else self._look(0).memory // 2
        self._scheduler = Scheduler(
            Limits(
                budget=budget,
                keep_alive=settings.keep_alive,
                max_queue=settings.max_queue,
                queue_timeout=settings.queue_timeout,
            )
        )
        self._prompts = Prompts(prompts, settings.saved_prompts, clock)
        self._loader = Loader(
            settings, self._plan, self._prompts, clock=clock, environ=environ, logs=logs
        )
        self.marker = Marker()
        """Tells how prompts begin."""
        self._known: dict[str, Known] = {}
        self._live: dict[int, Live] = {}
        self._waiting: dict[int, asyncio.Future[Live]] = {}
        self._tickets = 0
        self._events: deque[Event] = deque()
        self._wake = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()
        self._turning = False
        self._open = False

    # ------------------------------------------------------------ life

    async def __aenter__(self) -> Self:
        self._open = True
        if self._logs is not None:
            self._logs.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._meter.sample(())
        self._spawn_task(self._keep_time(), "clock")
        self._spawn_task(self._watch_load(), "load meter")
        self._refill()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        exc: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Refuse everybody, end every process; returns when they are gone. Safe to repeat."""
        self._open = False
        self._post(self._scheduler.on_close)
        try:
            for task in self._tasks:
                if not task.get_name().startswith("runner"):
                    task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)
            await self._loader.close()
            await self._prompts.close()
        finally:
            for live in self._live.values():  # cancelled half-way: leave nothing running
                if live.worker is not None:
                    live.worker.kill()

    # ------------------------------------------------------------ asking

    @asynccontextmanager
    async def lease(
        self, model: LocalModel, purpose: Purpose, call: Call | None = None
    ) -> AsyncIterator[Lease]:
        """A slot of a runner for `model`, loaded if need be; waits its turn.

        Raises:
            Overloaded: the queue is full, or nothing became free in time; with `retry_after`.
            LoadFailed: it cannot be loaded; carries the engine's reason.
            Unavailable: it keeps failing and rests, or we are closing.
            DeadlineExceeded: the call's deadline passed while waiting.
        """
        if not self._open:
            raise Unavailable("the engine is not running", hint="it is closed, or not yet open")
        known = self._know(model, purpose)
        self._tickets += 1
        ticket = self._tickets
        future: asyncio.Future[Live] = asyncio.get_running_loop().create_future()
        self._waiting[ticket] = future
        low = call is not None and call.low
        self._post(partial(self._scheduler.on_request, ticket, known.need, low=low))
        try:
            live = await self._granted(future, model, call)
            assert live.endpoint is not None
            lease = Lease(live, live.endpoint)
            try:
                yield lease
            finally:
                lease.left()
        finally:
            self._waiting.pop(ticket, None)
            self._post(partial(self._scheduler.on_cancel, ticket))

    @property
    def engines(self) -> EngineSelector:
        """Who chooses the engine."""
        return self._engines

    def engine(self, model: LocalModel, purpose: Purpose = "chat") -> base.Engine:
        """The engine that runs `model`.

        Raises:
            LoadFailed: none can; says what each lacks.
            ConfigError: the model wants one that is not there.
        """
        return self._know(model, purpose).engine

    async def load(self, model: LocalModel, *, pin: bool = False) -> None:
        """Load `model` and wait for it; `pin` keeps it from being unloaded.

        Raises:
            RunnerError: as `lease`.
        """
        purpose = purpose_of(model)
        if pin:
            self._know(model, purpose).pinned = True
        async with self.lease(model, purpose):
            pass

    def replace(self, model: LocalModel) -> None:
        """From now on `model` is what its name means; what is loaded of it goes over.

        A loaded one answers until the new one is ready beside it, then finishes what it has begun.
        While there is no room for both it stays.
        """
        for purpose in PURPOSES:
            key = key_of(model.name, purpose)
            if key in self._known:
                known = self._know(model, purpose)
                self._post(partial(self._scheduler.on_replan, key, need=known.need))

    def keep(self, name: str, seconds: float | None) -> None:
        """Unload the model called `name` when it was idle for `seconds`; None: as configured.

        It holds until somebody wishes otherwise. `inf` keeps it while there is room for it.
        """
        self._post(partial(self._scheduler.on_keep, name, seconds))

    async def stop(self, name: str) -> bool:
        """Unload the model called `name`: at once, or after the requests it is answering.

        Returns when the process is gone, or after some seconds if it is still answering; True if
        there was something to stop.
        """
        found = [live for live in self._live.values() if live.known.model.name == name]
        for purpose in PURPOSES:
            self._post(partial(self._scheduler.on_stop, key_of(name, purpose)))
        waits = [live.gone.wait() for live in found]
        try:
            async with asyncio.timeout(STOPPING):
                await asyncio.gather(*waits)
        except TimeoutError:
            pass
        await self._prompts.forget(name)  # whoever wants it gone means what it was told, too
        return bool(found)

    def outlook(self, model: LocalModel, marks: Marks | None) -> Outlook:
        """What is known of a request to `model` before it is sent; for whoever chooses."""
        known = self._known.get(key_of(model.name, "chat"))
        ready = (live for live in self._live.values() if live.endpoint is not None)
        name, purpose = model.name, "chat"
        live = next(
            (v for v in ready if v.known.model.name == name and v.known.purpose == purpose), None
        )
        return outlook(model, known, live, marks)

    def status(self) -> tuple[RunnerStatus, ...]:
        """What is loaded, loading or waited for; for display."""
        return rows(self._scheduler, self._live, self._known, self._clock())

    def log(self, name: str) -> tuple[str, ...]:
        """The last lines that the engine wrote for the model called `name`."""
        for live in reversed(self._live.values()):
            if live.known.model.name == name and live.worker is not None:
                return live.worker.log()
        return ()

    @property
    def spare_pid(self) -> int | None:
        """Process id of the spare; for display."""
        return self._loader.spare_pid

    # ------------------------------------------------------------ the scheduler

    def _post(self, event: Event) -> None:
        """Hand an event to the scheduler and perform what it decides, before this returns.

        The only place that changes the scheduler. It never waits, so nothing comes between an
        event and its effects; what an effect posts in turn is done right after.
        """
        self._events.append(event)
        if self._turning:
            return
        self._turning = True
        try:
            while self._events:
                for effect in self._events.popleft()(self._clock()):
                    self._perform(effect)
        finally:
            self._turning = False
        self._wake.set()

    async def _keep_time(self) -> None:
        """Tell the scheduler when an instant has come that it named."""
        while True:
            self._wake.clear()
            due = self._scheduler.next_event(self._clock())
            try:
                async with asyncio.timeout(None if due is None else max(0.0, due - self._clock())):
                    await self._wake.wait()
            except TimeoutError:
                self._post(self._scheduler.on_tick)

    def _perform(self, effect: Effect) -> None:
        match effect:
            case Start():
                live = Live(self._known[effect.key])
                self._live[effect.runner] = live
                live.task = self._spawn_task(
                    self._run(effect.runner, live), f"runner {effect.runner}"
                )
            case Stop():
                live = self._live[effect.runner]
                live.why = effect.why
                live.stop.set()
                if live.endpoint is None and live.worker is not None:
                    live.worker.kill()  # it is loading and does not listen yet
            case Grant():
                future = self._waiting.get(effect.ticket)
                if future is not None and not future.done():
                    future.set_result(self._live[effect.runner])
            case Refuse():
                future = self._waiting.get(effect.ticket)
                if future is not None and not future.done():
                    future.set_exception(refusal(effect))

    async def _granted(
        self, future: asyncio.Future[Live], model: LocalModel, call: Call | None
    ) -> Live:
        deadline = call.deadline if call is not None else None
        seconds = None if deadline is None else max(0.0, deadline - self._clock())
        try:
            async with asyncio.timeout(seconds):
                return await future
        except TimeoutError:
            raise DeadlineExceeded(
                f"the deadline passed while waiting for `{model.name}`"
            ) from None
        except RunnerError as exc:
            exc.message = f"`{model.name}`: {exc.message}"
            exc.args = (exc.message,)
            raise

    # ------------------------------------------------------------ a runner

    async def _run(self, number: int, live: Live) -> None:
        """The life of one runner process, from start to exit."""
        message = "it was stopped while loading"
        try:
            await self._loader.load(live)
            if not live.stop.is_set():
                self._post(partial(self._scheduler.on_loaded, number))
                if live.known is not self._known[live.known.need.key]:
                    # A better form of it was made while it was loading.
                    self._post(partial(self._scheduler.on_replan, live.known.need.key))
                self._measure(number, live)
                self._refill()
                self._spawn_task(self._loader.look(live), "template")
                await self._attend(live)
                await self._keep_prompts(live)
        except (EngineError, OSError) as exc:
            message = exc.message if isinstance(exc, EngineError) else f"cannot start it: {exc}"
        except Exception as exc:  # a bug of ours must not leave its requests waiting
            _log.exception("runner %d", number)
            message = f"{type(exc).__name__}: {exc}"
        finally:
            if live.worker is not None:
                await live.worker.stop()
            self._ended(number, live, message)

    async def _attend(self, live: Live) -> None:
        """Until the process ends or is to be stopped."""
        assert live.worker is not None
        exited = asyncio.create_task(live.worker.exited())
        stopped = asyncio.create_task(live.stop.wait())
        try:
            await asyncio.wait((exited, stopped), return_when=asyncio.FIRST_COMPLETED)
        finally:
            exited.cancel()
            stopped.cancel()
            await asyncio.gather(exited, stopped, return_exceptions=True)
        if not live.stop.is_set():
            live.crash = live.worker.crashed()

    def _measure(self, number: int, live: Live) -> None:
        """Replace the estimate of a runner's memory by what it takes and may still take."""
        known, memory = live.known, live.known.placement.memory
        taken = live.worker.memory() if live.worker is not None else 0
        if not memory.work or not taken:
            return  # how it grows is not known
        own = max(0, taken - memory.code)
        self._post(partial(self._scheduler.on_measured, number, own + memory.later))
        expected = memory.loaded + (memory.draft if live.guesses == "draft" else 0)
        if taken > expected * FAR:
            _log.warning(
                "%s takes %d MiB right after its load; %d MiB were expected",
                known.model.name,
                taken >> 20,
                expected >> 20,
            )

    async def _keep_prompts(self, live: Live) -> None:
        """What becomes of the prompts of a runner that was ready and goes now."""
        known = live.known
        if not live.stop.is_set():
            await self._prompts.drop_restored(live)
        elif live.why in ("evicted", "idle", "replaced") and placing.is_fast(known):
            await self._prompts.save(live, HURRY if live.why == "evicted" else CALM)
        heir = self._heir(known) if live.why == "replaced" else None
        if heir is not None:
            await self._prompts.hand_over(heir)

    def _heir(self, known: Known) -> Live | None:
        """The runner that gets the requests of `known` now."""
        for view in self._scheduler.models():
            if view.key == known.need.key:
                return self._live.get(view.current or 0)
        return None

    def _ended(self, number: int, live: Live, message: str) -> None:
        if live.endpoint is None:
            self._post(partial(self._scheduler.on_load_failed, number, message))
        else:
            words = live.crash.message if live.crash else ""
            self._post(partial(self._scheduler.on_exit, number, words))
        self._retune.forget(live.known.need.key)
        self._live.pop(number, None)
        live.gone.set()

    # ------------------------------------------------------------ plans

    def _know(self, model: LocalModel, purpose: Purpose) -> Known:
        known = self._known.get(key_of(model.name, purpose)) or self._known.get(
            key_of(model.name, "chat")
        )
        if known is None or known.model != model or not placing.serves(known, purpose):
            engine = self._engines.get_best(model, purpose=purpose)
            if "one_process" in engine.FEATURES:
                purpose = "chat"
            made = placing.known(
                model, purpose, engine, self._settings, budget=self._scheduler.limits.budget
            )
            before = self._known.get(made.need.key)
            made.pinned = made.pinned or (before is not None and before.pinned)
            known = self._known[made.need.key] = made
        return known

    def _plan(self, known: Known, pid: int | None) -> threads.CpuPlan:
        """What `known` would be started with now; `pid` is its own process, if it has one."""
        if self._meter.age > FRESH:
            self._meter.sample(self._pids())
        machine = self._look(self._meter.others(pid))
        return threads.plan(known.model.info.bytes, machine, self._settings)

    async def _watch_load(self) -> None:
        failed = False
        while True:
            await asyncio.sleep(SAMPLE)
            try:
                self._review()
                failed = False
            except (OSError, ValueError, psutil.Error) as exc:
                # What the machine says of itself could not be read; the plans stay as they are.
                if not failed:
                    _log.warning("cannot see how busy the machine is: %s", exc)
                failed = True

    def _review(self) -> None:
        """Look at the load; replace runners whose plan has for long been another."""
        self._meter.sample(self._pids())
        now = self._clock()
        for view in self._scheduler.models():
            live = self._live.get(view.current or 0)
            if live is None or live.plan is None or live.worker is None or view.coming:
                continue
            if live.known is not self._known[view.key]:  # until now there was no room for both
                self._post(partial(self._scheduler.on_replan, view.key))
                continue
            if live.known.engine.RUNNER != llamacpp.RUNNER:
                continue  # the plans were measured with that engine; others load for seconds
            wanted = self._plan(live.known, live.worker.pid)
            other = live.endpoint is not None and live.guesses != self._loader.guesses(
                live.known, live.guesses
            )
            if self._retune.observe(view.key, live.plan, wanted, now) or other:
                self._post(partial(self._scheduler.on_replan, view.key))

    # ------------------------------------------------------------ processes and tasks

    def _refill(self) -> None:
        if self._open and self._settings.spare:
            self._spawn_task(self._loader.refill(), "spare")

    def _pids(self) -> list[int]:
        workers = (live.worker for live in self._live.values())
        return [pid for worker in workers if worker is not None for pid in worker.pids]

    def _spawn_task(self, work: Coroutine[Any, Any, None], name: str) -> asyncio.Task[None]:
        task = asyncio.create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task
