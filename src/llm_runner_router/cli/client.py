"""A small client of the running server, for the other verbs.

Knows: where the server is (flags, environment, the state file), the key, HTTP, SSE, our error
shape. Does not know: what the answers mean. Blocking, on `http.client`: one command, one request.
"""

from __future__ import annotations

import http.client
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit

import msgspec
from msgspec import Struct

from llm_runner_router.config import Secret, Server
from llm_runner_router.errors import BadRequest, NotFound, RunnerError, Unauthenticated, Unavailable
from llm_runner_router.home import Home, find
from llm_runner_router.policy.auth import find_key

from .group import Place

CONNECT_SECONDS = 5.0
ANSWER_SECONDS = 630.0
"""Longer than the server's own deadline, so that the server is the one who explains."""
MAX_LINE = 8 * 1024 * 1024
START = "start it with `llmrr serve`, or say where it is with `--host` and `--port`"


class Found(Struct, frozen=True):
    """Where the server should be and how we know."""

    url: str
    source: str
    """`flags`, `state` (the file in the data folder), or `default`."""


class Answer(Struct, frozen=True):
    """A JSON answer and its headers, names in lower case."""

    body: Any
    headers: dict[str, str]


def locate(place: Place, env: Mapping[str, str], home: Home) -> Found:
    """Where the server is: `--host`/`--port` or their variables, the state file, the default."""
    host = place.host or env.get("LLMRR_HOST", "").strip()
    port: int | str | None = place.port or env.get("LLMRR_PORT", "").strip()
    if host or port:
        shown = host or Server().host
        if shown in ("0.0.0.0", "::"):  # where a server listens is not where it is asked
            shown = "127.0.0.1" if shown == "0.0.0.0" else "::1"
        shown = f"[{shown}]" if ":" in shown else shown
        return Found(f"http://{shown}:{port or Server().port}", "flags")
    try:
        state = msgspec.json.decode(home.server.read_bytes(), type=dict[str, Any])
        if _alive(int(state["pid"])):
            return Found(str(state["url"]), "state")
    except (OSError, msgspec.DecodeError, KeyError, TypeError, ValueError):
        pass  # no server, or one that died while writing: the default tells the rest
    return Found(f"http://{Server().host}:{Server().port}", "default")


def _alive(pid: int) -> bool:
    if os.name != "posix":
        return True  # asking by signal would end the process there; the connection will tell
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def connect(place: Place, env: Mapping[str, str] = os.environ) -> Client:
    """A client of the server that is running.

    Raises:
        Unavailable: nothing answers there.
    """
    home = find(env)
    found = locate(place, env, home)
    key = find_key(home, env)
    client = Client(found.url, key.secret if key else None)
    client.probe()
    return client


def running(place: Place, env: Mapping[str, str] = os.environ) -> Client | None:
    """The client if a server runs, None if none does and nobody said where one should be.

    Raises:
        Unavailable: a place was named and nothing answers there.
    """
    found = locate(place, env, find(env))
    if found.source == "default":
        return None
    try:
        return connect(place, env)
    except Unavailable:
        if found.source == "state":
            return None
        raise


