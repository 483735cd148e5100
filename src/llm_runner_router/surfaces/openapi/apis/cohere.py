"""What the routes of Cohere's v2 API take and give."""

from __future__ import annotations

from llm_runner_router.surfaces import cohere, cohere_others
from llm_runner_router.surfaces.openapi.operation import CALL, CHAIN, COUNT, SSE, Api, Operation
from llm_runner_router.surfaces.openapi.schemas import (
    NUMBER,
    OBJECT,
    TEXT,
    Schema,
    listed,
    shape,
)

_REASONS = ["COMPLETE", "STOP_SEQUENCE", "MAX_TOKENS", "TOOL_CALL", "ERROR_TOXIC", "ERROR"]
_COUNTS = shape(input_tokens=COUNT, output_tokens=COUNT)
_CALL = shape(id=TEXT, type={"const": "function"}, function=shape(name=TEXT, arguments=TEXT))
_PART = shape({"text": TEXT, "thinking": TEXT}, type={"enum": ["text", "thinking"]})
_ANSWER = shape(
    {"logprobs": listed(OBJECT)},
    id=TEXT,
    finish_reason={"enum": _REASONS},
    message=shape(
        {"content": listed(_PART), "tool_calls": listed(_CALL)}, role={"const": "assistant"}
    ),
    usage=shape(billed_units=_COUNTS, tokens=_COUNTS, cached_tokens=COUNT),
)
_VECTORS = shape(
    id=TEXT,
    response_type={"const": "embeddings_by_type"},
    embeddings=shape({"float": listed(listed(NUMBER)), "base64": listed(TEXT)}),
    texts=listed(TEXT),
    meta=OBJECT,
)
_RANKED = shape(index=COUNT, relevance_score=NUMBER)
_NAMED: dict[str, Schema] = {"model": {"minLength": 1}}
_TALK = [{"role": "user", "content": "What is 12 + 30?"}]

API = Api(
    name="Cohere",
    order=6,
    description="Chats, vectors and rankings as clients of Cohere's v2 API ask for them.",
    error=shape(message=TEXT),
    operations=(
        Operation(
            method="POST",
            path="/v2/chat",
            summary="Answer a conversation",
            description="A stream that breaks ends with `message-end` and its `error`.",
            body=cohere._Body,
            example={"model": "auto", "messages": _TALK},
            fields={
                **_NAMED,
                "messages": {"minItems": 1},
                "max_tokens": {"minimum": 1, "maximum": 2**31 - 1},
                "tool_choice": {"description": "`REQUIRED` or `NONE`."},
                "p": {"description": "0 to 1."},
                "k": {"description": "0 to 500; 0 is off."},
            },
            answer=_ANSWER,
            streams=SSE,
            params=CHAIN,
        ),
        Operation(
            method="POST",
            path="/v2/embed",
            summary="Turn texts into vectors",
            body=cohere_others._Embed,
            example={"model": "auto", "input_type": "search_query", "texts": ["a cat"]},
            fields={
                **_NAMED,
                "input_type": {"enum": list(cohere_others._TASKS)},
                "embedding_types": {
                    "type": ["array", "null"],
                    "items": {"enum": list(cohere_others._TYPES)},
                },
            },
            answer=_VECTORS,
            params=CALL,
        ),
        Operation(
            method="POST",
            path="/v2/rerank",
            summary="Order documents by how well they answer a query",
            body=shape(
                {
                    "top_n": {"type": ["integer", "null"], "minimum": 1},
                    "max_tokens_per_doc": {"type": ["integer", "null"]},
                    "priority": {"type": ["integer", "null"]},
                },
                model={**TEXT, "minLength": 1},
                query={**TEXT, "minLength": 1},
                documents={**listed({**TEXT, "minLength": 1}), "minItems": 1},
            ),
            example={"model": "ranker", "query": "the cat", "documents": ["a cat", "rain"]},
            answer=shape(id=TEXT, results=listed(_RANKED), meta=OBJECT),
            params=CALL,
        ),
    ),
)
