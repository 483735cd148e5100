"""What the routes of OpenAI's Responses API take and give."""

from __future__ import annotations

from llm_runner_router.surfaces import responses
from llm_runner_router.surfaces.openapi.operation import (
    ANSWERS,
    CHAIN,
    COUNT,
    READS,
    SSE,
    TAKES,
    Api,
    Operation,
    path,
    query,
)
from llm_runner_router.surfaces.openapi.schemas import (
    ANYTHING,
    INTEGER,
    NUMBER,
    OBJECT,
    TEXT,
    TRUTH,
    Schema,
    listed,
    nullable,
    shape,
)
from llm_runner_router.surfaces.responses_routes import MAX_PAGE, PAGE

from .openai import ERROR

_STATUS = ["queued", "in_progress", "completed", "incomplete", "failed", "cancelled"]
_USAGE: Schema = {
    "type": ["object", "null"],
    "properties": {
        name: COUNT for name in ("input_tokens", "output_tokens", "total_tokens")
    },
}  # fmt: skip
_ITEM = shape({"id": TEXT, "status": TEXT}, type=TEXT)
_RESPONSE = shape(
    {
        "error": {"type": ["object", "null"]},
        "incomplete_details": {"type": ["object", "null"]},
        "usage": _USAGE,
        "background": TRUTH,
        "instructions": nullable("string"),
        "metadata": OBJECT,
        "previous_response_id": nullable("string"),
        "store": TRUTH,
        "text": OBJECT,
        "tool_choice": ANYTHING,
        "tools": listed(OBJECT),
        "temperature": nullable("number"),
        "top_p": nullable("number"),
    },
    id=TEXT,
    object={"const": "response"},
    created_at=NUMBER,
    status={"enum": _STATUS},
    model=TEXT,
    output=listed(_ITEM),
)
_INPUT: Schema = {
    "anyOf": [TEXT, {"type": "array", "minItems": 1, "items": OBJECT}],
    "description": "A text, or items: messages, calls of functions and what they gave, thoughts.",
}
_ID = path("response_id", "The id of a response made with the same key.")
_FOLLOWED = {
    name: (method, where, {"response_id": "$response.body#/id"})
    for name, method, where in (
        ("retrieve", "GET", "/v1/responses/{response_id}"),
        ("delete", "DELETE", "/v1/responses/{response_id}"),
        ("items", "GET", "/v1/responses/{response_id}/input_items"),
    )
}
_FIELDS: dict[str, Schema] = {
    "model": {"minLength": 1},
    "input": _INPUT,
    "background": {"description": "Make it whether or not the client stays; needs `store`."},
    "conversation": {"type": "null", "description": "Conversations are not kept here."},
    "store": {"description": "Keep it to come back to; `true` unless said otherwise."},
    "previous_response_id": {"description": "The response that this one goes on from."},
}

API = Api(
    name="OpenAI Responses",
    order=2,
    description="Answers that can be come back to, for whoever has the key they were made with.",
    error=ERROR,
    operations=(
        Operation(
            method="POST",
            path="/v1/responses",
            summary="Make a response",
            description="A stream that breaks ends with the events `error` and `response.failed`.",
            body=responses._Body,
            example={"model": "auto", "input": "What is 12 + 30?"},
            fields=_FIELDS,
            answer=_RESPONSE,
            streams=SSE,
            params=CHAIN,
            links=_FOLLOWED,
        ),
        Operation(
            method="POST",
            path="/v1/responses/input_tokens",
            summary="Count the tokens of an input",
            body=responses._Asked,
            example={"model": "auto", "input": "What is 12 + 30?"},
            fields={"model": _FIELDS["model"], "input": _INPUT},
            answer=shape(object={"const": "response.input_tokens"}, input_tokens=COUNT),
        ),
        Operation(
            method="GET",
            path="/v1/responses/{response_id}",
            summary="Come back to a response",
            description="With `stream=true` the events of a background response once more, for "
            "five minutes after its end.",
            answer=_RESPONSE,
            streams=SSE,
            params=(
                _ID,
                query("stream", {"type": "boolean"}, "Its events instead of itself."),
                query(
                    "starting_after",
                    {**INTEGER, "minimum": 0, "maximum": 2**31},
                    "The number of the last event that is known already.",
                ),
            ),
            failures=READS,
        ),
        Operation(
            method="DELETE",
            path="/v1/responses/{response_id}",
            summary="Forget a response",
            answer=shape(id=TEXT, object={"const": "response"}, deleted={"const": True}),
            params=(_ID,),
            failures=READS,
        ),
        Operation(
            method="POST",
            path="/v1/responses/{response_id}/cancel",
            summary="End a response that is made in the background",
            answer=_RESPONSE,
            params=(_ID,),
            failures=TAKES,
        ),
        Operation(
            method="GET",
            path="/v1/responses/{response_id}/input_items",
            summary="List what a response was made from",
            answer=shape(
                {"first_id": nullable("string"), "last_id": nullable("string")},
                object={"const": "list"},
                data=listed(_ITEM),
                has_more=TRUTH,
            ),
            params=(
                _ID,
                query("order", {"enum": ["asc", "desc"]}, "The newest first (`desc`) or last."),
                query(
                    "limit",
                    {**INTEGER, "minimum": 1, "maximum": MAX_PAGE, "default": PAGE},
                    "Items on a page.",
                ),
                query("after", TEXT, "The id of the last item of the page before."),
            ),
            failures=ANSWERS,
        ),
    ),
)
