"""`POST /v1/rerank`: bytes to `RerankRequest`, `Ranking` to bytes. Pure, no sockets.

Knows: the shape that Jina, Cohere, llama.cpp's server and vLLM share. Does not know: who reranks,
HTTP.

    {"model", "query", "documents": ["…" | {"text": "…"}], "top_n", "return_documents"}
    → {"id", "object": "list", "model",
       "results": [{"index", "relevance_score", "document": {"text"}}],
       "usage": {"prompt_tokens", "total_tokens"}}
"""

from __future__ import annotations

from typing import Literal

import msgspec
from msgspec import UNSET, Struct, UnsetType

from llm_runner_router.errors import BadRequest
from llm_runner_router.types import Ranking, RerankRequest

from . import veil
from .codec import check_model, parse
from .openai_json import body, error

__all__ = ["Asked", "decode", "encode", "error"]

MAX_DOCUMENTS = 10_000
"""As Cohere limits it."""
MAX_QUERY = 64 * 1024
"""Characters of a query, which is computed again with every document."""
MAX_DOCUMENT = 1024 * 1024
"""Characters of a document; what a model can read is far less, and it says so."""


class Asked(Struct, frozen=True):
    """A request and how its answer is to be written."""

    request: RerankRequest
    documents: bool = False
    """Each result with its document."""


class _Text(Struct, frozen=True):
    text: str


class _Body(Struct, frozen=True):
    model: str
    query: str
    documents: list[str | _Text]
    top_n: int | None = None
    return_documents: bool | None = None


_decoder = msgspec.json.Decoder(_Body)


def decode(body: bytes) -> Asked:
    """Read a request to rerank.

    Raises:
        BadRequest: malformed, of wrong types, empty, too many or too long; `param` is the path of
            the field, for example `documents[3].text`.
    """
    asked = parse(_decoder, body)
    check_model(asked.model)
    _check("query", asked.query, MAX_QUERY)
    count = len(asked.documents)
    if not count:
        raise BadRequest("'documents' is empty", param="documents", code="invalid_value")
    if count > MAX_DOCUMENTS:
        raise BadRequest(
            f"'documents' has {count} items; at most {MAX_DOCUMENTS}",
            hint="send them in several requests; scores of one model can be compared",
            param="documents",
        )
    if asked.top_n is not None and asked.top_n < 1:
        raise BadRequest("'top_n' must be at least 1", param="top_n", code="invalid_value")
    texts = []
    for i, given in enumerate(asked.documents):
        text = given if isinstance(given, str) else given.text
        path = f"documents[{i}]" if isinstance(given, str) else f"documents[{i}].text"
        _check(path, text, MAX_DOCUMENT)
        texts.append(text)
    request = RerankRequest(asked.model, asked.query, tuple(texts), asked.top_n)
    return Asked(request, bool(asked.return_documents))


def _check(path: str, text: str, most: int) -> None:
    if not text:
        raise BadRequest(f"{path!r} is empty", param=path, code="invalid_value")
    if len(text) > most:
        raise BadRequest(
            f"{path!r} has {len(text)} characters; at most {most}", param=path, code="too_long"
        )


class _Result(Struct, frozen=True):
    index: int
    relevance_score: float
    document: _Text | UnsetType = UNSET


class _Usage(Struct, frozen=True):
    prompt_tokens: int
    total_tokens: int


class _List(Struct, frozen=True):
    id: str
    object: Literal["list"]
    model: str
    results: list[_Result]
    usage: _Usage


def encode(result: Ranking, asked: Asked, id: str) -> bytes:
    """The ranking, the best document first. `id` is the request's."""
    texts = asked.request.documents
    results = [
        _Result(one.index, one.score, _Text(texts[one.index]) if asked.documents else UNSET)
        for one in result.results
    ]
    origin = result.origin
    model = veil.text(origin.model) if origin is not None else asked.request.model
    usage = _Usage(result.usage.prompt_tokens, result.usage.total_tokens)
    return body(_List(id, "list", model, results, usage))