class Client:
    """Requests to one server.

    Args:
        url: without `/v1`.
        key: sent as a bearer token.
    """

    def __init__(self, url: str, key: Secret | None, timeout: float = ANSWER_SECONDS) -> None:
        self.url = url
        self._key = key
        self._timeout = timeout
        parts = urlsplit(url)
        self._host = parts.hostname or ""
        try:
            self._port = parts.port
        except ValueError as exc:
            raise BadRequest(f"{url!r} has no usable port") from exc

    def probe(self) -> None:
        """See that a server answers.

        Raises:
            Unavailable: nothing does, or something that is not ours.
        """
        # Without the key: whatever listens there may not be ours.
        with self._exchange("GET", "/healthz", None, CONNECT_SECONDS, key=False) as response:
            body = self._read(response, 1000)
        if response.status != 200 or b'"status"' not in body:
            raise Unavailable(f"what answers at {self.url} is not llmrr", hint=START)

    def get(self, path: str) -> Any:
        """GET a JSON value."""
        return self.ask("GET", path).body

    def post(self, path: str, body: object) -> Any:
        """POST a JSON value."""
        return self.ask("POST", path, body).body

    def ask(self, method: str, path: str, body: object = None) -> Answer:
        """One exchange.

        Raises:
            RunnerError: what the server said is wrong, or `Unavailable`.
        """
        with self._exchange(method, path, body, self._timeout) as response:
            data = self._read(response)
            _check(response, data)
            headers = {name.lower(): value for name, value in response.getheaders()}
        try:
            return Answer(msgspec.json.decode(data), headers)
        except msgspec.DecodeError as exc:
            raise Unavailable(f"what answers at {self.url} is not llmrr", hint=START) from exc

    @contextmanager
    def stream(self, path: str, body: object) -> Iterator[tuple[dict[str, str], Iterator[Any]]]:
        """POST and read events: the headers, then each event's JSON until `[DONE]`.

        Leaving closes the connection, by which the server stops the work.

        Raises:
            RunnerError: before or in the stream; `Unavailable` if it ends without `[DONE]`.
        """
        with self._exchange("POST", path, body, self._timeout) as response:
            if response.status != 200:
                _check(response, self._read(response))
            headers = {name.lower(): value for name, value in response.getheaders()}
            yield headers, self._events(response)

    def _read(self, response: http.client.HTTPResponse, most: int | None = None) -> bytes:
        try:
            return response.read(most)
        except (OSError, http.client.HTTPException) as exc:
            raise Unavailable(f"the server at {self.url} broke off: {exc}") from exc

    def _events(self, response: http.client.HTTPResponse) -> Iterator[Any]:
        while True:
            try:
                line = response.readline(MAX_LINE)
            except (OSError, http.client.HTTPException) as exc:
                raise Unavailable(f"the server at {self.url} broke off: {exc}") from exc
            if not line:
                raise Unavailable(f"the server at {self.url} broke off in the middle of an answer")
            if not line.startswith(b"data:"):
                continue
            data = line[5:].strip()
            if data == b"[DONE]":
                return
            try:
                event = msgspec.json.decode(data)
            except msgspec.DecodeError as exc:
                raise Unavailable(f"what answers at {self.url} is not llmrr", hint=START) from exc
            if isinstance(event, dict) and "error" in event:
                raise _told(event["error"], 502)
            yield event

    @contextmanager
    def _exchange(
        self, method: str, path: str, body: object, timeout: float, *, key: bool = True
    ) -> Iterator[http.client.HTTPResponse]:
        connection = http.client.HTTPConnection(self._host, self._port, timeout=CONNECT_SECONDS)
        headers = {"Accept": "application/json", "Content-Type": "application/json"}
        if self._key is not None and key:
            headers["Authorization"] = f"Bearer {self._key.reveal()}"
        data = None if body is None else msgspec.json.encode(body)
        try:
            try:
                connection.connect()
                connection.sock.settimeout(timeout)
                connection.request(method, path, data, headers)
                response = connection.getresponse()
            except (OSError, http.client.HTTPException) as exc:
                reason = getattr(exc, "strerror", None) or str(exc) or type(exc).__name__
                raise Unavailable(
                    f"no server answers at {self.url} ({reason})", hint=START
                ) from exc
            yield response
        finally:
            connection.close()


def _check(response: http.client.HTTPResponse, data: bytes) -> None:
    if response.status < 400:
        return
    try:
        error = msgspec.json.decode(data)["error"]
    except (msgspec.DecodeError, KeyError, TypeError):
        error = {"message": f"the server answered {response.status} {response.reason}"}
    raise _told(error, response.status)


def _told(error: Any, status: int) -> RunnerError:
    """The server's error as one of ours; its hint stands in brackets at the end of the message."""
    fields = error if isinstance(error, dict) else {}
    message = str(fields.get("message") or error)
    match = re.fullmatch(r"(.*) \(hint: (.*)\)", message, re.DOTALL)
    text, hint = (match[1], match[2]) if match else (message, None)
    kinds: dict[int, type[RunnerError]] = {
        400: BadRequest,
        401: Unauthenticated,
        404: NotFound,
        503: Unavailable,
    }
    kind = kinds.get(status, RunnerError)
    return kind(text, hint=hint, code=fields.get("code"), param=fields.get("param"))
