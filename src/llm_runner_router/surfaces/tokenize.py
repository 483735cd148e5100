"""`POST /v1/tokenize` and `/v1/detokenize`: bytes to `TokenizeRequest`, `Tokenized` to bytes. Pure.

Knows: our fields, and those of llama-server (`content`, `add_special`, `parse_special`,
`with_pieces`) and vLLM (`prompt`, `add_special_tokens`, `return_token_strs`), whose clients expect
other defaults. Does not know: tokenizers, HTTP.

    field of the text      control tokens in it     tokens around it
    `input`, `text`        are text                 none
    `content`              are read                 none
    `prompt`               are read                 as the model wants them
    `messages`             by the chat template     by the chat template
"""

from __future__ import annotations

from typing import Any, Literal

import msgspec
from msgspec import UNSET, Raw, Struct, UnsetType

from llm_runner_router.errors import BadRequest
from llm_runner_router.types import Tokenized, TokenizeRequest

from . import openai_chat
from .codec import check_model, parse
from .openai_json import error

__all__ = ["Asked", "decode", "decode_ids", "encode", "encode_text", "error"]


class Asked(Struct, frozen=True):
    """A request and how its tokens are to be written."""

    request: TokenizeRequest
    pieces: bool = False
    """Each token as `{"id", "piece"}`, as llama-server writes them."""
    strings: bool = False
    """A list `token_strs` beside the ids, as vLLM writes it."""


class _Body(Struct, frozen=True):
    model: str
    input: str | None = None
    text: str | None = None
    content: str | None = None
    prompt: str | None = None
    messages: Raw = Raw()  # `Raw | None` would take null only
    add_special: bool | None = None
    add_special_tokens: bool | None = None
    parse_special: bool | None = None
    add_generation_prompt: bool = True
    with_pieces: bool = False
    return_token_strs: bool | None = None


class _Ids(Struct, frozen=True):
    model: str
    tokens: list[int]


class _Piece(Struct, frozen=True):
    id: int
    piece: str | list[int]
    """Text, or the bytes where they are no text by themselves."""


class _Answer(Struct, frozen=True):
    object: Literal["tokenized"]
    model: str
    count: int
    max_model_len: int
    tokens: list[int] | list[_Piece]
    token_strs: list[str] | UnsetType = UNSET


class _Text(Struct, frozen=True):
    """The same text under our name, llama-server's and vLLM's."""

    model: str
    text: str
    content: str
    prompt: str


_body = msgspec.json.Decoder(_Body)
_ids = msgspec.json.Decoder(_Ids)
_encode = msgspec.json.Encoder().encode
_NAMES = ("input", "text", "content", "prompt")


def decode(body: bytes) -> Asked:
    """Read a request to tokenize.

    Raises:
        BadRequest: malformed, no text or conversation, or more than one.
    """
    asked = parse(_body, body)
    check_model(asked.model)
    given: list[tuple[str, Any]] = [(n, t) for n in _NAMES if (t := getattr(asked, n)) is not None]
    talk = bytes(asked.messages) not in (b"", b"null")
    if len(given) + talk != 1:
        found = "none" if not given and not talk else "more than one"
        raise BadRequest(
            f"one of 'input', 'text', 'content', 'prompt' and 'messages' is needed, not {found}",
            param="input",
        )
    show = {"pieces": asked.with_pieces, "strings": bool(asked.return_token_strs)}
    if talk:
        chat = openai_chat.decode(body)
        request = TokenizeRequest(
            asked.model,
            messages=chat.messages,
            tools=chat.tools,
            add_generation_prompt=asked.add_generation_prompt,
        )
        return Asked(request, **show)
    name, text = given[0]
    around = asked.add_special_tokens if asked.add_special is None else asked.add_special
    request = TokenizeRequest(
        asked.model,
        text=text,
        special=_or(asked.parse_special, name in ("content", "prompt")),
        around=_or(around, name == "prompt"),
    )
    return Asked(request, **show)


def _or(value: bool | None, default: bool) -> bool:
    return default if value is None else value


def encode(found: Tokenized, asked: Asked) -> bytes:
    """The tokens as JSON."""
    answer = _Answer(
        object="tokenized",
        model=asked.request.model,
        count=len(found.ids),
        max_model_len=found.context,
        tokens=_pieces(found) if asked.pieces else list(found.ids),
        token_strs=[p.decode("utf-8", "replace") for p in found.pieces] if asked.strings else UNSET,
    )
    return _encode(answer)


def _pieces(found: Tokenized) -> list[_Piece]:
    return [_Piece(id, _piece(piece)) for id, piece in zip(found.ids, found.pieces, strict=True)]


def _piece(piece: bytes) -> str | list[int]:
    try:
        return piece.decode("utf-8")
    except UnicodeDecodeError:
        return list(piece)


def decode_ids(body: bytes) -> tuple[str, list[int]]:
    """Read a request to detokenize: the model and the ids.

    Raises:
        BadRequest: malformed.
    """
    asked = parse(_ids, body)
    check_model(asked.model)
    return asked.model, asked.tokens


def encode_text(model: str, text: str) -> bytes:
    """The text as JSON."""
    return _encode(_Text(model, text, text, text))
