"""What the routes of Bedrock's Converse API take and give."""

from __future__ import annotations

from llm_runner_router.eventstream import MEDIA_TYPE
from llm_runner_router.surfaces import bedrock
from llm_runner_router.surfaces.openapi.operation import CHAIN, COUNT, Api, Operation, path
from llm_runner_router.surfaces.openapi.schemas import OBJECT, TEXT, Schema, listed, shape

_USAGE = shape(
    {"cacheReadInputTokens": COUNT, "cacheWriteInputTokens": COUNT},
    inputTokens=COUNT,
    outputTokens=COUNT,
    totalTokens=COUNT,
)
_SAID = shape(role={"const": "assistant"}, content=listed(OBJECT))
_ANSWER = shape(
    {"additionalModelResponseFields": OBJECT},
    output=shape(message=_SAID),
    stopReason=TEXT,
    usage=_USAGE,
    metrics=shape(latencyMs=COUNT),
)
_NAME = path("model", "A model's name.")
_ASKED: dict[str, Schema] = {"messages": {"minItems": 1}}
_TALK = [{"role": "user", "content": [{"text": "What is 12 + 30?"}]}]

API = Api(
    name="Bedrock",
    order=5,
    description="Conversations as clients of Amazon Bedrock's Converse API ask for them, with this "
    "server's key as their Bedrock API key or their session token. Signatures are not looked at.",
    error=shape(message=TEXT),
    keys=("bearer", "x-amz-security-token", "x-api-key", "api-key", "x-goog-api-key"),
    operations=(
        Operation(
            method="POST",
            path="/model/{model}/converse",
            summary="Answer a conversation",
            description="The header `x-amzn-errortype` names an error.",
            body=bedrock._Body,
            example={"messages": _TALK},
            fields=_ASKED,
            answer=_ANSWER,
            params=(_NAME, *CHAIN),
        ),
        Operation(
            method="POST",
            path="/model/{model}/converse-stream",
            summary="Answer a conversation as it is made",
            description="A stream that breaks ends with an exception and no `messageStop`.",
            body=bedrock._Body,
            example={"messages": _TALK},
            fields=_ASKED,
            answer={"type": "string"},
            media=MEDIA_TYPE,
            params=(_NAME, *CHAIN),
        ),
        Operation(
            method="POST",
            path="/model/{model}/count-tokens",
            summary="Count the tokens of a prompt",
            body=bedrock._Count,
            example={"input": {"converse": {"messages": _TALK}}},
            answer=shape(inputTokens=COUNT),
            params=(_NAME,),
        ),
    ),
)
