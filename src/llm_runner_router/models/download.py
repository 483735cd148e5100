"""Bringing one file here: parts side by side, continued where they stopped, checked at the end.

Knows: workers, retries, silence, digests. Does not know: protocols (`sources/`), the format of the
journal (`partial.py`), where finished files go (`pull.py`).

The hash is computed while the file grows, over the part of it that is there without a gap, so that
checking takes no time of its own; what ends up under a name has passed it.
"""

from __future__ import annotations

import asyncio
import shutil
import time
from collections import deque
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path
from random import Random
from typing import Any, ParamSpec, Protocol, TypeVar

from msgspec import Struct

from llm_runner_router.errors import (
    BadResponse,
    RunnerError,
    StreamBroken,
    Unavailable,
    UpstreamTimeout,
)
from llm_runner_router.units import format_size

from .blobs import unwritable
from .manifest import Digest, RemoteFile
from .offsets import read_at
from .partial import MIB, Partial
from .sources import Source
from .sources._http import AGAIN, Changed, NoRanges

P = ParamSpec("P")
T = TypeVar("T")

WORKERS = 4
ATTEMPTS = 6
"""Failures in a row before a download is given up; see `PROGRESS`."""
PROGRESS = 256 << 10
"""Bytes that an attempt must bring so as not to count as a failure: a server that gives one byte
per connection would otherwise be asked for ever."""
STALL_SECONDS = 30.0
"""Silence of one part after which it is asked for again."""
SLOW_SECONDS = 60.0
SLOWEST = 16 << 10
"""Bytes that a part must bring in `SLOW_SECONDS`: a server that drips is never silent."""
LONGEST_WAIT = 120.0
"""Seconds of a server's `Retry-After` that are waited; a longer one ends the download."""
LONGEST_PAUSE = 30.0
"""Seconds between two tries at most, where the server says nothing."""
HASH_STEP = 8 * MIB
SPARE = 64 * MIB
"""Bytes that stay free on the disk."""
ROUNDS = 2
"""How often a file is fetched from its start: once more when it was not what it should be."""


class Watch(Protocol):
    """Someone who looks on. Called from the event loop; must not block."""

    def say(self, line: str) -> None:
        """A step, in a few words: `pulling manifest`."""
        ...

    def begin(self, name: str, size: int | None, done: int) -> None:
        """A file starts, with `done` bytes of `size` there already; also when it starts again."""
        ...

    def advance(self, name: str, count: int) -> None:
        """`count` more bytes are there; negative when some turned out to be useless."""
        ...

    def end(self, name: str) -> None:
        """The file is there and checked."""
        ...


class Silent:
    """A `Watch` that looks away."""

    def say(self, line: str) -> None:
        """See `Watch`."""

    def begin(self, name: str, size: int | None, done: int) -> None:
        """See `Watch`."""

    def advance(self, name: str, count: int) -> None:
        """See `Watch`."""

    def end(self, name: str) -> None:
        """See `Watch`."""


class Fetched(Struct, frozen=True):
    """A file that is here and is what it should be, not yet under its name."""

    path: Path
    size: int
    sha256: str


def wait_before(attempt: int, error: RunnerError, rng: Random) -> float:
    """Seconds before the next try: what the server said, else up to twice as long each time.

    Pure but for `rng`. Any time up to the bound is as likely as any other ("full jitter",
    https://aws.amazon.com/blogs/architecture/exponential-backoff-and-jitter/), so that many clients
    of one server do not come back together.
    """
    if error.retry_after is not None:
        return error.retry_after
    return rng.uniform(0.0, min(LONGEST_PAUSE, 0.5 * float(2 ** min(attempt, 16))))


