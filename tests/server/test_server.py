"""One life of the server: addresses, the key, the state file, signals, draining."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec
import pytest

from llm_runner_router.config import Config, Server
from llm_runner_router.errors import ConfigError
from llm_runner_router.home import Home
from llm_runner_router.policy.auth import Key, ensure_key
from llm_runner_router.server import (
    Ready,
    ServerState,
    admit,
    bind,
    find_running,
    is_loopback,
    run,
    serve,
    url_of,
)
from llm_runner_router.surfaces.testing import FakeGateway

posix = pytest.mark.skipif(os.name != "posix", reason="signals are a POSIX matter")

CHILD = """
import asyncio, sys
from pathlib import Path
from llm_runner_router.config import Config, Server
from llm_runner_router.home import Home
from llm_runner_router.server import run
from llm_runner_router.surfaces.testing import FakeGateway
from llm_runner_router.testing import FakeTarget, Gate
from llm_runner_router.types import Delta

gate = Gate()

class Opened(FakeGateway):
    async def close(self):
        await super().close()
        print("closed", flush=True)
    async def stop(self, name):
        gate.open()  # "stopping" the gate lets its stream go on
        return {}

def make(key):
    gated = FakeTarget("gated", [Delta(text="a"), gate, Delta(text="b", finish="stop")])
    return Opened({"gated": gated}, key=key.secret.reveal())

