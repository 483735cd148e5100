"""What OpenAI's routes take and give; the Responses API has a file of its own."""

from __future__ import annotations

from typing import Any

from llm_runner_router.surfaces import (
    openai_chat,
    openai_chat_write,
    openai_completions,
    openai_embeddings,
    openai_json,
    openai_models,
)
from llm_runner_router.surfaces.codec import MAX_FALLBACKS, MAX_STOPS
from llm_runner_router.surfaces.openapi.operation import (
    CALL,
    CHAIN,
    READS,
    SSE,
    Api,
    Operation,
    path,
)

ERROR = openai_json._Error

_SHARED: dict[str, Any] = {
    "model": {"minLength": 1, "description": "A name from `GET /v1/models`, such as `auto`."},
    "stream": {"description": "Answer in events as the text is made, ended by `data: [DONE]`."},
    "cache": {"description": "Ours: `true` allows an equal earlier answer to be given again."},
    "strict": {"description": "Ours: refuse rather than leave out what the target cannot do."},
    "fallbacks": {
        "description": f"Ours: up to {MAX_FALLBACKS} models to try when the one asked for fails "
        "before its first token."
    },
    "stop": {"description": f"Up to {MAX_STOPS} texts before which the answer ends."},
    **{name: {"minimum": low, "maximum": high} for name, low, high in openai_json._RANGES},
}

_CHAT = {
    **_SHARED,
    "messages": {"minItems": 1},
    "tool_choice": {"description": "`auto`, `none`, `required`, or a function of `tools`."},
    "top_logprobs": {"description": f"Up to {openai_chat.MAX_TOP_LOGPROBS}; needs `logprobs`."},
    "max_tokens": {"description": "The old name of `max_completion_tokens`."},
}
_TEXT = {
    **_SHARED,
    "prompt": {
        "description": "A text, or up to "
        f"{openai_completions.MAX_PROMPTS} of them. Lists of token ids are refused: they mean "
        "something else to every model."
    },
    "logprobs": {"description": f"Up to {openai_completions.MAX_LOGPROBS}."},
}
_EMBED = {
    "model": _SHARED["model"],
    "input": {
        "description": f"A text, up to {openai_embeddings.MAX_INPUTS} texts, the token ids of one "
        "text, or lists of token ids."
    },
    "encoding_format": {"type": ["string", "null"], "enum": ["float", "base64", None]},
    "dimensions": {"description": "1 to 65536; the length of a vector, where the model allows it."},
}
_TALK = [{"role": "user", "content": "What is 12 + 30?"}]

API = Api(
    name="OpenAI",
    order=1,
    description="Chat, text, vectors and models as OpenAI's clients ask for them.",
    error=ERROR,
    operations=(
        Operation(
            method="POST",
            path="/v1/chat/completions",
            summary="Answer a conversation",
            description="Unknown fields go on to an upstream that speaks this format. A stream is "
            "`chat.completion.chunk` events; one that breaks ends with an error event and no "
            "`[DONE]`.",
            body=openai_chat._Body,
            example={"model": "auto", "messages": _TALK},
            fields=_CHAT,
            answer=openai_chat_write._Completion,
            streams=SSE,
            params=CHAIN,
        ),
        Operation(
            method="POST",
            path="/v1/completions",
            summary="Continue a text",
            body=openai_completions._Body,
            example={"model": "auto", "prompt": "Once upon a time", "max_tokens": 32},
            fields=_TEXT,
            answer=openai_completions._Completion,
            streams=SSE,
            params=CHAIN,
        ),
        Operation(
            method="POST",
            path="/v1/embeddings",
            summary="Turn texts into vectors",
            body=openai_embeddings._Body,
            example={"model": "auto", "input": ["one text", "another"]},
            fields=_EMBED,
            answer=openai_embeddings._List,
            params=CALL,
        ),
        Operation(
            method="GET",
            path="/v1/models",
            summary="List the models",
            answer=openai_models._List,
            failures=READS,
        ),
        Operation(
            method="GET",
            path="/v1/models/{model}",
            summary="Show one model",
            answer=openai_models._Model,
            params=(path("model", "Its name, which may have `/` in it."),),
            failures=READS,
        ),
    ),
)
