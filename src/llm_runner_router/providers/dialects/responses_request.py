"""Requests in the JSON of OpenAI's Responses API. Pure.

Knows: the body of `POST /responses`. Does not know: URLs, keys, answers.

Nothing is asked to be stored there: whoever comes back to an answer comes back to this gateway.
Thoughts come sealed instead (`reasoning.encrypted_content`), and go back with the next turn.
"""

from __future__ import annotations

import re
from typing import Any

import msgspec
from msgspec import Raw, Struct

from llm_runner_router.errors import BadRequest, Unsupported
from llm_runner_router.fidelity import Receipt, own_tools
from llm_runner_router.types import (
    OPENAI,
    AudioPart,
    FilePart,
    ImagePart,
    Message,
    Part,
    Reasoning,
    RedactedPart,
    RefusalPart,
    Request,
    TextPart,
    ThinkingPart,
    Tool,
)

from .base import Quirks, WireRequest
from .openai_request import effort_of

RESPONSES = "openai_responses"
_LEAST_TOKENS = 16
"""OpenAI refuses a lower `max_output_tokens`."""
_OURS = re.compile(rb'"(?:rs|msg|fc)_[0-9a-f]{32}_[0-9]+"|"llmrr')
"""What an item has that this gateway wrote (`surfaces/responses_write.py`): its id, a seal."""
_encode = msgspec.json.Encoder().encode


def build_request(request: Request, model: str, quirks: Quirks, receipt: Receipt) -> WireRequest:
    """The request for an upstream of this dialect; a client's own of the same one is spliced.

    Raises:
        Unsupported: several choices, text to fill in.
    """
    wire = request.wire
    if wire is not None and wire.dialect == RESPONSES:
        fields: dict[str, Any] = dict(wire.fields)
        if _OURS.search(bytes(fields["input"])):
            fields["input"] = _without_ours(fields["input"])
    else:
        fields = _fields(request, receipt)
    fields["model"] = model
    if request.stream:
        fields["stream"] = True
    else:
        fields.pop("stream", None)
        fields.pop("stream_options", None)
    for name in quirks.drop:
        if fields.pop(name, None) is not None:
            receipt.dropped(name, "this host refuses it")
    return WireRequest("/responses", _encode(fields), RESPONSES)


def _without_ours(items: Raw) -> Any:
    """A client's items without what OpenAI cannot know: our ids, thoughts of other models."""
    found = msgspec.json.decode(items)
    kept = []
    for item in found if isinstance(found, list) else ():
        ours = _OURS.fullmatch(_encode(item.get("id")))
        sealed = str(item.get("encrypted_content") or "")
        nobodys = sealed.startswith("llmrr") or (ours and not sealed)
        if item.get("type") == "reasoning" and nobodys:
            continue
        gone = {"llmrr_signature", *(("id",) if ours else ())}
        kept.append({name: value for name, value in item.items() if name not in gone})
    return kept if isinstance(found, list) else items


def _fields(request: Request, receipt: Receipt) -> dict[str, Any]:
    if request.sampling.n != 1:
        raise Unsupported("the Responses API gives one choice", param="n", hint="ask n times")
    if request.suffix:
        raise Unsupported("the Responses API fills in no text before a `suffix`", param="suffix")
    fields: dict[str, Any] = {"input": _input(request, receipt), "store": False}
    _sampling(request, fields, receipt)
    _tools(request, fields, receipt)
    if request.response_format is not None:
        fields["text"] = {"format": _format(request)}
    fields["include"] = ["reasoning.encrypted_content", *fields.get("include", ())]
    if request.reasoning is not None:
        fields["reasoning"] = _reasoning(request.reasoning, receipt)
    for name in ("user", "service_tier"):
        if getattr(request, name) is not None:
            fields[name] = getattr(request, name)
    for name, value in request.extra.items():
        if request.wire is None:
            fields.setdefault(name, value)
        else:
            receipt.dropped(name, "the Responses API has no such parameter")
    return fields


# ---------------------------------------------------------------- the conversation


def _input(request: Request, receipt: Receipt) -> list[dict[str, Any]]:
    messages = request.messages
    if request.prompt is not None:
        receipt.emulated("prompt", "asked as a message of the user")
        messages = (Message("user", request.prompt),)
    items: list[dict[str, Any]] = []
    for i, message in enumerate(messages):
        items += _items(message, f"messages[{i}]", receipt)
    return items


def _items(message: Message, path: str, receipt: Receipt) -> list[dict[str, Any]]:
    if message.name is not None:
        receipt.dropped(f"{path}.name", "turns have no names")
    if message.role in ("tool", "function"):
        return [_result(message, path, receipt)]
    spoken = message.role == "assistant"
    items: list[dict[str, Any]] = []
    content: list[dict[str, Any]] = []
    given = (TextPart(message.content),) if isinstance(message.content, str) else message.content
    for k, part in enumerate(given or ()):
        where = f"{path}.content[{k}]"
        if isinstance(part, ThinkingPart):
            items += _thought(part, where, receipt)
        elif (found := _part(part, where, spoken, receipt)) is not None:
            content.append(found)
    if content or not (spoken or items):
        items.append({"type": "message", "role": message.role, "content": content})
    for call in message.tool_calls:
        told = {"call_id": call.id, "name": call.name, "arguments": call.arguments or "{}"}
        items.append({"type": "function_call", **told})
    return items


