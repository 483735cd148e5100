"""A conversation in Anthropic's blocks as messages. Pure.

Knows: the blocks of the Messages API. Does not know: the rest of a request (`anthropic.py`).

A message of the user's that holds results of tools becomes one message per result and one with the
rest, as the other dialects have them.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal
from urllib.parse import quote

import msgspec
from msgspec import Struct

from llm_runner_router.errors import BadRequest
from llm_runner_router.types import (
    FileData,
    FilePart,
    ForeignPart,
    ImagePart,
    ImageURL,
    Message,
    Part,
    RedactedPart,
    TextPart,
    ThinkingPart,
    ToolCall,
)

from .codec import given, plain


class Source(Struct, frozen=True):
    """Where the bytes of a picture or a document are."""

    type: str
    media_type: str | None = None
    data: str | None = None
    url: str | None = None
    file_id: str | None = None
    content: Any = None


class _Switch(Struct, frozen=True):
    enabled: bool | None = None


class Block(Struct, frozen=True):
    """Any block; which fields count depends on `type`."""

    type: str
    text: str | None = None
    source: Source | None = None
    title: str | None = None
    citations: Any = None
    thinking: str | None = None
    signature: str | None = None
    data: str | None = None
    id: str | None = None
    name: str | None = None
    input: dict[str, Any] | None = None
    tool_use_id: str | None = None
    content: str | list[Block] | None = None
    is_error: bool | None = None
    cache_control: dict[str, Any] | None = None


class Turn(Struct, frozen=True):
    """What one side says."""

    role: Literal["user", "assistant", "system"]
    content: str | list[Block]


def conversation(system: str | list[Block] | None, messages: list[Turn]) -> Iterator[Message]:
    """The messages, the system's words first.

    Raises:
        BadRequest: a block lacks something, or there are no messages; `param` says where.
    """
    if not messages:
        raise BadRequest("'messages' is empty", param="messages", code="invalid_value")
    if isinstance(system, str):
        if system:
            yield Message("system", system)
    elif system:
        parts = _parts(system, "system")
        yield Message("system", plain(parts))
    for i, turn in enumerate(messages):
        yield from _turn(turn, f"messages[{i}]")


def _turn(turn: Turn, path: str) -> Iterator[Message]:
    if isinstance(turn.content, str):
        yield Message(turn.role, turn.content)
        return
    if turn.role == "assistant":
        yield _assistant(turn.content, path)
        return
    pending: list[Block] = []
    for k, block in enumerate(turn.content):
        if block.type != "tool_result":
            pending.append(block)
            continue
        if pending:
            yield Message(turn.role, plain(_parts(pending, path + ".content")))
            pending = []
        yield _result(block, f"{path}.content[{k}]")
    if pending:
        yield Message(turn.role, plain(_parts(pending, path + ".content")))


def _assistant(blocks: list[Block], path: str) -> Message:
    spoken = [block for block in blocks if block.type != "tool_use"]
    calls = []
    for k, block in enumerate(blocks):
        if block.type == "tool_use":
            where = f"{path}.content[{k}]"
            arguments = msgspec.json.encode(block.input or {}).decode()
            name, id = given(block.name, f"{where}.name"), given(block.id, f"{where}.id")
            calls.append(ToolCall(id, name, arguments, block.cache_control))
    content = plain(_parts(spoken, path + ".content")) if spoken else None
    return Message("assistant", content, tool_calls=tuple(calls))


def _result(block: Block, path: str) -> Message:
    content: str | tuple[Part, ...] = ""
    if isinstance(block.content, str):
        content = block.content
    elif block.content:
        content = plain(_parts(block.content, path + ".content"))
    return Message(
        "tool",
        content,
        tool_call_id=given(block.tool_use_id, f"{path}.tool_use_id"),
        is_error=block.is_error is True,
        cache_control=block.cache_control,
    )


def _parts(blocks: list[Block], path: str) -> tuple[Part, ...]:
    return tuple(_part(block, f"{path}[{k}]") for k, block in enumerate(blocks))


def _part(block: Block, path: str) -> Part:
    kind = block.type
    if kind == "text":
        return TextPart(given(block.text, f"{path}.text", empty=True), block.cache_control)
    if kind == "image":
        url = _image(given(block.source, f"{path}.source"), path)
        return ImagePart(ImageURL(url), block.cache_control)
    if kind == "document":
        return _document(block, given(block.source, f"{path}.source"), path)
    if kind == "thinking":
        thought = given(block.thinking, f"{path}.thinking", empty=True)
        return ThinkingPart(thought, block.signature)
    if kind == "redacted_thinking":
        return RedactedPart(given(block.data, f"{path}.data"))
    return ForeignPart(kind)


def _image(source: Source, path: str) -> str:
    if source.type == "url":
        return given(source.url, f"{path}.source.url")
    if source.type == "base64":
        kind = given(source.media_type, f"{path}.source.media_type")
        return f"data:{kind};base64,{given(source.data, f'{path}.source.data')}"
    where = f"{path}.source.type"
    raise BadRequest(f"{where!r} must be base64 or url, not {source.type[:40]!r}", param=where)


def _document(block: Block, source: Source, path: str) -> Part:
    cited = isinstance(block.citations, dict) and block.citations.get("enabled") is True
    if source.type == "url":
        data = FileData(file_url=given(source.url, f"{path}.source.url"), filename=block.title)
    elif source.type == "file":
        data = FileData(file_id=given(source.file_id, f"{path}.source.file_id"))
    elif source.type == "base64":
        kind = given(source.media_type, f"{path}.source.media_type")
        text = given(source.data, f"{path}.source.data")
        data = FileData(f"data:{kind};base64,{text}", filename=block.title)
    elif source.type == "text":
        text = quote(given(source.data, f"{path}.source.data", empty=True))
        data = FileData(f"data:text/plain;charset=utf-8,{text}", filename=block.title)
    else:
        return ForeignPart(f"document of {source.type[:40]}")
    return FilePart(data, block.cache_control, cited)
