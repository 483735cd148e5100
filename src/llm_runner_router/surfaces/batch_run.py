"""Batches at work: whose turn it is, what is tried again, what goes on after a crash.

Knows: the states of a batch and their order, places, pauses. Does not know: wires, how a request
is answered (`batch_answer.py`), how its line reaches the disk (`policy/batches.py`).

    validating ─► in_progress ─► finalizing ─► completed, or expired when its time is over
         └► failed       └► cancelling ─► finalizing ─► cancelled

Every state is on the disk before what it allows is done, and everything may be done twice: after a
crash the work goes on from the last state. Only the one process that has the lock of the folder
does it.
"""

from __future__ import annotations

import asyncio
import logging
import random
import secrets
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import TypeVar

from msgspec import Struct
from msgspec.structs import replace

from llm_runner_router.config import Batches as Settings
from llm_runner_router.errors import BadRequest, RunnerError, Unavailable
from llm_runner_router.policy.batches import (
    ENDED,
    Batch,
    Batches,
    Counts,
    Entry,
    Journal,
    Problem,
    Problems,
    Status,
    moved,
)
from llm_runner_router.policy.files import new_id, share

from . import batch_lines
from .base import Gateway
from .batch_answer import Answered, answer

PAUSE = 0.5
"""Seconds that the first pause before another try takes at most; it doubles with each."""
LONGEST_PAUSE = 30.0
CLOSE_SECONDS = 10.0
"""How long requests in work get to stop when everything does."""
_INPUT = "input.jsonl"
_log = logging.getLogger(__name__)

T = TypeVar("T")


class Wish(Struct, frozen=True):
    """A batch that somebody asks for."""

    input_file_id: str
    endpoint: str
    completion_window: str
    seconds: float
    """The same."""
    metadata: dict[str, str] | None = None
    keep: float | None = None
    """Seconds its files are kept; None: as configured."""


