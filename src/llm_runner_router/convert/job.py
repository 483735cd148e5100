"""A conversion in a process of its own, seen from the parent.

Knows: the protocol of `child.py`. Does not know: what is converted how; it imports neither numpy
nor any converter, so that a gateway can convert beside its other work.

    async with converting(source, "gguf", target=target) as job:
        async for progress in job.progress():
            …
        result = await job.result()

Leaving the block stops the work and removes what it wrote. If the parent is killed, the child sees
its stdin close, cleans up and leaves.
"""

from __future__ import annotations

import asyncio
import os
import re
from collections import deque
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any, Final

import msgspec

from llm_runner_router import errors
from llm_runner_router.errors import EngineError, RunnerError
from llm_runner_router.home import find

from .base import Cancelled, Options
from .child import GRACE, Order
from .process import harmless, listen, start
from .run import Progress, Result

LINES: Final = 40
"""Last lines of the child's log that are kept."""
_OURS = re.compile(r"OMP_NUM_THREADS|LLMRR_HOME")
"""Variables that converters listen to."""


class Job:
    """A conversion that runs. Made by `converting`."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process
        self._reports = asyncio.StreamReader()
        self._log: deque[str] = deque(maxlen=LINES)
        self._result: Result | None = None
        self._error: RunnerError | None = None

    @property
    def pid(self) -> int:
        """The process id."""
        return self._process.pid

    async def progress(self) -> AsyncIterator[Progress]:
        """How far it is, until it ends. Errors are raised by `result`."""
        while self._result is None and self._error is None:
            line = await self._reports.readline()
            report: dict[str, Any] = msgspec.json.decode(line) if line else {"event": "gone"}
            match report.pop("event"):
                case "progress":
                    yield msgspec.convert(report, Progress)
                case "done":
                    self._result = msgspec.convert(report, Result, dec_hook=_path)
                case "failed":
                    self._error = _raised(report)
                case _:
                    await self._process.wait()
                    self._error = EngineError(
                        f"the converting process ended with {self._process.returncode}: "
                        + ("; ".join(list(self._log)[-2:]) or "it said nothing"),
                        hint="try again; if memory ran out, choose a smaller type",
                    )

    async def result(self) -> Result:
        """Wait for the end.

        Raises:
            RunnerError: what `run.convert` raised, or `EngineError` if the process died.
        """
        async for _ in self.progress():
            pass
        if self._error is not None:
            raise self._error
        assert self._result is not None
        return self._result

    async def _stop(self) -> None:
        """Close its stdin, which stops it; kill it if it does not leave."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            async with asyncio.timeout(GRACE + 2):
                await self._process.wait()
        except TimeoutError:
            with suppress(ProcessLookupError):
                self._process.kill()
            await self._process.wait()

    async def _read_log(self) -> None:
        stream = self._process.stderr
        assert stream is not None
        while chunk := await stream.read(65536):
            self._log.extend(chunk.decode("utf-8", "replace").splitlines()[-LINES:])


@asynccontextmanager
async def converting(
    source: Path,
    want: str,
    *,
    target: Path | None = None,
    options: Options | None = None,
    overwrite: bool = False,
    background: bool = False,
    budget: int = 0,
    environ: Mapping[str, str] = os.environ,
) -> AsyncIterator[Job]:
    """Start a conversion; leaving the block ends it.

    Args:
        source: a file or folder.
        want: the kind, as in `plan.KINDS`.
        target: where to; None puts it into the data folder and uses a result of before again.
        options: for the converters.
        overwrite: replace what stands at `target`.
        background: give way to everything else on the machine.
        budget: bytes that the weights may take, where `options.quantize` is `dynamic`.
        environ: our environment; only harmless names are handed on.
    """
    order = Order(
        _absolute(source),
        want,
        _absolute(target) if target else "",
        options or Options(),
        overwrite,
        str(find(environ).path),
        background,
        budget,
    )
    process, pipe = await start("llm_runner_router.convert.child", env=harmless(environ, _OURS))
    job = Job(process)
    log = asyncio.create_task(job._read_log())
    transport = None
    try:  # from here on the process has an owner
        job._reports, transport = await listen(pipe)
        assert process.stdin is not None
        process.stdin.write(msgspec.json.encode(order) + b"\n")
        yield job
    finally:
        await job._stop()
        (transport or pipe).close()
        log.cancel()
        with suppress(asyncio.CancelledError):
            await log


def _absolute(path: Path) -> str:
    return str(path.absolute())


def _path(kind: type, value: Any) -> Any:
    return kind(value)


def _raised(report: Mapping[str, str]) -> RunnerError:
    """The error the child met, as our own."""
    known = {**vars(errors), "Cancelled": Cancelled}
    kind = known.get(report["error"])
    if not (isinstance(kind, type) and issubclass(kind, RunnerError)):
        kind = EngineError
    return kind(report["message"], hint=report["hint"] or None, param=report["param"] or None)
