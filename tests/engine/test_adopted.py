"""Servers of somebody else's as runners: started by us, or already running."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator

import psutil
import pytest

from llm_runner_router.config import Adopt, Secret
from llm_runner_router.engine import adopted
from llm_runner_router.engine.runners.adopted import free_port, is_well
from llm_runner_router.errors import LoadFailed
from llm_runner_router.models.info import LocalModel
from llm_runner_router.types import Message, ModelCard, Request, Sampling

from .locally import Locally

pytestmark = [pytest.mark.engine, pytest.mark.timeout(120)]

OUTSIDER = (sys.executable, "-m", "tests.engine.outsider")
ASKED = Request(model="m", messages=(Message("user", "hello"),), sampling=Sampling(temperature=0.0))


@pytest.fixture
def local() -> Iterator[Locally]:
    local = Locally()
    yield local
    local.close()


def model(settings: Adopt, key: str | None = "k") -> LocalModel:
    return adopted.model("theirs", settings, Secret(key) if key else None, ModelCard("theirs"))


def started(**more: object) -> LocalModel:
    return model(Adopt(command=(*OUTSIDER, "{port}", "their-name", "k"), **more))  # type: ignore[arg-type]  # fields by name


def below(pid: int) -> psutil.Process:
    """The server that a runner process has started."""
    (found,) = psutil.Process(pid).children()
    return found


async def until(what: Callable[[], object]) -> None:
    """Wait for something that other processes do; the test's own deadline bounds it."""
    while True:
        if what():
            return
        await asyncio.sleep(0.01)


def test_a_command_becomes_a_runner_and_ends_with_us() -> None:
    local = Locally()
    try:
        theirs = started(env={"OUTSIDER_SAYS": "hello from outside"})
        assert local.ask(theirs, ASKED).text == "mock: hello from outside"
        vector = local.embed(theirs, "abc").vectors[0]
        assert sum(x * x for x in vector) == pytest.approx(1.0, abs=1e-4)
        (row,) = local.residency.status()
        assert (row.engine, row.state, row.served) == ("adopted", "ready", 2)
        assert (row.threads, row.batch_threads, row.wait_policy) == (None,) * 3, "theirs, unknown"
        assert row.pid is not None
        server = below(row.pid)
        assert row.memory is not None
        assert row.memory > server.memory_info().rss // 4, "theirs counts"
    finally:
        local.close()
    assert not server.is_running()


def test_a_server_that_died_is_started_again(local: Locally) -> None:
    theirs = started()
    local.ask(theirs, ASKED)
    (row,) = local.residency.status()
    assert row.pid is not None
    server = below(row.pid)
    server.kill()
    assert local.ask(theirs, ASKED).text == "mock: outside"
    (again,) = local.residency.status()
    assert again.pid != row.pid


def test_a_server_does_not_outlive_its_keeper(local: Locally) -> None:
    theirs = started()
    local.ask(theirs, ASKED)
    (row,) = local.residency.status()
    assert row.pid is not None
    server = below(row.pid)
    os.kill(row.pid, signal.SIGKILL)
    local.run(until(lambda: not server.is_running() or server.status() == "zombie"))


def test_it_is_unloaded_like_others(local: Locally) -> None:
    theirs = started()
    local.ask(theirs, ASKED)
    (row,) = local.residency.status()
    assert row.pid is not None
    server = below(row.pid)
    assert local.run(local.residency.stop("theirs"))
    assert not server.is_running()
    assert local.residency.status() == ()


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ((*OUTSIDER, "broken", "{port}"), "the outsider has no licence"),
        (("no-such-program", "{port}"), "cannot start 'no-such-program'"),
    ],
)
def test_a_command_that_fails_says_why(
    local: Locally, command: tuple[str, ...], words: str
) -> None:
    with pytest.raises(LoadFailed, match=words):
        local.ask(model(Adopt(command=command)), ASKED)


def test_a_server_that_runs_already(local: Locally) -> None:
    port = free_port()
    url = f"http://127.0.0.1:{port}/v1"
    theirs = model(Adopt(url=url, model="their-name"))
    with subprocess.Popen([*OUTSIDER, str(port), "their-name", "k"]) as server:
        try:
            local.run(until(lambda: is_well(url, "/health", None)))
            assert local.ask(theirs, ASKED).text == "mock: outside"
            local.run(local.residency.stop("theirs"))
            assert server.poll() is None, "it is not ours to end"
            assert is_well(url, "/health", None)
            with pytest.raises(LoadFailed, match="names no model"):
                local.ask(model(Adopt(url=url), key=None), ASKED)
        finally:
            server.kill()
