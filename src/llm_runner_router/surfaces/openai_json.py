"""What OpenAI's formats share: errors, JSON with paths, sampling fields, usage, relayed events.

Knows: the JSON of OpenAI's API that chat and completions have in common. Does not know: sockets,
routes, or what either of them looks like on its own.
"""

from __future__ import annotations

from math import isfinite
from typing import Any

import msgspec
from msgspec import UNSET, Raw, Struct, UnsetType

from llm_runner_router.errors import BadRequest, RunnerError
from llm_runner_router.types import Delta, Reasoning, Request, Sampling, Usage

from .base import Reply
from .codec import MAX_STOPS, check_finished, model_name, names_of_fallbacks

DONE = b"data: [DONE]\n\n"
MAX_CHOICES = 16

_RANGES: tuple[tuple[str, float, float], ...] = (
    ("temperature", 0, 2),
    ("top_p", 0, 1),
    ("presence_penalty", -2, 2),
    ("frequency_penalty", -2, 2),
    ("n", 1, MAX_CHOICES),
    ("seed", -(2**63), 2**63 - 1),
)

_encode = msgspec.json.Encoder().encode


# ---------------------------------------------------------------- errors


class _ErrorBody(Struct, frozen=True):
    message: str
    type: str
    param: str | None
    code: str | None


class _Error(Struct, frozen=True):
    error: _ErrorBody


def error(exc: RunnerError) -> bytes:
    """`{"error": {message, type, param, code}}`; the hint is part of the message."""
    return _encode(_Error(_ErrorBody(str(exc), exc.type, exc.param, exc.code)))


def stream_error(exc: RunnerError) -> bytes:
    """The error as an event; nothing follows it, in particular no `[DONE]`."""
    return b"data: " + error(exc) + b"\n\n"


# ---------------------------------------------------------------- reading


class StreamOptions(Struct, frozen=True):
    """`stream_options` of a request."""

    include_usage: bool | None = None


class Asked(Struct, frozen=True, kw_only=True):
    """The fields that chat and completions share, as OpenAI types them."""

    model: str
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    temperature: float | None = None
    top_p: float | None = None
    max_tokens: int | None = None
    stop: str | list[str] | None = None
    seed: int | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    n: int | None = None
    user: str | None = None
    fallbacks: list[str] | None = None
    cache: bool | dict[str, Any] | None = None
    """LiteLLM's clients may send an object here; only `true` turns the cache on."""
    strict: bool | None = None
    """Ours: refuse rather than leave out what the target cannot do."""
    top_k: int | None = None
    """Not OpenAI's; many hosts and all local engines take it."""
    reasoning_effort: str | None = None
    service_tier: str | None = None


def sampling(asked: Asked, max_tokens: int | None, logprobs: bool, top: int | None) -> Sampling:
    """The checked sampling settings.

    Raises:
        BadRequest: a value out of range; `param` names it.
    """
    for name, low, high in _RANGES:
        value = getattr(asked, name)
        if value is not None and not (low <= value <= high and isfinite(value)):
            raise BadRequest(
                f"{name!r} must be between {low} and {high}, not {value}",
                param=name,
                code="invalid_value",
            )
    return Sampling(
        temperature=asked.temperature,
        top_p=asked.top_p,
        max_tokens=max_tokens,
        stop=stops(asked.stop),
        seed=asked.seed,
        presence_penalty=asked.presence_penalty,
        frequency_penalty=asked.frequency_penalty,
        n=1 if asked.n is None else asked.n,
        logprobs=logprobs,
        top_logprobs=top,
        top_k=asked.top_k,
    )


def reasoning(asked: Asked) -> Reasoning | None:
    """How much the model is to think, if the client says so."""
    return None if asked.reasoning_effort is None else Reasoning(asked.reasoning_effort)


