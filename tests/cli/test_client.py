"""Finding the server and talking to it."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
from pathlib import Path

import msgspec
import pytest

from llm_runner_router.cli.client import Client, connect, locate, running
from llm_runner_router.cli.group import Place
from llm_runner_router.config import Secret
from llm_runner_router.errors import NotFound, RunnerError, Unauthenticated, Unavailable
from llm_runner_router.home import Home, find
from llm_runner_router.surfaces.testing import KEY, FakeGateway
from llm_runner_router.testing import FakeTarget, deltas_of
from llm_runner_router.testing.fakes import Step

from .conftest import serving

BODY = {"model": "m", "messages": [{"role": "user", "content": "x"}]}


def state(home: Path, pid: int, url: str = "http://127.0.0.1:4321") -> Home:
    (home / "server.json").write_bytes(msgspec.json.encode({"pid": pid, "url": url}))
    return Home(home)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def test_where_the_server_is(tmp_path: Path) -> None:
    nowhere = Home(tmp_path / "none")
    assert locate(Place(), {}, nowhere).url == "http://127.0.0.1:4000"
    home = state(tmp_path, os.getpid())
    assert locate(Place(), {}, home).url == "http://127.0.0.1:4321"
    assert locate(Place(), {"LLMRR_PORT": "5000"}, home).url == "http://127.0.0.1:5000"
    assert locate(Place(port=6000), {"LLMRR_PORT": "5000"}, home).url == "http://127.0.0.1:6000"
    assert locate(Place(host="::1"), {}, home).url == "http://[::1]:4000"
    assert locate(Place(host="0.0.0.0"), {}, home).url == "http://127.0.0.1:4000"


def test_a_state_file_of_a_dead_server_is_passed_over(tmp_path: Path) -> None:
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    assert locate(Place(), {}, state(tmp_path, dead.pid)).source == "default"
    (tmp_path / "server.json").write_text("{")
    assert locate(Place(), {}, Home(tmp_path)).source == "default"


def test_no_server_is_told_with_the_next_step() -> None:
    port = free_port()
    with pytest.raises(Unavailable) as caught:
        connect(Place(port=port))
    assert caught.value.message == (
        f"no server answers at http://127.0.0.1:{port} (Connection refused)"
    )
    assert caught.value.hint is not None
    assert "`llmrr serve`" in caught.value.hint
    assert running(Place()) is None, "nobody named a server, so there need not be one"
    with pytest.raises(Unavailable):
        running(Place(port=port))


def test_something_else_on_the_port_is_told() -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        url = f"http://127.0.0.1:{other.getsockname()[1]}"
        client = Client(url, None)

        def answer() -> None:
            connection, _ = other.accept()
            with connection:
                connection.recv(4096)
                connection.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nhi")

        thread = threading.Thread(target=answer)
        thread.start()
        with pytest.raises(Unavailable, match="is not llmrr"):
            client.probe()
        thread.join()


@pytest.mark.usefixtures("with_key")
def test_the_server_is_found_by_its_state_file() -> None:
    with serving(FakeGateway({"m": FakeTarget("m")})):
        client = running(Place())
        assert client is not None
        assert client.get("/v1/models")["data"][0]["id"] == "m"


def test_the_key_comes_from_the_file(monkeypatch: pytest.MonkeyPatch) -> None:
    home = find(os.environ).create()
    home.key.write_text(KEY + "\n")
    home.key.chmod(0o600)
    with serving(FakeGateway({"m": FakeTarget("m")})) as url:
        assert connect(Place()).get("/v1/models")
        with pytest.raises(Unauthenticated):
            Client(url, None).get("/v1/models")
        with pytest.raises(Unauthenticated) as caught:
            Client(url, Secret("wrong-key-1")).get("/v1/models")
        assert "(hint:" not in caught.value.message
        assert caught.value.hint


@pytest.mark.usefixtures("with_key")
def test_the_servers_errors_are_ours_again() -> None:
    with serving(FakeGateway({"m": FakeTarget("m")})):
        client = connect(Place())
        with pytest.raises(NotFound) as caught:
            client.post("/v1/chat/completions", {**BODY, "model": "n"})
        assert caught.value.code == "model_not_found"


@pytest.mark.usefixtures("with_key")
def test_a_stream_and_its_end() -> None:
    body = {**BODY, "stream": True}
    broken: list[Step] = [
        *deltas_of("one two", finish=None),
        RunnerError("it fell over", hint="try again"),
    ]
    targets = {"m": FakeTarget("m", deltas_of("one two")), "b": FakeTarget("b", broken)}
    with serving(FakeGateway(targets)):
        client = connect(Place())
        with client.stream("/v1/chat/completions", body) as (headers, events):
            text = [e["choices"][0]["delta"].get("content") or "" for e in events if e["choices"]]
        assert "".join(text) == "one two"
        assert headers["x-llmrr-target"] == "m"
        with (
            pytest.raises(RunnerError, match="it fell over") as caught,
            client.stream("/v1/chat/completions", {**body, "model": "b"}) as (_, events),
        ):
            list(events)
        assert caught.value.hint == "try again"


def test_the_key_is_not_shown_to_whatever_listens_there() -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        client = Client(f"http://127.0.0.1:{other.getsockname()[1]}", Secret("llmrr-secret"))
        seen: list[bytes] = []

        def answer() -> None:
            connection, _ = other.accept()
            with connection:
                seen.append(connection.recv(4096))
                connection.sendall(b"HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n")

        thread = threading.Thread(target=answer)
        thread.start()
        with pytest.raises(Unavailable):
            client.probe()
        thread.join()
    assert b"llmrr-secret" not in seen[0]


@pytest.mark.parametrize("event", [b"data: {broken\n\n", b"data: 1"])
def test_a_broken_stream_is_an_error_in_words(event: bytes) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        client = Client(f"http://127.0.0.1:{other.getsockname()[1]}", None)

        def answer() -> None:
            connection, _ = other.accept()
            with connection:
                connection.recv(4096)
                connection.sendall(b"HTTP/1.1 200 OK\r\n\r\n" + event)

        thread = threading.Thread(target=answer)
        thread.start()
        with pytest.raises(Unavailable), client.stream("/x", {}) as (_, events):
            list(events)
        thread.join()
