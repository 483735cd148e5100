"""A conversation in the content blocks of Bedrock's Converse API. Pure.

Knows: turns and their blocks, and what cannot be said in them. Does not know: the rest of a request
(`bedrock_request.py`).
"""

from __future__ import annotations

import hashlib
import re
from typing import Any

from llm_runner_router.errors import BadRequest, Unsupported
from llm_runner_router.fidelity import Receipt
from llm_runner_router.types import (
    SIGNERS,
    AudioPart,
    FilePart,
    ImagePart,
    Message,
    Part,
    RedactedPart,
    RefusalPart,
    TextPart,
    ThinkingPart,
)

from .anthropic_request import OPENING, call_input
from .media import data_url

IMAGES = {
    "image/png": "png",
    "image/jpeg": "jpeg",
    "image/jpg": "jpeg",
    "image/gif": "gif",
    "image/webp": "webp",
}
"""Kinds of pictures, and what they are called there."""
DOCUMENTS = {
    "application/pdf": "pdf",
    "text/csv": "csv",
    "application/msword": "doc",
    "application/vnd.openxmlformats-officedocument.wordprocessingml.document": "docx",
    "application/vnd.ms-excel": "xls",
    "application/vnd.openxmlformats-officedocument.spreadsheetml.sheet": "xlsx",
    "text/html": "html",
    "text/plain": "txt",
    "text/markdown": "md",
}
"""Kinds of documents, and what they are called there."""
_AUDIO = frozenset("mp3 opus wav aac flac mp4 ogg mkv mka m4a mpeg mpga pcm webm".split())
_ID = re.compile(r"[a-zA-Z0-9_.:-]{1,64}")
_BASE64 = re.compile(r"[A-Za-z0-9+/]+={0,2}")
_NAME = re.compile(r"[^a-zA-Z0-9\s()\[\]-]+")

Block = dict[str, Any]


def conversation(
    messages: tuple[Message, ...], receipt: Receipt, *, signed: bool
) -> tuple[list[Block], list[Block]]:
    """The system's blocks, and turns that change sides.

    Args:
        signed: the model refuses thoughts that it did not sign.
    """
    system: list[Block] = []
    turns: list[Block] = []
    for i, message in enumerate(messages):
        path = f"messages[{i}]"
        if message.name is not None:
            receipt.dropped(f"{path}.name", "turns have no names")
        blocks = _blocks(message, path, receipt, signed)
        if message.role in ("system", "developer"):
            if turns:
                receipt.translated(path, "moved to the system's words at the beginning")
            system += _words(blocks, path)
            continue
        role = "assistant" if message.role == "assistant" else "user"
        if turns and turns[-1]["role"] == role:
            turns[-1]["content"] += blocks
        elif blocks:
            turns.append({"role": role, "content": blocks})
    if not turns and system:
        receipt.emulated("messages", "the system's words are asked by the user")
        turns, system = [{"role": "user", "content": system}], []
    if turns and turns[0]["role"] == "assistant":
        receipt.emulated("messages", "a turn of the user's was put in front")
        turns.insert(0, {"role": "user", "content": [{"text": OPENING}]})
    _trim(turns, len(messages) - 1, receipt)
    return system, turns


def _words(blocks: list[Block], path: str) -> list[Block]:
    """The system says texts only."""
    for block in blocks:
        if not block.keys() <= {"text", "cachePoint"}:
            raise Unsupported("the system's words are texts in Bedrock's dialect", param=path)
    return blocks


def _trim(turns: list[Block], last: int, receipt: Receipt) -> None:
    """An answer that is to be continued may not end in white space."""
    if not turns or turns[-1]["role"] != "assistant":
        return
    block = turns[-1]["content"][-1]
    if "text" in block and block["text"] != block["text"].rstrip():
        block["text"] = block["text"].rstrip()
        receipt.translated(f"messages[{last}].content", "white space at its end is left out")


def cache_point(cache_control: dict[str, Any] | None) -> list[Block]:
    """Anthropic's mark on a block as what stands behind it there."""
    if cache_control is None:
        return []
    ttl = cache_control.get("ttl")
    told = {"type": "default", "ttl": ttl} if ttl in ("5m", "1h") else {"type": "default"}
    return [{"cachePoint": told}]


def call_id(id: str) -> str:
    """`id` as it may be there: 64 characters of few kinds; others are replaced by their digest."""
    if _ID.fullmatch(id):
        return id
    return "call_" + hashlib.sha256(id.encode()).hexdigest()[:32]


def _blocks(message: Message, path: str, receipt: Receipt, signed: bool) -> list[Block]:
    if message.role in ("tool", "function"):
        return _result(message, path, receipt)
    content = message.content
    blocks: list[Block] = []
    if isinstance(content, str):
        blocks = [{"text": content}] if content.strip() else []
    for k, part in enumerate(content if isinstance(content, tuple) else ()):
        blocks += _part(part, f"{path}.content[{k}]", receipt, signed)
    for k, call in enumerate(message.tool_calls):
        where = f"{path}.tool_calls[{k}].function.arguments"
        use = {"toolUseId": call_id(call.id), "name": call.name}
        blocks.append({"toolUse": {**use, "input": call_input(call.arguments, where)}})
        blocks += cache_point(call.cache_control)
    return blocks


