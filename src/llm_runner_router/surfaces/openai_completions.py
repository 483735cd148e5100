"""OpenAI's legacy completions: bytes to `Request`s, `Delta`s to bytes. Pure, no sockets.

Knows: `POST /v1/completions`, one prompt or a list of them. Does not know: who answers, HTTP, how
several prompts are answered together (`fan.py`).
"""

from __future__ import annotations

from collections.abc import AsyncIterator

import msgspec
from msgspec import UNSET, Raw, Struct, UnsetType

from llm_runner_router.deltas import Answer, Choice
from llm_runner_router.errors import BadRequest
from llm_runner_router.types import Delta, Finish, Request, RequestWire

from .base import Reply
from .codec import (
    Writer,
    check_finished,
    check_model,
    events,
    extra,
    limit,
    model_name,
    parse,
    raw_fields,
    relayed,
    whole,
)
from .openai_json import (
    DONE,
    Asked,
    Relay,
    UsageBody,
    body,
    error,
    fallbacks,
    frame,
    reasoning,
    sampling,
    stream_error,
    usage_body,
    usage_frame,
)

__all__ = ["DIALECT", "decode", "decode_all", "encode", "error", "stream_error"]

DIALECT = "openai_completions"
OBJECT = "text_completion"
MAX_PROMPTS = 128
MAX_LOGPROBS = 20


class _Body(Asked, frozen=True, kw_only=True):
    prompt: str | list[str | int | list[int]] | None = None
    suffix: str | None = None
    echo: bool | None = None
    logprobs: int | None = None


_decoder = msgspec.json.Decoder(_Body)
_KNOWN = frozenset(_Body.__struct_fields__)


def decode(body: bytes) -> Request:
    """Read a request with one prompt.

    Raises:
        BadRequest: malformed, of wrong types, contradictory, or several prompts.
    """
    requests = decode_all(body)
    if len(requests) > 1:
        raise BadRequest("one prompt is expected here", param="prompt")
    return requests[0]


def decode_all(body: bytes) -> tuple[Request, ...]:
    """Read a request: one `Request` per prompt. Several prompts carry no `wire`.

    Raises:
        BadRequest: malformed, of wrong types, or contradictory; `param` says where.
    """
    asked = parse(_decoder, body)
    fields = raw_fields(body)
    check_model(asked.model)
    limit("max_tokens", asked.max_tokens, 0)
    top = asked.logprobs
    if top is not None and not 0 <= top <= MAX_LOGPROBS:
        raise BadRequest(
            f"'logprobs' must be between 0 and {MAX_LOGPROBS}, not {top}", param="logprobs"
        )
    prompts = _prompts(asked.prompt)
    options = asked.stream_options
    draw = sampling(asked, asked.max_tokens, top is not None, top)
    if len(prompts) * draw.n > MAX_PROMPTS:
        raise BadRequest(f"more than {MAX_PROMPTS} choices in one request", param="prompt")
    return tuple(
        Request(
            model=asked.model,
            prompt=prompt,
            suffix=asked.suffix,
            echo=bool(asked.echo),
            sampling=draw,
            stream=bool(asked.stream),
            include_usage=bool(options is not None and options.include_usage),
            user=asked.user,
            fallbacks=fallbacks(asked),
            cache=asked.cache is True,
            strict=asked.strict is True,
            reasoning=reasoning(asked),
            service_tier=asked.service_tier,
            extra=extra(fields, _KNOWN),
            wire=RequestWire(DIALECT, fields) if len(prompts) == 1 else None,
        )
        for prompt in prompts
    )


def _prompts(value: str | list[str | int | list[int]] | None) -> tuple[str, ...]:
    if value is None:
        raise BadRequest("'prompt' is missing", param="prompt", code="missing_required_parameter")
    if isinstance(value, str):
        return (value,)
    if not value:
        raise BadRequest("'prompt' is empty", param="prompt", code="invalid_value")
    texts = tuple(prompt for prompt in value if isinstance(prompt, str))
    if len(texts) != len(value):
        raise BadRequest(
            "'prompt' holds token ids, which mean something else to every model",
            param="prompt",
            hint="send the text",
        )
    return texts