class BatchRunner:
    """Runs batches; see `base.BatchDesk`.

    Args:
        gateway: what answers their requests, and keeps their files.
        store: where they are kept.
        settings: limits.
        longest: bytes of one request.
        wall: Unix seconds.
        rng: the source of chance.
        pause: seconds; see `PAUSE`.
    """

    def __init__(
        self,
        gateway: Gateway,
        store: Batches,
        settings: Settings,
        *,
        longest: int,
        wall: Callable[[], float] = time.time,
        rng: random.Random | None = None,
        pause: float = PAUSE,
    ) -> None:
        self._gateway = gateway
        self._store = store
        self._settings = settings
        self._longest = longest
        self._wall = wall
        self._rng = rng or random.Random()
        self._pause = pause
        self._places = asyncio.Semaphore(settings.parallel)
        self._thread = ThreadPoolExecutor(1, "llmrr-batches")
        self._jobs: dict[str, _Job] = {}
        self._taking = asyncio.Lock()
        self._ours = False
        self._closed = False

    # ------------------------------------------------------------ life

    async def start(self) -> None:
        """Go on with what an earlier process has left."""
        if not self._store.used:
            return
        try:
            await self._take()
        except RunnerError as exc:
            _log.warning("batches are not run here: %s", exc)

    async def aclose(self) -> None:
        """Stop; what is not done goes on when another process starts. Safe to repeat."""
        self._closed = True
        tasks = [job.task for job in self._jobs.values()]
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks, timeout=CLOSE_SECONDS)
        await asyncio.to_thread(self._thread.shutdown)
        await self._store.aclose()

    async def _take(self) -> None:
        """Become the process that runs the batches of this folder.

        Raises:
            Unavailable: another one does, or this one is ending.
        """
        async with self._taking:
            if self._closed:
                raise Unavailable("the server is stopping", retry_after=1)
            if self._ours:
                return
            if not await asyncio.to_thread(self._store.lock.take):
                raise Unavailable("another server of this data folder runs its batches")
            self._ours = True
            found = await self._store.unfinished()
            await asyncio.to_thread(self._sweep, {entry.batch.id for entry in found})
            for entry in found:
                self._launch(entry)

    def _sweep(self, known: set[str]) -> None:
        for path in self._store.folder.glob("batch_*"):
            if path.name not in known:
                shutil.rmtree(path, ignore_errors=True)

    # ------------------------------------------------------------ asked by surfaces

    async def create(self, owner: str, wish: Wish) -> Batch:
        """Begin a batch. See `base.BatchDesk`."""
        if not self._settings.enabled:
            raise BadRequest("no batches are run here", hint="turn `batches.enabled` on")
        await self._take()
        file, path = await self._gateway.files.open(owner, wish.input_file_id)
        if file.purpose != "batch":
            raise BadRequest(
                f"the file's purpose is {file.purpose!r}, not 'batch'", param="input_file_id"
            )
        now = self._wall()
        batch = Batch(
            id=f"batch_{secrets.token_hex(16)}",
            endpoint=wish.endpoint,
            input_file_id=wish.input_file_id,
            completion_window=wish.completion_window,
            created_at=int(now),
            expires_at=int(now + wish.seconds),
            metadata=wish.metadata,
        )
        entry = Entry(batch, owner, wish.keep)
        folder = self._store.place(batch.id)
        try:
            await asyncio.to_thread(_prepare, folder, path)
            await self._store.add(entry)
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise
        self._launch(entry)
        return batch

    async def get(self, owner: str, id: str) -> Batch:
        """A batch as it is now. See `base.BatchDesk`."""
        return self._shown(await self._store.get(owner, id))

    async def page(self, owner: str, after: str | None, limit: int) -> tuple[Sequence[Batch], bool]:
        """Batches, the newest first. See `base.BatchDesk`."""
        found, more = await self._store.page(owner, after, limit)
        return [self._shown(entry) for entry in found], more

    async def cancel(self, owner: str, id: str) -> Batch:
        """End a batch; what is done stays. See `base.BatchDesk`."""
        entry = await self._store.get(owner, id)
        if entry.batch.status in ENDED:
            raise BadRequest(f"the batch is {entry.batch.status} already")
        await self._take()
        job = self._jobs.get(id)
        if job is None:  # it has ended meanwhile
            return await self.get(owner, id)
        if job.status in ("validating", "in_progress") and not job.ending:
            job.entry = moved(job.entry, "cancelling", self._wall())
            if job.work is not None:
                job.work.cancel()
            await self._store.put(job.entry)
        return job.shown()

    def _shown(self, entry: Entry) -> Batch:
        job = self._jobs.get(entry.batch.id)
        return _told(entry.batch) if job is None else job.shown()

    # ------------------------------------------------------------ one batch

    def _launch(self, entry: Entry) -> None:
        if self._closed:
            return  # the next start finds it
        job = _Job(entry, self._store.place(entry.batch.id))
        self._jobs[entry.batch.id] = job
        job.task = asyncio.create_task(self._run(job))
        job.task.add_done_callback(lambda task: self._ended(job, task))

    def _ended(self, job: _Job, task: asyncio.Task[None]) -> None:
        self._jobs.pop(job.entry.batch.id, None)
        if not task.cancelled() and (exc := task.exception()) is not None:
            _log.error("batch %s rests until the next start", job.entry.batch.id, exc_info=exc)

    async def _run(self, job: _Job) -> None:
        try:
            if job.status != "finalizing":
                checked = await self._in_thread(partial(self._check, job))
                if job.status == "validating":
                    counts = Counts(len(checked.places))
                    if checked.problems:
                        job.tell(Problems(checked.problems))
                        await self._move(job, "failed")
                        return
                    job.entry = replace(
                        job.entry, batch=replace(job.entry.batch, request_counts=counts)
                    )
                    await self._move(job, "in_progress")
                job.journal = await self._in_thread(partial(Journal, job.folder))
                await self._settle(job, checked.places, await self._answer_all(job, checked.places))
            await self._hand_over(job)
        finally:
            if job.journal is not None:
                self._thread.submit(job.journal.close)

    def _check(self, job: _Job) -> batch_lines.Checked:
        return batch_lines.check(
            job.folder / _INPUT,
            job.entry.batch.endpoint,
            most=self._settings.max_lines,
            longest=self._longest,
            wanted=lambda: not self._closed and not job.cancelled,
        )

    async def _answer_all(self, job: _Job, places: Sequence[batch_lines.Place]) -> Status:
        """Answer what is not answered yet, until all is, time is over or somebody cancels."""
        journal = job.journal
        assert journal is not None, "opened before"
        if job.cancelled:
            return "cancelled"
        seconds = job.entry.batch.expires_at - self._wall()
        if seconds <= 0:
            return "expired"
        left = iter([place for place in places if place.custom_id not in journal.done])
        job.work = asyncio.create_task(self._side_by_side(job, left))
        try:
            await asyncio.wait((job.work,), timeout=seconds)
        finally:
            over = not job.work.done()
            job.work.cancel()
            await asyncio.gather(job.work, return_exceptions=True)
        if job.cancelled:
            return "cancelled"
        if over:
            return "expired"
        if (exc := job.work.exception()) is not None:
            _log.error("batch %s cannot go on", job.entry.batch.id, exc_info=exc)
            job.tell(Problems((Problem("server_error", "its answers could not be written"),)))
            return "failed"
        return "completed"

    async def _side_by_side(self, job: _Job, left: Iterator[batch_lines.Place]) -> None:
        async with asyncio.TaskGroup() as group:
            for _ in range(self._settings.parallel):
                group.create_task(self._one_by_one(job, left))

    async def _one_by_one(self, job: _Job, left: Iterator[batch_lines.Place]) -> None:
        journal = job.journal
        assert journal is not None, "opened before"
        for place in left:
            line = await asyncio.to_thread(batch_lines.read, job.folder / _INPUT, place)
            id = secrets.token_hex(12)
            found = await self._ask(job.entry.owner, line, id)
            written = batch_lines.answered(
                f"batch_req_{id}", line.custom_id, f"req-{id}", found.status, found.body
            )
            ok = found.status == 200
            await self._in_thread(partial(journal.add, line.custom_id, written, ok=ok))

    async def _ask(self, owner: str, line: batch_lines.Line, id: str) -> Answered:
        """Ask until there is an answer, or asking again would not help.

        What fails is tried `attempts` times; waiting for a turn is no failure, and ends with the
        batch. Pauses are of random length, so that many do not come back at once.
        """
        failed = tries = 0
        while True:
            async with self._places:
                call = self._gateway.start_call(id=id, caller=owner)
                found = await answer(self._gateway, line.url, bytes(line.body), call)
            failed += not found.crowded
            if not found.again or failed >= self._settings.attempts:
                return found
            most = min(LONGEST_PAUSE, self._pause * 2 ** min(tries, 16))
            tries += 1
            await asyncio.sleep(found.after + self._rng.uniform(0, most))

    async def _settle(self, job: _Job, places: Sequence[batch_lines.Place], goal: Status) -> None:
        """All that will be written is: say so, and what its files will be called."""
        journal = job.journal
        assert journal is not None, "opened before"
        if goal == "expired":
            await self._in_thread(partial(_expire, journal, places))
        await self._in_thread(journal.sync)
        batch = replace(
            job.shown(),
            output_file_id=new_id() if journal.completed else None,
            error_file_id=new_id() if journal.failed else None,
        )
        job.entry = replace(job.entry, batch=batch, goal=goal)
        await self._move(job, "finalizing")

    async def _hand_over(self, job: _Job) -> None:
        """Give the client the files."""
        batch, files = job.entry.batch, self._gateway.files
        for id, name, kind in (
            (batch.output_file_id, Journal.ANSWERS, "output"),
            (batch.error_file_id, Journal.ERRORS, "error"),
        ):
            if id is not None:
                called = f"{batch.id}_{kind}.jsonl"
                await files.adopt(job.entry.owner, job.folder / name, id, called, job.entry.keep)
        await self._move(job, job.entry.goal)

    async def _move(self, job: _Job, status: Status) -> None:
        entry = moved(job.entry, status, self._wall())
        if status in ENDED:
            job.ending = True
            await self._store.put(entry)
        job.entry = entry  # the end is told once it is on the disk
        if status not in ENDED:
            await self._store.put(entry)

    async def _in_thread(self, work: Callable[[], T]) -> T:
        """What `work` gives, after all that was begun before."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, work)


class _Job:
    """A batch at work."""

    task: asyncio.Task[None]

    def __init__(self, entry: Entry, folder: Path) -> None:
        self.entry = entry
        self.folder = folder
        self.journal: Journal | None = None
        self.work: asyncio.Task[None] | None = None
        """Answers its requests."""
        self.ending = False
        """It is too late to cancel it."""

    @property
    def status(self) -> Status:
        """Where it is."""
        return self.entry.batch.status

    @property
    def cancelled(self) -> bool:
        """Its client does not want more of it."""
        return self.entry.batch.status == "cancelling"

    def tell(self, problems: Problems) -> None:
        """Note why it fails."""
        self.entry = replace(self.entry, batch=replace(self.entry.batch, errors=problems))

    def shown(self) -> Batch:
        """As its client sees it."""
        batch = self.entry.batch
        if self.journal is not None:
            total = batch.request_counts.total
            counts = Counts(total, self.journal.completed, self.journal.failed)
            batch = replace(batch, request_counts=counts)
        return _told(batch)


def _told(batch: Batch) -> Batch:
    """`batch` as its client sees it: files are named once they can be read."""
    if batch.status == "finalizing":
        return replace(batch, output_file_id=None, error_file_id=None)
    return batch


def _prepare(folder: Path, given: Path) -> None:
    folder.mkdir(mode=0o700, parents=True)
    share(given, folder / _INPUT)


def _expire(journal: Journal, places: Sequence[batch_lines.Place]) -> None:
    message = "its time was over before it was asked"
    for place in places:
        if place.custom_id not in journal.done:
            id = f"batch_req_{secrets.token_hex(12)}"
            line = batch_lines.unanswered(id, place.custom_id, "batch_expired", message)
            journal.add(place.custom_id, line, ok=False)
