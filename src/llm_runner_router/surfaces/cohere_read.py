"""A conversation in Cohere's messages, with its documents, as ours. Pure.

Knows: the roles and parts of Cohere's v2 chat. Does not know: the rest of a request (`cohere.py`).

What a model said before it called tools is its `tool_plan` there, in other dialects the text of the
same turn. Documents that stand beside the conversation are read out in the last of the user's
turns: that is how a model that knows no documents is shown some.
"""

from __future__ import annotations

from typing import Any, Literal

import msgspec
from msgspec import Struct

from llm_runner_router.errors import BadRequest
from llm_runner_router.types import (
    ForeignPart,
    ImagePart,
    ImageURL,
    Message,
    Part,
    TextPart,
    ThinkingPart,
    ToolCall,
)

from .codec import given, missing


class Document(Struct, frozen=True):
    """Something to answer from."""

    data: dict[str, Any] | str
    id: str | None = None


class _Url(Struct, frozen=True):
    url: str
    detail: str | None = None


class Block(Struct, frozen=True):
    """Any part; which fields count depends on `type`."""

    type: str
    text: str | None = None
    thinking: str | None = None
    image_url: _Url | None = None
    document: Document | None = None


class _Function(Struct, frozen=True):
    name: str | None = None
    arguments: str | None = None


class Call(Struct, frozen=True):
    """A call of an earlier turn."""

    id: str
    function: _Function | None = None


class Turn(Struct, frozen=True):
    """What one side says."""

    role: Literal["user", "assistant", "system", "tool"]
    content: str | list[Block] | None = None
    tool_plan: str | None = None
    tool_calls: list[Call] | None = None
    tool_call_id: str | None = None


def conversation(turns: list[Turn], documents: list[str | Document] | None) -> tuple[Message, ...]:
    """The messages, with the documents in front of the user's last words.

    Raises:
        BadRequest: a part lacks something, or there are no messages; `param` says where.
    """
    if not turns:
        raise BadRequest("'messages' is empty", param="messages", code="invalid_value")
    messages = [_turn(turn, f"messages[{i}]") for i, turn in enumerate(turns)]
    if documents:
        told = TextPart("".join(f"{_told(one, i)}\n\n" for i, one in enumerate(documents)))
        last = next((i for i in reversed(range(len(turns))) if turns[i].role == "user"), None)
        if last is None:
            messages.append(Message("user", (told,)))
        else:
            said = messages[last].content or ""
            parts = (TextPart(said),) if isinstance(said, str) else said
            messages[last] = msgspec.structs.replace(messages[last], content=(told, *parts))
    return tuple(messages)


def _told(document: str | Document, number: int) -> str:
    """A document in words; the names of its fields are shown to the model there too."""
    if isinstance(document, str):
        return f"Document {number}:\n{document}"
    name = number if document.id is None else document.id
    return f"Document {name}:\n{_data(document.data)}"


def _data(data: dict[str, Any] | str) -> str:
    if isinstance(data, str):
        return data
    return "\n".join(
        f"{key}: {value if isinstance(value, str) else msgspec.json.encode(value).decode()}"
        for key, value in data.items()
    )


def _turn(turn: Turn, path: str) -> Message:
    if turn.role == "assistant":
        return _spoken(turn, path)
    content = turn.content
    if content is None or (not content and turn.role != "tool"):
        raise missing(f"{path}.content")
    parts = content if isinstance(content, str) else _parts(content, f"{path}.content")
    if turn.role == "tool":
        id = given(turn.tool_call_id, f"{path}.tool_call_id")
        return Message("tool", parts, tool_call_id=id)
    return Message(turn.role, parts)


def _spoken(turn: Turn, path: str) -> Message:
    calls = []
    for k, call in enumerate(turn.tool_calls or ()):
        where = f"{path}.tool_calls[{k}]"
        function = given(call.function, f"{where}.function")
        name = given(function.name, f"{where}.function.name")
        id = given(call.id, f"{where}.id")
        calls.append(ToolCall(id, name, function.arguments or "{}"))
    content: str | tuple[Part, ...] | None
    if isinstance(turn.content, list):
        content = _parts(turn.content, f"{path}.content")
    else:
        content = turn.content
    if turn.tool_plan:
        if isinstance(content, tuple):
            content = (*content, TextPart(turn.tool_plan))
        else:
            content = turn.tool_plan + (content or "")
    if not (content or calls):
        raise missing(f"{path}.content")
    return Message("assistant", content or None, tool_calls=tuple(calls))


def _parts(blocks: list[Block], path: str) -> str | tuple[Part, ...]:
    """The parts; a lone text as a string, which every template knows."""
    parts = tuple(_part(block, f"{path}[{k}]") for k, block in enumerate(blocks))
    if len(parts) == 1 and isinstance(parts[0], TextPart):
        return parts[0].text
    return parts


def _part(block: Block, path: str) -> Part:
    kind = block.type
    if kind == "text":
        return TextPart(given(block.text, f"{path}.text", empty=True))
    if kind == "image_url":
        image = given(block.image_url, f"{path}.image_url")
        return ImagePart(ImageURL(given(image.url, f"{path}.image_url.url"), image.detail))
    if kind == "thinking":
        return ThinkingPart(given(block.thinking, f"{path}.thinking", empty=True))
    if kind == "document":
        document = given(block.document, f"{path}.document")
        if isinstance(document.data, str):
            return TextPart(document.data)
        return TextPart(msgspec.json.encode(document.data).decode())
    return ForeignPart(kind)
