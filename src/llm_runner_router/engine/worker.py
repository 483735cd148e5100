"""The parent's side of a runner process: start it, load a model in it, watch it, end it.

Knows: the protocol of `child.py`, process groups, deadlines, the engine's log. Does not know: which
model when (`scheduler.py`), what a request is.

Whoever starts a `Worker` owns it and must `stop` it. If the owner is killed, the child sees its
stdin close (or the kernel tells it) and leaves by itself.
"""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import sys
import tempfile
from collections import deque
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO, Self

import msgspec
import psutil
from msgspec import Struct

from llm_runner_router.convert import process as processes
from llm_runner_router.errors import LoadFailed, RunnerCrashed

from . import pages
from .threads import ENV, Wait

LINES = 200
"""Lines of the engine's log that are kept in memory."""
LINE = 500
"""Characters kept of one line."""
MAX_LOG = 4 * 1024 * 1024
"""Bytes of log written to a file per runner."""
STOP_STEPS = (2.0, 2.0, 5.0)
"""Seconds to wait after closing stdin, after SIGTERM, and after SIGKILL."""
LAST_WORDS = 1.0
"""Seconds to read what a process that is gone has left in its pipes."""

_ENGINES = re.compile(r"(GGML|CUDA|HIP|ROCR)_.*")
"""Variables that engines listen to."""
REPORTS = 64
"""Reports that may wait to be read; a runner sends two or three in its life."""
_NOISE = re.compile(r"^[\d.]+ [A-Z] +(\w+ +)?")
_TROUBLE = re.compile(
    r"^[\d.]+ E |\b(error|failed|failure|unknown|unsupported|invalid|missing|corrupt)", re.I
)
_USELESS = re.compile(r"please check the input params|exiting due to|failed to load model|^$", re.I)


class Report(Struct, frozen=True):
    """One line from the child."""

    event: str
    address: str = ""
    model: str = ""
    """The model's name there, if it is another than ours."""
    api_key: str = ""
    """The key it wants, if it is another than the order's."""
    pid: int = 0
    """A process that does the work in the child's place."""
    error: str = ""
    unknown: tuple[str, ...] = ()


