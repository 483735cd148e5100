"""Reranking on the wire. Pure.

Knows: `POST /rerank` as Jina, Cohere, llama.cpp's server and vLLM have it, and how their answers
differ: Voyage calls the list `data`, Cohere counts tokens in `meta`. Does not know: URLs, keys.
"""

from __future__ import annotations

from math import isfinite
from typing import Any

import msgspec
from msgspec import Struct

from llm_runner_router.errors import BadResponse
from llm_runner_router.types import Ranked, Ranking, RerankRequest, Usage

from .base import WireRequest
from .openai_errors import parse_event_error


def build(request: RerankRequest, model: str) -> WireRequest:
    """The request; `top_n` is always sent, as defaults differ."""
    fields = {
        "model": model,
        "query": request.query,
        "documents": request.documents,
        "top_n": wanted(request),
    }
    return WireRequest("/rerank", msgspec.json.encode(fields))


def wanted(request: RerankRequest) -> int:
    """How many results `request` is answered with."""
    count = len(request.documents)
    return count if request.top_n is None else min(request.top_n, count)


class _Result(Struct):
    index: int
    relevance_score: float


class _Usage(Struct):
    prompt_tokens: int | None = None
    total_tokens: int | None = None


class _Tokens(Struct):
    input_tokens: float | None = None


class _Meta(Struct):
    tokens: _Tokens | None = None


class _Answer(Struct):
    results: list[_Result] | None = None
    data: list[_Result] | None = None
    usage: _Usage | None = None
    meta: _Meta | None = None
    error: Any = None


_answer = msgspec.json.Decoder(_Answer).decode


def parse(body: bytes, request: RerankRequest) -> Ranking:
    """The ranking, in order whatever the host's was.

    Raises:
        BadResponse: not JSON, no ranking, or one of other documents than were sent.
        RunnerError: the body is an error although the status said otherwise.
    """
    try:
        found = _answer(body)
    except (msgspec.DecodeError, UnicodeDecodeError) as exc:
        raise BadResponse(f"not a ranking: {exc}") from exc
    if found.error is not None:
        raise parse_event_error(found.error)
    results = found.results if found.results is not None else found.data or []
    count, most = len(request.documents), wanted(request)
    places = {one.index for one in results}
    if len(places) != len(results) or not all(0 <= index < count for index in places):
        raise BadResponse("a ranking of other documents than were sent")
    if len(results) < most:
        raise BadResponse(f"{len(results)} results where {most} were asked for")
    if not all(isfinite(one.relevance_score) for one in results):
        raise BadResponse("a score is no number")
    return Ranking(
        order([Ranked(one.index, one.relevance_score) for one in results], most), _usage(found)
    )


def order(results: list[Ranked], most: int) -> tuple[Ranked, ...]:
    """The best `most` of `results`; equal scores in the order of the documents."""
    return tuple(sorted(results, key=lambda one: (-one.score, one.index))[:most])


def _usage(found: _Answer) -> Usage:
    told = found.usage or _Usage()
    tokens = told.prompt_tokens or told.total_tokens
    if tokens is None and found.meta is not None and found.meta.tokens is not None:
        tokens = int(found.meta.tokens.input_tokens or 0)
    return Usage(max(tokens or 0, 0))
