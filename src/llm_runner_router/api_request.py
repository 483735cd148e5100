"""From what a library user writes to a `Request`. Knows prompts, message dicts and options."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, TypedDict, Unpack

import msgspec

from .errors import BadRequest
from .types import Message, Request, ResponseFormat, Sampling, Tool

Messages = Sequence[Message | Mapping[str, Any]]


class Options(TypedDict, total=False):
    """What may be said beside the prompt; every key is optional."""

    model: str
    temperature: float
    top_p: float
    max_tokens: int
    stop: str | Sequence[str]
    seed: int
    presence_penalty: float
    frequency_penalty: float
    n: int
    tools: Sequence[Mapping[str, Any]]
    tool_choice: str
    response_format: Mapping[str, Any]
    fallbacks: Sequence[str]
    system: str
    user: str
    cache: bool


_SAMPLING = (
    "temperature",
    "top_p",
    "max_tokens",
    "seed",
    "presence_penalty",
    "frequency_penalty",
    "n",
)


def as_request(prompt: str | Messages, model: str, /, **options: Unpack[Options]) -> Request:
    """A `Request` from a prompt or messages and options.

    Raises:
        BadRequest: an unknown option, or messages that are not in OpenAI's shape.
    """
    unknown = set(options) - set(Options.__annotations__)
    if unknown:
        known = ", ".join(Options.__annotations__)
        raise BadRequest(f"unknown option {sorted(unknown)[0]!r}", hint=f"options are: {known}")
    sampling = {k: options[k] for k in _SAMPLING if k in options}  # type: ignore[literal-required]  # keys are listed above
    stop = options.get("stop", ())
    sampling["stop"] = (stop,) if isinstance(stop, str) else tuple(stop)
    try:
        return Request(
            model=options.get("model") or model,
            messages=_messages(prompt, options.get("system")),
            tools=tuple(_tool(t) for t in options.get("tools", ())),
            tool_choice=options.get("tool_choice"),
            response_format=_format(options.get("response_format")),
            sampling=msgspec.convert(sampling, Sampling),
            user=options.get("user"),
            fallbacks=tuple(options.get("fallbacks", ())),
            cache=options.get("cache", False),
        )
    except msgspec.ValidationError as error:
        raise BadRequest(f"not a valid request: {error}") from error


def _messages(prompt: str | Messages, system: str | None) -> tuple[Message, ...]:
    turns: list[Message] = [Message("system", system)] if system else []
    if isinstance(prompt, str):
        return (*turns, Message("user", prompt))
    for turn in prompt:
        turns.append(turn if isinstance(turn, Message) else _message(turn))
    if not turns:
        raise BadRequest("there are no messages", param="messages")
    return tuple(turns)


def _message(turn: Mapping[str, Any]) -> Message:
    plain = dict(turn)
    plain["tool_calls"] = [
        {
            "id": c.get("id", ""),
            "name": c["function"]["name"],
            "arguments": c["function"]["arguments"],
        }
        for c in plain.get("tool_calls") or ()
    ]
    return msgspec.convert(plain, Message)


def _tool(tool: Mapping[str, Any]) -> Tool:
    function = tool.get("function", tool)
    parameters = function.get("parameters")
    return Tool(
        name=msgspec.convert(function.get("name"), str),
        description=function.get("description"),
        parameters=None if parameters is None else msgspec.Raw(msgspec.json.encode(parameters)),
        strict=function.get("strict"),
    )


def _format(value: Mapping[str, Any] | None) -> ResponseFormat | None:
    if value is None:
        return None
    named = value.get("json_schema") or {}
    schema = named.get("schema", value.get("schema"))
    kind = msgspec.convert(value.get("type"), Literal["text", "json_object", "json_schema"])
    return ResponseFormat(
        type=kind,
        schema=None if schema is None else msgspec.Raw(msgspec.json.encode(schema)),
        name=named.get("name"),
        strict=named.get("strict"),
    )
