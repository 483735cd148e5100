"""One request of a batch, answered by the codecs and targets that answer it over HTTP.

Knows: which codec belongs to which endpoint. Does not know: files, batches, sockets.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Sequence
from contextlib import aclosing
from typing import Any

import msgspec
from msgspec import Struct

from llm_runner_router.errors import BadRequest, Overloaded, RateLimited, RunnerError
from llm_runner_router.types import Call, Request

from . import openai_chat, openai_completions, openai_embeddings, openai_json, responses
from .base import Gateway, Reply
from .exchange import now
from .fan import fan
from .host import Codec
from .veil import veiled

_log = logging.getLogger(__name__)


class Answered(Struct, frozen=True):
    """What became of a request."""

    status: int
    body: bytes
    again: bool = False
    """Asking again may help."""
    crowded: bool = False
    """It was not the request's turn: others are served, or a limit is reached."""
    after: float = 0.0
    """Seconds to wait before that, if somebody said so."""


async def answer(gateway: Gateway, endpoint: str, body: bytes, call: Call) -> Answered:
    """Answer a request for `endpoint`; every failure is an answer too."""
    call = msgspec.structs.replace(call, low=True)
    try:
        return Answered(200, await _ASKED[endpoint](gateway, body, call))
    except RunnerError as exc:
        error = veiled(exc)
        if error is not exc:
            _log.warning("%s: %s", call.id, exc)
    except RecursionError:
        error = BadRequest("the request is nested too deeply", code="invalid_json")
    except Exception as exc:  # one request must not end the others
        _log.error("unexpected error in a batch", exc_info=exc)
        error = RunnerError("an internal error happened; the server's log says more")
    crowded = isinstance(error, Overloaded | RateLimited)
    again, after = error.retryable, error.retry_after or 0.0
    return Answered(error.status, openai_json.error(error), again, crowded, after)


async def _chat(gateway: Gateway, body: bytes, call: Call) -> bytes:
    request = openai_chat.decode(body)
    return await _whole(gateway, openai_chat, (request,), f"chatcmpl-{call.id}", call)


async def _completions(gateway: Gateway, body: bytes, call: Call) -> bytes:
    requests = openai_completions.decode_all(body)
    return await _whole(gateway, openai_completions, requests, f"cmpl-{call.id}", call)


async def _responses(gateway: Gateway, body: bytes, call: Call) -> bytes:
    turn = responses.decode(body)
    for name, given in (("previous_response_id", turn.previous), ("background", turn.background)):
        if given:
            raise BadRequest(f"{name!r} is not possible in a batch", param=name)
    id = f"resp_{call.id}"
    return await _whole(gateway, responses.Codec(turn, id), (turn.request,), id, call)


async def _embeddings(gateway: Gateway, body: bytes, call: Call) -> bytes:
    asked = openai_embeddings.decode(body)
    result = await gateway.embedder(asked.request.model).embed(asked.request, call)
    return openai_embeddings.encode(result, asked)


async def _whole(
    gateway: Gateway, codec: Codec, requests: Sequence[Request], id: str, call: Call
) -> bytes:
    request = requests[0]
    if request.stream:
        raise BadRequest("'stream' is not possible in a batch", param="stream")
    target = gateway.target(request.model)
    reply = Reply(id, now(), call.trace)
    opened = target.open(request, call) if len(requests) == 1 else fan(target, requests, call)
    async with opened as deltas:
        frames: Any = codec.encode(deltas, request, reply)
        async with aclosing(frames):
            return b"".join([frame async for frame in frames])


_ASKED: dict[str, Callable[[Gateway, bytes, Call], Awaitable[bytes]]] = {
    "/v1/chat/completions": _chat,
    "/v1/completions": _completions,
    "/v1/embeddings": _embeddings,
    "/v1/responses": _responses,
}
ENDPOINTS = tuple(_ASKED)
"""What a batch may ask."""
