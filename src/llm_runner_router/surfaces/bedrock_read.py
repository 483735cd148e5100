"""A conversation in the content blocks of Bedrock's Converse API as messages. Pure.

Knows: the blocks. Does not know: the rest of a request (`bedrock.py`).

A message of the user's that holds results of tools becomes one message per result and one with the
rest, as the other dialects have them. A `cachePoint` marks the block before it.
"""

from __future__ import annotations

import binascii
from base64 import b64decode
from collections.abc import Iterator
from typing import Any, Literal
from urllib.parse import quote

import msgspec
from msgspec import Raw, Struct

from llm_runner_router.errors import BadRequest
from llm_runner_router.types import (
    SIGNERS,
    AudioPart,
    FileData,
    FilePart,
    ForeignPart,
    ImagePart,
    ImageURL,
    InputAudio,
    Message,
    Part,
    RedactedPart,
    TextPart,
    ThinkingPart,
    ToolCall,
)

from .codec import given, plain

_NONE = Raw(b"")

DOCUMENTS = {
    "pdf": "application/pdf",
    "csv": "text/csv",
    "doc": "application/msword",
    "docx": "application/vnd.openxmlformats-officedocument.wordprocessingml.document",
    "xls": "application/vnd.ms-excel",
    "xlsx": "application/vnd.openxmlformats-officedocument.spreadsheetml.sheet",
    "html": "text/html",
    "txt": "text/plain",
    "md": "text/markdown",
}
"""Formats of documents, and their media types."""


class _Place(Struct, frozen=True):
    uri: str


class _Source(Struct, frozen=True, rename="camel"):
    bytes: str | None = None
    s3_location: _Place | None = None
    text: str | None = None


class _Switch(Struct, frozen=True):
    enabled: bool = False


class _Media(Struct, frozen=True):
    """A picture, a document, sound."""

    source: _Source
    format: str | None = None
    name: str | None = None
    citations: _Switch | None = None


class CachePoint(Struct, frozen=True):
    """A mark that the prompt up to here is worth caching."""

    type: str = "default"
    ttl: str | None = None

    @property
    def control(self) -> dict[str, Any]:
        """The same in Anthropic's words."""
        return {"type": "ephemeral"} if self.ttl is None else {"type": "ephemeral", "ttl": self.ttl}


class _ToolUse(Struct, frozen=True, rename="camel"):
    tool_use_id: str
    name: str
    input: Raw
    type: str | None = None


class _Thought(Struct, frozen=True):
    text: str
    signature: str | None = None


class _Reasoning(Struct, frozen=True, rename="camel"):
    reasoning_text: _Thought | None = None
    redacted_content: str | None = None


class _Words(Struct, frozen=True):
    text: str = ""


class _Guarded(Struct, frozen=True):
    text: _Words | None = None


class _Cited(Struct, frozen=True):
    content: list[_Words] = []


class _Result(Struct, frozen=True, rename="camel"):
    tool_use_id: str
    content: list[Block]
    status: str | None = None


class Block(Struct, frozen=True, rename="camel"):
    """A content block, also of the system's words and of a result: one of its fields is set."""

    text: str | None = None
    image: _Media | None = None
    document: _Media | None = None
    audio: _Media | None = None
    tool_use: _ToolUse | None = None
    tool_result: _Result | None = None
    reasoning_content: _Reasoning | None = None
    cache_point: CachePoint | None = None
    guard_content: _Guarded | None = None
    citations_content: _Cited | None = None
    json: Raw = _NONE


class Turn(Struct, frozen=True):
    """What one side says."""

    role: Literal["user", "assistant", "system"]
    content: list[Block]


def conversation(system: list[Block] | None, turns: list[Turn]) -> Iterator[Message]:
    """The messages, the system's words first.

    Raises:
        BadRequest: a block lacks something, or there are no messages; `param` says where.
    """
    if not turns:
        raise BadRequest("'messages' is empty", param="messages", code="invalid_value")
    if system:
        yield Message("system", plain(_parts(system, "system")))
    for i, turn in enumerate(turns):
        yield from _turn(turn, f"messages[{i}]")


def _turn(turn: Turn, path: str) -> Iterator[Message]:
    if turn.role == "assistant":
        yield _assistant(turn.content, path)
        return
    pending: list[Block] = []
    blocks = turn.content
    for k, block in enumerate(blocks):
        after = blocks[k + 1] if k + 1 < len(blocks) else Block()
        before = blocks[k - 1] if k else Block()
        if block.tool_result is not None:
            if pending:
                yield Message(turn.role, plain(_parts(pending, f"{path}.content")))
                pending = []
            yield _result(block.tool_result, after, f"{path}.content[{k}].toolResult")
        elif block.cache_point is None or before.tool_result is None:
            pending.append(block)
    if pending or not blocks:
        yield Message(turn.role, plain(_parts(pending, f"{path}.content")))


