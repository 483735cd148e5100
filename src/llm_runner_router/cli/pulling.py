"""Downloads as people see them: bars on a terminal, lines elsewhere; both on standard error.

Knows: `rich` and how often a line is enough. Does not know: what is downloaded or how.
"""

from __future__ import annotations

import asyncio
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from llm_runner_router import refs
from llm_runner_router.errors import RunnerError, UnknownModel
from llm_runner_router.units import format_duration, format_size

from . import output

if TYPE_CHECKING:  # `llmrr run` asks `ensure` each time, and seldom needs what downloads
    from llm_runner_router.models.blobs import Store
    from llm_runner_router.models.download import Watch
    from llm_runner_router.models.manifest import Stored

LINE_SECONDS = 5.0
"""Seconds between two lines about one file."""


def pull(
    ref: refs.Ref,
    *,
    name: str | None = None,
    quiet: bool = False,
    accept: Callable[[Stored, Store], None] | None = None,
    replace: bool = False,
) -> Stored:
    """Bring a model here and show how; the arguments are those of `Puller.pull`.

    Raises:
        RunnerError: as `Puller.pull`.
        KeyboardInterrupt: with a word about what is kept.
    """
    from llm_runner_router.models.pull import Puller

    with watching(quiet) as watch:
        try:
            puller = Puller(os.environ, watch)
            return asyncio.run(puller.pull(ref, name=name, accept=accept, replace=replace))
        except KeyboardInterrupt:
            watch.say("stopped; what came is kept, the same command goes on with it")
            raise


def ensure(model: str) -> None:
    """Bring `model`, or an adapter, here if it refers to something that is not; others are left.

    Raises:
        RunnerError: it cannot be had.
    """
    try:
        ref = refs.parse(model)
    except RunnerError:
        return  # a name that only the configuration can know
    if ref.kind not in refs.REMOTE:
        return
    from llm_runner_router.models.resolve import resolve

    try:
        resolve(ref, part=None)
    except UnknownModel:
        pull(ref)


@contextmanager
def watching(quiet: bool = False) -> Iterator[Watch]:
    """Someone who shows a download for as long as the block lasts."""
    if quiet:
        from llm_runner_router.models.download import Silent

        yield Silent()
    elif sys.stderr.isatty() and os.environ.get("TERM") != "dumb":
        with _Bars() as bars:
            yield bars
    else:
        yield Lines(lambda line: print(line, file=sys.stderr, flush=True))


class Lines:
    """A `Watch` that writes lines: one per step, and one every few seconds per file."""

    def __init__(
        self, write: Callable[[str], object], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._write = write
        self._clock = clock
        self._files: dict[str, _Running] = {}

    def say(self, line: str) -> None:
        """See `Watch`."""
        self._write(output.line(line))

    def begin(self, name: str, size: int | None, done: int) -> None:
        """See `Watch`."""
        self._files[name] = _Running(size, done, self._clock())
        whole = "" if size is None else f" {format_size(size)}"
        there = f", {format_size(done)} there already" if done else ""
        if done != size or not done:
            self.say(f"pulling {name}{whole}{there}")

    def advance(self, name: str, count: int) -> None:
        """See `Watch`."""
        file = self._files[name]
        file.done += count
        now = self._clock()
        if now - file.told >= LINE_SECONDS:
            file.told = now
            self.say(f"pulling {name} {file.figures(now)}")

    def end(self, name: str) -> None:
        """See `Watch`."""
        file = self._files.pop(name)
        took = self._clock() - file.began
        came = file.done - file.first
        if came:
            speed = f", {format_size(came / took)}/s" if took > 0.01 else ""
            self.say(f"pulled {name} in {format_duration(took)}{speed}")
        else:
            self.say(f"{name} is here already")


class _Running:
    """One file on its way."""

    def __init__(self, size: int | None, done: int, now: float) -> None:
        self.size = size
        self.first = self.done = done
        self.began = self.told = now

    def figures(self, now: float) -> str:
        """`42 %, 31.0 MiB/s, 12 s left`."""
        speed = (self.done - self.first) / max(now - self.began, 1e-6)
        rate = f"{format_size(speed)}/s"
        if not self.size:
            return f"{format_size(self.done)}, {rate}"
        left = f", {format_duration((self.size - self.done) / speed)} left" if speed > 0 else ""
        return f"{100 * self.done // self.size} %, {rate}{left}"


class _Bars:
    """A `Watch` with one bar per file."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            DownloadColumn,
            Progress,
            TextColumn,
            TimeRemainingColumn,
            TransferSpeedColumn,
        )

        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=None),
            DownloadColumn(binary_units=True),
            TransferSpeedColumn(),
            TimeRemainingColumn(compact=True),
            console=Console(stderr=True),
        )
        self._tasks: dict[str, Any] = {}
        self._done: dict[str, int] = {}

    def __enter__(self) -> _Bars:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def say(self, line: str) -> None:
        """See `Watch`."""
        from rich.text import Text

        self._progress.console.print(Text(output.line(line)))

    def begin(self, name: str, size: int | None, done: int) -> None:
        """See `Watch`."""
        if name in self._tasks:
            self._progress.remove_task(self._tasks[name])
        # Square brackets would be read as markup.
        text = output.line(name).replace("[", r"\[")
        self._done[name] = done
        self._tasks[name] = self._progress.add_task(text, total=size, completed=done)

    def advance(self, name: str, count: int) -> None:
        """See `Watch`."""
        self._done[name] += count
        self._progress.advance(self._tasks[name], count)

    def end(self, name: str) -> None:
        """See `Watch`."""
        done = self._done[name]
        self._progress.update(self._tasks[name], total=done, completed=done)
