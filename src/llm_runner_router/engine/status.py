"""Rows of `llmrr ps`: the scheduler's view and the processes', joined for display.

Reads state to show it, never to decide.
"""

from __future__ import annotations

from collections.abc import Mapping

from msgspec import Struct

from . import adopted
from .effects import ModelView, RunnerView
from .fit import Memory
from .live import Known, Live, Purpose
from .scheduler import Scheduler


class RunnerStatus(Struct, frozen=True):
    """A row of `llmrr ps`. Bytes, seconds, tokens per second."""

    name: str
    purpose: Purpose
    state: str
    """`loading`, `ready`, `retiring`, `stopping`; without a process `waiting` or `parked`."""
    engine: str = ""
    pid: int | None = None
    threads: int | None = None
    batch_threads: int | None = None
    wait_policy: str | None = None
    memory: int | None = None
    """Memory the process takes, with pages that others share."""
    peak: int | None = None
    """The most it ever took, where the system tells."""
    reserved: int = 0
    """Memory it counts for in the budget."""
    context: int = 0
    slots: int = 0
    tokens_per_second: float | None = None
    queued: int = 0
    active: int = 0
    served: int = 0
    loaded_for: float | None = None
    load_seconds: float | None = None
    from_spare: bool = False
    expires_in: float | None = None
    pinned: bool = False
    prompts_saved: int = 0
    """Prompts saved before a runner of it was stopped."""
    prompts_restored: int = 0
    """Prompts given back to a runner of it after a load."""
    tokens_restored: int = 0
    tokens_kept: int | None = None
    """Tokens of prompts that the runner certainly has; None where that is not known."""
    prompt_tokens: int = 0
    """Tokens of all prompts that were answered."""
    cached_tokens: int = 0
    """Of those, what the runner had and did not compute again."""
    guesses: bool = False
    """It guesses tokens ahead (`engine.speculate`)."""
    adapters: tuple[str, ...] = ()
    """The LoRA adapters that are loaded with it."""
    draft: str = ""
    """The model that guesses for it, while it does."""
    guessed: int = 0
    """Tokens guessed by n-grams and by its draft model, since it was asked for first."""
    guessed_right: int = 0
    predicted: int = 0
    """Memory it was expected to take with every slot full and no prompt kept beside them."""
    predicted_prompts: int = 0
    """What prompts kept in memory may take beside that, at most."""
    predicted_peak: int = 0
    """Memory it was expected to take at the top of its load."""
    expected: Memory = Memory()
    """The terms of all that."""
    made_room: tuple[str, ...] = ()
    """What was evicted so that it could be loaded: bytes, seconds of loading, requests lately."""
    failures: int = 0
    last_error: str = ""


def rows(
    scheduler: Scheduler, lives: Mapping[int, Live], known: Mapping[str, Known], now: float
) -> tuple[RunnerStatus, ...]:
    """One row per process, and one per model that is waited for or rests without one."""
    models = {view.key: view for view in scheduler.models()}
    found: list[RunnerStatus] = []
    shown: set[str] = set()
    for runner in scheduler.runners():
        live = lives.get(runner.number)
        if live is not None:
            shown.add(runner.key)
            found.append(_row(runner, live, models[runner.key], now))
    for key, view in models.items():
        parked = view.parked_until is not None and view.parked_until > now
        if key not in shown and (view.queued or parked):
            found.append(_without(known[key], view, "parked" if parked else "waiting"))
    return tuple(found)


def _without(known: Known, view: ModelView, state: str) -> RunnerStatus:
    return RunnerStatus(
        name=known.model.name,
        purpose=known.purpose,
        engine=known.engine.NAME,
        state=state,
        queued=view.queued,
        served=known.served,
        failures=view.restarts,
        last_error=view.last_error,
    )


def _adapters(known: Known) -> tuple[str, ...]:
    if known.purpose != "chat":
        return ()
    return tuple(adapter.name for adapter in known.model.adapters)


def _row(runner: RunnerView, live: Live, view: ModelView, now: float) -> RunnerStatus:
    known, worker = live.known, live.worker
    # What was planned is not what somebody else's server does.
    plan = None if known.engine.NAME == adopted.NAME else live.plan
    ready = live.endpoint is not None
    draft, memory = known.model.draft, known.placement.memory
    return RunnerStatus(
        name=known.model.name,
        purpose=known.purpose,
        engine=known.engine.NAME,
        state=runner.state,
        pid=worker.pid if worker is not None else None,
        threads=plan.threads if plan is not None else None,
        batch_threads=plan.batch_threads if plan is not None else None,
        wait_policy=plan.wait if plan is not None else None,
        memory=worker.memory() if worker is not None else None,
        peak=(worker.peak() or None) if worker is not None else None,
        reserved=runner.bytes,
        context=known.placement.context,
        slots=known.placement.slots,
        tokens_per_second=known.speed,
        queued=view.queued if runner.number in (view.current, view.coming) else 0,
        active=runner.active,
        served=known.served,
        loaded_for=now - live.since if ready else None,
        load_seconds=live.load_seconds if ready else None,
        from_spare=live.from_spare,
        expires_in=None if runner.expires is None else max(0.0, runner.expires - now),
        pinned=known.pinned,
        prompts_saved=known.prompts.saved,
        prompts_restored=known.prompts.restored,
        tokens_restored=known.prompts.tokens,
        tokens_kept=None if live.kept is None else live.kept.tokens,
        prompt_tokens=known.read,
        cached_tokens=known.cached,
        made_room=runner.made_room,
        adapters=_adapters(known),
        guesses=bool(live.guesses),
        draft=draft.name if draft is not None and live.guesses == "draft" else "",
        guessed=known.pace.guessed + known.pace.drafted,
        guessed_right=known.pace.right + known.pace.drafted_right,
        predicted=memory.serving + (memory.draft if live.guesses == "draft" else 0),
        predicted_prompts=memory.prompts,
        predicted_peak=memory.loading,
        expected=memory,
        failures=view.restarts,
        last_error=view.last_error,
    )