config = Config(server=Server(port=0, drain=float(sys.argv[2])))
run(make, config, Home(Path(sys.argv[1])), ready=lambda r: print("ready", r.url, flush=True))
print("over", flush=True)
"""


class Child:
    """A server in a process of its own."""

    def __init__(self, home: Path, drain: float) -> None:
        self.home = Home(home)
        self.key = ensure_key(self.home, {}).secret.reveal()
        command = [sys.executable, "-c", CHILD, str(home), str(drain)]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert self.process.stdout is not None
        self.out = self.process.stdout
        ready = self.out.readline().split()
        assert ready[:1] == ["ready"], f"the server did not start: {ready}"
        self.url = ready[1]
        self.port = int(self.url.rpartition(":")[2])

    def connect(self, method: str, path: str, body: bytes = b"") -> socket.socket:
        connection = socket.create_connection(("127.0.0.1", self.port), timeout=20)
        head = f"{method} {path} HTTP/1.1\r\nhost: x\r\nx-api-key: {self.key}\r\n"
        head += f"connection: close\r\ncontent-length: {len(body)}\r\n\r\n"
        connection.sendall(head.encode() + body)
        return connection

    def stream(self) -> socket.socket:
        """A running answer; its first delta is there."""
        body = b'{"model":"gated","stream":true,"messages":[{"role":"user","content":"x"}]}'
        connection = self.connect("POST", "/v1/chat/completions", body)
        got = b""
        while b'"content":"a"' not in got:
            got += connection.recv(65536)
        return connection

    def ask(self, method: str, path: str, body: bytes = b"") -> bytes:
        with self.connect(method, path, body) as connection:
            return rest(connection)

    def refuses(self) -> None:
        """Wait until nobody listens any more."""
        until = time.monotonic() + 20
        while time.monotonic() < until:
            try:
                socket.create_connection(("127.0.0.1", self.port), timeout=1).close()
            except OSError:
                return
        raise AssertionError("the server still accepts connections")


def rest(connection: socket.socket) -> bytes:
    got = b""
    try:
        while data := connection.recv(65536):
            got += data
    except ConnectionError:
        pass
    return got


@contextmanager
def child(home: Path, drain: float = 20) -> Iterator[Child]:
    found = Child(home, drain)
    try:
        yield found
    finally:
        found.process.kill()
        found.process.wait(20)
        found.out.close()


# ---------------------------------------------------------------- signals


@posix
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_lets_running_answers_finish_and_leaves_nothing(
    tmp_path: Path, number: signal.Signals
) -> None:
    with child(tmp_path) as server:
        stream = server.stream()
        state = msgspec.json.decode(server.home.server.read_bytes(), type=ServerState)
        assert (state.pid, state.url) == (server.process.pid, server.url)
        assert find_running(server.home) == state
        assert stat.S_IMODE(server.home.server.stat().st_mode) == 0o600
        # Something has to open the gate after the listener is gone: a request from before, whose
        # body comes later. The server's "100 Continue" says that it is in work.
        late = socket.create_connection(("127.0.0.1", server.port), timeout=20)
        head = f"POST /llmrr/stop HTTP/1.1\r\nhost: x\r\nx-api-key: {server.key}\r\n"
        late.sendall(f"{head}expect: 100-continue\r\ncontent-length: 17\r\n\r\n".encode())
        assert late.recv(25) == b"HTTP/1.1 100 Continue\r\n\r\n"
        server.process.send_signal(number)
        server.refuses()
        late.sendall(b'{"model":"gated"}')
        assert b"200 OK" in rest(late)
        answer = rest(stream)
        assert b'"content":"b"' in answer
        assert answer.endswith(b"data: [DONE]\n\n\r\n0\r\n\r\n")
        assert server.process.wait(20) == 0
        assert server.out.read().split() == ["closed", "over"]
        assert not server.home.server.exists()
        late.close()
        stream.close()


@posix
def test_after_the_drain_time_answers_end_with_an_error(tmp_path: Path) -> None:
    with child(tmp_path, drain=0.1) as server:
        with server.stream() as stream:
            server.process.send_signal(signal.SIGTERM)
            answer = rest(stream)
        assert b'"message":"the server is stopping"' in answer
        assert b"[DONE]" not in answer
        assert server.process.wait(20) == 0


@posix
def test_a_second_signal_stops_at_once(tmp_path: Path) -> None:
    with child(tmp_path, drain=600) as server:
        with server.stream() as stream:
            server.process.send_signal(signal.SIGINT)
            server.refuses()
            server.process.send_signal(signal.SIGINT)
            assert b"the server is stopping" in rest(stream)
        assert server.process.wait(20) == 0
        assert server.out.read().split() == ["closed", "over"]


@posix
def test_an_operator_can_stop_the_server(tmp_path: Path) -> None:
    with child(tmp_path) as server:
        assert b'{"status":"stopping"}' in server.ask("POST", "/llmrr/shutdown")
        assert server.process.wait(20) == 0
        assert not server.home.server.exists()


# ---------------------------------------------------------------- addresses and the key


def test_a_port_in_use_is_one_sentence(tmp_path: Path) -> None:
    with bind(Server(port=0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ConfigError, match=f"port {port} on 127.0.0.1 is in use"):
            run(lambda key: FakeGateway(), Config(server=Server(port=port)), Home(tmp_path))
    assert not Home(tmp_path).server.exists()


@pytest.mark.parametrize("host", ["203.0.113.7", "no such host"])
def test_an_address_that_is_not_ours(host: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def look_up(name: str, port: int, **_: object) -> list[object]:
        if name != "203.0.113.7":
            raise socket.gaierror("unknown")
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (name, port))]

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    with pytest.raises(ConfigError, match=re.escape(host)):
        bind(Server(host=host, port=0))


def test_the_default_is_loopback_only() -> None:
    assert is_loopback(Server().host)
    assert is_loopback("localhost")
    assert not is_loopback("0.0.0.0")
    with bind(Server(port=0)) as listening:
        assert listening.getsockname()[0] == "127.0.0.1"
        assert re.fullmatch(r"http://127\.0\.0\.1:\d+", url_of(listening))


def test_an_open_address_needs_a_key_that_was_there_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = Home(tmp_path)
    everywhere = Server(host="0.0.0.0", port=0)
    with pytest.raises(ConfigError, match="there is no key yet"):
        admit(everywhere, home)
    assert not home.key.exists()
    made = admit(Server(), home)
    assert admit(everywhere, home).secret.reveal() == made.secret.reveal()
    home.key.unlink()
    monkeypatch.setenv("LLMRR_API_KEY", "a-key-of-my-own")
    assert admit(everywhere, home).secret.reveal() == "a-key-of-my-own"
    with bind(everywhere) as listening:
        assert url_of(listening).startswith("http://127.0.0.1:")


# ---------------------------------------------------------------- one life, inside the process


class Broken(FakeGateway):
    async def start(self) -> None:
        raise ConfigError("no such model")


def test_a_service_that_cannot_start_is_closed_and_says_why(tmp_path: Path) -> None:
    made: list[FakeGateway] = []

    def make(key: Key) -> FakeGateway:
        made.append(Broken())
        return made[0]

    with pytest.raises(ConfigError, match="no such model"):
        run(make, Config(server=Server(port=0)), Home(tmp_path))
    assert made[0].closed == 1
    assert not Home(tmp_path).server.exists()


@posix
def test_what_ready_is_told(tmp_path: Path) -> None:
    told: list[Ready] = []

    def ready(what: Ready) -> None:
        told.append(what)
        os.kill(os.getpid(), signal.SIGTERM)

    gateway = FakeGateway()
    run(lambda key: gateway, Config(server=Server(port=0)), Home(tmp_path), ready=ready)
    assert told[0].key.secret.reveal() == Home(tmp_path).key.read_text().strip()
    assert told[0].url.startswith("http://127.0.0.1:")
    assert told[0].seconds > 0
    assert (gateway.started, gateway.closed) == (1, 1)


@posix
def test_a_state_file_of_a_server_that_was_killed_counts_for_nothing(tmp_path: Path) -> None:
    assert find_running(Home(tmp_path)) is None
    with child(tmp_path) as server:
        server.process.kill()
        server.process.wait(20)
        assert server.home.server.exists()
        assert find_running(server.home) is None
        server.home.server.write_bytes(b"{")
        assert find_running(server.home) is None


async def test_serving_inside_a_loop_neither_starts_nor_closes_the_gateway() -> None:
    gateway = FakeGateway()
    async with serve(gateway, Server(port=0)) as url:
        port = int(url.rpartition(":")[2])
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n")
        assert (await reader.readline()).startswith(b"HTTP/1.1 200")
        writer.close()
    assert (gateway.started, gateway.closed) == (0, 0)
    with pytest.raises(ConnectionRefusedError):
        await asyncio.open_connection("127.0.0.1", port)