def encode(deltas: AsyncIterator[Delta], request: Request, reply: Reply) -> AsyncIterator[bytes]:
    """One JSON body, or SSE events closed by `[DONE]` on a clean end, as the request wants.

    Raises:
        StreamBroken: the deltas ended without a `finish`.
        RunnerError: whatever the deltas raise.
    """
    if not request.stream:
        # With several prompts the bytes of one upstream are not the whole answer.
        dialect = DIALECT if request.wire is not None else ""
        return whole(deltas, request, reply, dialect, _completion)

    def choose(first: Delta) -> Writer:
        # Several prompts are told apart by the index, which upstream's events do not know.
        if request.wire is not None and relayed(first, DIALECT):
            return Relay(request, reply, OBJECT)
        return _TextWriter(request, reply)

    return events(deltas, reply, choose)


class _Choice(Struct, frozen=True):
    index: int
    text: str
    logprobs: Raw | None
    finish_reason: Finish | None


class _Completion(Struct, frozen=True):
    id: str
    object: str
    created: int
    model: str
    choices: tuple[_Choice, ...]
    usage: UsageBody | UnsetType | None = UNSET


class _TextWriter:
    """Turns deltas into `text_completion` events."""

    def __init__(self, request: Request, reply: Reply) -> None:
        self._request = request
        self._reply = reply
        self._finished = False
        self._usage: UnsetType | None = None if request.include_usage else UNSET

    def add(self, delta: Delta) -> bytes:
        """The event for `delta`; none for one without text, log-probabilities or an end."""
        if delta.finish is not None:
            self._finished = True
        elif not delta.text and delta.logprobs is None:
            return b""
        choice = _Choice(delta.index, delta.text, text_logprobs(delta.logprobs), delta.finish)
        name = model_name(self._request, self._reply)
        reply = self._reply
        return frame(_Completion(reply.id, OBJECT, reply.created, name, (choice,), self._usage))

    def end(self) -> bytes:
        """The usage chunk, if asked for and known, and `[DONE]`."""
        check_finished(self._finished)
        if self._request.include_usage and self._reply.usage is not None:
            return usage_frame(self._request, self._reply, OBJECT) + DONE
        return DONE


def _completion(answer: Answer, request: Request, reply: Reply) -> bytes:
    choices = tuple(_choice(choice) for choice in answer.choices)
    usage = UNSET if answer.usage is None else usage_body(answer.usage)
    name = model_name(request, reply)
    return body(_Completion(reply.id, OBJECT, reply.created, name, choices, usage))


def _choice(choice: Choice) -> _Choice:
    logprobs = _joined(tuple(_read(raw) for raw in choice.logprobs))
    return _Choice(choice.index, choice.text, logprobs, choice.finish)


# ---------------------------------------------------------------- log-probabilities


class _Top(Struct, frozen=True):
    token: str
    logprob: float


class _Token(Struct, frozen=True):
    token: str
    logprob: float
    top_logprobs: list[_Top] = []


class _Logprobs(Struct, frozen=True):
    """Either form: a chat's `content`, or the legacy lists."""

    content: list[_Token] | None = None
    tokens: list[str] = []
    token_logprobs: list[float | None] = []
    top_logprobs: list[dict[str, float] | None] | None = None
    text_offset: list[int] = []


class _Legacy(Struct, frozen=True):
    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None] | None
    text_offset: list[int]


_logprobs = msgspec.json.Decoder(_Logprobs)


def _read(raw: Raw) -> _Legacy:
    found = _logprobs.decode(raw)
    if found.content is None:
        return _Legacy(found.tokens, found.token_logprobs, found.top_logprobs, found.text_offset)
    offset, offsets = 0, []
    for token in found.content:
        offsets.append(offset)
        offset += len(token.token)
    return _Legacy(
        [t.token for t in found.content],
        [t.logprob for t in found.content],
        [{top.token: top.logprob for top in t.top_logprobs} for t in found.content],
        offsets,
    )


def text_logprobs(raw: Raw | None) -> Raw | None:
    """`logprobs` in the legacy form, whichever form a target gave."""
    return None if raw is None else _joined((_read(raw),))


def _joined(pieces: tuple[_Legacy, ...]) -> Raw | None:
    """The lists of all chunks joined; offsets of a chunk that starts again at 0 are moved on."""
    if not pieces:
        return None
    tokens: list[str] = []
    values: list[float | None] = []
    tops: list[dict[str, float] | None] = []
    offsets: list[int] = []
    length = 0
    for piece in pieces:
        shift = length if piece.text_offset and piece.text_offset[0] < length else 0
        offsets += [offset + shift for offset in piece.text_offset]
        tokens += piece.tokens
        values += piece.token_logprobs
        tops += piece.top_logprobs or [None] * len(piece.tokens)
        length += sum(map(len, piece.tokens))
    return Raw(msgspec.json.encode(_Legacy(tokens, values, tops if any(tops) else None, offsets)))
