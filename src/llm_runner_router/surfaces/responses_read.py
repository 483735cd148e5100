"""The items of OpenAI's Responses API as messages. Pure.

Knows: what an `input` may hold, and what of it belongs to one turn. Does not know: how to answer
(`responses.py`), what is stored.

An assistant's turn comes in pieces here (thoughts, words, calls); chats have one message for it.
Items of tools that the provider runs itself are `ForeignPart`s: they pass to an upstream of the
same dialect as they came, and others are told that something is left out.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import msgspec
from msgspec import Raw, Struct

from llm_runner_router.errors import BadRequest
from llm_runner_router.types import (
    OPENAI,
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
    RefusalPart,
    Role,
    TextPart,
    ThinkingPart,
    ToolCall,
)

from .codec import given, missing, parse, plain

SIGNED = "llmrr.signed."
SEALED = "llmrr.sealed."
"""What the `encrypted_content` begins with that this gateway writes: the signature of another
dialect under thoughts that can be read, and thoughts that only their provider can read. What
OpenAI sealed is there as it came."""
_ABSENT = Raw(b"")
_ROLES: tuple[Role, ...] = ("user", "assistant", "system", "developer")


class _Item(Struct, frozen=True):
    """An item; what differs in type from kind to kind is read later."""

    type: str = "message"
    role: str | None = None
    content: Raw = _ABSENT
    call_id: str | None = None
    name: str | None = None
    arguments: Raw = _ABSENT
    output: Raw = _ABSENT
    summary: Raw = _ABSENT
    encrypted_content: str | None = None
    llmrr_signature: str | None = None
    """Ours: the provider's signature of a call."""


class _Content(Struct, frozen=True):
    type: str
    text: str | None = None
    refusal: str | None = None
    image_url: str | None = None
    detail: str | None = None
    file_id: str | None = None
    file_data: str | None = None
    file_url: str | None = None
    filename: str | None = None
    input_audio: InputAudio | None = None


_item = msgspec.json.Decoder(_Item)
_items = msgspec.json.Decoder(list[Raw])
_content = msgspec.json.Decoder(str | list[_Content])
_text = msgspec.json.Decoder(str)


def items_of(given: Raw, path: str) -> list[Raw]:
    """The items of an `input`, which may be one text.

    Raises:
        BadRequest: it is neither a text nor a list.
    """
    data = bytes(given).lstrip()
    if data.startswith(b'"'):
        text = parse(_text, given, path)
        message = {"type": "message", "role": "user", "content": text}
        return [Raw(msgspec.json.encode(message))]
    return parse(_items, given, path)


def conversation(
    instructions: str | None, items: Sequence[Raw], path: str = "input"
) -> Iterable[Message]:
    """The messages that `instructions` and `items` are.

    Raises:
        BadRequest: an item is not what its type wants; names its path.
    """
    if instructions:
        yield Message("system", instructions)
    turn = _Turn()
    for i, raw in enumerate(items):
        where = f"{path}[{i}]"
        item = parse(_item, raw, where)
        if item.type == "message" and item.role != "assistant":
            yield from turn.message()
            yield _said(item, where)
        elif item.type in ("function_call_output", "custom_tool_call_output"):
            yield from turn.message()
            yield _result(item, where)
        else:
            turn.add(item, where)
    yield from turn.message()


class _Turn:
    """What an assistant thought, said and called between two messages of others."""

    def __init__(self) -> None:
        self._parts: list[Part] = []
        self._calls: list[ToolCall] = []

    def add(self, item: _Item, path: str) -> None:
        """Take one more piece in."""
        if item.type == "message":
            self._parts += _parts(item, path)
        elif item.type == "function_call":
            arguments = parse(_text, item.arguments or Raw(b'"{}"'), f"{path}.arguments")
            id = given(item.call_id, f"{path}.call_id")
            name = given(item.name, f"{path}.name")
            self._calls.append(ToolCall(id, name, arguments, signature=item.llmrr_signature))
        elif item.type == "reasoning":
            self._parts.append(_thought(item, path))
        elif item.type == "item_reference":
            raise BadRequest(
                f"'{path}' refers to an item by its id, which is not kept here",
                param=path,
                hint="send the item itself, or continue with `previous_response_id`",
            )
        else:
            self._parts.append(ForeignPart(item.type))

    def message(self) -> Iterable[Message]:
        """The message that it was, if it was any; the next turn begins."""
        parts, calls = tuple(self._parts), tuple(self._calls)
        self._parts, self._calls = [], []
        if parts or calls:
            yield Message("assistant", plain(parts) if parts else None, tool_calls=calls)


