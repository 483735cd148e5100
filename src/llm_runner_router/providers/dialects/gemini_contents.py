"""A conversation as the `contents` of Gemini's API. Pure.

Knows: contents, their parts, what they cannot say, which calls must be signed. Does not know: how
the answer is to be, URLs, answers.

Field names from Google's reference of `v1beta` as its Python SDK 3.6 has it; the rules about
signatures from ai.google.dev/gemini-api/docs/thought-signatures.
"""

from __future__ import annotations

import mimetypes
import re
from typing import Any

import msgspec
from msgspec import Raw

from llm_runner_router.errors import BadRequest, Unsupported
from llm_runner_router.fidelity import Receipt
from llm_runner_router.types import (
    GOOGLE,
    AudioPart,
    FilePart,
    ImagePart,
    Message,
    Part,
    RedactedPart,
    RefusalPart,
    TextPart,
    ThinkingPart,
    ToolCall,
)

from .media import data_url

FOREIGN = "skip_thought_signature_validator"
"""Google's word in the place of a signature for calls that its models did not make."""
FILES = "https://generativelanguage.googleapis.com/v1beta/"
"""Where files that were given to Google lie; `files/…` is below it."""
UNSIGNED = re.compile(r"gemini-(1|2|robotics-er-1)|gemma|learnlm")
"""Models that take calls without a signature: those up to 2.5."""
_AUDIO = {"mp3": "audio/mp3", "wav": "audio/wav"}
_OPENING = "."
"""What the user says where a conversation begins with a call, which is not allowed."""
_WRAPPED = ("output", "error")
"""Keys of a function's response that have a meaning."""


