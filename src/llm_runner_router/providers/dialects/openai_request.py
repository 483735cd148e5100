"""Requests in OpenAI's JSON. Pure.

Knows: the bodies of chat completions, completions and embeddings, and the small differences
between hosts (`Quirks`). Does not know: URLs, keys, answers.
"""

from __future__ import annotations

from typing import Any

import msgspec
from msgspec import Raw, Struct

from llm_runner_router.fidelity import Receipt, own_tools
from llm_runner_router.types import (
    GOOGLE,
    EmbedRequest,
    ForeignPart,
    Message,
    Part,
    Reasoning,
    RedactedPart,
    Request,
    Sampling,
    TextPart,
    ThinkingPart,
    ToolCall,
)

from .base import PLAIN, Quirks, WireRequest

CHAT = "openai_chat"
COMPLETIONS = "openai_completions"

_OURS = ("fallbacks", "cache", "strict")
"""Fields that mean something to this gateway and nothing to an upstream."""
_USAGE = Raw(b'{"include_usage":true}')
_TRUE = Raw(b"true")
_MAX_FIELDS = ("max_tokens", "max_completion_tokens")

_encode = msgspec.json.Encoder().encode


def build_request(
    request: Request, model: str, quirks: Quirks = PLAIN, receipt: Receipt | None = None
) -> WireRequest:
    """The request for a host of this dialect.

    A client's request of the same dialect is spliced: its fields go out as they came, only `model`
    is replaced and `stream_options` set, so that fields nobody has modelled survive. Any other
    request is written from its parsed form.
    """
    receipt = receipt or Receipt()
    wire = request.wire
    if request.prompt is None or (wire is not None and wire.dialect == CHAT):
        dialect, path = CHAT, "/chat/completions"
    else:
        dialect, path = COMPLETIONS, "/completions"
    fields: dict[str, Any]
    if wire is not None and wire.dialect == dialect:
        fields = dict(wire.fields)
        if not quirks.signatures and b'"extra_content"' in bytes(fields.get("messages", b"")):
            fields["messages"] = _unsigned(fields["messages"])
    else:
        fields = _chat(request, quirks, receipt) if dialect == CHAT else _completion(request)
        if wire is None:
            fields = {**request.extra, **fields}
        elif wire.dialect not in (CHAT, COMPLETIONS):
            for name in request.extra:  # they mean something else here, if anything
                receipt.dropped(name, "OpenAI's chat has no such parameter")
        if request.sampling.top_k is not None:
            if quirks.top_k:
                fields["top_k"] = request.sampling.top_k
            else:
                receipt.dropped("top_k", "OpenAI's dialect has none")
    fields["model"] = model
    _stream(fields, request.stream, quirks)
    _limit_name(fields, quirks)
    for name in _OURS:
        fields.pop(name, None)
    for name in quirks.drop:
        if fields.pop(name, None) is not None:
            receipt.dropped(name, "this host refuses it")
    return WireRequest(path, _encode(fields), dialect)


def signature_of(extra: Any) -> str | None:
    """Google's signature in the `extra_content` of a call."""
    held = extra.get("google") if isinstance(extra, dict) else None
    signature = held.get("thought_signature") if isinstance(held, dict) else None
    return GOOGLE + signature if isinstance(signature, str) and signature else None


def _unsigned(messages: Raw) -> Any:
    """The client's messages without what Google signed, which no other host takes."""
    turns = msgspec.json.decode(messages)
    for turn in turns if isinstance(turns, list) else ():
        for call in turn.get("tool_calls") or ():
            if signature_of(call.get("extra_content")) is not None:
                del call["extra_content"]
    return turns


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


