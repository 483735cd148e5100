"""The conversation of a request in Gemini's API, read into messages. Pure.

Knows: contents, their parts, which answer belongs to which call. Does not know: the rest of a
request, answers, HTTP.

Google's servers take names in camelCase and in snake_case; so does `camel`.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Iterator
from typing import Any, TypeVar

import msgspec
from msgspec import Raw, Struct

from llm_runner_router.errors import BadRequest
from llm_runner_router.types import (
    GOOGLE,
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

from .codec import missing, parse

THOUGHT = b"llmrr:s:"
"""What a signature begins with that another provider made; what follows is that, as it was."""
REDACTED = b"llmrr:r:"
"""The same for thoughts that only their provider can read."""
_FILES = re.compile(r"gs://|https://generativelanguage\.googleapis\.com/|https?://[^/]*youtu")
"""Addresses that only Google's models can read."""
_SOUND = {"mpeg": "mp3", "x-wav": "wav", "wave": "wav", "vnd.wave": "wav"}
_OPAQUE = frozenset(
    "args response parameters parametersJsonSchema parameters_json_schema responseSchema"
    " response_schema responseJsonSchema response_json_schema labels".split()
)
"""Fields whose inside is the client's own."""
_REPEATED = frozenset(("contents", "parts", "tools", "functionDeclarations", "requests"))
_ANY_SNAKE = re.compile(rb'"[a-z]+(?:_[a-z]+)+"\s*:')
_UNDERSCORE = re.compile(r"_([a-z])")


T = TypeVar("T")


class Blob(Struct, frozen=True, rename="camel"):
    """Bytes with their type."""

    mime_type: str = ""
    data: str = ""


class FileRef(Struct, frozen=True, rename="camel"):
    """Where bytes are."""

    file_uri: str = ""
    mime_type: str = ""


class Call(Struct, frozen=True):
    """A call that a model made."""

    name: str
    args: dict[str, Raw] | None = None
    id: str | None = None


class _MediaPart(Struct, frozen=True, rename="camel"):
    inline_data: Blob | None = None
    file_data: FileRef | None = None


class Response(Struct, frozen=True):
    """What a function answered."""

    name: str
    response: Raw = Raw(b"{}")
    id: str | None = None
    parts: list[_MediaPart] | None = None


class Piece(Struct, frozen=True, rename="camel"):
    """Any part."""

    text: str | None = None
    thought: bool | None = None
    thought_signature: str | None = None
    inline_data: Blob | None = None
    file_data: FileRef | None = None
    function_call: Call | None = None
    function_response: Response | None = None
    executable_code: Any = None
    code_execution_result: Any = None


class Content(Struct, frozen=True):
    """What one side says."""

    parts: list[Piece] = []
    role: str | None = None


def camel(body: bytes) -> bytes:
    """`body` with Google's names in camelCase; what the client named itself stays as it is."""
    if _ANY_SNAKE.search(body) is None:
        return body
    try:
        return msgspec.json.encode(_camel(msgspec.json.decode(body)))
    except (msgspec.DecodeError, UnicodeDecodeError):
        return body  # whoever reads it says what is wrong


def _camel(value: Any) -> Any:
    if isinstance(value, list):
        return [_camel(one) for one in value]
    if not isinstance(value, dict):
        return value
    return {
        _UNDERSCORE.sub(lambda m: m[1].upper(), key): one if key in _OPAQUE else _camel(one)
        for key, one in value.items()
    }


_anything = msgspec.json.Decoder()


def read(decoder: msgspec.json.Decoder[T], body: bytes) -> tuple[T, bytes]:
    """`body` as Google's servers read it, and its bytes in the usual spelling.

    They take names in either case, and one thing in the place of a list of one, as examples in
    Google's own guides have it.

    Raises:
        BadRequest: see `codec.parse`.
    """
    usual = camel(body)
    try:
        return parse(decoder, usual), usual
    except BadRequest as exc:
        if exc.code != "invalid_type":
            raise
        # What has a wrong type at its beginning may be no JSON at its end.
        given = parse(_anything, usual)
        listed = msgspec.json.encode(_listed(given))
        if listed == msgspec.json.encode(given):
            raise
    return parse(decoder, listed), listed