def _assistant(blocks: list[Block], path: str) -> Message:
    spoken: list[Block] = []
    calls: list[ToolCall] = []
    for k, block in enumerate(blocks):
        use = block.tool_use
        if use is not None and use.type is None:
            calls.append(_call(use, f"{path}.content[{k}].toolUse"))
        elif block.cache_point is not None and k and blocks[k - 1].tool_use is not None and calls:
            control = block.cache_point.control
            calls[-1] = msgspec.structs.replace(calls[-1], cache_control=control)
        else:
            spoken.append(block)
    content = plain(_parts(spoken, f"{path}.content")) if spoken else None
    return Message("assistant", content, tool_calls=tuple(calls))


def _call(use: _ToolUse, path: str) -> ToolCall:
    if not bytes(use.input).startswith(b"{"):
        param = f"{path}.input"
        raise BadRequest(f"{param!r} must be an object", param=param, code="invalid_type")
    id, name = given(use.tool_use_id, f"{path}.toolUseId"), given(use.name, f"{path}.name")
    return ToolCall(id, name, bytes(use.input).decode())


def _result(result: _Result, after: Block, path: str) -> Message:
    point = after.cache_point
    return Message(
        "tool",
        plain(_parts(result.content, f"{path}.content")) if result.content else "",
        tool_call_id=given(result.tool_use_id, f"{path}.toolUseId"),
        is_error=result.status == "error",
        cache_control=None if point is None else point.control,
    )


def _parts(blocks: list[Block], path: str) -> tuple[Part, ...]:
    parts: list[Part] = []
    for k, block in enumerate(blocks):
        if block.cache_point is None:
            parts.append(_part(block, f"{path}[{k}]"))
        elif parts and isinstance(parts[-1], TextPart | ImagePart | FilePart):
            parts[-1] = msgspec.structs.replace(parts[-1], cache_control=block.cache_point.control)
    return tuple(parts)


def _part(block: Block, path: str) -> Part:
    if block.text is not None:
        return TextPart(block.text)
    if block.image is not None:
        return ImagePart(ImageURL(_image(block.image, f"{path}.image")))
    if block.document is not None:
        return _document(block.document, f"{path}.document")
    if block.audio is not None:
        path = f"{path}.audio"
        sound = given(block.audio.source.bytes, f"{path}.source.bytes")
        return AudioPart(InputAudio(sound, given(block.audio.format, f"{path}.format")))
    if block.json is not _NONE:
        return TextPart(bytes(block.json).decode())
    if block.guard_content is not None and block.guard_content.text is not None:
        return TextPart(block.guard_content.text.text)
    if block.citations_content is not None:
        return TextPart("".join(one.text for one in block.citations_content.content))
    if block.reasoning_content is not None:
        return _thought(block.reasoning_content, f"{path}.reasoningContent")
    return ForeignPart("a block of Bedrock's")


def _thought(told: _Reasoning, path: str) -> Part:
    if told.reasoning_text is not None:
        return ThinkingPart(told.reasoning_text.text, told.reasoning_text.signature)
    data = given(told.redacted_content, f"{path}.redactedContent")
    try:
        said = b64decode(data, validate=True)
    except (binascii.Error, ValueError) as exc:
        param = f"{path}.redactedContent"
        raise BadRequest(f"{param!r} is no base64: {exc}", param=param) from exc
    # What is no base64 at its own provider was wrapped on its way out (`bedrock_write.py`).
    if said.startswith(tuple(signer.encode() for signer in SIGNERS)):
        return RedactedPart(said.decode("utf-8", "replace"))
    return RedactedPart(data)


def _image(image: _Media, path: str) -> str:
    if image.source.s3_location is not None:
        return image.source.s3_location.uri
    data = given(image.source.bytes, f"{path}.source.bytes")
    return f"data:image/{given(image.format, f'{path}.format')};base64,{data}"


def _document(told: _Media, path: str) -> Part:
    source = told.source
    name = told.name
    if name is not None and told.format is not None:
        name = f"{name}.{told.format}"
    if source.s3_location is not None:
        file = FileData(file_url=source.s3_location.uri, filename=name)
    elif source.text is not None:
        text = quote(source.text)
        file = FileData(f"data:text/plain;charset=utf-8,{text}", filename=name)
    elif source.bytes is not None:
        kind = DOCUMENTS.get(told.format or "")
        if kind is None:
            param = f"{path}.format"
            raise BadRequest(f"{param!r} must be one of {', '.join(DOCUMENTS)}", param=param)
        file = FileData(f"data:{kind};base64,{source.bytes}", filename=name)
    else:
        return ForeignPart("a document in pieces")
    return FilePart(file, citations=told.citations is not None and told.citations.enabled)