def _chat(request: Request, quirks: Quirks, receipt: Receipt) -> dict[str, Any]:
    messages = [
        _message(m, f"messages[{i}]", quirks, receipt) for i, m in enumerate(request.messages)
    ]
    fields: dict[str, Any] = {"messages": messages}
    fields.update(_sampling(request.sampling))
    if request.sampling.logprobs:
        fields["logprobs"] = True
        if request.sampling.top_logprobs is not None:
            fields["top_logprobs"] = request.sampling.top_logprobs
    tools = own_tools(request, receipt)
    if tools:
        fields["tools"] = [
            {
                "type": "function",
                "function": _given(t, ("name", "description", "parameters", "strict")),
            }
            for t in tools
        ]
    if request.tool_choice is not None:
        fields["tool_choice"] = _tool_choice(request.tool_choice)
    if request.parallel_tool_calls is not None:
        fields["parallel_tool_calls"] = request.parallel_tool_calls
    if request.response_format is not None:
        fields["response_format"] = _format(request)
    if request.user is not None:
        fields["user"] = request.user
    if request.service_tier is not None:
        fields["service_tier"] = request.service_tier
    if request.reasoning is not None:
        effort = effort_of(request.reasoning, receipt)
        if effort is not None:
            fields["reasoning_effort"] = effort
    return fields


_BUDGETS = ((0, "none"), (1024, "minimal"), (4096, "low"), (16384, "medium"))
"""Up to so many tokens of thought are that effort; more are `high`."""


def effort_of(wanted: Reasoning, receipt: Receipt) -> str | None:
    """How much to think, in OpenAI's words; None where nothing was said of it."""
    effort, budget = wanted.effort, wanted.budget
    if effort is None and budget is not None:
        effort = next((name for most, name in _BUDGETS if budget <= most), "high")
        receipt.translated("reasoning.budget", f"{budget} tokens are `{effort}`")
    return effort


def _given(value: Struct, names: tuple[str, ...]) -> dict[str, Any]:
    found = ((name, getattr(value, name)) for name in names)
    return {name: value for name, value in found if value is not None}


def _message(message: Message, path: str, quirks: Quirks, receipt: Receipt) -> dict[str, Any]:
    content = _content(message.content, path, receipt)
    fields: dict[str, Any] = {"role": message.role, "content": content}
    if message.name is not None:
        fields["name"] = message.name
    if message.tool_calls:
        calls = _signed(message) if quirks.signatures else message.tool_calls
        fields["tool_calls"] = [_call(call, quirks) for call in calls]
    if message.tool_call_id is not None:
        fields["tool_call_id"] = message.tool_call_id
    if message.is_error:
        receipt.dropped(f"{path}.is_error", "a tool's answer has no such mark; its text says so")
    return fields


def _call(call: ToolCall, quirks: Quirks) -> dict[str, Any]:
    told: dict[str, Any] = {
        "id": call.id,
        "type": "function",
        "function": {"name": call.name, "arguments": call.arguments},
    }
    if quirks.signatures and (call.signature or "").startswith(GOOGLE):
        signature = (call.signature or "").removeprefix(GOOGLE)
        told["extra_content"] = {"google": {"thought_signature": signature}}
    return told


def _signed(message: Message) -> tuple[ToolCall, ...]:
    """The calls; where the client's format has the signature on a thought, the first has it."""
    calls = message.tool_calls
    if any(call.signature for call in calls) or not isinstance(message.content, tuple):
        return calls
    signed = [p.signature or "" for p in message.content if isinstance(p, ThinkingPart)]
    found = next((one for one in reversed(signed) if one.startswith(GOOGLE)), None)
    return (msgspec.structs.replace(calls[0], signature=found), *calls[1:])


def _content(
    content: str | tuple[Part, ...] | None, path: str, receipt: Receipt
) -> str | tuple[Part, ...] | None:
    if not isinstance(content, tuple):
        return content
    parts = []
    for i, part in enumerate(content):
        if isinstance(part, ThinkingPart | RedactedPart):
            receipt.dropped(f"{path}.content[{i}]", "thoughts of another provider's are not shown")
            continue
        if isinstance(part, ForeignPart):
            why = f"`{part.kind[:80]}` is known to the dialect it came from only"
            receipt.dropped(f"{path}.content[{i}]", why)
            continue
        if getattr(part, "cache_control", None) is not None:
            receipt.emulated(f"{path}.content[{i}].cache_control", "prompts are cached unasked")
            part = msgspec.structs.replace(part, cache_control=None)
        parts.append(part)
    if not parts:
        return None if content else ()
    # A lone text part as a plain string: many servers' chat templates know nothing else.
    if len(parts) == 1 and isinstance(parts[0], TextPart):
        return parts[0].text
    return tuple(parts)


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
