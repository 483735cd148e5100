"""OpenAI's embeddings: bytes to `EmbedRequest`, `Embeddings` to bytes. Pure, no sockets.

Knows: `POST /v1/embeddings` with floats or base64. Does not know: who embeds, HTTP.
"""

from __future__ import annotations

import sys
from array import array
from base64 import b64encode
from typing import Literal

import msgspec
from msgspec import Struct

from llm_runner_router.errors import BadRequest
from llm_runner_router.types import Embeddings, EmbedRequest

from . import veil
from .codec import check_model, parse
from .openai_json import body, error

__all__ = ["Asked", "decode", "encode", "error"]

MAX_INPUTS = 2048
"""As OpenAI limits it."""


class Asked(Struct, frozen=True):
    """A request and how its vectors are to be written."""

    request: EmbedRequest
    format: Literal["float", "base64"]


class _Body(Struct, frozen=True):
    model: str
    input: str | list[str | int | list[int]]
    encoding_format: str | None = None
    dimensions: int | None = None
    user: str | None = None


_decoder = msgspec.json.Decoder(_Body)


def decode(body: bytes) -> Asked:
    """Read an embedding request: a text, texts, token ids, or lists of token ids.

    Raises:
        BadRequest: malformed, of wrong types, empty, or texts and ids mixed.
    """
    asked = parse(_decoder, body)
    check_model(asked.model)
    if asked.encoding_format not in (None, "float", "base64"):
        raise BadRequest(
            f"'encoding_format' must be float or base64, not {asked.encoding_format!r}",
            param="encoding_format",
        )
    if asked.dimensions is not None and not 1 <= asked.dimensions <= 65536:
        raise BadRequest("'dimensions' must be between 1 and 65536", param="dimensions")
    request = EmbedRequest(asked.model, _inputs(asked.input), asked.dimensions, asked.user)
    return Asked(request, "base64" if asked.encoding_format == "base64" else "float")


def _inputs(value: str | list[str | int | list[int]]) -> tuple[str | tuple[int, ...], ...]:
    if isinstance(value, str):
        value = [value]
    ids = [item for item in value if isinstance(item, int)]
    if ids and len(ids) == len(value):
        return (_ids(ids, "input"),)
    if ids:
        raise BadRequest("'input' mixes token ids with something else", param="input")
    if not value:
        raise BadRequest("'input' is empty", param="input", code="invalid_value")
    if len(value) > MAX_INPUTS:
        raise BadRequest(f"'input' has {len(value)} items; at most {MAX_INPUTS}", param="input")
    found: list[str | tuple[int, ...]] = []
    for i, item in enumerate(value):
        if not item:
            raise BadRequest(f"'input[{i}]' is empty", param=f"input[{i}]", code="invalid_value")
        if isinstance(item, str):
            found.append(item)
        elif isinstance(item, list):
            found.append(_ids(item, f"input[{i}]"))
    return tuple(found)


def _ids(ids: list[int], param: str) -> tuple[int, ...]:
    if min(ids) < 0 or max(ids) >= 2**31:
        raise BadRequest(f"{param!r} holds a number that is no token id", param=param)
    return tuple(ids)


class _Item(Struct, frozen=True):
    object: Literal["embedding"]
    index: int
    embedding: tuple[float, ...] | str


class _Usage(Struct, frozen=True):
    prompt_tokens: int
    total_tokens: int


class _List(Struct, frozen=True):
    object: Literal["list"]
    data: list[_Item]
    model: str
    usage: _Usage


def encode(result: Embeddings, asked: Asked) -> bytes:
    """The vectors as JSON numbers, or as base64 of little-endian 32-bit floats."""
    coded = asked.format == "base64"
    vectors = result.vectors
    items = [_Item("embedding", i, packed(v) if coded else v) for i, v in enumerate(vectors)]
    origin = result.origin
    model = veil.text(origin.model) if origin is not None else asked.request.model
    usage = _Usage(result.usage.prompt_tokens, result.usage.total_tokens)
    return body(_List("list", items, model, usage))


def packed(vector: tuple[float, ...]) -> str:
    """A vector as base64 of little-endian 32-bit floats."""
    numbers = array("f", vector)
    if sys.byteorder == "big":
        numbers.byteswap()
    return b64encode(numbers.tobytes()).decode("ascii")
