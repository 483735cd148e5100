"""What our own routes take and give: rerank, tokens, health, the operator's side, this document."""

from __future__ import annotations

from llm_runner_router.surfaces import admin, rerank, tokenize
from llm_runner_router.surfaces.openapi.operation import (
    ANSWERS,
    CALL,
    COUNT,
    READS,
    TAKES,
    Api,
    Operation,
    query,
)
from llm_runner_router.surfaces.openapi.schemas import INTEGER, OBJECT, TEXT, Schema, listed, shape

from .openai import ERROR

_MODEL: dict[str, Schema] = {"model": {"minLength": 1}}
_OK = shape(status={"const": "ok"})
_ROW = shape(name=TEXT)
# `msgspec` encodes `tokenize._Answer`, but cannot decode a choice of two lists, nor describe it.
_PIECE = shape(id=INTEGER, piece={"anyOf": [TEXT, listed(INTEGER)]})
_TOKENS = shape(
    {"token_strs": listed(TEXT)},
    object={"const": "tokenized"},
    model=TEXT,
    count=COUNT,
    max_model_len=INTEGER,
    tokens={"anyOf": [listed(INTEGER), listed(_PIECE)]},
)

API = Api(
    name="Router",
    order=9,
    description="Reranking and tokens, whether the server is up, and what its operator may ask.",
    error=ERROR,
    operations=(
        Operation(
            method="POST",
            path="/v1/rerank",
            summary="Order documents by a query",
            body=rerank._Body,
            example={"model": "auto", "query": "spring", "documents": ["winter", "spring"]},
            fields={
                **_MODEL,
                "query": {"minLength": 1, "maxLength": rerank.MAX_QUERY},
                "documents": {"minItems": 1, "maxItems": rerank.MAX_DOCUMENTS},
                "top_n": {"description": "How many of the best to give."},
            },
            answer=rerank._List,
            params=CALL,
        ),
        Operation(
            method="POST",
            path="/v1/tokenize",
            summary="The tokens of a text or a conversation",
            description="One of `input`, `text`, `content`, `prompt` and `messages` is needed. The "
            "model is not loaded.",
            body=tokenize._Body,
            example={"model": "zoo:tiny-math", "input": "What is 12 + 30?"},
            fields=_MODEL,
            answer=_TOKENS,
        ),
        Operation(
            method="POST",
            path="/v1/detokenize",
            summary="The text of tokens",
            body=tokenize._Ids,
            example={"model": "zoo:tiny-math", "tokens": [10, 11, 12]},
            fields=_MODEL,
            answer=tokenize._Text,
        ),
        Operation(
            method="GET",
            path="/healthz",
            summary="Whether the server is up",
            answer=_OK,
            failures=(),
            public=True,
        ),
        Operation(
            method="GET",
            path="/livez",
            summary="Whether the server is up, with a key",
            answer=_OK,
            failures=READS,
        ),
        Operation(
            method="GET",
            path="/readyz",
            summary="Whether the server takes requests",
            answer=_OK,
            failures=READS,
        ),
        Operation(
            method="GET",
            path="/",
            summary="A greeting, for which clients of Ollama look",
            answer=TEXT,
            media="text/plain",
            failures=READS,
        ),
        Operation(
            method="GET",
            path="/openapi.json",
            summary="This document",
            answer=shape(openapi=TEXT, info=OBJECT, paths=OBJECT),
            failures=READS,
        ),
        Operation(
            method="GET",
            path="/docs",
            summary="This document for people",
            description="The page itself holds nothing but its program; it asks for the document "
            "with the key that is typed in.",
            answer=TEXT,
            media="text/html",
            failures=(),
            public=True,
        ),
        Operation(
            method="GET",
            path="/llmrr/ps",
            summary="What is loaded",
            answer=listed(_ROW),
            failures=READS,
        ),
        Operation(
            method="GET",
            path="/llmrr/status",
            summary="How the server does",
            answer=OBJECT,
            failures=READS,
        ),
        Operation(
            method="GET",
            path="/llmrr/records",
            summary="The newest requests, the newest first",
            answer=listed(OBJECT),
            params=(
                query(
                    "limit",
                    {
                        **INTEGER,
                        "minimum": 1,
                        "maximum": admin.MAX_RECORDS,
                        "default": admin.DEFAULT_RECORDS,
                    },
                    "How many.",
                ),
            ),
            failures=READS,
        ),
        Operation(
            method="POST",
            path="/llmrr/load",
            summary="Load a local model and wait for it",
            body=admin._Model,
            fields=_MODEL,
            answer={"type": ["object", "null"]},
            failures=ANSWERS,
        ),
        Operation(
            method="POST",
            path="/llmrr/stop",
            summary="Unload a local model",
            body=admin._Model,
            fields=_MODEL,
            answer=OBJECT,
            failures=ANSWERS,
        ),
        Operation(
            method="POST",
            path="/llmrr/explain",
            summary="What would answer, and why",
            description="With a `prompt`, or with the body of a chat request; nobody is asked.",
            body=admin._Prompt,
            example={"model": "auto", "prompt": "What is 12 + 30?"},
            answer=admin._Explained,
            failures=TAKES,
        ),
        Operation(
            method="POST",
            path="/llmrr/shutdown",
            summary="Stop the server as SIGTERM does",
            answer=shape(status={"const": "stopping"}),
            failures=TAKES,
        ),
    ),
)
