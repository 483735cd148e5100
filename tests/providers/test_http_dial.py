"""Whom the client connects to: addresses, TLS, proxies."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import ssl
import subprocess
from pathlib import Path

import pytest

from llm_runner_router.errors import (
    ConfigError,
    ConnectFailed,
)
from llm_runner_router.providers import dial
from llm_runner_router.providers.http import HttpClient

from .upstream import Upstream, chunk_then_hang, fetch, noting, reply


async def closed(writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(ConnectionError):
        await writer.wait_closed()


async def test_a_plain_server_behind_https() -> None:
    over = asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)
        writer.write(b"HTTP/1.1 400 Speak up\r\n\r\n")
        writer.close()
        await closed(writer)
        over.set()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server, HttpClient() as client:
        with pytest.raises(ConnectFailed):
            await fetch(client, f"https://127.0.0.1:{server.sockets[0].getsockname()[1]}")
        await over.wait()


def certificate(folder: Path) -> tuple[Path, Path]:
    """A certificate for this machine that nobody trusts by itself, and its key."""
    cert, key = folder / "cert.pem", folder / "key.pem"
    options = "-x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=localhost".split()
    names = ["-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1"]
    files = ["-keyout", str(key), "-out", str(cert)]
    subprocess.run(["openssl", "req", *options, *names, *files], check=True, capture_output=True)
    return cert, key


@pytest.mark.skipif(shutil.which("openssl") is None, reason="makes its certificate with openssl")
@pytest.mark.parametrize("trusted", [True, False])
async def test_tls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, trusted: bool) -> None:
    cert, key = certificate(tmp_path)
    if trusted:
        monkeypatch.setenv("SSL_CERT_FILE", str(cert))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(cert, key)
    async with Upstream(reply(200, b"private"), context) as upstream, HttpClient() as client:
        if not trusted:
            with pytest.raises(ConnectFailed, match="not trusted") as caught:
                await fetch(client, upstream.url)
            assert "SSL_CERT_FILE" in str(caught.value)
            return
        for _ in range(3):
            assert await fetch(client, upstream.url) == b"private"
        assert upstream.connections == 1
        noted, _, gone = noting(chunk_then_hang)
        upstream.answer = noted
        async with client.stream("POST", upstream.url) as response:
            assert await anext(response.chunks()) == b"first"
        await asyncio.wait_for(gone.wait(), 1)


# ---------------------------------------------------------------- addresses


@pytest.mark.parametrize(
    "url",
    [
        "",
        "x",
        "ftp://a/b",
        "http://",
        "http://a b/",
        "http://a:99999/",
        "http://a/\r\nX: y",
        "http://ä/ü",
    ],
)
def test_bad_urls(url: str) -> None:
    with pytest.raises(ConfigError):
        dial.parse(url)


def test_a_bad_url_keeps_its_secrets() -> None:
    with pytest.raises(ConfigError) as caught:
        dial.parse("ftp://user:hunter2@host/x?key=hunter2")
    assert "hunter2" not in str(caught.value)


def test_addresses() -> None:
    plain = dial.parse("http://localhost")
    assert (plain.host, plain.port, plain.tls, plain.target) == ("localhost", 80, False, "/")
    assert plain.authority == "localhost"
    odd = dial.parse("https://[::1]:8443/v1?x=1")
    assert (odd.host, odd.port, odd.tls) == ("::1", 8443, True)
    assert (odd.target, odd.authority) == ("/v1?x=1", "[::1]:8443")


def test_proxies_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTPS_PROXY", "http://me:se%40cret@proxy.test:3128")
    monkeypatch.setenv("HTTP_PROXY", "http://proxy.test:3128")
    monkeypatch.setenv("NO_PROXY", "inside.test")
    far = dial.parse("https://api.test/v1").proxy
    assert far is not None
    assert (far.host, far.port) == ("proxy.test", 3128)
    assert far.authorization == "Basic bWU6c2VAY3JldA=="
    assert "Basic" not in repr(far)
    assert dial.parse("http://api.test/v1").target == "http://api.test/v1"
    assert dial.parse("https://inside.test/v1").proxy is None
    assert dial.parse("http://127.0.0.1:1/v1").proxy is None, "this machine is never far"


async def test_a_tunnel_through_a_proxy() -> None:
    asked: list[bytes] = []
    over = asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        asked.append(await reader.readuntil(b"\r\n\r\n"))
        writer.write(b"HTTP/1.1 407 Who are you\r\n\r\n")
        writer.close()
        await closed(writer)
        over.set()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        proxy = dial.Proxy("127.0.0.1", port, "Basic abc")
        address = dial.Address("api.test", 443, True, "/", "api.test", proxy)
        with pytest.raises(ConnectFailed, match="407"):
            await dial.dial(address, ssl.create_default_context(), asyncio.Protocol)
        await over.wait()
    assert asked == [
        b"CONNECT api.test:443 HTTP/1.1\r\nHost: api.test:443\r\n"
        b"Proxy-Authorization: Basic abc\r\n\r\n"
    ]
