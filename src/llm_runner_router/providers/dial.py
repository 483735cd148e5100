"""Where a URL leads and how to get a socket there: addresses, TLS, proxies.

Knows: URLs, the proxy settings of the environment, the trust store. Does not know HTTP messages
or pooling (`http.py`).
"""

from __future__ import annotations

import asyncio
import base64
import ipaddress
import socket
import ssl
from collections.abc import Callable
from typing import TypeVar
from urllib.parse import unquote, urlsplit

from msgspec import Struct

from llm_runner_router.errors import ConfigError, ConnectFailed

P = TypeVar("P", bound=asyncio.BaseProtocol)

MAX_PROXY_REPLY = 16 * 1024


class Address(Struct, frozen=True):
    """A parsed URL, ready for a request line. `proxy` is the proxy to go through, if any."""

    host: str
    port: int
    tls: bool
    target: str
    """What stands in the request line: the path with its query, or the URL for an HTTP proxy."""
    authority: str
    """Value of the `Host` header."""
    proxy: Proxy | None = None

    @property
    def key(self) -> tuple[str, int, bool]:
        """Connections with an equal key are interchangeable."""
        return (self.host, self.port, self.tls)


class Proxy(Struct, frozen=True):
    """An HTTP proxy. `authorization` is the value of `Proxy-Authorization`, or empty."""

    host: str
    port: int
    authorization: str = ""

    def __repr__(self) -> str:
        """Without the password."""
        return f"Proxy({self.host!r}, {self.port})"


def parse(url: str) -> Address:
    """Parse an `http` or `https` URL and look up the proxy for it.

    Raises:
        ConfigError: no such URL; its query is not repeated, since keys stand there at times.
    """
    shown = url.split("?")[0].rsplit("@", 1)[-1]
    if any(ord(c) <= 32 or ord(c) == 127 for c in url):
        raise ConfigError(f"the URL {shown!r} has spaces or control characters")
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as exc:
        raise ConfigError(f"not a URL: {shown!r}: {exc}") from exc
    host = parts.hostname
    if parts.scheme not in ("http", "https") or not host:
        raise ConfigError(f"not an http or https URL: {shown!r}", hint="https://host/v1")
    tls = parts.scheme == "https"
    path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    name = f"[{host}]" if ":" in host else host
    usual = 443 if tls else 80
    authority = name if port in (None, usual) else f"{name}:{port}"
    proxy = None if is_loopback(host) else proxy_for(parts.scheme, host)
    if proxy is not None and not tls:
        path = f"http://{authority}{path}"
    try:
        path.encode("ascii")
        authority.encode("ascii")
    except UnicodeEncodeError as exc:
        raise ConfigError(f"the URL {shown!r} must be ASCII", hint="percent-encode it") from exc
    return Address(host, port or usual, tls, path, authority, proxy)


def is_loopback(host: str) -> bool:
    """Whether `host` is this machine; such requests never go through a proxy."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def proxy_for(scheme: str, host: str) -> Proxy | None:
    """The proxy that `HTTP_PROXY`, `HTTPS_PROXY`, `ALL_PROXY` and `NO_PROXY` name for `host`."""
    # Imported late: it pulls in a fifth of the standard library, and a local gateway needs none.
    from urllib.request import getproxies, proxy_bypass

    proxies = getproxies()
    url = proxies.get(scheme) or proxies.get("all")
    if not url or proxy_bypass(host):
        return None
    parts = urlsplit(url if "://" in url else f"http://{url}")
    if parts.scheme != "http" or not parts.hostname:
        raise ConfigError("only HTTP proxies are supported", hint="check HTTPS_PROXY")
    pair = f"{unquote(parts.username or '')}:{unquote(parts.password or '')}"
    basic = "Basic " + base64.b64encode(pair.encode()).decode() if parts.username else ""
    return Proxy(parts.hostname, parts.port or 8080, basic)


def trust() -> ssl.SSLContext:
    """The system's trust store (`SSL_CERT_FILE` is honoured), HTTP/1.1 only."""
    context = ssl.create_default_context()
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["http/1.1"])
    return context


async def dial(address: Address, context: ssl.SSLContext | None, factory: Callable[[], P]) -> P:
    """Connect to `address`, through its proxy if it has one.

    Raises:
        ConnectFailed: nobody answers, the name is unknown, or the certificate is not trusted.
    """
    loop = asyncio.get_running_loop()
    sni = address.host if context is not None else None
    proxy = address.proxy
    try:
        if proxy is None:
            _, protocol = await loop.create_connection(
                factory, address.host, address.port, ssl=context, server_hostname=sni
            )
            return protocol
        if context is None:
            _, protocol = await loop.create_connection(factory, proxy.host, proxy.port)
            return protocol
        sock = await _tunnel(loop, address, proxy)
        try:
            _, protocol = await loop.create_connection(
                factory, sock=sock, ssl=context, server_hostname=sni
            )
        except BaseException:  # whatever happens, cancellation included: the socket is ours
            sock.close()
            raise
        return protocol
    except ssl.SSLCertVerificationError as exc:
        raise ConnectFailed(
            f"the certificate of {address.host} is not trusted: {exc.verify_message}",
            hint="set SSL_CERT_FILE to your authority's certificate",
        ) from exc
    except socket.gaierror as exc:
        raise ConnectFailed(f"no address for {address.host!r}: {exc.strerror}") from exc
    except (OSError, ssl.SSLError, UnicodeError) as exc:
        reason = getattr(exc, "strerror", None) or str(exc) or type(exc).__name__
        where = f"{address.host}:{address.port}"
        raise ConnectFailed(f"cannot connect to {where}: {reason}") from exc


async def _tunnel(loop: asyncio.AbstractEventLoop, address: Address, proxy: Proxy) -> socket.socket:
    """A socket that the proxy has connected to `address` (RFC 9110, CONNECT)."""
    found = await loop.getaddrinfo(proxy.host, proxy.port, type=socket.SOCK_STREAM)
    family, kind, number, _, where = found[0]
    sock = socket.socket(family, kind, number)
    try:
        sock.setblocking(False)
        await loop.sock_connect(sock, where)
        place = f"{address.host}:{address.port}"
        ask = f"CONNECT {place} HTTP/1.1\r\nHost: {place}\r\n"
        if proxy.authorization:
            ask += f"Proxy-Authorization: {proxy.authorization}\r\n"
        await loop.sock_sendall(sock, (ask + "\r\n").encode("ascii"))
        reply = b""
        while b"\r\n\r\n" not in reply:
            # Byte-exact reading is not needed: a server speaks TLS only after the client did.
            piece = await loop.sock_recv(sock, 4096)
            reply += piece
            if not piece or len(reply) > MAX_PROXY_REPLY:
                raise ConnectFailed(f"the proxy {proxy.host}:{proxy.port} broke off")
        status = reply.split(b" ", 2)[1:2]
        if status != [b"200"]:
            line = reply.split(b"\r\n", 1)[0].decode("latin-1")
            raise ConnectFailed(f"the proxy {proxy.host}:{proxy.port} refused: {line}")
        return sock
    except BaseException:  # whatever happens, cancellation included: the socket is ours
        sock.close()
        raise