def stops(value: str | list[str] | None) -> tuple[str, ...]:
    """Stop strings as a tuple; at most `MAX_STOPS`, none of them empty."""
    if value is None:
        return ()
    found = (value,) if isinstance(value, str) else tuple(value)
    if len(found) > MAX_STOPS:
        raise BadRequest(f"'stop' has {len(found)} strings; at most {MAX_STOPS}", param="stop")
    for i, text in enumerate(found):
        if not text:
            param = "stop" if isinstance(value, str) else f"stop[{i}]"
            raise BadRequest(f"{param!r} is empty", param=param, code="invalid_value")
    return found


def fallbacks(asked: Asked) -> tuple[str, ...]:
    """The models to try after the one asked for."""
    return names_of_fallbacks(asked.fallbacks)


# ---------------------------------------------------------------- writing


class PromptDetails(Struct, frozen=True):
    """Part of `usage`."""

    cached_tokens: int


class CompletionDetails(Struct, frozen=True):
    """Part of `usage`."""

    reasoning_tokens: int


class UsageBody(Struct, frozen=True):
    """`usage` of an answer."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptDetails
    completion_tokens_details: CompletionDetails


def usage_body(usage: Usage) -> UsageBody:
    """`usage` in OpenAI's shape."""
    return UsageBody(
        usage.prompt_tokens,
        usage.completion_tokens,
        usage.total_tokens,
        PromptDetails(usage.cached_tokens),
        CompletionDetails(usage.reasoning_tokens),
    )


class UsageChunk(Struct, frozen=True):
    """The one chunk that has no choices."""

    id: str
    object: str
    created: int
    model: str
    choices: tuple[()]
    usage: UsageBody


def frame(value: Struct) -> bytes:
    """One SSE event."""
    return b"data: " + _encode(value) + b"\n\n"


def body(value: Struct) -> bytes:
    """One JSON document."""
    return _encode(value)


class _Probe(Struct, frozen=True):
    choices: list[Raw] | UnsetType = UNSET


_probe = msgspec.json.Decoder(_Probe)


def without_choices(data: bytes) -> bool:
    """Whether an event is a chunk whose `choices` is empty or absent."""
    try:
        found = _probe.decode(data).choices
    except msgspec.DecodeError:
        return False
    return found is UNSET or not found


class Relay:
    """Passes upstream's events on untouched, with exactly the usage chunk the client asked for.

    Chunks without choices break clients that did not ask for usage (and Azure sends such a chunk
    first), so they are dropped; the last one with usage comes at the end for those who asked.
    A delta without `wire` belongs to the event before it.
    """

    def __init__(self, request: Request, reply: Reply, object: str) -> None:
        self._request = request
        self._reply = reply
        self._object = object
        self._finished = False
        self._last: bytes | None = None

    def add(self, delta: Delta) -> bytes:
        """The bytes to send for `delta`; may be empty."""
        if delta.finish is not None:
            self._finished = True
        if delta.wire is None:
            return b""
        data = delta.wire.data
        # A chunk with text has choices; only the others are worth a look inside.
        if not delta.text and not delta.tool_calls and without_choices(data):
            if delta.usage is not None:
                self._last = data
            return b""
        return event(data)

    def end(self) -> bytes:
        """The end of the stream.

        Raises:
            StreamBroken: no choice had a `finish`.
        """
        check_finished(self._finished)
        if not self._request.include_usage:
            return DONE
        if self._last is not None:
            return event(self._last) + DONE
        if self._reply.usage is not None:
            return usage_frame(self._request, self._reply, self._object) + DONE
        return DONE


def event(data: bytes) -> bytes:
    """One SSE event from its payload, which may have several lines."""
    if b"\n" in data:
        data = data.replace(b"\n", b"\ndata: ")
    return b"data: " + data + b"\n\n"


def usage_frame(request: Request, reply: Reply, object: str) -> bytes:
    """The last chunk for a client that asked for usage; `reply.usage` is known."""
    usage = usage_body(reply.usage or Usage())
    name = model_name(request, reply)
    return frame(UsageChunk(reply.id, object, reply.created, name, (), usage))
