"""The child side of an adopted server: starts it, waits until it is well, watches it, ends it.

Knows: processes, ports, `GET` of a health page. Does not know: which server it is. This process
stands between the gateway and a server that knows nothing of it, so that the server ends with the
gateway, however that ends, and its words go where every engine's go. A server that runs already is
only watched.
"""

from __future__ import annotations

import ctypes
import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any
from urllib.parse import urlsplit

POLL = 0.1
"""Seconds between two looks while it starts; the gateway's load timeout ends the waiting."""
WATCH = 2.0
"""Seconds between two looks afterwards."""
MISSES = 3
"""Looks in a row that a server of somebody else's may miss before it counts as gone."""
REACH = 5.0
"""Seconds for one look; and for a server that should run already to be there."""
GRACE = 3.5
"""Seconds that the server gets to end by itself; the gateway waits a little longer for us."""
PR_SET_PDEATHSIG = 1

_server: subprocess.Popen[bytes] | None = None


def serve(order: Mapping[str, Any], tell: Callable[[dict[str, Any]], None]) -> None:
    """Start and watch what `order` says; returns when it has ended.

    Raises:
        RuntimeError: it cannot be started, ended before it was well, or is not there.
    """
    global _server
    # The gateway closes our stdin first, which calls `leave`; its next step must not cut in.
    signal.signal(signal.SIGTERM, _nothing)
    command, url = list(order["command"]), order["url"]
    port = free_port() if command else 0
    url = (url or "http://127.0.0.1:{port}/v1").replace("{port}", str(port)).rstrip("/")
    key = order.get("api_key")
    if command:
        _server = _started([part.replace("{port}", str(port)) for part in command], order["env"])
    _until_well(url, order["health"], key)
    name = order.get("model") or first_model(url, key)
    tell(
        {
            "event": "listening",
            "address": url.removesuffix("/v1"),
            "model": name,
            "api_key": key or "",
            "pid": _server.pid if _server else 0,
        }
    )
    if _server is not None:
        code = _server.wait()
        sys.stderr.write(f"error: the server ended with exit code {code}\n")
    else:
        _while_well(url, order["health"], key)
        sys.stderr.write(f"error: {url} does not answer any more\n")
    sys.stderr.flush()
    os._exit(1)


def _nothing(number: int, frame: object) -> None:
    """Not `SIG_IGN`, which the server would inherit."""


def leave() -> None:
    """End the server: politely, then by force."""
    server = _server
    if server is None or server.poll() is not None:
        return
    for step, seconds in ((signal.SIGTERM, GRACE), (signal.SIGKILL, 1.0)):
        try:
            os.killpg(server.pid, step)
        except ProcessLookupError:
            return
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            if server.poll() is not None:
                return
            time.sleep(0.02)


def free_port() -> int:
    """A TCP port that nobody listens on at this moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _started(command: list[str], env: Mapping[str, str]) -> subprocess.Popen[bytes]:
    try:
        return subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            env={**os.environ, **env},
            process_group=0,
            preexec_fn=_die_with_us if sys.platform == "linux" else None,
        )
    except OSError as exc:
        raise RuntimeError(f"cannot start {command[0]!r}: {exc.strerror}") from exc


def _die_with_us() -> None:
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


# ---------------------------------------------------------------- looking


def get(url: str, path: str, key: str | None) -> tuple[int, bytes]:
    """Status and body of a page.

    Args:
        url: the API's address, up to and including the version.
        path: from the server's root if it begins with `/`, else below `url`.

    Raises:
        OSError, http.client.HTTPException: there is no answer.
    """
    where = urlsplit(url)
    kind = http.client.HTTPSConnection if where.scheme == "https" else http.client.HTTPConnection
    connection = kind(where.hostname or "", where.port, timeout=REACH)
    try:
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        target = path if path.startswith("/") else f"{where.path}/{path}"
        connection.request("GET", target, headers=headers)
        answer = connection.getresponse()
        return answer.status, answer.read(1 << 20)
    finally:
        connection.close()


def is_well(url: str, health: str, key: str | None) -> bool:
    """Its health page says 200."""
    try:
        return get(url, health, key)[0] == 200
    except (OSError, http.client.HTTPException):
        return False


def first_model(url: str, key: str | None) -> str:
    """The first name that it lists.

    Raises:
        RuntimeError: it lists none.
    """
    try:
        _, body = get(url, "models", key)
        return str(json.loads(body)["data"][0]["id"])
    except (OSError, http.client.HTTPException, ValueError, LookupError, TypeError) as exc:
        raise RuntimeError(
            f"{url}/models names no model ({exc}); say which with `adopt: {{model: …}}`"
        ) from exc


def _until_well(url: str, health: str, key: str | None) -> None:
    begun = time.monotonic()
    while not is_well(url, health, key):
        if _server is not None and _server.poll() is not None:
            raise RuntimeError(f"the server ended with exit code {_server.returncode}")
        if _server is None and time.monotonic() - begun > REACH:
            raise RuntimeError(f"no server answers {health} at {url}; is it running?")
        time.sleep(POLL)


def _while_well(url: str, health: str, key: str | None) -> None:
    misses = 0
    while misses < MISSES:
        time.sleep(WATCH)
        misses = 0 if is_well(url, health, key) else misses + 1
