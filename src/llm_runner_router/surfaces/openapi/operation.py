"""How a route is described: rows of data that the document is made of. Pure.

Knows: what can be said of one route and of one API. Does not know: any of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from msgspec import Struct

from .schemas import INTEGER, TEXT, Schema

SSE = "text/event-stream"
NDJSON = "application/x-ndjson"
JSON = "application/json"

READS = (400, 401, 404, 431, 500, 503)
"""Statuses of a failure, of routes that only look something up."""
TAKES = (*READS, 403, 408, 413, 415)
"""Of routes that take a body."""
ANSWERS = (*TAKES, 429, 502, 504)
"""Of routes behind which a model or another server works."""


class Parameter(Struct, frozen=True):
    """Something that is asked for beside the body."""

    name: str
    where: Literal["path", "query", "header"]
    schema: Schema
    description: str = ""


class Operation(Struct, frozen=True, kw_only=True):
    """One method of one route."""

    method: str
    path: str
    """As the route table has it, with its usual prefix: `/v1/models/{model}`."""
    summary: str
    description: str = ""
    body: Any = None
    """A type that `msgspec` knows, or a JSON Schema; None: no body is read."""
    body_media: str = JSON
    optional_body: bool = False
    fields: Mapping[str, Schema] = {}
    """What more there is to say of the fields of `body`."""
    example: Any = None
    """A body that is often asked with."""
    answer: Any = None
    """Of a success: a type, or a JSON Schema; None: there is no body."""
    media: str = JSON
    streams: str = ""
    """The media type of a stream, if there can be one."""
    params: tuple[Parameter, ...] = ()
    failures: tuple[int, ...] = ANSWERS
    public: bool = False
    """It needs no key."""
    refused: bool = False
    """It exists to say why it does not do anything: no success."""
    links: Mapping[str, tuple[str, str, Mapping[str, str]]] = {}
    """Where to go from the answer: name → (method, path, parameter → runtime expression)."""


class Api(Struct, frozen=True, kw_only=True):
    """One API that is spoken here."""

    name: str
    """For people; the operations are listed below it."""
    order: int
    """Where it stands among the others."""
    description: str
    error: Any
    """What a failure looks like: a type, or a JSON Schema."""
    operations: tuple[Operation, ...]
    keys: tuple[str, ...] = ("bearer", "x-api-key", "api-key", "x-goog-api-key")
    """Names of the security schemes, of which any one is enough."""


def path(name: str, description: str) -> Parameter:
    """A part of the path."""
    return Parameter(name, "path", {**TEXT, "minLength": 1}, description)


def query(name: str, schema: Schema, description: str) -> Parameter:
    """A parameter of the query."""
    return Parameter(name, "query", schema, description)


CALL: tuple[Parameter, ...] = (
    Parameter(
        "x-llmrr-timeout",
        "header",
        {"type": "number", "exclusiveMinimum": 0, "maximum": 86400},
        "Seconds for the whole answer; lowers the configured deadline, never raises it.",
    ),
    Parameter(
        "x-session-id", "header", TEXT, "What a sticky split hangs on; else the field `user`."
    ),
    Parameter(
        "x-request-id",
        "header",
        TEXT,
        "Your id, up to 128 letters, digits and `_.:-`; it comes back. Others are replaced.",
    ),
    Parameter("traceparent", "header", TEXT, "W3C trace context."),
)
"""What every request for a model's work may say in headers."""
CHAIN: tuple[Parameter, ...] = (
    *CALL,
    Parameter(
        "x-llmrr-fallbacks",
        "header",
        TEXT,
        "Up to 8 models to try, with commas between, when the one asked for fails before its first "
        "token.",
    ),
)
"""The same for those with a conversation."""
COUNT: Schema = {**INTEGER, "minimum": 0}