def _said(item: _Item, path: str) -> Message:
    role = item.role
    for known in _ROLES:
        if known == role:
            return Message(known, plain(_parts(item, path)))
    given = "is missing" if role is None else f"must be one of {', '.join(_ROLES)}, not {role!r}"
    raise BadRequest(f"'{path}.role' {given}", param=f"{path}.role")


def _result(item: _Item, path: str) -> Message:
    content = _contents(_there(item.output, f"{path}.output"), f"{path}.output")
    return Message("tool", plain(content), tool_call_id=given(item.call_id, f"{path}.call_id"))


def _thought(item: _Item, path: str) -> Part:
    """A thought that can be read, or one that only its provider can."""
    words: list[str] = []
    for field in ("content", "summary"):
        raw: Raw = getattr(item, field)
        if not words and bytes(raw) not in (b"", b"null"):
            parts = parse(_content, raw, f"{path}.{field}")
            words = [part.text or "" for part in parts if isinstance(part, _Content)]
    kept = item.encrypted_content or ""
    if kept.startswith(SEALED):
        return RedactedPart(kept.removeprefix(SEALED))
    signature = None
    if kept.startswith(SIGNED):
        signature = kept.removeprefix(SIGNED)
    elif kept:
        signature = OPENAI + kept
    if words or signature:
        return ThinkingPart("\n\n".join(words), signature)
    return ForeignPart("reasoning")


def _parts(item: _Item, path: str) -> tuple[Part, ...]:
    return _contents(_there(item.content, f"{path}.content"), f"{path}.content")


def _contents(raw: Raw, path: str) -> tuple[Part, ...]:
    found = parse(_content, raw, path)
    if isinstance(found, str):
        return (TextPart(found),)
    return tuple(_part(part, f"{path}[{k}]") for k, part in enumerate(found))


def _part(part: _Content, path: str) -> Part:
    kind = part.type
    if kind in ("input_text", "output_text", "text", "summary_text", "reasoning_text"):
        return TextPart(given(part.text, f"{path}.text", empty=True))
    if kind == "refusal":
        return RefusalPart(given(part.refusal, f"{path}.refusal", empty=True))
    if kind == "input_image" and part.image_url is not None:
        return ImagePart(ImageURL(part.image_url, part.detail))
    if kind == "input_file":
        if part.file_data is None and part.file_id is None and part.file_url is None:
            raise BadRequest(f"'{path}' has neither data, id nor URL of its file", param=path)
        data = FileData(part.file_data, part.file_id, part.filename, part.file_url)
        return FilePart(data)
    if kind == "input_audio":
        return AudioPart(given(part.input_audio, f"{path}.input_audio"))
    return ForeignPart(kind)


def _there(value: Raw, path: str) -> Raw:
    if bytes(value) in (b"", b"null"):
        raise missing(path)
    return value


def listed(items: Sequence[Raw], response: str) -> list[dict[str, Any]]:
    """`items` as they are shown to those who ask for the input: with ids, texts as parts."""
    found: list[dict[str, Any]] = []
    for i, raw in enumerate(items):
        item: dict[str, Any] = msgspec.json.decode(raw)
        item.setdefault("type", "message")
        if not item.get("id"):
            kind = {"message": "msg", "function_call": "fc", "function_call_output": "fco"}
            prefix = kind.get(item["type"], "item")
            item["id"] = f"{prefix}_{response.removeprefix('resp_')}_{i}"
        if item["type"] == "message" and isinstance(item.get("content"), str):
            side = "output_text" if item.get("role") == "assistant" else "input_text"
            part = {"type": side, "text": item["content"]}
            item["content"] = [part | ({"annotations": []} if side == "output_text" else {})]
            item.setdefault("status", "completed")
        found.append(item)
    return found
