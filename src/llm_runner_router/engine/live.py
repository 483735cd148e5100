"""What is known of a model while it is asked for, and of a runner while its process lives.

Mutable bookkeeping of `residency.py`, which alone writes it; `Lease` is what others get of it.
"""

from __future__ import annotations

import asyncio
from contextlib import AbstractAsyncContextManager

from msgspec import Struct

from llm_runner_router.errors import RunnerCrashed
from llm_runner_router.models.info import LocalModel
from llm_runner_router.types import Outlook, Usage

from .base import Engine
from .base import Purpose as Purpose
from .effects import Group, Left, Need
from .fit import Placement
from .kept import Flight, Kept, Seen
from .prefixes import Marks
from .prompts import Counts, Saved
from .sets import Sets
from .speculate import Guesses, Pace, Timings
from .threads import CpuPlan
from .worker import Worker

GONE = 1.0
"""Seconds to wait for a process whose connection broke to be seen as dead."""
FIRST_LOAD, LOADING = 0.2, 1e9
"""Seconds, and bytes of weights in each further second, that a first load is taken to last."""
SMOOTH = 0.3
"""Weight of the newest answer in tokens per second."""


class Endpoint(Struct, frozen=True):
    """Where a runner answers: OpenAI's API below `base_url`, with a key of its own."""

    base_url: str
    api_key: str
    model: str


class Known:
    """A model and purpose that was asked for, and what is remembered of it."""

    def __init__(
        self,
        model: LocalModel,
        purpose: Purpose,
        engine: Engine,
        placement: Placement,
        pinned: bool,
        groups: tuple[Group, ...] = (),
    ) -> None:
        self.model = model
        self.engine = engine
        self.purpose = purpose
        self.placement = placement
        self.pinned = pinned
        self.groups = groups
        self.served = 0
        self.speed: float | None = None
        self.pace = Pace()
        self.prompts = Counts()
        self.seen: Seen | None = None
        """What its chat template does, once a runner of it was asked."""
        self.load_seconds: float | None = None
        """How long its last load took."""
        self.read = 0
        """Tokens of all prompts that were answered."""
        self.cached = 0
        """Of those, what the runner had."""
        self.draft_checked = False
        """Its draft model was seen to have the same tokens."""

    @property
    def need(self) -> Need:
        """What the scheduler is told of it."""
        memory, name = self.placement.memory, self.model.name
        return Need(
            key(name, self.purpose),
            memory.most - memory.code,
            self.placement.slots,
            self.pinned,
            name,
            self.groups,
            loading=memory.loading - memory.code,
            engine=self.engine.NAME,
            code=memory.code,
        )


class Live:
    """A runner while its process lives; owned by its task."""

    def __init__(self, known: Known) -> None:
        self.known = known
        self.stop = asyncio.Event()
        self.why: Left = "stopped"
        """Why it is stopped, once it is."""
        self.gone = asyncio.Event()
        """Set after the scheduler was told that the process is gone."""
        self.worker: Worker | None = None
        self.plan: CpuPlan | None = None
        self.endpoint: Endpoint | None = None
        self.crash: RunnerCrashed | None = None
        self.since = 0.0
        self.load_seconds = 0.0
        self.from_spare = False
        self.guesses: Guesses = ""
        """How it guesses tokens ahead."""
        self.restored: dict[int, Saved] = {}
        """Prompts it was given, by slot."""
        self.sets = Sets()
        """Who may ask it now, by the LoRA adapters that are asked for."""
        self.kept: Kept | None = None
        """The prompts it keeps, where that is known."""
        self.task: asyncio.Task[None] | None = None


class Lease:
    """The right to one slot of a runner, while the `async with` lasts."""

    def __init__(self, live: Live, endpoint: Endpoint) -> None:
        self._live = live
        self._flight: Flight | None = None
        self.endpoint = endpoint

    @property
    def engine(self) -> Engine:
        """The engine of the runner; another than the model's while a better form takes over."""
        return self._live.known.engine

    @property
    def model(self) -> LocalModel:
        """The model as the runner has it."""
        return self._live.known.model

    def turn(self, adapters: tuple[float, ...]) -> AbstractAsyncContextManager[None]:
        """Wait until the runner may be asked with these scales of its LoRA adapters."""
        return self._live.sets.turn(adapters)

    def finished(self) -> None:
        """Tell that an answer is complete; a try that failed or was left is none."""
        self._live.known.served += 1

    @property
    def keeps(self) -> bool:
        """It is known what the runner keeps of prompts, so `sent` wants to know them."""
        return self._live.kept is not None

    @property
    def expected(self) -> int | None:
        """Tokens of the prompt sent that the runner has, if that is known."""
        return None if self._flight is None else self._flight.promised

    def sent(self, marks: Marks | None) -> int | None:
        """Tell that a request with these marks is sent now; gives the slot it is to name, if any"""
        kept = self._live.kept
        if kept is None:
            return None
        self.left()
        self._flight = kept.begin(marks)
        return self._flight.slot if kept.is_naming else None

    def begun(self) -> None:
        """Tell that an answer has begun, so its prompt was read."""
        if self._flight is not None:
            self._flight.begun = True

    def told(self, usage: Usage) -> None:
        """Tell what the engine counted, once its answer is complete."""
        known, kept = self._live.known, self._live.kept
        known.read += usage.prompt_tokens
        known.cached += usage.cached_tokens
        if kept is not None and self._flight is not None:
            counts = usage.prompt_tokens, usage.cached_tokens, usage.completion_tokens
            kept.end(self._flight, *counts)

    def left(self) -> None:
        """Tell that nobody reads any more; after `told` this says nothing new."""
        if self._live.kept is not None and self._flight is not None:
            self._live.kept.lost(self._flight)

    def timed(self, told: Timings) -> None:
        """Tell how fast an answer was read and written."""
        known, speed = self._live.known, told.predicted_per_second
        known.pace = known.pace.after(told, self._live.guesses)
        if told.predicted_n > 1:  # a single one is all reading
            before = known.speed if known.speed is not None else speed
            known.speed = before + SMOOTH * (speed - before)

    async def died(self, within: float = GONE) -> RunnerCrashed | None:
        """The crash, if the process is gone or goes `within` seconds; else None."""
        try:
            async with asyncio.timeout(within):
                await self._live.gone.wait()
        except TimeoutError:
            return None
        return self._live.crash or RunnerCrashed(
            "the runner process was stopped", hint="try again; it is started anew"
        )


def outlook(
    model: LocalModel, known: Known | None, live: Live | None, marks: Marks | None
) -> Outlook:
    """What is known of a request with these marks to `model`, which has the runner `live`."""
    took = known.load_seconds if known is not None else None
    waiting = FIRST_LOAD + model.info.bytes / LOADING if took is None else took
    reading = known.pace.reading if known is not None else None
    if live is None or live.kept is None or marks is None:
        return Outlook(reading=reading, loading=0.0 if live is not None else waiting)
    cached = live.kept.promise(marks)
    length = None if cached is None else live.kept.length(marks, cached)
    return Outlook(length, cached, reading)


def purpose_of(model: LocalModel) -> Purpose:
    """What a model is loaded for before anybody asked for something of it."""
    return "chat" if model.info.task == "generate" else model.info.task


def key(name: str, purpose: Purpose) -> str:
    """The scheduler's name for a model and what it is loaded for."""
    return f"{purpose} {name}"