def _result(message: Message, path: str, receipt: Receipt) -> dict[str, Any]:
    if not message.tool_call_id:
        raise Unsupported(
            "an answer of a function without the id of its call cannot be said here",
            param=path,
            hint="use `tools`, `tool_calls` and messages with the role `tool`",
        )
    if message.is_error:
        receipt.dropped(f"{path}.is_error", "a tool's answer has no such mark; its text says so")
    output: Any = message.content or ""
    if isinstance(output, tuple):
        parts = enumerate(output)
        found = (_part(part, f"{path}.content[{k}]", False, receipt) for k, part in parts)
        output = [part for part in found if part is not None]
    return {"type": "function_call_output", "call_id": message.tool_call_id, "output": output}


def _thought(part: ThinkingPart, path: str, receipt: Receipt) -> list[dict[str, Any]]:
    if part.signature is None or not part.signature.startswith(OPENAI):
        receipt.dropped(path, "thoughts of another provider's are not shown")
        return []
    sealed = part.signature.removeprefix(OPENAI)
    return [{"type": "reasoning", "summary": [], "encrypted_content": sealed}]


def _part(part: Part, path: str, spoken: bool, receipt: Receipt) -> dict[str, Any] | None:
    """One part of a message; None for what cannot be said."""
    if getattr(part, "cache_control", None) is not None:
        receipt.emulated(f"{path}.cache_control", "prompts are cached unasked")
    if isinstance(part, TextPart):
        return {"type": "output_text" if spoken else "input_text", "text": part.text}
    if isinstance(part, RefusalPart):
        return {"type": "refusal", "refusal": part.refusal}
    if isinstance(part, ImagePart):
        detail = part.image_url.detail or "auto"
        return {"type": "input_image", "image_url": part.image_url.url, "detail": detail}
    if isinstance(part, FilePart):
        return _file(part, path, receipt)
    if isinstance(part, AudioPart):
        sound = msgspec.structs.asdict(part.input_audio)
        return {"type": "input_audio", "input_audio": sound}
    if isinstance(part, RedactedPart | ThinkingPart):
        receipt.dropped(path, "thoughts of another provider's are not shown")
        return None
    receipt.dropped(path, f"`{part.kind[:80]}` is known to the dialect it came from only")
    return None


def _file(part: FilePart, path: str, receipt: Receipt) -> dict[str, Any]:
    file = part.file
    if part.citations:
        receipt.dropped(f"{path}.citations", "the Responses API cites searches only")
    found = {k: v for k, v in msgspec.structs.asdict(file).items() if v is not None}
    if not found.keys() - {"filename"}:
        raise BadRequest("a document without data", param=f"{path}.file")
    if file.file_data is not None:
        found.setdefault("filename", "document")  # data without a name is refused there
    return {"type": "input_file", **found}


# ---------------------------------------------------------------- how it is to answer


def _sampling(request: Request, fields: dict[str, Any], receipt: Receipt) -> None:
    draw = request.sampling
    if draw.max_tokens is not None:
        fields["max_output_tokens"] = max(draw.max_tokens, _LEAST_TOKENS)
        if draw.max_tokens < _LEAST_TOKENS:
            receipt.translated("max_tokens", f"{_LEAST_TOKENS} is the least there")
    for name in ("temperature", "top_p"):
        if getattr(draw, name) is not None:
            fields[name] = getattr(draw, name)
    if draw.logprobs:
        fields["include"] = ["message.output_text.logprobs"]
        if draw.top_logprobs is not None:
            fields["top_logprobs"] = draw.top_logprobs
    lost = [
        name
        for name in ("seed", "presence_penalty", "frequency_penalty", "top_k")
        if getattr(draw, name) is not None
    ]
    lost += [*(["stop"] if draw.stop else ()), *(["echo"] if request.echo else ())]
    for name in lost:
        receipt.dropped(name, "the Responses API has nothing like it")


def _tools(request: Request, fields: dict[str, Any], receipt: Receipt) -> None:
    tools = own_tools(request, receipt)
    if tools:
        fields["tools"] = [_tool(tool) for tool in tools]
    choice = request.tool_choice
    if choice is not None:
        name = choice.removeprefix("function:")
        fields["tool_choice"] = choice if name == choice else {"type": "function", "name": name}
    if request.parallel_tool_calls is not None:
        fields["parallel_tool_calls"] = request.parallel_tool_calls


_ANYTHING = Raw(b'{"type":"object","properties":{}}')


def _tool(tool: Tool) -> dict[str, Any]:
    found: dict[str, Any] = {"type": "function", "name": tool.name}
    if tool.description is not None:
        found["description"] = tool.description
    found["parameters"] = tool.parameters or _ANYTHING
    # There it is `true` unless said otherwise; in every other dialect it is `false`.
    found["strict"] = tool.strict is True
    return found


def _format(request: Request) -> dict[str, Any]:
    wanted = request.response_format
    assert wanted is not None
    if wanted.type != "json_schema":
        return {"type": wanted.type}
    return {"type": "json_schema", "name": wanted.name or "answer", **_given(wanted)}


def _given(value: Struct) -> dict[str, Any]:
    found = ((name, getattr(value, name)) for name in ("schema", "strict"))
    return {name: value for name, value in found if value is not None}


def _reasoning(wanted: Reasoning, receipt: Receipt) -> dict[str, Any]:
    found: dict[str, Any] = {}
    effort = effort_of(wanted, receipt)
    if effort is not None:
        found["effort"] = effort
    if wanted.shown is not False and effort != "none":
        found["summary"] = "auto"
    return found
