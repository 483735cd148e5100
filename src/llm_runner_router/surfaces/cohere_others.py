"""Vectors and rankings in Cohere's v2 API: bytes to requests, results to bytes. Pure, no sockets.

Knows: `POST /v2/embed` and `/v2/rerank`. Does not know: who embeds and reranks, HTTP.
"""

from __future__ import annotations

from typing import Any, TypeVar

import msgspec
from msgspec import Struct

from llm_runner_router.errors import BadRequest, Unsupported
from llm_runner_router.types import Embeddings, EmbedRequest, Mark, Ranking, RerankRequest, Usage

from . import rerank
from .codec import check_model, parse
from .openai_embeddings import MAX_INPUTS, packed

R = TypeVar("R", Embeddings, Ranking)

_TASKS = {
    "search_document": "RETRIEVAL_DOCUMENT",
    "search_query": "RETRIEVAL_QUERY",
    "classification": "CLASSIFICATION",
    "clustering": "CLUSTERING",
}
_TYPES = ("float", "base64")
_VERSION = {"api_version": {"version": "2"}}
_encode = msgspec.json.Encoder().encode


def marked(result: R, lost: dict[str, str]) -> R:
    """`result`, whose origin tells what of the request was left out, in Cohere's words."""
    if result.origin is None:
        return result
    told = {("input_type" if k == "taskType" else k): v for k, v in result.origin.fidelity.items()}
    told |= {name: Mark("dropped", why) for name, why in lost.items()}
    origin = msgspec.structs.replace(result.origin, fidelity=told)
    return msgspec.structs.replace(result, origin=origin)


# ---------------------------------------------------------------- vectors


class AskedEmbed(Struct, frozen=True):
    """A request, how its vectors are to be written, and what of it nobody here does."""

    request: EmbedRequest
    types: tuple[str, ...]
    lost: dict[str, str]


class _Content(Struct, frozen=True):
    type: str
    text: str | None = None


class _Input(Struct, frozen=True):
    content: list[_Content]


class _Embed(Struct, frozen=True):
    model: str
    input_type: str
    texts: list[str] | None = None
    images: list[str] | None = None
    inputs: list[_Input] | None = None
    embedding_types: list[str] | None = None
    output_dimension: int | None = None
    max_tokens: int | None = None
    truncate: str | None = None
    priority: int | None = None


_embed = msgspec.json.Decoder(_Embed)


def decode_embed(body: bytes) -> AskedEmbed:
    """Read a request for vectors.

    Raises:
        BadRequest: malformed, of wrong types, empty or too many.
        Unsupported: pictures, or vectors of small numbers.
    """
    asked = parse(_embed, body)
    check_model(asked.model)
    task = _TASKS.get(asked.input_type)
    if asked.images or asked.input_type == "image":
        raise Unsupported("only texts are embedded here", param="images")
    if task is None:
        known = ", ".join(_TASKS)
        raise BadRequest(
            f"'input_type' must be one of {known}, not {asked.input_type[:40]!r}",
            param="input_type",
        )
    types = tuple(asked.embedding_types or ("float",))
    for i, name in enumerate(types):
        if name not in _TYPES:
            raise Unsupported(
                f"vectors are given as float or base64 here, not as {name[:40]!r}",
                param=f"embedding_types[{i}]",
            )
    size = asked.output_dimension
    if size is not None and not 1 <= size <= 65536:
        raise BadRequest("'output_dimension' must be 1 to 65536", param="output_dimension")
    lost = {}
    if asked.truncate not in (None, "NONE"):
        lost["truncate"] = "a text that is too long is refused, not cut"
    if asked.max_tokens is not None:
        lost["max_tokens"] = "a text that is too long is refused, not cut"
    if asked.priority:
        lost["priority"] = "an embedder has one queue"
    return AskedEmbed(EmbedRequest(asked.model, _texts(asked), size, task=task), types, lost)


def _texts(asked: _Embed) -> tuple[str, ...]:
    if asked.texts is not None and asked.inputs is not None:
        raise BadRequest("'texts' and 'inputs' cannot both be given", param="inputs")
    name = "texts" if asked.inputs is None else "inputs"
    found = list(asked.texts or ())
    for i, one in enumerate(asked.inputs or ()):
        for k, content in enumerate(one.content):
            if content.type != "text" or content.text is None:
                raise Unsupported("only texts are embedded here", param=f"inputs[{i}].content[{k}]")
        found.append("\n".join(content.text or "" for content in one.content))
    if not found:
        raise BadRequest(f"{name!r} is empty", param=name, code="invalid_value")
    if len(found) > MAX_INPUTS:
        raise BadRequest(f"{name!r} has {len(found)} items; at most {MAX_INPUTS}", param=name)
    empty = next((i for i, text in enumerate(found) if not text), None)
    if empty is not None:
        param = f"{name}[{empty}]"
        raise BadRequest(f"{param!r} is empty", param=param, code="invalid_value")
    return tuple(found)


def encode_embed(result: Embeddings, asked: AskedEmbed, id: str) -> bytes:
    """The vectors by type. `id` is the request's."""
    found: dict[str, Any] = {}
    for name in asked.types:
        write = packed if name == "base64" else tuple
        found[name] = [write(vector) for vector in result.vectors]
    return _encode(
        {
            "id": id,
            "response_type": "embeddings_by_type",
            "embeddings": found,
            "texts": asked.request.inputs,
            "meta": _meta(result.usage),
        }
    )


def _meta(usage: Usage) -> dict[str, Any]:
    counts = {"input_tokens": usage.prompt_tokens}
    return {**_VERSION, "billed_units": counts, "tokens": counts}


# ---------------------------------------------------------------- rankings


class AskedRerank(Struct, frozen=True):
    """A request, and what of it nobody here does."""

    request: RerankRequest
    lost: dict[str, str]


class _Spans(Struct, frozen=True):
    mode: str


class _More(Struct, frozen=True):
    max_tokens_per_doc: int | None = None
    relevant_spans: _Spans | None = None
    priority: int | None = None


_more = msgspec.json.Decoder(_More)


def decode_rerank(body: bytes) -> AskedRerank:
    """Read a request to rerank.

    Raises:
        BadRequest: as `rerank.decode`.
        Unsupported: the spans of the documents that matter.
    """
    asked = rerank.decode(body)
    more = parse(_more, body)
    if more.relevant_spans is not None and more.relevant_spans.mode != "disabled":
        raise Unsupported("spans of documents are not told here", param="relevant_spans")
    lost = {}
    if more.max_tokens_per_doc is not None:
        lost["max_tokens_per_doc"] = "a document that is too long is refused, not cut"
    if more.priority:
        lost["priority"] = "a reranker has one queue"
    return AskedRerank(asked.request, lost)


def encode_rerank(result: Ranking, id: str) -> bytes:
    """The ranking, the best document first. `id` is the request's."""
    results = [{"index": one.index, "relevance_score": one.score} for one in result.results]
    tokens = {"input_tokens": result.usage.prompt_tokens}
    return _encode({"id": id, "results": results, "meta": {**_VERSION, "tokens": tokens}})