def _listed(value: Any, key: str = "") -> Any:
    if isinstance(value, list):
        return [_listed(one) for one in value]
    if not isinstance(value, dict):
        return value
    found = {k: one if k in _OPAQUE else _listed(one, k) for k, one in value.items()}
    return [found] if key in _REPEATED else found


def conversation(system: Content | None, contents: list[Content]) -> tuple[Message, ...]:
    """The messages, the system's words first.

    Raises:
        BadRequest: a part lacks something, an answer has no call, or there are no contents;
            `param` says where.
    """
    if not contents:
        raise BadRequest("'contents' is empty", param="contents", code="invalid_value")
    reader = _Reader()
    messages = []
    if system is not None and system.parts:
        at = [(f"systemInstruction.parts[{k}]", part) for k, part in enumerate(system.parts)]
        messages.append(Message("system", plain(_spoken(at))))
    for role, parts in _turns(contents):
        messages += reader.assistant(parts) if role == "model" else reader.user(parts)
    return tuple(messages)


_Parts = list[tuple[str, Piece]]


def _turns(contents: list[Content]) -> Iterator[tuple[str, _Parts]]:
    """Role and parts with their paths; what a model said in pieces is one turn."""
    held: _Parts = []
    for i, content in enumerate(contents):
        if content.role not in (None, "user", "model", "function"):
            raise BadRequest(
                f"'contents[{i}].role' must be user or model, not {content.role[:40]!r}",
                param=f"contents[{i}].role",
            )
        parts = [(f"contents[{i}].parts[{k}]", part) for k, part in enumerate(content.parts)]
        if content.role == "model":
            held += parts
            continue
        if held:
            yield "model", held
            held = []
        yield "user", parts
    if held:
        yield "model", held


class _Reader:
    """Reads turns one after the other; it remembers which calls have no answer yet."""

    def __init__(self) -> None:
        self._made = 0
        self._open: list[tuple[str, str]] = []
        """Id and name of each call that waits for its answer."""

    def assistant(self, parts: _Parts) -> list[Message]:
        calls = tuple(self._call(p.function_call, p) for _, p in parts if p.function_call)
        content = _joined(_spoken([one for one in parts if one[1].function_call is None]))
        if not content and not calls:
            return [Message("assistant", "")]
        return [Message("assistant", plain(content) if content else None, tool_calls=calls)]

    def user(self, parts: _Parts) -> list[Message]:
        messages: list[Message] = []
        pending: _Parts = []
        for path, part in parts:
            if part.function_response is None:
                pending.append((path, part))
                continue
            if pending:
                messages.append(Message("user", plain(_spoken(pending))))
                pending = []
            messages.append(self._result(part.function_response, f"{path}.functionResponse"))
        if pending or not messages:
            messages.append(Message("user", plain(_spoken(pending))))
        return messages

    def _call(self, call: Call, part: Piece) -> ToolCall:
        self._made += 1
        id = call.id or f"call_{self._made}"
        self._open.append((id, call.name))
        arguments = msgspec.json.encode(call.args or {}).decode()
        signature = part.thought_signature
        return ToolCall(id, call.name, arguments, signature=signature and GOOGLE + signature)

    def _result(self, answer: Response, path: str) -> Message:
        # By its id; those of older models have none, and the first of its name is meant.
        waiting = [one for one in self._open if one[0] == answer.id]
        waiting = waiting or [one for one in self._open if one[1] == answer.name]
        if not waiting:
            raise BadRequest(
                f"{path!r} answers {answer.name[:80]!r}, which was not called before it",
                param=path,
                hint="keep the content of the model with its `functionCall`",
            )
        self._open.remove(waiting[0])
        text, is_error = _answered(answer.response, f"{path}.response")
        content: str | tuple[Part, ...] = text
        if answer.parts:
            media = [
                _media(part.inline_data, part.file_data, f"{path}.parts[{k}]")
                for k, part in enumerate(answer.parts)
            ]
            content = (TextPart(text), *media)
        return Message("tool", content, tool_call_id=waiting[0][0], is_error=is_error)


def _answered(response: Raw, path: str) -> tuple[str, bool]:
    """The text of a function's answer, and whether it is an error."""
    try:
        value = msgspec.json.decode(response)
    except RecursionError as exc:
        raise BadRequest(f"{path!r} is nested too deeply", param=path) from exc
    if not isinstance(value, dict):
        raise BadRequest(f"{path!r} must be an object", param=path, code="invalid_type")
    if len(value) == 1:
        key, inner = next(iter(value.items()))
        if key in ("output", "error") and isinstance(inner, str):
            return inner, key == "error"
    return bytes(response).decode(), False


