"""Sockets and signals: from a gateway to a listening server, and cleanly back.

Knows: addresses, uvicorn's HTTP protocol, signals, draining, the state file. Does not know:
routes (`surfaces/http.py`), models, what is printed (the caller's `ready`).

uvicorn's protocol class is used without its `Server`: that one polls ten times a second, keeps
its own signal handlers and cannot be told to stop at once.
"""

from __future__ import annotations

import asyncio
import errno
import gc
import os
import signal
import socket
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from ipaddress import ip_address
from typing import Protocol

import msgspec
from msgspec import Struct

from . import __version__
from .config import Config, Server
from .errors import ConfigError
from .home import Home, write_atomic
from .policy.auth import VARIABLE, Key, ensure_key, find_key
from .surfaces.base import Gateway

FORCED_CLOSE_SECONDS = 5.0
"""How long the service may take to close once a second signal has come."""


class Service(Gateway, Protocol):
    """A gateway with a life: `app.App`."""

    async def start(self) -> None:
        """Get ready to answer."""
        ...

    async def close(self) -> None:
        """Stop everything that was started."""
        ...


class ServerState(Struct, frozen=True):
    """The content of `server.json`: who serves this data folder."""

    pid: int
    url: str
    """Base URL without `/v1`; clients on this machine can use it."""
    started: float
    """Unix seconds."""
    version: str


class Ready(Struct, frozen=True):
    """What there is to tell once the server listens."""

    url: str
    key: Key
    home: Home
    seconds: float
    """From the call of `run` to here."""


def run(
    make: Callable[[Key], Service],
    config: Config,
    home: Home,
    *,
    ready: Callable[[Ready], None] | None = None,
) -> None:
    """Serve until SIGTERM or SIGINT, then drain; a second signal stops at once.

    Args:
        make: builds the service; called inside the event loop's thread with the key in force.
        config: where to listen and what to bound.
        home: the data folder, for the key and the state file.
        ready: called when requests are being answered.

    Raises:
        ConfigError: the address is taken or not allowed, or the key is not usable.
    """
    began = time.perf_counter()
    key = admit(config.server, home)
    listening = bind(config.server)
    with listening, asyncio.Runner(loop_factory=_loop_factory()) as runner:
        runner.run(_serve_until_told(make, config, home, key, listening, ready, began))


@asynccontextmanager
async def serve(gateway: Gateway, settings: Server) -> AsyncIterator[str]:
    """Serve `gateway` inside the running loop; gives the base URL (without `/v1`).

    The gateway is neither started nor closed here. On leaving, running answers get
    `settings.drain` seconds.
    """
    from .server_listen import Listener

    with bind(settings) as listening:
        listener = Listener(gateway, settings, listening)
        await listener.start()
        try:
            yield url_of(listening)
        finally:
            await listener.close(settings.drain)


def find_running(home: Home) -> ServerState | None:
    """The server that serves this data folder now, if its process still lives."""
    try:
        state = msgspec.json.decode(home.server.read_bytes(), type=ServerState)
    except (OSError, msgspec.DecodeError):
        return None
    if os.name == "posix":
        try:
            os.kill(state.pid, 0)
        except ProcessLookupError:
            return None
        except PermissionError:
            pass  # it lives, under another user
    return state


# ---------------------------------------------------------------- addresses


def admit(settings: Server, home: Home) -> Key:
    """The key in force, made on first use; an open address needs one that was there before.

    Raises:
        ConfigError: the server would be reachable from elsewhere and nobody chose a key yet, or
            one that everybody knows.
    """
    if is_loopback(settings.host):
        return ensure_key(home)
    key = find_key(home)
    if key is not None and key.example:
        raise ConfigError(
            f"`{settings.host}` is reachable from other machines and the key is one from LiteLLM's"
            " documentation",
            hint=f"set {VARIABLE} to a key of your own",
        )
    if key is None:
        raise ConfigError(
            f"`{settings.host}` is reachable from other machines and there is no key yet",
            hint=f"set {VARIABLE}, or start once on 127.0.0.1 to make the key file `{home.key}`",
        )
    return ensure_key(home)


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach `host`; every address of a name counts."""
    return all(ip_address(address).is_loopback for _, address in _addresses(host, 0))


def bind(settings: Server) -> socket.socket:
    """A listening socket.

    Raises:
        ConfigError: the port is taken or not allowed, the host is not one of this machine.
    """
    host, port = settings.host, settings.port
    family, address = _addresses(host, port)[0]
    listening = socket.socket(family, socket.SOCK_STREAM)
    try:
        if os.name == "posix":
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind((address, port))
        # With SO_REUSEADDR only `listen` finds out that somebody else is listening.
        listening.listen(2048)
        listening.setblocking(False)
    except OSError as exc:
        listening.close()
        raise _no_bind(exc, host, port) from exc
    return listening


def _no_bind(exc: OSError, host: str, port: int) -> ConfigError:
    if exc.errno == errno.EADDRINUSE:
        return ConfigError(
            f"port {port} on {host} is in use",
            hint=f"`llmrr serve --port {port + 1}`, or stop what listens there",
        )
    if exc.errno in (errno.EACCES, errno.EPERM):
        return ConfigError(f"port {port} on {host} is not allowed", hint="use a port above 1023")
    return ConfigError(f"cannot listen on {host}:{port}: {exc.strerror or exc}")


def _addresses(host: str, port: int) -> list[tuple[socket.AddressFamily, str]]:
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (OSError, UnicodeError) as exc:
        raise ConfigError(f"`{host}` is not an address of this machine: {exc}") from exc
    return [(family, str(address[0]).partition("%")[0]) for family, _, _, _, address in found]


def url_of(listening: socket.socket) -> str:
    """How a client on this machine reaches the socket."""
    host, port = listening.getsockname()[:2]
    if ip_address(host).is_unspecified:
        host = "::1" if ":" in host else "127.0.0.1"
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


# ---------------------------------------------------------------- one life


class _Stop:
    """How often we were told to stop: once means drain, twice at once, three times by force."""

    def __init__(self) -> None:
        self.told = asyncio.Event()
        self.now = asyncio.Event()

    def tell(self) -> None:
        """Called by every signal, and by an operator's request."""
        if self.now.is_set():
            os._exit(1)  # two requests were not enough; runners notice that their parent is gone
        if self.told.is_set():
            self.now.set()
        self.told.set()


