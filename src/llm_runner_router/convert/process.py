"""A process of ours with a pipe for its reports: how it is started, and what it may know of us.

Knows: pipes, sessions, environments. Does not know: what the process does. Runners
(`engine/worker.py`) and conversions (`job.py`) are started this way: the child reads its order from
stdin, which stays open while we live, writes reports to a pipe whose number is its first argument,
and writes its log to stderr.
"""

from __future__ import annotations

import asyncio
import os
import re
import sys
from collections.abc import Mapping
from typing import BinaryIO

from llm_runner_router.errors import Unsupported

_INHERITED = re.compile(
    r"^(PATH|HOME|USER|LANG|LC_.*|TZ|TMPDIR|(LD|DYLD)_LIBRARY_PATH|PYTHON(PATH|HOME|UTF8)"
    r"|VIRTUAL_ENV)$"
)


def harmless(environ: Mapping[str, str], more: re.Pattern[str] | None = None) -> dict[str, str]:
    """The variables that a child gets. Nothing else: our API keys are none of its business.

    Args:
        environ: our environment.
        more: further names that mean something to this kind of child; matched as a whole.
    """
    return {
        name: value
        for name, value in environ.items()
        if _INHERITED.match(name) or (more is not None and more.fullmatch(name))
    }


class Process(asyncio.subprocess.Process):
    """A child. `wait` returns when it is gone.

    asyncio's own waits until its pipes are closed as well (since 3.11.5), which never happens while
    a process that it started holds one.
    """

    def __init__(self, transport: asyncio.SubprocessTransport, protocol: _Protocol) -> None:
        super().__init__(transport, protocol, asyncio.get_running_loop())
        self._exited = protocol.exited

    async def wait(self) -> int:
        """Wait for its end; gives the exit code, negative for a signal."""
        await self._exited.wait()
        assert self.returncode is not None
        return self.returncode


class _Protocol(asyncio.subprocess.SubprocessStreamProtocol):
    """Tells when the process is gone."""

    def __init__(self) -> None:
        super().__init__(limit=1 << 16, loop=asyncio.get_running_loop())
        self.exited = asyncio.Event()

    def process_exited(self) -> None:
        super().process_exited()
        self.exited.set()


async def start(module: str, *arguments: str, env: Mapping[str, str]) -> tuple[Process, BinaryIO]:
    """Run a module of ours as `python -m MODULE REPORT ARGUMENTS…`.

    Args:
        module: its full name.
        arguments: come after the number of the pipe.
        env: all of its environment; see `harmless`.

    Returns:
        The process, with pipes for stdin and stderr, in a session of its own: signals of our
        terminal (Ctrl-C, hang-up) do not reach it. And our end of its reports, which the caller
        closes.

    Raises:
        Unsupported: this is Windows.
    """
    if os.name == "nt":  # there children inherit handles, which are not the numbers of pipes
        raise Unsupported(
            "models run and are converted here on Linux and macOS only",
            hint="use it within WSL",
        )
    read, write = os.pipe()
    try:
        transport, protocol = await asyncio.get_running_loop().subprocess_exec(
            _Protocol,
            sys.executable,
            "-P",
            "-m",
            module,
            str(write),
            *arguments,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.PIPE,
            pass_fds=(write,),
            start_new_session=True,
            env=env,
        )
    except BaseException:
        os.close(read)
        raise
    finally:
        os.close(write)
    return Process(transport, protocol), os.fdopen(read, "rb", buffering=0)


async def listen(reports: BinaryIO) -> tuple[asyncio.StreamReader, asyncio.ReadTransport]:
    """Lines of reports as a stream; closing the transport closes `reports`."""
    reader = asyncio.StreamReader(limit=1 << 20)
    transport, _ = await asyncio.get_running_loop().connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(reader), reports
    )
    return reader, transport
