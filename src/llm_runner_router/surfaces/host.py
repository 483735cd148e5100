"""What the routes of one API need of the application around them.

Knows: that contract, which `http.HttpApp` keeps. Does not know: any API.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol

from llm_runner_router.config import Server
from llm_runner_router.errors import RunnerError
from llm_runner_router.types import Call, Delta, Request

from . import sse
from .base import Reply
from .exchange import Exchange

Handler = Callable[[Exchange, str], Awaitable[None]]
"""Answers an exchange; the second argument is the name of the caller."""


class Voice(Protocol):
    """Something that writes errors: a module, or an object."""

    def error(self, exc: RunnerError) -> bytes:
        """A JSON body."""
        ...

    def stream_error(self, exc: RunnerError) -> bytes:
        """What ends a stream."""
        ...


class Codec(Voice, Protocol):
    """Something that encodes the answers of a route."""

    def encode(
        self, deltas: AsyncIterator[Delta], request: Request, reply: Reply
    ) -> AsyncIterator[bytes]:
        """See `openai_chat.encode`."""
        ...


class Host(Protocol):
    """The application around the routes."""

    @property
    def settings(self) -> Server:
        """Limits."""
        ...

    async def body(self, exchange: Exchange) -> bytes:
        """The body of a request, within the limits."""
        ...

    def room(self) -> AbstractContextManager[Any]:
        """A place for a request in work.

        Raises:
            Overloaded: all are taken.
        """
        ...

    def call(self, exchange: Exchange, caller: str, user: str | None) -> Call:
        """A call for a request."""
        ...

    async def answer(
        self,
        exchange: Exchange,
        caller: str,
        codec: Codec,
        requests: Sequence[Request],
        id: str,
        form: sse.Form = sse.EVENTS,
    ) -> None:
        """Answer a request, or several in one body, by the target that it names."""
        ...

    def told(self, exc: Exception, exchange: Exchange | None = None) -> RunnerError:
        """The error that a client is told; without `exchange`, one who asked for an answer."""
        ...
