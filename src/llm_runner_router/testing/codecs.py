"""What every codec of a generating surface must do.

Knows: the three functions `decode`, `encode`, `error`. Does not know: any wire format; the caller
gives bodies in it.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any, Protocol

import msgspec

from llm_runner_router.errors import BadRequest, RunnerError, StreamBroken
from llm_runner_router.types import Delta, Request

from .fakes import deltas_of


class Codec(Protocol):
    """The fixed names of a surface module."""

    def decode(self, body: bytes, /) -> Request:
        """A request body as a `Request`."""
        ...

    def encode(
        self, deltas: AsyncIterator[Delta], request: Request, reply: Any, /
    ) -> AsyncIterator[bytes]:
        """The bytes of the answer."""
        ...

    def error(self, exc: RunnerError, /) -> bytes:
        """The body of an error answer."""
        ...


async def check_surface(codec: Codec, bodies: Sequence[bytes], reply: Callable[[], Any]) -> None:
    """Check `codec` with valid `bodies` of its dialect; `reply` makes an empty reply head.

    Raises:
        AssertionError: a rule is broken; the message says which.
    """
    for body in bodies:
        request = codec.decode(body)
        assert request.model, f"the model of {body!r} was lost"
        assert codec.decode(body) == request, "decoding is not repeatable"
        for stream in (False, True):
            await _check_encode(codec, msgspec.structs.replace(request, stream=stream), reply)
    for junk in (b"", b"{", b"[]", b"null", b'"text"', b"\xff\xfe", b"{}"):
        refused: BadRequest | None = None
        try:
            codec.decode(junk)
        except BadRequest as exc:
            refused = exc
        assert refused is not None, f"{junk!r} was decoded as if it were a request"
        shown = codec.error(refused)
        assert refused.message in _texts(msgspec.json.decode(shown)), (
            f"the error body does not carry the message: {shown!r}"
        )


def _texts(value: Any) -> list[str]:
    """All strings inside a JSON value."""
    if isinstance(value, str):
        return [value]
    if isinstance(value, dict):
        return [text for item in value.values() for text in _texts(item)]
    if isinstance(value, list):
        return [text for item in value for text in _texts(item)]
    return []


async def _check_encode(codec: Codec, request: Request, reply: Callable[[], Any]) -> None:
    def stream(deltas: Sequence[Delta], error: RunnerError | None = None) -> AsyncIterator[bytes]:
        return codec.encode(_given(deltas, error), request, reply())

    whole = b"".join([piece async for piece in stream(deltas_of("alpha beta"))])
    assert b"alpha" in whole, f"the text is missing: {whole!r}"
    assert b"beta" in whole, f"the text is missing: {whole!r}"
    # An error must come out for the transport to tell; ending quietly would look like an answer.
    try:
        async for _ in stream(deltas_of("alpha", finish=None), StreamBroken("cut")):
            pass
    except StreamBroken:
        pass
    else:
        raise AssertionError("a broken stream was encoded as if it were whole")


def _given(deltas: Sequence[Delta], error: RunnerError | None) -> AsyncIterator[Delta]:
    async def give() -> AsyncIterator[Delta]:
        for delta in deltas:
            yield delta
        if error is not None:
            raise error

    return give()
