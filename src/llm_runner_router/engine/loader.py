"""From a model that is known to a runner that answers: its process, its order, its prompts.

Knows: workers, the spare, orders, guesses ahead. Does not know: when something is to be loaded,
the scheduler, leases (`residency.py`).
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from llm_runner_router.config import Engine
from llm_runner_router.errors import EngineError, LoadFailed

from . import appending, drafts, llamacpp, placing, speculate, threads
from .live import Endpoint, Known, Live
from .slots import Prompts
from .spare import Spare
from .worker import Report, Worker

_log = logging.getLogger(__name__)


class Loader:
    """Loads runners; keeps the spare.

    Args:
        settings: timeouts, guesses.
        plan: threads for a model if it were started now; its own process is None, as it has none.
        prompts: gives a new runner what was kept of its model.
        clock: monotonic seconds.
        environ: our environment; runners get harmless names of it only.
        logs: folder for the engines' logs, which is there; None keeps only the last lines.
    """

    def __init__(
        self,
        settings: Engine,
        plan: Callable[[Known, int | None], threads.CpuPlan],
        prompts: Prompts,
        *,
        clock: Callable[[], float],
        environ: Mapping[str, str],
        logs: Path | None,
    ) -> None:
        self._settings = settings
        self._plan = plan
        self._prompts = prompts
        self._clock = clock
        self._environ = environ
        self._logs = logs
        self._spare = Spare(self._spawn)
        self._spare_wait: threads.Wait = "passive"
        """How the next spare waits: as the last model did that was loaded; tiny ones at first."""

    # ------------------------------------------------------------ the spare

    @property
    def spare_pid(self) -> int | None:
        """Process id of the spare; for display."""
        return self._spare.pid

    async def refill(self) -> None:
        """Have a spare that suits what was loaded last; never raises."""
        try:
            await self._spare.refill(self._spare_wait)
        except OSError as exc:  # no process to be had; the next load says so to whom it concerns
            _log.warning("cannot start a spare runner: %s", exc)

    async def close(self) -> None:
        """End the spare, for good; a runner belongs to the `Live` it was loaded for."""
        await self._spare.close()

    # ------------------------------------------------------------ loading

    async def load(self, live: Live) -> None:
        """Start the process of `live` and wait until it answers at `live.endpoint`.

        Returns without an endpoint if `live.stop` was set meanwhile. The process belongs to `live`
        as soon as there is one, however this ends.

        Raises:
            LoadFailed: the engine could not, or not in time; carries its reason.
            EngineError: something else is wrong with what it was to load.
            OSError: no process can be started.
        """
        known, began = live.known, self._clock()
        plan = live.plan = self._plan(known, None)
        worker = await self._from_spare(known, plan)
        live.from_spare = worker is not None
        worker = self._owned(live, worker or await self._spawn(plan.wait, known.engine.RUNNER))
        if live.stop.is_set():
            return
        key = secrets.token_urlsafe(24)
        folder = self._prompts.folder() if placing.is_fast(known) else None
        order = known.engine.order(known.model, plan, known.placement, key, known.purpose)
        if folder is not None:
            order = llamacpp.saving(order, folder)
        order = await self._guessing(live, order)
        try:
            report = await worker.load(order, self._settings.load_timeout)
        except LoadFailed:
            if not live.from_spare or worker.answered or live.stop.is_set():
                raise
            # The spare ended without a word: it was most likely dead before it read the order,
            # which says nothing about the model.
            live.from_spare = False
            worker = self._owned(live, await self._spawn(plan.wait, known.engine.RUNNER))
            if live.stop.is_set():
                return
            report = await worker.load(order, self._settings.load_timeout)
        if worker.unknown:
            _log.warning("this engine does not know: %s", ", ".join(worker.unknown))
        endpoint = _endpoint(report, key, known)
        live.kept = placing.kept(known, live.guesses)
        if folder is not None and not await self._prompts.restore(live, endpoint):
            await worker.stop()
            worker = self._owned(live, await self._spawn(plan.wait, known.engine.RUNNER))
            if live.stop.is_set():
                return
            report = await worker.load(order, self._settings.load_timeout)
            endpoint = _endpoint(report, key, known)
            live.kept = placing.kept(known, live.guesses)
        live.endpoint = endpoint
        live.since = self._clock()
        live.load_seconds = known.load_seconds = live.since - began

    async def look(self, live: Live) -> None:
        """See what the model's chat template does with a conversation, the first time."""
        known, kept, template = live.known, live.kept, live.known.model.info.chat_template
        if kept is None or live.endpoint is None or known.seen is not None:
            return
        try:
            known.seen = kept.seen = await appending.look(live.endpoint, template or "")
        except EngineError as exc:
            _log.info("what %s keeps of prompts is not known: %s", known.model.name, exc)

    async def _from_spare(self, known: Known, plan: threads.CpuPlan) -> Worker | None:
        """The spare process, if it has imported the engine that `known` needs."""
        if known.engine.RUNNER != llamacpp.RUNNER:
            return None
        worker = await self._spare.take(plan)
        self._spare_wait = plan.wait
        return worker

    async def _spawn(self, wait: threads.Wait, runner: str = llamacpp.RUNNER) -> Worker:
        return await Worker.start(wait, runner, environ=self._environ)

    def _owned(self, live: Live, worker: Worker) -> Worker:
        """`worker`, now the process of `live`, with its log where logs go."""
        live.worker = worker
        if self._logs is not None:
            worker.keep_log(_log_file(self._logs, live.known))
        return worker

    # ------------------------------------------------------------ guesses

    def guesses(self, known: Known, now: speculate.Guesses = "") -> speculate.Guesses:
        """How a runner of `known` would guess ahead if it were started now; `now`: as it does."""
        if not placing.is_fast(known):
            return ""
        draft = known.model.draft is not None
        mode, size = self._settings.speculate, known.model.info.bytes
        return speculate.wanted(mode, known.pace, size, draft=draft, now=now)

    async def _guessing(self, live: Live, order: dict[str, Any]) -> dict[str, Any]:
        """`order`, with the guesses that pay now."""
        known, draft = live.known, live.known.model.draft
        if draft is not None and placing.is_fast(known) and not known.draft_checked:
            # Before it is needed: a wrong one is told at once, not when it would begin to pay.
            await asyncio.to_thread(drafts.check, known.model, draft)
            known.draft_checked = True
        live.guesses = self.guesses(known)
        if live.guesses == "draft" and draft is not None:
            return llamacpp.drafting(order, draft)
        return llamacpp.guessing(order) if live.guesses else order


def _log_file(folder: Path, known: Known) -> Path:
    name = "".join(c if c.isalnum() or c in "-." else "_" for c in known.model.name)[-80:]
    return folder / f"{name}.{known.purpose}.log"


def _endpoint(report: Report, key: str, known: Known) -> Endpoint:
    """Where a runner answers, as it reported; `key` is what it was told to ask for."""
    name = report.model or known.model.name
    return Endpoint(f"{report.address}/v1", report.api_key or key, name)