class Downloader:
    """Fetches files.

    Args:
        watch: told of every step.
        workers: parts at the same time.
        stall: seconds of silence of a part.
        sleep, rng, clock: time and chance, for tests.
    """

    def __init__(
        self,
        watch: Watch | None = None,
        *,
        workers: int = WORKERS,
        stall: float = STALL_SECONDS,
        sleep: Callable[[float], Awaitable[Any]] = asyncio.sleep,
        rng: Random | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._watch = watch or Silent()
        self._workers = workers
        self._stall = stall
        self._sleep = sleep
        self._rng = rng or Random()
        self._clock = clock

    async def fetch(self, source: Source, file: RemoteFile, folder: Path, key: str) -> Fetched:
        """Bring `file` to `folder` as `<key>.part`, continuing what is there, and check it.

        Raises:
            BadResponse: it is not what its digest says, twice.
            UpstreamError: it could not be had; what came is kept for the next time.
            Unavailable: it could not be written, because the disk is full for example.
        """
        try:
            return await self._fetch(source, file, folder, key)
        except OSError as exc:
            raise unwritable(exc, folder, file.path) from exc

    async def _fetch(self, source: Source, file: RemoteFile, folder: Path, key: str) -> Fetched:
        problem: RunnerError | None = None
        for _ in range(ROUNDS):
            partial = Partial.open(folder, key, file, workers=self._workers)
            try:
                self._watch.begin(file.path, partial.size, partial.done)
                return await self._round(source, file, partial)
            except (_Wrong, Changed) as exc:
                problem = exc
                partial.discard()
                self._watch.say(f"{exc.message}; from the start")
            except _NoRoom:
                partial.discard()
                raise
            finally:
                partial.close()
        assert problem is not None, "a round ends in a file or a problem"
        if isinstance(problem, Changed):
            raise problem
        raise BadResponse(
            f"{problem.message}, twice; nothing was kept", hint="the source is damaged"
        ) from problem

    async def _round(self, source: Source, file: RemoteFile, partial: Partial) -> Fetched:
        hashing = _Hashing(partial, file.digest)
        task = asyncio.create_task(hashing.follow())
        try:
            await self._fill(source, file, partial, hashing)
            size = partial.done
            if not task.done():
                self._watch.say(f"verifying sha256 {file.path}")
            hashing.finished(size)
            sums = await task
        finally:
            task.cancel()
            with suppress(asyncio.CancelledError, OSError):
                await task
        if file.digest is not None and sums[file.digest.algorithm] != file.digest.hex:
            raise _Wrong(
                f"{file.path!r} has the {file.digest.algorithm} {sums[file.digest.algorithm]} "
                f"instead of {file.digest.hex}"
            )
        path = await _whole(partial.seal)
        self._watch.end(file.path)
        return Fetched(path, size, sums["sha256"])

    async def _fill(
        self, source: Source, file: RemoteFile, partial: Partial, hashing: _Hashing
    ) -> None:
        try:
            await self._parts(source, file, partial, hashing)
        except NoRanges:
            self._watch.advance(file.path, -partial.done)
            hashing.restart()
            partial.reset(one=True)
            await self._parts(source, file, partial, hashing)

    async def _parts(
        self, source: Source, file: RemoteFile, partial: Partial, hashing: _Hashing
    ) -> None:
        todo = deque(index for index, part in enumerate(partial.parts) if part.left)

        async def work() -> None:
            while todo:
                await self._part(source, file, partial, todo.popleft(), hashing)

        workers = [asyncio.create_task(work()) for _ in range(min(self._workers, len(todo)))]
        if not workers:
            return
        try:
            await asyncio.gather(*workers)
        finally:
            for worker in workers:
                worker.cancel()
            await asyncio.gather(*workers, return_exceptions=True)

    async def _part(
        self,
        source: Source,
        file: RemoteFile,
        partial: Partial,
        index: int,
        hashing: _Hashing,
    ) -> None:
        """One part, asked for again from where it stopped as long as that helps.

        An attempt that brought little is a failure, too; after `ATTEMPTS` of them in a row it is
        given up. There is a pause before every attempt, so a server that breaks off again and
        again is not asked without one.
        """
        part = partial.parts[index]
        failures = 0
        while part.left:
            before = part.at
            try:
                await self._stream(source, file, partial, index, hashing)
            except RunnerError as exc:
                if not exc.retryable or isinstance(exc, NoRanges | Changed):
                    raise
                gained = part.at - before
                if partial.size is None and part.at > part.start:
                    # Nobody knows how long it should be, so it cannot be continued.
                    self._watch.advance(file.path, part.start - part.at)
                    partial.rewind(index)
                    hashing.restart()
                    gained = 0
                failures = 0 if gained >= PROGRESS else failures + 1
                pause = wait_before(failures, exc, self._rng)
                if failures >= ATTEMPTS or pause > LONGEST_WAIT:
                    raise
                if failures:
                    self._watch.say(f"{exc.message}; again in {pause:.0f} s")
                await self._sleep(pause)

    async def _stream(
        self,
        source: Source,
        file: RemoteFile,
        partial: Partial,
        index: int,
        hashing: _Hashing,
    ) -> None:
        part = partial.parts[index]
        last = index == len(partial.parts) - 1
        whole = part.at == 0 and last
        to_byte = None if whole or partial.size is None else part.end
        since, counted = self._clock(), part.at
        async with source.open(file, part.at, to_byte) as pieces:
            while part.left:
                try:
                    async with asyncio.timeout(self._stall):
                        data = await anext(pieces, b"")
                except TimeoutError as exc:
                    raise UpstreamTimeout(
                        f"{file.path!r} was silent for {self._stall:.0f} s", hint=AGAIN
                    ) from exc
                if not data:
                    break
                if len(data) > part.left:
                    raise BadResponse(f"there is more of {file.path!r} than was said", hint=AGAIN)
                if partial.size is None:
                    await asyncio.to_thread(_check_room, partial, file)
                await _whole(partial.write, index, data)
                self._watch.advance(file.path, len(data))
                hashing.grown()
                if self._clock() - since >= SLOW_SECONDS:
                    if part.left and part.at - counted < SLOWEST:
                        raise UpstreamTimeout(
                            f"{file.path!r} came with less than {format_size(SLOWEST)} in"
                            f" {SLOW_SECONDS:.0f} s",
                            hint=AGAIN,
                        )
                    since, counted = self._clock(), part.at
        if partial.size is None:
            partial.end(index)
        elif part.left:
            raise StreamBroken(
                f"{file.path!r} ended {format_size(part.left)} too early", hint=AGAIN
            )


def _check_room(partial: Partial, file: RemoteFile) -> None:
    """Nothing, if the disk has space: a body whose length nobody said may have no end."""
    free = shutil.disk_usage(partial.path.parent).free
    if free < SPARE:
        raise _NoRoom(
            f"{file.path!r} has {format_size(partial.done)} so far and no length, and the disk of"
            f" `{partial.path.parent}` is full; nothing was kept",
            hint="make room (`llmrr prune`), or take it from a server that tells its length",
        )


class _NoRoom(Unavailable):
    """There is no space for a file that nobody knows the length of."""


class _Wrong(RunnerError):
    """The content is not what its digest says."""


class _Hashing:
    """Hashes a growing file from its start, as far as it is there without a gap."""

    def __init__(self, partial: Partial, digest: Digest | None) -> None:
        self._partial = partial
        self._digest = digest
        self._size = partial.size
        self._news = asyncio.Event()
        self._final = False
        self._buffer = memoryview(bytearray(MIB))
        self.restart()

    def restart(self) -> None:
        """The file begins anew."""
        self._at = 0
        self._turn = object()
        size = self._size if self._size is not None else 0
        fresh = Digest("sha256", "").hasher(size)
        self._hashers = {"sha256": fresh}
        if self._digest is not None and self._size is not None:
            self._hashers.setdefault(self._digest.algorithm, self._digest.hasher(size))

    def grown(self) -> None:
        """There is more of it."""
        self._news.set()

    def finished(self, size: int) -> None:
        """It is complete, with `size` bytes."""
        if self._size is None and self._digest is not None and self._digest.algorithm == "git":
            self._size = size  # git's name of a content begins with its length
            self.restart()
        self._final = True
        self._news.set()

    async def follow(self) -> dict[str, str]:
        """Hash until `finished`: algorithm to hexadecimal.

        Raises:
            OSError: the file cannot be read.
        """
        self._news.set()
        while True:
            await self._news.wait()
            self._news.clear()
            final = self._final
            while self._at < (end := self._partial.prefix) and (
                self._final or end - self._at >= HASH_STEP
            ):
                turn, at = self._turn, self._at
                reached = await _whole(self._step, at, min(end, at + HASH_STEP))
                if turn is self._turn:
                    self._at = reached
            if final:
                return {name: hasher.hexdigest() for name, hasher in self._hashers.items()}

    def _step(self, at: int, end: int) -> int:
        hashers = list(self._hashers.values())
        first = at
        while at < end:
            view = self._buffer[: min(MIB, end - at)]
            count = read_at(self._partial.handle, view, at)
            if not count:
                raise OSError(f"`{self._partial.path}` became shorter while it was read")
            for hasher in hashers:
                hasher.update(view[:count])
            at += count
        self._partial.settle(first, end)
        return end


async def _whole(call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """`call` in a thread, waited for even when nobody wants it any more.

    A thread cannot be stopped; left alone it would write into a file that is closed by then, or
    into another one that got its descriptor.
    """
    task = asyncio.ensure_future(asyncio.to_thread(call, *args, **kwargs))
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        while not task.done():
            with suppress(asyncio.CancelledError):
                await asyncio.wait({task})
        with suppress(Exception):  # it was cancelled; how it ended changes nothing
            task.result()
        raise
