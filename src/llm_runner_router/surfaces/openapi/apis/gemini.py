"""What the routes of Gemini's API take and give."""

from __future__ import annotations

from llm_runner_router.surfaces import gemini, gemini_embed
from llm_runner_router.surfaces.openapi.operation import (
    CALL,
    CHAIN,
    COUNT,
    READS,
    SSE,
    Api,
    Operation,
    path,
    query,
)
from llm_runner_router.surfaces.openapi.schemas import (
    INTEGER,
    NUMBER,
    OBJECT,
    TEXT,
    Schema,
    listed,
    shape,
)

_ERROR = shape(
    error=shape({"details": listed(OBJECT)}, code=INTEGER, message=TEXT, status=TEXT),
)
_USAGE = shape(
    {
        "promptTokenCount": COUNT,
        "candidatesTokenCount": COUNT,
        "totalTokenCount": COUNT,
        "thoughtsTokenCount": COUNT,
        "cachedContentTokenCount": COUNT,
    }
)
_CANDIDATE = shape(
    {
        "content": shape({"parts": listed(OBJECT), "role": TEXT}),
        "finishReason": TEXT,
        "index": INTEGER,
        "logprobsResult": OBJECT,
    }
)
_CONTENT = shape(
    {
        "candidates": listed(_CANDIDATE),
        "usageMetadata": _USAGE,
        "modelVersion": TEXT,
        "responseId": TEXT,
    }
)
_VECTOR = shape(values=listed(NUMBER))
_MODEL = shape(
    {
        "version": TEXT,
        "displayName": TEXT,
        "inputTokenLimit": INTEGER,
        "outputTokenLimit": INTEGER,
    },
    name=TEXT,
    supportedGenerationMethods=listed(TEXT),
)
_NAME = path("model", "A model's name, without `models/`.")
_TOOLS: Schema = {
    "type": ["array", "null"],
    "items": OBJECT,
    "description": "Objects with `functionDeclarations`; tools of Google's go on to Google alone.",
}
_FIELDS: dict[str, Schema] = {"contents": {"minItems": 1}, "tools": _TOOLS}
_TALK = [{"role": "user", "parts": [{"text": "What is 12 + 30?"}]}]


def _verb(name: str) -> str:
    return f"/v1beta/models/{{model}}:{name}"


API = Api(
    name="Gemini",
    order=4,
    description="Content as Google's clients ask for it. Names of fields are taken in camelCase "
    "and in snake_case; the paths answer below `/v1` too.",
    error=_ERROR,
    keys=("x-goog-api-key", "bearer", "x-api-key", "api-key", "key"),
    operations=(
        Operation(
            method="POST",
            path=_verb("generateContent"),
            summary="Answer a conversation",
            body=gemini._Body,
            example={"contents": _TALK},
            fields=_FIELDS,
            answer=_CONTENT,
            params=(_NAME, *CHAIN),
        ),
        Operation(
            method="POST",
            path=_verb("streamGenerateContent"),
            summary="Answer a conversation as it is made",
            description="Chunks are elements of one list, or events with `alt=sse`.",
            body=gemini._Body,
            example={"contents": _TALK},
            fields=_FIELDS,
            answer=listed(_CONTENT),
            streams=SSE,
            params=(_NAME, query("alt", TEXT, "`sse` for events."), *CHAIN),
        ),
        Operation(
            method="POST",
            path=_verb("countTokens"),
            summary="Count the tokens of a prompt",
            body=gemini._Count,
            example={"contents": _TALK},
            fields={"tools": _TOOLS},
            answer=shape(totalTokens=COUNT),
            params=(_NAME,),
        ),
        Operation(
            method="POST",
            path=_verb("embedContent"),
            summary="Turn a text into a vector",
            body=gemini_embed._One,
            example={"content": {"parts": [{"text": "a text"}]}},
            answer=shape({"usageMetadata": _USAGE}, embedding=_VECTOR),
            params=(_NAME, *CALL),
        ),
        Operation(
            method="POST",
            path=_verb("batchEmbedContents"),
            summary="Turn texts into vectors",
            body=gemini_embed._All,
            example={"requests": [{"content": {"parts": [{"text": "a text"}]}}]},
            fields={"requests": {"minItems": 1}},
            answer=shape({"usageMetadata": _USAGE}, embeddings=listed(_VECTOR)),
            params=(_NAME, *CALL),
        ),
        Operation(
            method="GET",
            path="/v1beta/models",
            summary="List the models",
            description="In this API's shape for those who send `x-goog-api-key` or ask below "
            "`/v1beta`.",
            answer=shape(models=listed(_MODEL)),
            failures=READS,
        ),
        Operation(
            method="GET",
            path="/v1beta/models/{model}",
            summary="Show one model",
            answer=_MODEL,
            params=(_NAME,),
            failures=READS,
        ),
    ),
)
