"""What the routes of Ollama's own API take and give."""

from __future__ import annotations

from llm_runner_router.surfaces import ollama, ollama_routes
from llm_runner_router.surfaces.openapi.operation import (
    CHAIN,
    COUNT,
    NDJSON,
    READS,
    TAKES,
    Api,
    Operation,
    path,
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
    shape,
)

_ERROR = shape(error=TEXT)
_DURATIONS = {
    "total_duration": COUNT,
    "prompt_eval_count": COUNT,
    "prompt_eval_duration": COUNT,
    "eval_count": COUNT,
    "eval_duration": COUNT,
}
_END = {"done_reason": TEXT, "logprobs": listed(OBJECT), **_DURATIONS}
_HEAD = {"model": TEXT, "created_at": TEXT, "done": TRUTH}
_SAID = shape({"thinking": TEXT, "tool_calls": listed(OBJECT)}, role=TEXT, content=TEXT)
_CHAT = shape(_END, **_HEAD, message=_SAID)
_GENERATED = shape({"thinking": TEXT, **_END}, **_HEAD, response=TEXT)
_LISTED = shape(
    {"modified_at": TEXT, "details": OBJECT},
    name=TEXT,
    model=TEXT,
    size=INTEGER,
    digest=TEXT,
)
_RUNNING = shape(
    {"details": OBJECT, "size_vram": INTEGER, "context_length": INTEGER},
    name=TEXT,
    model=TEXT,
    size=INTEGER,
    digest=TEXT,
    expires_at=TEXT,
)
_SHOWN = shape(
    {"modelfile": TEXT, "parameters": TEXT, "license": {"type": ["string", "null"]}},
    template=TEXT,
    details=OBJECT,
    model_info=OBJECT,
    capabilities=listed(TEXT),
    modified_at=TEXT,
)
_DONE = shape(status={"const": "success"})
_ASKED: dict[str, Schema] = {
    "model": {"minLength": 1},
    "stream": {"description": "Lines of JSON as the text is made; so it is unless `false`."},
    "keep_alive": {"description": "How long the model stays loaded: seconds, or `5m`, `0`, `-1`."},
    "format": {
        "anyOf": [{"enum": ["json", "", None]}, OBJECT],
        "description": "`json`, or a JSON Schema that the answer keeps to.",
    },
    "options": {
        "type": ["object", "null"],
        "description": "Sampling and the like; unknown ones go on to the engine.",
    },
}
_PLACE: dict[str, Schema] = {
    "model": {"description": "The model's name."},
    "name": {"description": "How older clients say `model`."},
}
_TALK = [{"role": "user", "content": "What is 12 + 30?"}]

API = Api(
    name="Ollama",
    order=5,
    description="What Ollama's own clients ask for, its models' names with and without a tag.",
    error=_ERROR,
    operations=(
        Operation(
            method="POST",
            path="/api/chat",
            summary="Answer a conversation",
            description="Without messages: load the model, or unload it if `keep_alive` is 0.",
            body=ollama._Chat,
            example={"model": "auto", "messages": _TALK},
            fields=_ASKED,
            answer=_CHAT,
            streams=NDJSON,
            params=CHAIN,
        ),
        Operation(
            method="POST",
            path="/api/generate",
            summary="Answer a prompt",
            description="Without a prompt: load the model, or unload it if `keep_alive` is 0.",
            body=ollama._Generate,
            example={"model": "auto", "prompt": "What is 12 + 30?"},
            fields=_ASKED,
            answer=_GENERATED,
            streams=NDJSON,
            params=CHAIN,
        ),
        Operation(
            method="POST",
            path="/api/embed",
            summary="Turn texts into vectors",
            body=ollama._Embed,
            fields={"model": _ASKED["model"]},
            answer=shape(
                {"total_duration": COUNT, "prompt_eval_count": COUNT},
                model=TEXT,
                embeddings=listed(listed(NUMBER)),
            ),
        ),
        Operation(
            method="POST",
            path="/api/embeddings",
            summary="Turn a text into a vector, as older clients do",
            body=ollama._Embed,
            fields={"model": _ASKED["model"]},
            answer=shape(embedding=listed(NUMBER)),
        ),
        Operation(
            method="GET",
            path="/api/tags",
            summary="List the models",
            answer=shape(models=listed(_LISTED)),
            failures=READS,
        ),
        Operation(
            method="POST",
            path="/api/show",
            summary="Show one model",
            body=ollama_routes._Named,
            example={"model": "auto"},
            fields=_PLACE,
            answer=_SHOWN,
            failures=TAKES,
        ),
        Operation(
            method="GET",
            path="/api/ps",
            summary="List what is loaded",
            answer=shape(models=listed(_RUNNING)),
            failures=READS,
        ),
        Operation(
            method="GET",
            path="/api/version",
            summary="The version of the API",
            answer=shape(version=TEXT),
            failures=READS,
        ),
        Operation(
            method="POST",
            path="/api/pull",
            summary="Bring a model here",
            description="Progress comes as lines of JSON unless `stream` is `false`.",
            body=ollama_routes._Named,
            fields=_PLACE,
            answer=_DONE,
            streams=NDJSON,
        ),
        Operation(
            method="POST",
            path="/api/push",
            summary="Not done here: publish a model",
            body=ANYTHING,
            optional_body=True,
            refused=True,
            failures=TAKES,
        ),
        Operation(
            method="POST",
            path="/api/copy",
            summary="Give a stored model one more name",
            body=ollama_routes._Copy,
            failures=TAKES,
        ),
        Operation(
            method="POST",
            path="/api/create",
            summary="Give a stored model one more name, as clients of `create` do",
            description="Everything but `model` and `from` is refused.",
            body=ollama_routes._Create,
            answer=_DONE,
            streams=NDJSON,
            failures=TAKES,
        ),
        Operation(
            method="DELETE",
            path="/api/delete",
            summary="Forget a stored model",
            body=ollama_routes._Named,
            fields=_PLACE,
            failures=TAKES,
        ),
        Operation(
            method="HEAD",
            path="/api/blobs/{digest}",
            summary="Not done here: whether a file is there",
            params=(path("digest", "SHA-256 of the file."),),
            refused=True,
            failures=READS,
        ),
        Operation(
            method="POST",
            path="/api/blobs/{digest}",
            summary="Not done here: take a file",
            body={**TEXT, "format": "binary"},
            body_media="application/octet-stream",
            optional_body=True,
            params=(path("digest", "SHA-256 of the file."),),
            refused=True,
            failures=TAKES,
        ),
    ),
)
