"""What the routes of Anthropic's Messages API take and give."""

from __future__ import annotations

from llm_runner_router.surfaces import anthropic
from llm_runner_router.surfaces.anthropic_write import _ERRORS
from llm_runner_router.surfaces.openapi.operation import CHAIN, COUNT, SSE, Api, Operation
from llm_runner_router.surfaces.openapi.schemas import (
    OBJECT,
    TEXT,
    Schema,
    listed,
    nullable,
    shape,
)

_KINDS = sorted({*_ERRORS.values(), "api_error"})
_ERROR = shape(type={"const": "error"}, error=shape(type={"enum": _KINDS}, message=TEXT))
_BLOCK = shape(
    {
        "text": TEXT,
        "thinking": TEXT,
        "signature": TEXT,
        "data": TEXT,
        "id": TEXT,
        "name": TEXT,
        "input": OBJECT,
    },
    type=TEXT,
)
_MESSAGE = shape(
    {"stop_reason": nullable("string"), "stop_sequence": nullable("string")},
    id=TEXT,
    type={"const": "message"},
    role={"const": "assistant"},
    model=TEXT,
    content=listed(_BLOCK),
    usage=shape(
        {"cache_creation_input_tokens": COUNT, "cache_read_input_tokens": COUNT},
        input_tokens=COUNT,
        output_tokens=COUNT,
    ),
)
_ASKED: dict[str, Schema] = {
    "model": {"minLength": 1},
    "messages": {"minItems": 1},
    "tool_choice": {"description": "`auto`, `any`, `none`, or `tool` with a name of `tools`."},
}
_TALK = [{"role": "user", "content": "What is 12 + 30?"}]

API = Api(
    name="Anthropic",
    order=3,
    description="Messages as Anthropic's clients and the agents made for them ask for them.",
    error=_ERROR,
    operations=(
        Operation(
            method="POST",
            path="/v1/messages",
            summary="Answer a conversation",
            description="A stream that breaks ends with an `error` event and no `message_stop`.",
            body=anthropic._Body,
            example={"model": "auto", "max_tokens": 256, "messages": _TALK},
            fields={
                **_ASKED,
                "max_tokens": {"minimum": 1, "maximum": 2**31 - 1},
                "temperature": {"description": "0 to 1."},
                "top_p": {"description": "0 to 1."},
            },
            answer=_MESSAGE,
            streams=SSE,
            params=CHAIN,
        ),
        Operation(
            method="POST",
            path="/v1/messages/count_tokens",
            summary="Count the tokens of a prompt",
            body=anthropic._Asked,
            example={"model": "auto", "messages": _TALK},
            fields=_ASKED,
            answer=shape(input_tokens=COUNT),
        ),
    ),
)
