"""A real server with a fake gateway, and ways to run the command line against it."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import msgspec
import pytest

from llm_runner_router.cli import main
from llm_runner_router.config import Server
from llm_runner_router.home import find, write_atomic
from llm_runner_router.server import ServerState, serve
from llm_runner_router.surfaces.testing import KEY, FakeGateway

Run = Callable[..., "Result"]
START_SECONDS = 30.0
CODE = "import sys; from llm_runner_router.cli import main; sys.exit(main())"
LLMRR = (sys.executable, "-c", CODE)
"""The command as a process, also where the package's scripts are not on the path."""


class Result(msgspec.Struct, frozen=True):
    """How one run of `llmrr` ended."""

    code: int
    out: str
    err: str


@pytest.fixture
def llmrr(capfd: pytest.CaptureFixture[str]) -> Run:
    """Runs `llmrr …` in this process."""

    def run(*args: str) -> Result:
        capfd.readouterr()
        code = main(args)
        out, err = capfd.readouterr()
        return Result(code, out, err)

    return run


def in_a_process(*args: str, stdin: str | None = None, **env: str) -> Result:
    """Runs `llmrr …` as a person does; `env` is added to the environment."""
    done = subprocess.run(
        [*LLMRR, *args],
        input=stdin,
        capture_output=True,
        text=True,
        timeout=START_SECONDS,
        env={**os.environ, **env},
    )
    return Result(done.returncode, done.stdout, done.stderr)


@contextmanager
def serving(gateway: FakeGateway) -> Iterator[str]:
    """Serves `gateway` on a free port until the block ends; the state file tells where."""
    started, stop = threading.Event(), threading.Event()
    urls: list[str] = []

    async def life() -> None:
        loop = asyncio.get_running_loop()
        async with serve(gateway, Server(port=0, drain=0)) as url:
            urls.append(url)
            started.set()
            await loop.run_in_executor(None, stop.wait)

    thread = threading.Thread(target=lambda: asyncio.run(life()))
    thread.start()
    try:
        assert started.wait(START_SECONDS), "the server did not start"
        home = find(os.environ).create()
        state = ServerState(os.getpid(), urls[0], time.time(), "0")
        write_atomic(home.server, msgspec.json.encode(state))
        yield urls[0]
    finally:
        stop.set()
        thread.join(START_SECONDS)
        assert not thread.is_alive(), "the server did not end"


@pytest.fixture
def with_key(monkeypatch: pytest.MonkeyPatch) -> None:
    """The command line sends the key that the fake gateway lets in."""
    monkeypatch.setenv("LLMRR_API_KEY", KEY)