def conversation(
    messages: tuple[Message, ...], model: str, receipt: Receipt
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The parts of the system's words, and the contents.

    Raises:
        BadRequest: an answer to a call that was never made, broken base64 or JSON.
        Unsupported: something that cannot be said.
    """
    writer = _Writer(model, receipt)
    system: list[dict[str, Any]] = []
    for i, message in enumerate(messages):
        path = f"messages[{i}]"
        if message.name is not None and message.role != "function":
            receipt.dropped(f"{path}.name", "turns have no names")
        if message.role in ("system", "developer"):
            if writer.contents:
                receipt.translated(path, "moved to the system's words at the beginning")
            system += writer.parts(message.content, f"{path}.content")
        elif message.role in ("tool", "function"):
            writer.result(message, path)
        else:
            writer.turn(message, path)
    contents = writer.contents
    if not contents and system:
        receipt.emulated("messages", "the system's words are asked by the user")
        contents, system = [{"role": "user", "parts": system}], []
    if contents and any("functionCall" in part for part in contents[0]["parts"]):
        receipt.emulated("messages", "a turn of the user's was put in front")
        contents.insert(0, {"role": "user", "parts": [{"text": _OPENING}]})
    return system, contents


class _Writer:
    """Writes turns one after the other; it remembers the names of calls by their ids."""

    def __init__(self, model: str, receipt: Receipt) -> None:
        self.contents: list[dict[str, Any]] = []
        self._signed = UNSIGNED.search(model) is None
        self._receipt = receipt
        self._names: dict[str, str] = {}
        self._results: list[dict[str, Any]] | None = None
        """The parts of the turn that the last results went to."""

    def _say(self, role: str, parts: list[dict[str, Any]]) -> None:
        last = self.contents[-1] if self.contents else None
        if last is not None and last["role"] == role and last["parts"] is not self._results:
            last["parts"] += parts
        elif parts:
            self.contents.append({"role": role, "parts": parts})

    def turn(self, message: Message, path: str) -> None:
        """What the user or the model said."""
        content = message.content
        signature = None
        if message.tool_calls and isinstance(content, tuple):
            signature, content = self._proof(message.tool_calls, content)
        parts = self.parts(content, f"{path}.content")
        for k, call in enumerate(message.tool_calls):
            parts.append(self._call(call, f"{path}.tool_calls[{k}]", signature if k == 0 else None))
        if self._signed and message.tool_calls:
            first = next(part for part in parts if "functionCall" in part)
            if "thoughtSignature" not in first:
                first["thoughtSignature"] = FOREIGN
                self._receipt.emulated(
                    f"{path}.tool_calls", "calls without Google's signature go as another model's"
                )
        self._say("model" if message.role == "assistant" else "user", parts)

    @staticmethod
    def _proof(
        calls: tuple[ToolCall, ...], content: tuple[Part, ...]
    ) -> tuple[str | None, tuple[Part, ...]]:
        """The signature for the first call, where the client's format has it on a thought."""
        if any(call.signature for call in calls):
            return None, content
        for k in reversed(range(len(content))):
            part = content[k]
            if isinstance(part, ThinkingPart) and (part.signature or "").startswith(GOOGLE):
                return part.signature, content[:k] + content[k + 1 :]
        return None, content

    def _call(self, call: ToolCall, path: str, signature: str | None) -> dict[str, Any]:
        self._names[call.id] = call.name
        told: dict[str, Any] = {"name": call.name, "args": _object(call.arguments, path)}
        if call.id:
            told = {"id": call.id, **told}
        return _signed({"functionCall": told}, call.signature or signature)

    def result(self, message: Message, path: str) -> None:
        """What a function answered; the answers to calls of one turn are one turn."""
        name = message.name if message.role == "function" else None
        if name is None:
            name = self._names.get(message.tool_call_id or "")
        if name is None:
            raise BadRequest(
                f"'{path}' answers the call {message.tool_call_id!r}, which is not in the messages"
                " before it",
                param=f"{path}.tool_call_id",
                hint="keep the assistant's message with its `tool_calls`",
            )
        told: dict[str, Any] = {"name": name}
        if message.tool_call_id:
            told = {"id": message.tool_call_id, **told}
        parts = message.content if isinstance(message.content, tuple) else ()
        media = [part for part in parts if isinstance(part, ImagePart | AudioPart | FilePart)]
        if len(media) + sum(isinstance(part, TextPart) for part in parts) < len(parts):
            self._receipt.dropped(f"{path}.content", "a function answers text, pictures and files")
        told["response"] = _response(message.text, message.is_error)
        written: list[dict[str, Any]] = [{"functionResponse": told}]
        shown = self.parts(tuple(media), f"{path}.content")
        if shown and self._signed:
            told["parts"] = shown
        elif shown:
            self._receipt.translated(f"{path}.content", "what is no text comes after the answer")
            written += shown
        results = self._results
        if results is not None and self.contents[-1]["parts"] is results:
            results += written
        else:
            self.contents.append({"role": "user", "parts": written})
            self._results = written

    # ------------------------------------------------------------ parts

    def parts(self, content: str | tuple[Part, ...] | None, path: str) -> list[dict[str, Any]]:
        """The parts of one content; what is empty or cannot be said is left out."""
        if not isinstance(content, tuple):
            # An empty text is refused there.
            return [{"text": content}] if content else []
        found = (self._part(part, f"{path}[{k}]") for k, part in enumerate(content))
        return [part for part in found if part is not None]

    def _part(self, part: Part, path: str) -> dict[str, Any] | None:
        if getattr(part, "cache_control", None) is not None:
            self._receipt.emulated(f"{path}.cache_control", "prompts are cached unasked")
        if isinstance(part, TextPart):
            return {"text": part.text} if part.text else None
        if isinstance(part, ImagePart):
            if part.image_url.detail not in (None, "auto"):
                self._receipt.dropped(f"{path}.image_url.detail", "the model looks as it does")
            return _media(part.image_url.url, f"{path}.image_url.url")
        if isinstance(part, AudioPart):
            sound = part.input_audio
            kind = _AUDIO.get(sound.format, f"audio/{sound.format}")
            found = data_url(f"data:{kind};base64,{sound.data}", f"{path}.input_audio.data")
            return {"inlineData": {"mimeType": kind, "data": found.base64}}
        if isinstance(part, FilePart):
            return self._file(part, path)
        if isinstance(part, ThinkingPart):
            return self._thought(part, path)
        if isinstance(part, RefusalPart):
            self._receipt.translated(path, "a refusal is said as text")
            return {"text": part.refusal} if part.refusal else None
        if isinstance(part, RedactedPart):
            self._receipt.dropped(path, "thoughts of another provider's are not shown")
            return None
        self._receipt.dropped(path, f"`{part.kind[:80]}` is known to the dialect it came from only")
        return None

    def _thought(self, part: ThinkingPart, path: str) -> dict[str, Any] | None:
        if not (part.signature or "").startswith(GOOGLE):
            self._receipt.dropped(path, "thoughts without Google's signature are not shown")
            return None
        # A signature without a thought is that of the text before it.
        thought = {"thought": True} if part.thinking else {}
        return _signed({"text": part.thinking, **thought}, part.signature)

    def _file(self, part: FilePart, path: str) -> dict[str, Any]:
        file = part.file
        if part.citations:
            self._receipt.dropped(f"{path}.citations", "answers about a document cite nothing")
        if file.filename is not None:
            self._receipt.dropped(f"{path}.file.filename", "documents have no names")
        if file.file_data is not None:
            return _media(file.file_data, f"{path}.file.file_data", inline=True)
        if file.file_url is not None:
            return _media(file.file_url, f"{path}.file.file_url")
        if file.file_id is None:
            raise BadRequest("a document without data", param=f"{path}.file")
        if file.file_id.startswith("files/"):
            return {"fileData": {"fileUri": FILES + file.file_id}}
        if file.file_id.startswith(FILES):
            return {"fileData": {"fileUri": file.file_id}}
        raise Unsupported(
            f"{file.file_id[:80]!r} is no file that was given to Google",
            param=f"{path}.file.file_id",
            hint="send the bytes as `file_data`",
        )


def _signed(part: dict[str, Any], signature: str | None) -> dict[str, Any]:
    if signature is None or not signature.startswith(GOOGLE):
        return part
    return {**part, "thoughtSignature": signature.removeprefix(GOOGLE)}


def _media(url: str, path: str, *, inline: bool = False) -> dict[str, Any]:
    if inline or url.startswith("data:"):
        found = data_url(url, path)
        return {"inlineData": {"mimeType": found.media_type, "data": found.base64}}
    kind = mimetypes.guess_type(url.partition("?")[0])[0]
    told = {"fileUri": url}
    return {"fileData": told if kind is None else {"mimeType": kind, **told}}


def _object(arguments: str, path: str) -> Raw:
    where = f"{path}.function.arguments"
    try:
        value = msgspec.json.decode(arguments or "{}")
    except msgspec.DecodeError as exc:
        raise BadRequest(f"the arguments of a call are not JSON: {exc}", param=where) from exc
    if not isinstance(value, dict):
        raise BadRequest("the arguments of a call are no JSON object", param=where)
    return Raw((arguments or "{}").encode())


def _response(text: str, is_error: bool) -> Any:
    """What a function answered is an object there; a text is put into one."""
    if is_error:
        return {"error": text}
    try:
        value = msgspec.json.decode(text)
    except (msgspec.DecodeError, RecursionError):
        value = None
    if isinstance(value, dict) and not (len(value) == 1 and next(iter(value)) in _WRAPPED):
        return Raw(text.encode())
    return {"output": text}