# ---------------------------------------------------------------- parts


def plain(parts: tuple[Part, ...]) -> str | tuple[Part, ...]:
    """A lone text as a string, which every template knows."""
    if not parts:
        return ""
    if len(parts) == 1 and isinstance(parts[0], TextPart):
        return parts[0].text
    return parts


def _joined(parts: tuple[Part, ...]) -> tuple[Part, ...]:
    """Texts that follow each other as one: a model said them in pieces."""
    found: list[Part] = []
    for part in parts:
        last = found[-1] if found else None
        if isinstance(part, TextPart) and isinstance(last, TextPart):
            found[-1] = TextPart(last.text + part.text)
        elif part != TextPart(""):
            found.append(part)
    return tuple(found)


def _spoken(parts: _Parts) -> tuple[Part, ...]:
    """Parts without calls; a thought in pieces is one, which its signature closes."""
    found: list[Part] = []
    for path, part in parts:
        signed = _signature(part.thought_signature, path)
        if isinstance(signed, RedactedPart):
            found.append(signed)
        elif part.thought:
            last = found[-1] if found else None
            text = part.text or ""
            if isinstance(last, ThinkingPart) and last.signature is None:
                found[-1] = ThinkingPart(last.thinking + text, signed)
            else:
                found.append(ThinkingPart(text, signed))
        else:
            if part.text is not None:
                found.append(TextPart(part.text))
            else:
                found.append(_unspoken(part, path))
            if signed is not None:
                found.append(ThinkingPart("", signed))
    return tuple(found)


def _signature(signature: str | None, path: str) -> str | RedactedPart | None:
    """A signature with the mark of its provider, or the thoughts that it stands for."""
    if not signature:
        return None
    where = f"{path}.thoughtSignature"
    data = decoded(signature, where)
    try:
        if data.startswith(THOUGHT):
            return data.removeprefix(THOUGHT).decode()
        if data.startswith(REDACTED):
            return RedactedPart(data.removeprefix(REDACTED).decode())
    except UnicodeDecodeError as exc:
        raise BadRequest(f"{where!r} is not what was sent: {exc.reason}", param=where) from exc
    return GOOGLE + signature


def decoded(text: str, path: str) -> bytes:
    """Base64 in either alphabet, with or without its end.

    Raises:
        BadRequest: it is none; names `path`.
    """
    try:
        return base64.b64decode(standard(text), validate=True)
    except (binascii.Error, ValueError) as exc:
        raise BadRequest(f"{path!r} is not base64: {exc}", param=path) from exc


def standard(text: str) -> str:
    """Base64 of either alphabet in the usual one: Google's own client writes the other."""
    text = text.replace("-", "+").replace("_", "/")
    return text + "=" * (-len(text) % 4)


def _unspoken(part: Piece, path: str) -> Part:
    if part.inline_data is not None or part.file_data is not None:
        return _media(part.inline_data, part.file_data, path)
    for kind in ("executable_code", "code_execution_result"):
        if getattr(part, kind) is not None:
            return ForeignPart(kind)
    return ForeignPart("part")


def _media(blob: Blob | None, file: FileRef | None, path: str) -> Part:
    if blob is not None:
        decoded(blob.data, f"{path}.inlineData.data")
        return _inline(blob.mime_type.partition(";")[0].lower(), standard(blob.data))
    if file is None:
        return ForeignPart("part")
    if not file.file_uri:
        where = f"{path}.fileData.fileUri"
        raise missing(where)
    if _FILES.match(file.file_uri) or not file.file_uri.startswith("http"):
        return ForeignPart("file at Google's")
    if file.mime_type.startswith("image/"):
        return ImagePart(ImageURL(file.file_uri))
    return FilePart(FileData(file_url=file.file_uri))


def _inline(kind: str, data: str) -> Part:
    family, _, name = kind.partition("/")
    if family == "image":
        return ImagePart(ImageURL(f"data:{kind};base64,{data}"))
    if family == "audio":
        return AudioPart(InputAudio(data, _SOUND.get(name, name)))
    if family in ("text", "application"):
        return FilePart(FileData(f"data:{kind};base64,{data}"))
    return ForeignPart(kind or "data without a type")