@asynccontextmanager
async def _signals(stop: _Stop) -> AsyncIterator[None]:
    loop = asyncio.get_running_loop()
    numbers = [signal.SIGINT, signal.SIGTERM]
    try:
        for number in numbers:
            loop.add_signal_handler(number, stop.tell)
    except NotImplementedError:  # Windows
        for number in numbers:
            signal.signal(number, lambda *_: loop.call_soon_threadsafe(stop.tell))
        yield
        return
    try:
        yield
    finally:
        for number in numbers:
            loop.remove_signal_handler(number)


async def _serve_until_told(
    make: Callable[[Key], Service],
    config: Config,
    home: Home,
    key: Key,
    listening: socket.socket,
    ready: Callable[[Ready], None] | None,
    began: float,
) -> None:
    from .server_listen import Listener

    stop = _Stop()
    async with _signals(stop):
        service = make(key)
        listener = Listener(service, config.server, listening, shutdown=stop.tell)
        try:
            if not await _started(service, stop):
                return
            await listener.start()
            _settle_memory()
            url = url_of(listening)
            with _state_file(home, url):
                if ready is not None:
                    ready(Ready(url, key, home, time.perf_counter() - began))
                await stop.told.wait()
                await listener.close(config.server.drain, stop.now)
        finally:
            await _closed(service, stop)


async def _started(service: Service, stop: _Stop) -> bool:
    """Start the service; False if we were told to stop meanwhile."""
    starting = asyncio.ensure_future(service.start())
    told = asyncio.ensure_future(stop.told.wait())
    await asyncio.wait((starting, told), return_when=asyncio.FIRST_COMPLETED)
    told.cancel()
    if not starting.done():
        starting.cancel()
        with suppress(asyncio.CancelledError):
            await starting
        return False
    await starting
    return True


async def _closed(service: Service, stop: _Stop) -> None:
    closing = asyncio.ensure_future(service.close())
    hurry = asyncio.ensure_future(stop.now.wait())
    await asyncio.wait((closing, hurry), return_when=asyncio.FIRST_COMPLETED)
    hurry.cancel()
    if not closing.done():
        await asyncio.wait((closing,), timeout=FORCED_CLOSE_SECONDS)
    if closing.done():
        await closing
    else:
        closing.cancel()


def _settle_memory() -> None:
    """Take what start-up made out of the garbage collector's sight, and let it look less often.

    Full collections over modules and configuration cost 40 ms each, in the middle of answers;
    without them a plain request took 340 instead of 402 µs of CPU time (bench/LOG.md). Requests
    themselves make next to no cycles.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(10_000, 20, 20)


class _state_file:
    """`server.json` while we serve. A file that another server has written since is left alone."""

    def __init__(self, home: Home, url: str) -> None:
        self._path = home.server
        self._state = ServerState(os.getpid(), url, time.time(), __version__)

    def __enter__(self) -> None:
        write_atomic(self._path, msgspec.json.encode(self._state) + b"\n")

    def __exit__(self, *_: object) -> None:
        with suppress(OSError, msgspec.DecodeError):
            found = msgspec.json.decode(self._path.read_bytes(), type=ServerState)
            if found.pid == self._state.pid:
                self._path.unlink()


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    try:
        import uvloop
    except ImportError:  # Windows
        return None
    return uvloop.new_event_loop
