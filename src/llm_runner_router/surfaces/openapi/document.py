"""The OpenAPI 3.1 document, made of the files in `apis/`. Pure but for reading that folder.

Knows: OpenAPI's words. Does not know: any route by name.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from importlib import import_module
from pkgutil import iter_modules
from typing import Any

import msgspec

from llm_runner_router import __version__

from . import apis
from .operation import NDJSON, SSE, Api, Operation, Parameter
from .schemas import Schemas

MEANINGS = {
    400: "The request is malformed, or asks for something that is not done here.",
    401: "No key was shown, or a wrong one.",
    403: "This is not allowed.",
    404: "There is no such model, response or route; the message has the nearest name.",
    408: "The body did not arrive in time.",
    413: "The body is larger than `server.max_body`.",
    415: "The body is not JSON, or compressed.",
    429: "A limit upstream is reached; `Retry-After` says when to come back.",
    431: "The headers are too large.",
    500: "A local engine failed, or something that nobody expected happened.",
    502: "An upstream could not be reached, or failed.",
    503: "Too much is in work, or the server is stopping; `Retry-After` says when to come back.",
    504: "The deadline passed, or an upstream was too slow.",
}
KEYS: dict[str, dict[str, str]] = {
    "bearer": {"type": "http", "scheme": "bearer", "description": "As OpenAI's clients send it."},
    "x-api-key": {"type": "apiKey", "in": "header", "name": "x-api-key",
                  "description": "As Anthropic's clients send it."},
    "api-key": {"type": "apiKey", "in": "header", "name": "api-key",
                "description": "As Azure's clients send it."},
    "x-goog-api-key": {"type": "apiKey", "in": "header", "name": "x-goog-api-key",
                       "description": "As Google's clients send it."},
    "x-amz-security-token": {"type": "apiKey", "in": "header", "name": "x-amz-security-token",
                             "description": "As AWS's clients send their session token."},
    "key": {"type": "apiKey", "in": "query", "name": "key",
            "description": "Google's clients may put it there; on their routes alone."},
}  # fmt: skip
_STREAMS = {
    SSE: "Server-sent events, each with JSON as its `data`.",
    NDJSON: "Lines of JSON.",
}
_ABOUT = """\
Local language models and remote providers behind the APIs that clients already speak.

Paths below `/v1` answer without that prefix as well. Whoever sends `anthropic-version` or
`x-goog-api-key` gets models and errors in that API's shape, whatever the path. An upstream that
speaks the client's own API is passed on byte for byte, and may say more than is described here.
"""


def load() -> tuple[Api, ...]:
    """Every API that has a file, in order."""
    names = [found.name for found in iter_modules(apis.__path__)]
    found = [import_module(f"{apis.__name__}.{name}").API for name in names]
    return tuple(sorted(found, key=lambda api: (api.order, api.name)))


def document(described: Sequence[Api]) -> dict[str, Any]:
    """The document that describes them."""
    schemas = Schemas()
    failures: dict[str, Any] = {}
    paths: dict[str, dict[str, Any]] = {}
    for api in described:
        slug = _slug(api.name)
        error = schemas.of(api.error)
        for status in sorted({status for one in api.operations for status in one.failures}):
            failures[f"{slug}.{status}"] = _failure(status, error)
        for one in api.operations:
            paths.setdefault(one.path, {})[one.method.lower()] = _operation(one, api, schemas)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "LLM-Runner-Router",
            "version": __version__,
            "description": _ABOUT,
            "license": {"name": "MIT", "identifier": "MIT"},
        },
        "servers": [{"url": "/", "description": "This server."}],
        "tags": [{"name": api.name, "description": api.description} for api in described],
        "paths": paths,
        "components": {
            "schemas": dict(sorted(schemas.named.items())),
            "responses": failures,
            "securitySchemes": KEYS,
        },
    }


def encoded() -> bytes:
    """The document as JSON."""
    return msgspec.json.encode(document(load()))


def described_routes(described: Iterable[Api]) -> set[tuple[str, str]]:
    """The (path, method) pairs that are described."""
    return {(one.path, one.method) for api in described for one in api.operations}


def operation_id(method: str, path: str) -> str:
    """The name of an operation: `post_v1_chat_completions`."""
    return "_".join([method.lower(), *re.findall(r"[A-Za-z0-9]+", path)])


def _slug(name: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def _operation(one: Operation, api: Api, schemas: Schemas) -> dict[str, Any]:
    told: dict[str, Any] = {
        "operationId": operation_id(one.method, one.path),
        "tags": [api.name],
        "summary": one.summary,
    }
    if one.description:
        told["description"] = one.description
    if one.params:
        told["parameters"] = [_parameter(given) for given in one.params]
    if one.body is not None:
        schema = schemas.of(one.body, one.fields)
        content: dict[str, Any] = {one.body_media: {"schema": schema}}
        if one.example is not None:
            content[one.body_media]["example"] = one.example
        told["requestBody"] = {"required": not one.optional_body, "content": content}
    told["responses"] = {} if one.refused else {"200": _success(one, schemas)}
    for status in sorted(one.failures):
        where = f"#/components/responses/{_slug(api.name)}.{status}"
        told["responses"][str(status)] = {"$ref": where}
    told["security"] = [] if one.public else [{key: []} for key in api.keys]
    return told


def _parameter(given: Parameter) -> dict[str, Any]:
    told: dict[str, Any] = {"name": given.name, "in": given.where, "schema": given.schema}
    if given.where == "path":
        told["required"] = True
    if given.description:
        told["description"] = given.description
    return told


def _success(one: Operation, schemas: Schemas) -> dict[str, Any]:
    told: dict[str, Any] = {"description": "What was asked for.", "headers": _headers()}
    content = {}
    if one.answer is not None:
        content[one.media] = {"schema": schemas.of(one.answer)}
    if one.streams and one.streams not in content:
        # OpenAPI 3.1 has no word for what one event or one line is.
        content[one.streams] = {"schema": {"description": _STREAMS[one.streams]}}
    if content:
        told["content"] = content
    if one.links:
        told["links"] = {
            name: {"operationId": operation_id(method, path), "parameters": dict(values)}
            for name, (method, path, values) in one.links.items()
        }
    return told


def _failure(status: int, error: Mapping[str, Any]) -> dict[str, Any]:
    headers = _headers()
    if status in (429, 503):
        headers["retry-after"] = {"schema": {"type": "integer"}, "description": "Seconds."}
    content = {"application/json": {"schema": error}}
    return {"description": MEANINGS[status], "headers": headers, "content": content}


def _headers() -> dict[str, Any]:
    about = "Names this request in the record and in the log."
    return {"x-request-id": {"schema": {"type": "string"}, "description": about}}