def _result(message: Message, path: str, receipt: Receipt) -> list[Block]:
    if not message.tool_call_id:
        raise Unsupported(
            "an answer of a function without the id of its call cannot be said in Bedrock's"
            " dialect",
            param=path,
            hint="use `tools`, `tool_calls` and messages with the role `tool`",
        )
    content: list[Block] = []
    if isinstance(message.content, str):
        content = [{"text": message.content}]
    for k, part in enumerate(message.content if isinstance(message.content, tuple) else ()):
        content += _part(part, f"{path}.content[{k}]", receipt, signed=True)
    inner = [block for block in content if block.keys() & {"text", "image", "document"}]
    if len(inner) < len([block for block in content if "cachePoint" not in block]):
        raise Unsupported(
            "a result is text, pictures and documents in Bedrock's dialect", param=path
        )
    told: Block = {"toolUseId": call_id(message.tool_call_id), "content": inner}
    if message.is_error:
        told["status"] = "error"
    return [{"toolResult": told}, *cache_point(message.cache_control)]


def _part(part: Part, path: str, receipt: Receipt, signed: bool) -> list[Block]:
    """The blocks of a part; none for what is empty or cannot be said."""
    if isinstance(part, TextPart):
        # A blank text is refused there.
        told = [{"text": part.text}] if part.text.strip() else []
        return [*told, *cache_point(part.cache_control)] if told else []
    if isinstance(part, ImagePart):
        return [_image(part, path, receipt), *cache_point(part.cache_control)]
    if isinstance(part, FilePart):
        return [_document(part, path), *cache_point(part.cache_control)]
    if isinstance(part, ThinkingPart):
        return _thought(part, path, receipt, signed)
    if isinstance(part, RedactedPart):
        if part.data.startswith(SIGNERS) or not _BASE64.fullmatch(part.data):
            receipt.dropped(path, "only the provider of these thoughts can read them")
            return []
        return [{"reasoningContent": {"redactedContent": part.data}}]
    if isinstance(part, RefusalPart):
        receipt.translated(path, "a refusal is said as text")
        return [{"text": part.refusal}] if part.refusal.strip() else []
    if isinstance(part, AudioPart):
        sound = part.input_audio
        if sound.format not in _AUDIO:
            raise Unsupported(f"Bedrock's dialect takes no {sound.format[:40]!r}", param=path)
        return [{"audio": {"format": sound.format, "source": {"bytes": sound.data}}}]
    receipt.dropped(path, f"`{part.kind}` is known to the dialect it came from only")
    return []


def _thought(part: ThinkingPart, path: str, receipt: Receipt, signed: bool) -> list[Block]:
    foreign = part.signature is not None and part.signature.startswith(SIGNERS)
    if foreign or (signed and part.signature is None):
        receipt.dropped(path, "thoughts without their provider's signature are refused")
        return []
    told = {"text": part.thinking}
    if part.signature is not None:
        told["signature"] = part.signature
    return [{"reasoningContent": {"reasoningText": told}}]


def _image(part: ImagePart, path: str, receipt: Receipt) -> Block:
    if part.image_url.detail not in (None, "auto"):
        receipt.dropped(f"{path}.image_url.detail", "images are looked at in one way only")
    url, where = part.image_url.url, f"{path}.image_url.url"
    if url.startswith("s3://"):
        kind = IMAGES.get("image/" + url.rpartition(".")[2].lower())
        if kind is None:
            raise BadRequest("the name of a picture in S3 must end in its kind", param=where)
        return {"image": {"format": kind, "source": {"s3Location": {"uri": url}}}}
    found = data_url(_here(url, where), where)
    kind = IMAGES.get(found.media_type)
    if kind is None:
        raise Unsupported(
            f"Bedrock's dialect takes no {found.media_type[:80]!r}",
            param=where,
            hint="PNG, JPEG, GIF or WebP",
        )
    return {"image": {"format": kind, "source": {"bytes": found.base64}}}


def _here(url: str, path: str) -> str:
    if not url.startswith("data:"):
        raise Unsupported(
            "Bedrock's dialect takes pictures and documents by their bytes",
            param=path,
            hint="send a `data:` URL, or `s3://…`",
        )
    return url


def _document(part: FilePart, path: str) -> Block:
    file = part.file
    ending = (file.filename or file.file_url or "").rpartition(".")[2].lower()
    if file.file_data is not None:
        where = f"{path}.file.file_data"
        found = data_url(file.file_data, where)
        kind = DOCUMENTS.get(found.media_type)
        source: Block = {"bytes": found.base64}
    elif file.file_url is not None:
        where = f"{path}.file.file_url"
        if not file.file_url.startswith("s3://"):
            _here(file.file_url, where)
        kind, source = None, {"s3Location": {"uri": file.file_url}}
    elif file.file_id is not None:
        raise Unsupported("Bedrock keeps no files", param=f"{path}.file.file_id")
    else:
        raise BadRequest("a document without data", param=f"{path}.file")
    kind = kind or (ending if ending in DOCUMENTS.values() else None)
    if kind is None:
        raise Unsupported("a kind of document that Bedrock's dialect does not have", param=where)
    told: Block = {"format": kind, "name": _named(file.filename, path), "source": source}
    if part.citations:
        told["citations"] = {"enabled": True}
    return {"document": told}


def _named(filename: str | None, path: str) -> str:
    """Documents must have names there, of few kinds of characters; one without gets its place."""
    stem = (filename or "").rpartition(".")[0] or filename or ""
    place = " ".join(re.findall(r"\d+", path))
    return " ".join(_NAME.sub(" ", stem).split())[:200] or f"document {place}"
