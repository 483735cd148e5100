"""Requests in OpenAI's JSON. Pure.

Knows: the bodies of chat completions, completions and embeddings, and the small differences
between hosts (`Quirks`). Does not know: URLs, keys, answers.
"""

from __future__ import annotations

from typing import Any, Literal

import msgspec
from msgspec import Raw, Struct

from llm_runner_router.types import EmbedRequest, Message, Part, Request, Sampling, TextPart

CHAT = "openai_chat"
COMPLETIONS = "openai_completions"

_OURS = ("fallbacks", "cache")
"""Fields that mean something to this gateway and nothing to an upstream."""
_USAGE = Raw(b'{"include_usage":true}')
_TRUE = Raw(b"true")
_MAX_FIELDS = ("max_tokens", "max_completion_tokens")

_encode = msgspec.json.Encoder().encode


class WireRequest(Struct, frozen=True):
    """Where a request goes, below the base URL, and its body."""

    path: str
    body: bytes


class Quirks(Struct, frozen=True):
    """How a host differs from OpenAI's reference."""

    max_tokens: Literal["max_tokens", "max_completion_tokens"] | None = None
    """The only name it takes for the limit; None: it takes the one the client used."""
    stream_options: bool = True
    """It knows `stream_options.include_usage`; without it accounts of streams are estimates."""
    drop: tuple[str, ...] = ()
    """Fields it answers with an error."""


PLAIN = Quirks()


def build_request(request: Request, model: str, quirks: Quirks = PLAIN) -> WireRequest:
    """The request for a host of this dialect.

    A client's request of the same dialect is spliced: its fields go out as they came, only `model`
    is replaced and `stream_options` set, so that fields nobody has modelled survive. Any other
    request is written from its parsed form.
    """
    wire = request.wire
    if request.prompt is None or (wire is not None and wire.dialect == CHAT):
        dialect, path = CHAT, "/chat/completions"
    else:
        dialect, path = COMPLETIONS, "/completions"
    fields: dict[str, Any]
    if wire is not None and wire.dialect == dialect:
        fields = dict(wire.fields)
    else:
        fields = _chat(request) if dialect == CHAT else _completion(request)
        if wire is None:  # extras of another dialect mean something else here, if anything
            fields = {**request.extra, **fields}
    fields["model"] = model
    _stream(fields, request.stream, quirks)
    _limit_name(fields, quirks)
    for name in _OURS:
        fields.pop(name, None)
    for name in quirks.drop:
        fields.pop(name, None)
    return WireRequest(path, _encode(fields))


def build_embed(request: EmbedRequest, model: str) -> WireRequest:
    """An embedding request; the encoding is left to the host, both are read."""
    fields: dict[str, Any] = {"model": model, "input": request.inputs}
    if request.dimensions is not None:
        fields["dimensions"] = request.dimensions
    if request.user is not None:
        fields["user"] = request.user
    return WireRequest("/embeddings", _encode(fields))


def _stream(fields: dict[str, Any], stream: bool, quirks: Quirks) -> None:
    if not stream:
        fields.pop("stream", None)
        fields.pop("stream_options", None)
        return
    fields["stream"] = _TRUE
    if not quirks.stream_options:
        fields.pop("stream_options", None)
        return
    given = fields.get("stream_options")
    if given is None or bytes(given) == b"null":
        fields["stream_options"] = _USAGE
    else:
        options = msgspec.json.decode(given, type=dict[str, Any])
        fields["stream_options"] = {**options, "include_usage": True}


def _limit_name(fields: dict[str, Any], quirks: Quirks) -> None:
    wanted = quirks.max_tokens
    if wanted is None:
        return
    other = _MAX_FIELDS[_MAX_FIELDS[0] == wanted]
    value = fields.pop(other, None)
    if value is not None:
        fields.setdefault(wanted, value)


def _sampling(draw: Sampling) -> dict[str, Any]:
    fields: dict[str, Any] = {}
    for name in (
        "temperature",
        "top_p",
        "max_tokens",
        "seed",
        "presence_penalty",
        "frequency_penalty",
    ):
        value = getattr(draw, name)
        if value is not None:
            fields[name] = value
    if draw.stop:
        fields["stop"] = draw.stop
    if draw.n != 1:
        fields["n"] = draw.n
    return fields


def _completion(request: Request) -> dict[str, Any]:
    fields: dict[str, Any] = {"prompt": request.prompt, **_sampling(request.sampling)}
    if request.suffix is not None:
        fields["suffix"] = request.suffix
    if request.echo:
        fields["echo"] = True
    if request.sampling.logprobs:
        fields["logprobs"] = request.sampling.top_logprobs or 0
    if request.user is not None:
        fields["user"] = request.user
    return fields


def _chat(request: Request) -> dict[str, Any]:
    fields: dict[str, Any] = {"messages": [_message(m) for m in request.messages]}
    fields.update(_sampling(request.sampling))
    if request.sampling.logprobs:
        fields["logprobs"] = True
        if request.sampling.top_logprobs is not None:
            fields["top_logprobs"] = request.sampling.top_logprobs
    if request.tools:
        fields["tools"] = [
            {
                "type": "function",
                "function": _given(t, ("name", "description", "parameters", "strict")),
            }
            for t in request.tools
        ]
    if request.tool_choice is not None:
        fields["tool_choice"] = _tool_choice(request.tool_choice)
    if request.parallel_tool_calls is not None:
        fields["parallel_tool_calls"] = request.parallel_tool_calls
    if request.response_format is not None:
        fields["response_format"] = _format(request)
    if request.user is not None:
        fields["user"] = request.user
    return fields


def _given(value: Struct, names: tuple[str, ...]) -> dict[str, Any]:
    found = ((name, getattr(value, name)) for name in names)
    return {name: value for name, value in found if value is not None}


def _message(message: Message) -> dict[str, Any]:
    fields: dict[str, Any] = {"role": message.role, "content": _content(message.content)}
    if message.name is not None:
        fields["name"] = message.name
    if message.tool_calls:
        fields["tool_calls"] = [
            {
                "id": call.id,
                "type": "function",
                "function": {"name": call.name, "arguments": call.arguments},
            }
            for call in message.tool_calls
        ]
    if message.tool_call_id is not None:
        fields["tool_call_id"] = message.tool_call_id
    return fields


def _content(content: str | tuple[Part, ...] | None) -> str | tuple[Part, ...] | None:
    # A lone text part as a plain string: many servers' chat templates know nothing else.
    if isinstance(content, tuple) and len(content) == 1 and isinstance(content[0], TextPart):
        return content[0].text
    return content


def _tool_choice(choice: str) -> Any:
    if choice.startswith("function:"):
        return {"type": "function", "function": {"name": choice.removeprefix("function:")}}
    return choice


def _format(request: Request) -> dict[str, Any]:
    wanted = request.response_format
    assert wanted is not None
    if wanted.type != "json_schema":
        return {"type": wanted.type}
    schema = _given(wanted, ("schema", "strict"))
    return {"type": "json_schema", "json_schema": {"name": wanted.name or "answer", **schema}}