class Worker:
    """A runner process. `await Worker.start(…)`, `await load(…)`, `await stop()`."""

    def __init__(self, process: asyncio.subprocess.Process, wait: Wait) -> None:
        self._process = process
        self._log: Path | None = None
        self._lines: deque[str] = deque(maxlen=LINES)
        self._tasks: list[asyncio.Task[None]] = []
        self._reports: asyncio.Queue[Report | None] = asyncio.Queue(REPORTS)
        self.wait: Wait = wait
        self.pids: tuple[int, ...] = (process.pid,)
        """Every process that works for it, its own first."""
        self.unknown: tuple[str, ...] = ()
        """Parameters this build of the engine does not have."""
        self._scratch: Path | None = None
        self.answered = False
        """It has said something about an order, or was given time for it in vain."""

    @classmethod
    async def start(cls, wait: Wait, runner: str, *, environ: Mapping[str, str]) -> Self:
        """Start a process that imports the engine and waits for an order.

        Args:
            wait: how its threads will wait for each other; fixed from here on.
            runner: the module with the engine's child side.
            environ: our environment; only harmless names are handed on.
        """
        process, reports = await processes.start(
            "llm_runner_router.engine.child",
            str(os.getpid()),
            runner,
            env=processes.harmless(environ, _ENGINES)
            | ENV[wait]
            | pages.variables(environ, runner),
        )
        worker = cls(process, wait)
        worker._tasks = [
            asyncio.create_task(worker._read_log()),
            asyncio.create_task(worker._read_reports(reports)),
        ]
        return worker

    @property
    def pid(self) -> int:
        """The process id."""
        return self._process.pid

    @property
    def is_alive(self) -> bool:
        """It has not ended, as far as is known."""
        return self._process.returncode is None

    def keep_log(self, path: Path) -> None:
        """Write the engine's log to `path` from now on; what was there goes."""
        self._log = path

    async def load(self, order: Mapping[str, Any], timeout: float) -> Report:
        """Send the order and wait for the model to be served; gives where.

        An order with `scratch` gets a folder for temporary files that goes with the process,
        however that ends.

        Raises:
            LoadFailed: it did not load, or not within `timeout` seconds; carries the engine's
                own reason.
        """
        stdin = self._process.stdin
        assert stdin is not None
        if order.get("scratch"):
            self._scratch = Path(tempfile.mkdtemp(prefix="llmrr-"))
            order = {**order, "env": {**order.get("env", {}), "TMPDIR": str(self._scratch)}}
        try:
            async with asyncio.timeout(timeout):
                stdin.write(msgspec.json.encode(order) + b"\n")
                while (report := await self._reports.get()) is not None:
                    # "ready" is about the process; one may wait here from before the order.
                    self.answered = self.answered or report.event != "ready"
                    if report.event == "listening":
                        self.unknown = report.unknown
                        self.pids = (self.pid, report.pid) if report.pid else (self.pid,)
                        return report
                    if report.event == "failed":
                        await self.exited()
                        raise self._load_failed(report.error)
                await self.exited()
        except TimeoutError:
            self.answered = True
            raise LoadFailed(
                f"the model was not loaded within {timeout:g} s; the engine's last words: "
                + (self.last_words() or "none"),
                hint="raise `engine.load_timeout`, or use a smaller model",
            ) from None
        raise self._load_failed(f"the runner process ended with {self.ending()}")

    async def exited(self) -> None:
        """Wait until the process is gone and its log is read.

        The pipes end with the process, unless one that it started keeps them open: what was read
        by then must do, as somebody waits to hear that the runner is gone.
        """
        await self._process.wait()
        await asyncio.wait(self._tasks, timeout=LAST_WORDS)

    async def stop(self) -> None:
        """End the process: politely, then firmly, then by force; returns when it is gone."""
        steps = (self._close_stdin, self._process.terminate, self._process.kill)
        try:
            for step, seconds in zip(steps, STOP_STEPS, strict=True):
                if not self.is_alive:
                    break
                try:
                    step()
                    async with asyncio.timeout(seconds):
                        await self._process.wait()
                except ProcessLookupError:
                    break
                except TimeoutError:
                    continue
        finally:
            if self.is_alive:
                self.kill()
            self._close_stdin()
            # The pipes end with the process, unless a grandchild keeps them open: it must not
            # hold us.
            try:
                await asyncio.wait(self._tasks, timeout=LAST_WORDS)
            finally:
                for task in self._tasks:
                    task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)
            if self._scratch is not None:
                shutil.rmtree(self._scratch, ignore_errors=True)
            # asyncio closes its ends of the pipes only when the other ends are closed.
            self._process._transport.close()  # type: ignore[attr-defined]  # has no public name

    def kill(self) -> None:
        """End the process at once, without waiting."""
        try:
            self._process.kill()
        except ProcessLookupError:
            pass

    def _close_stdin(self) -> None:
        if self._process.stdin is not None:
            self._process.stdin.close()

    # ------------------------------------------------------------ what is known of it

    def memory(self) -> int:
        """Bytes in memory, pages that others share counted in full; 0 if it is gone."""
        return sum(_memory(pid) for pid in self.pids)

    def peak(self) -> int:
        """The most that `memory` ever was, where the system tells; else 0."""
        return sum(_peak(pid) for pid in self.pids)

    def ending(self) -> str:
        """How the process ended, in words."""
        code = self._process.returncode
        if code is None:
            return "no exit yet"
        return f"signal {-code}" if code < 0 else f"exit code {code}"

    def crashed(self) -> RunnerCrashed:
        """The error for whoever used it when it died."""
        words = self.last_words()
        return RunnerCrashed(
            f"the runner process ended with {self.ending()}"
            + (f"; its last words: {words}" if words else ""),
            hint="try again; it is started anew",
        )

    def log(self) -> tuple[str, ...]:
        """The last lines of the engine's log."""
        return tuple(self._lines)

    def last_words(self) -> str:
        """The lines that say what went wrong, without those that only say that it did."""
        telling = [
            _NOISE.sub("", line).strip()
            for line in self._lines
            if _TROUBLE.search(line) and not _USELESS.search(line)
        ]
        unique = list(dict.fromkeys(telling))[-2:]
        if not unique and self._lines:
            unique = [_NOISE.sub("", self._lines[-1]).strip()]
        return "; ".join(unique)

    def _load_failed(self, error: str) -> LoadFailed:
        words = self.last_words()
        return LoadFailed(
            f"the engine would not load the model: {words or error}",
            hint="check that the file is complete and that the engine knows its architecture"
            " (`llmrr doctor`)",
        )

    # ------------------------------------------------------------ its pipes

    async def _read_log(self) -> None:
        stream = self._process.stderr
        assert stream is not None
        rest, written = b"", 0
        file = None
        try:
            while chunk := await stream.read(65536):
                if self._log is not None and written < MAX_LOG:
                    file = file or self._log.open("wb", buffering=0)
                    written += file.write(chunk) or 0
                *lines, rest = (rest + chunk).split(b"\n")
                rest = rest[-LINE:]
                self._lines.extend(line[:LINE].decode("utf-8", "replace") for line in lines if line)
            if rest:
                self._lines.append(rest.decode("utf-8", "replace"))
        except OSError:  # a full disk must not take the model down; the lines in memory remain
            self._log = None
        finally:
            if file is not None:
                file.close()

    async def _read_reports(self, pipe: BinaryIO) -> None:
        """Put the child's reports into the queue, and None at their end."""
        reader, transport = await processes.listen(pipe)
        try:
            while line := await reader.readline():
                self._put(msgspec.json.decode(line, type=Report))
        except (msgspec.DecodeError, ValueError, asyncio.QueueFull):
            self.kill()  # not our protocol: whatever it is, it is not a runner
        finally:
            self._put(None)
            transport.close()

    def _put(self, report: Report | None) -> None:
        if report is None and self._reports.full():
            self._reports.get_nowait()  # that there is no more is what matters then
        self._reports.put_nowait(report)


def _memory(pid: int) -> int:
    """In full, since the same process has other numbers in proportion (PSS) whenever a process
    that shares its libraries comes or goes: 15 MiB were seen."""
    try:
        return int(psutil.Process(pid).memory_info().rss)
    except psutil.Error:
        return 0


def _peak(pid: int) -> int:
    """Linux tells it as `VmHWM`, Windows in psutil's `peak_wset`."""
    try:
        if sys.platform == "linux":
            status = Path(f"/proc/{pid}/status").read_bytes()
            found = re.search(rb"^VmHWM:\s*(\d+) kB", status, re.MULTILINE)
            return int(found[1]) * 1024 if found else 0
        return int(getattr(psutil.Process(pid).memory_info(), "peak_wset", 0))
    except (psutil.Error, OSError):
        return 0
