"""What holds for every test: a clean environment, no network, and `async def` tests that end clean.

An `async def test_…` runs on its own event loop with a deadline of 30 s (a `timeout` mark on the
test sets another one), and fails if it leaves a task running. Python's sockets reach loopback and
Unix paths only; native HTTP clients make their own sockets, so their tests use 127.0.0.1.
"""

from __future__ import annotations

import asyncio
import inspect
import ipaddress
import os
import re
import shutil
import socket
import tempfile
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import pytest
from hypothesis import settings

# The same cases on every run, however slow the machine is today.
settings.register_profile("house", deadline=None, derandomize=True, database=None)
settings.load_profile("house")

ASYNC_TIMEOUT = 30.0
_SECRETS = re.compile(
    r"^(LLMRR_.*|.*_API_KEY|.*_API_TOKEN|.*_API_BASE|.*_BASE_URL|HF_TOKEN|HUGGING_FACE_HUB_TOKEN"
    r"|AWS_.*|AZURE_.*|GOOGLE_.*|.*_PROXY)$",
    re.IGNORECASE,
)

OTHERS_STORES = ("HF_HOME", "HF_HUB_CACHE", "OLLAMA_MODELS", "LLAMA_CACHE")
"""Where other programs keep models; tests must not find those of whoever runs them."""


# ---------------------------------------------------------------- async tests


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    if not inspect.iscoroutinefunction(pyfuncitem.obj):
        return None
    mark = pyfuncitem.get_closest_marker("timeout")
    # A little before pytest-timeout, whose message does not know tasks.
    seconds = 0.9 * float(mark.args[0]) if mark is not None and mark.args else ASYNC_TIMEOUT
    # pytest has no public way to ask for the arguments of the function alone.
    names = pyfuncitem._fixtureinfo.argnames
    arguments = {name: pyfuncitem.funcargs[name] for name in names}
    with asyncio.Runner(debug=True) as runner:
        # Debug for its checks of thread safety; a slow callback is no failure on a busy machine.
        runner.get_loop().slow_callback_duration = float("inf")
        runner.run(_bounded(pyfuncitem.obj, arguments, seconds))
    return True


async def _bounded(
    test: Callable[..., Awaitable[None]], arguments: dict[str, Any], seconds: float
) -> None:
    try:
        async with asyncio.timeout(seconds):
            await test(**arguments)
    except TimeoutError as exc:
        running = "\n".join(f"  {task!r}" for task in _others()) or "  nothing else was running"
        raise AssertionError(f"the test took more than {seconds:g} s; running:\n{running}") from exc
    for _ in range(5):  # what is about to end may end
        if not _others():
            return
        await asyncio.sleep(0)
    left = "\n".join(f"  {task!r}" for task in _others())
    raise AssertionError(f"the test left tasks running:\n{left}")


def _others() -> list[asyncio.Task[Any]]:
    me = asyncio.current_task()
    return [task for task in asyncio.all_tasks() if task is not me]


# ---------------------------------------------------------------- environment


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No keys, proxies or settings from outside; the data folder is empty and goes away.

    The folder's path is short, because a Unix socket may lie in it (about 100 bytes at most).
    """
    for name in list(os.environ):
        if _SECRETS.match(name):
            monkeypatch.delenv(name)
    home = tempfile.mkdtemp(prefix="llmrr-")
    monkeypatch.setenv("LLMRR_HOME", home)
    for name in OTHERS_STORES:
        monkeypatch.setenv(name, f"{home}/others")
    yield
    shutil.rmtree(home, ignore_errors=True)


# ---------------------------------------------------------------- network


class NetworkUsed(RuntimeError):
    """A test tried to reach something that is not this machine."""


def _is_here(host: object) -> bool:
    if isinstance(host, bytes):
        host = host.decode("ascii", "replace")
    if not isinstance(host, str) or host in ("", "localhost", "localhost.localdomain"):
        return True
    try:
        return ipaddress.ip_address(host.partition("%")[0]).is_loopback
    except ValueError:
        return False


@pytest.fixture(autouse=True, scope="session")
def no_network() -> Iterator[None]:
    """Let sockets connect to loopback and Unix paths only, and look up nothing but localhost."""
    connect, connect_ex, look_up = (
        socket.socket.connect,
        socket.socket.connect_ex,
        socket.getaddrinfo,
    )

    def check(address: object) -> None:
        if isinstance(address, tuple) and address and not _is_here(address[0]):
            raise NetworkUsed(f"tests may only connect to loopback, not to {address!r}")

    def guarded_connect(self: socket.socket, address: Any) -> None:
        check(address)
        connect(self, address)

    def guarded_connect_ex(self: socket.socket, address: Any) -> int:
        check(address)
        return connect_ex(self, address)

    def guarded_look_up(host: Any, *args: Any, **kwargs: Any) -> Any:
        if not _is_here(host) and host not in ("0.0.0.0", "::"):
            raise NetworkUsed(f"tests may only look up localhost, not {host!r}")
        return look_up(host, *args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket.socket, "connect", guarded_connect)
        patch.setattr(socket.socket, "connect_ex", guarded_connect_ex)
        patch.setattr(socket, "getaddrinfo", guarded_look_up)
        yield
